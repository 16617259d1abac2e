package object

import (
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// Tolerates tells whether one of a pod's tolerations matches a taint.
func Tolerates(tolerations []*balsav1.Toleration, taint *balsav1.Taint) bool {
	for _, t := range tolerations {
		if matchesTaint(t, taint) {
			return true
		}
	}
	return false
}

func matchesTaint(t *balsav1.Toleration, taint *balsav1.Taint) bool {
	if t.GetEffect() != "" && t.GetEffect() != taint.GetEffect() || t.GetKey() != "" && t.GetKey() != taint.GetKey() {
		return false
	}
	if t.GetOperator() == TolerateExists {
		return true
	}
	return t.GetKey() != "" && t.GetValue() == taint.GetValue()
}

// UntoleratedTaint finds the first taint, of those with one of effects, that no
// toleration matches; nil when there is none.
func UntoleratedTaint(taints []*balsav1.Taint, tolerations []*balsav1.Toleration, effects ...string) *balsav1.Taint {
	for _, taint := range taints {
		for _, effect := range effects {
			if taint.GetEffect() == effect && !Tolerates(tolerations, taint) {
				return taint
			}
		}
	}
	return nil
}

// ToleratesFor tells how long a pod may stay on a node that got a taint of effect
// NoExecute: not at all, for some time, or for ever.
func ToleratesFor(tolerations []*balsav1.Toleration, taint *balsav1.Taint) (d time.Duration, forEver bool) {
	matched, limited := false, false
	for _, t := range tolerations {
		if !matchesTaint(t, taint) {
			continue
		}
		matched = true
		if t.TolerationSeconds == nil {
			continue
		}
		// Less than 0 is 0; what is longer than maxSeconds is not told apart.
		own := time.Duration(min(max(t.GetTolerationSeconds(), 0), maxSeconds)) * time.Second
		if !limited || own < d {
			d = own
		}
		limited = true
	}
	return d, matched && !limited
}
