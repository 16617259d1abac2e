package object

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// Operators of a selector's requirements, as a LabelSelector writes them.
const (
	OpIn           = "In"
	OpNotIn        = "NotIn"
	OpExists       = "Exists"
	OpDoesNotExist = "DoesNotExist"
)

// Requirement is one condition on a label.
type Requirement struct {
	Key      string
	Operator string
	// Sorted. Exactly the allowed ones for OpIn, the refused ones for OpNotIn.
	Values []string
}

// Selector is a conjunction of requirements on labels. The zero value matches
// everything; use Nothing for one that matches nothing.
type Selector struct {
	requirements []Requirement
	nothing      bool
}

// Nothing matches no labels at all.
func Nothing() Selector { return Selector{nothing: true} }

// Empty tells whether the selector matches everything.
func (s Selector) Empty() bool { return !s.nothing && len(s.requirements) == 0 }

// Requirements returns a copy of the requirements.
func (s Selector) Requirements() []Requirement { return slices.Clone(s.requirements) }

// Matches tells whether labels meet every requirement.
func (s Selector) Matches(labels map[string]string) bool {
	if s.nothing {
		return false
	}
	for i := range s.requirements {
		if !s.requirements[i].matches(labels) {
			return false
		}
	}
	return true
}

func (r *Requirement) matches(labels map[string]string) bool {
	value, present := labels[r.Key]
	switch r.Operator {
	case OpIn:
		return present && slices.Contains(r.Values, value)
	case OpNotIn:
		return !present || !slices.Contains(r.Values, value)
	case OpExists:
		return present
	default:
		return !present
	}
}

// Exact returns a label that every match carries with a known value, so that a
// reader can use an index; ok is false when there is none.
func (s Selector) Exact() (key, value string, ok bool) {
	for _, r := range s.requirements {
		if r.Operator == OpIn && len(r.Values) == 1 {
			return r.Key, r.Values[0], true
		}
	}
	return "", "", false
}

// String writes the selector in the form that ParseSelector reads.
func (s Selector) String() string {
	if s.nothing {
		return "<nothing>"
	}
	parts := make([]string, len(s.requirements))
	for i, r := range s.requirements {
		parts[i] = r.String()
	}
	return strings.Join(parts, ",")
}

func (r Requirement) String() string {
	switch {
	case r.Operator == OpExists:
		return r.Key
	case r.Operator == OpDoesNotExist:
		return "!" + r.Key
	case r.Operator == OpIn && len(r.Values) == 1:
		return r.Key + "=" + r.Values[0]
	case r.Operator == OpNotIn && len(r.Values) == 1:
		return r.Key + "!=" + r.Values[0]
	case r.Operator == OpIn:
		return r.Key + " in (" + strings.Join(r.Values, ",") + ")"
	default:
		return r.Key + " notin (" + strings.Join(r.Values, ",") + ")"
	}
}

// SelectorFrom makes a selector of a LabelSelector. As in Kubernetes, an absent
// one matches nothing and an empty one everything.
func SelectorFrom(ls *balsav1.LabelSelector) (Selector, error) {
	if ls == nil {
		return Nothing(), nil
	}
	s := SelectorFromLabels(ls.GetMatchLabels())
	for _, e := range ls.GetMatchExpressions() {
		r, err := newRequirement(e.GetKey(), e.GetOperator(), e.GetValues())
		if err != nil {
			return Selector{}, err
		}
		s.requirements = append(s.requirements, r)
	}
	return s, nil
}

// SelectorFromLabels matches objects that carry all of the given labels.
func SelectorFromLabels(labels map[string]string) Selector {
	var s Selector
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		s.requirements = append(s.requirements, Requirement{key, OpIn, []string{labels[key]}})
	}
	return s
}

// ServiceSelector matches a Service's pods. As in Kubernetes, a Service without
// a selector has none.
func ServiceSelector(svc *balsav1.Service) Selector {
	if len(svc.GetSpec().GetSelector()) == 0 {
		return Nothing()
	}
	return SelectorFromLabels(svc.GetSpec().GetSelector())
}

func newRequirement(key, operator string, values []string) (Requirement, error) {
	if problem := labelKeyProblem(key); problem != "" {
		return Requirement{}, fmt.Errorf("selector: key %q: %s", key, problem)
	}
	switch operator {
	case OpIn, OpNotIn:
		if len(values) == 0 {
			return Requirement{}, fmt.Errorf("selector: %s %s: at least one value is needed", key, operator)
		}
	case OpExists, OpDoesNotExist:
		if len(values) > 0 {
			return Requirement{}, fmt.Errorf("selector: %s %s: takes no values, found %d", key, operator, len(values))
		}
	default:
		return Requirement{}, fmt.Errorf("selector: %s: found operator %q, allowed: In, NotIn, Exists, DoesNotExist", key, operator)
	}
	for _, v := range values {
		if problem := labelValueProblem(v); problem != "" {
			return Requirement{}, fmt.Errorf("selector: %s: value %q: %s", key, v, problem)
		}
	}
	values = slices.Sorted(slices.Values(values))
	return Requirement{key, operator, slices.Compact(values)}, nil
}
