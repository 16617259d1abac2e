package netproxy

import (
	"slices"
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
)

// space is one namespace's policies in a Tracker.
type space struct {
	newest map[string]policyPair
	// inForce is what is enforced of each.
	inForce map[string]*trackedPolicy
	// pending holds the pod selectors of the policies whose newest generation has not
	// begun: few, and for milliseconds.
	pending map[string]object.Selector
	units   []*Unit
}

type trackedPolicy struct {
	pair     policyPair
	policy   *Policy // nil if it could not be read
	problems []Problem
}

// SetPolicy adds or changes a policy. The object is kept, and only read.
func (t *Tracker) SetPolicy(p *balsav1.NetworkPolicy) {
	t.setPair(nameOf(p.GetMetadata()), func(pair *policyPair) { pair.policy = p })
}

// DeletePolicy forgets a policy.
func (t *Tracker) DeletePolicy(namespace, name string) {
	t.setPair(objectName{namespace, name}, func(pair *policyPair) { pair.policy = nil })
}

// SetPolicySlice adds or changes what a policy's selectors stand for. The object
// is kept, and only read.
func (t *Tracker) SetPolicySlice(s *balsav1.NetworkPolicySlice) {
	t.setPair(nameOf(s.GetMetadata()), func(pair *policyPair) { pair.slice = s })
}

// DeletePolicySlice forgets it.
func (t *Tracker) DeletePolicySlice(namespace, name string) {
	t.setPair(objectName{namespace, name}, func(pair *policyPair) { pair.slice = nil })
}

func (t *Tracker) setPair(name objectName, change func(*policyPair)) {
	s := t.spaces[name.namespace]
	if s == nil {
		s = &space{newest: map[string]policyPair{}, inForce: map[string]*trackedPolicy{}, pending: map[string]object.Selector{}}
		t.spaces[name.namespace] = s
	}
	pair := s.newest[name.name]
	change(&pair)
	s.newest[name.name] = pair
	if pair == (policyPair{}) {
		delete(s.newest, name.name)
	}
	s.choose(name.name)
	t.dirtySpaces[name.namespace] = true
}

// choose says what is in force. Where the slice has no copy of the policy, that is
// the pair before until the new one fits together.
func (s *space) choose(name string) {
	pair := s.newest[name]
	s.notePending(name, pair)
	before := s.inForce[name]
	switch {
	case !pair.begun():
		delete(s.inForce, name)
		return
	case pair.whole() || before == nil:
	case needsSlice(pair.policy) && !pair.resolved() && (before.pair.whole() || before.pair.resolved()):
		return
	}
	now := &trackedPolicy{pair: pair}
	now.policy, now.problems = pair.read()
	s.inForce[name] = now
}

func (s *space) notePending(name string, pair policyPair) {
	delete(s.pending, name)
	if !pair.pending() {
		return
	}
	if selector, err := selectorOf(pair.policy.GetSpec()); err == nil { // else it limits none
		s.pending[name] = selector
	}
}

// Pending names the policies that select the pod, as namespace/name, but have not
// begun, or not as users last wrote them, since servers have not told what their
// selectors stand for.
func (t *Tracker) Pending(pod LocalPod) (names []string) {
	s := t.spaces[pod.Namespace]
	if s == nil {
		return nil
	}
	for name, selector := range s.pending {
		if selector.Matches(pod.Labels) {
			names = append(names, pod.Namespace+"/"+name)
		}
	}
	slices.Sort(names)
	return names
}

// policies lists those in force, sorted by name.
func (s *space) policies() []*Policy {
	var out []*Policy
	for _, p := range s.inForce {
		if p.policy != nil {
			out = append(out, p.policy)
		}
	}
	slices.SortFunc(out, comparePolicies)
	return out
}

func (t *Tracker) setPolicies(policies []*balsav1.NetworkPolicy, resolved []*balsav1.NetworkPolicySlice) {
	type kept struct{ policy, slice bool }
	keep := map[objectName]kept{}
	for _, s := range resolved {
		name := nameOf(s.GetMetadata())
		keep[name] = kept{slice: true}
		if t.pair(name).slice != s {
			t.SetPolicySlice(s)
		}
	}
	for _, p := range policies {
		name := nameOf(p.GetMetadata())
		keep[name] = kept{policy: true, slice: keep[name].slice}
		if t.pair(name).policy != p {
			t.SetPolicy(p)
		}
	}
	for namespace, s := range t.spaces {
		for name, pair := range s.newest {
			k := keep[objectName{namespace, name}]
			if pair.policy != nil && !k.policy {
				t.DeletePolicy(namespace, name)
			}
			if pair.slice != nil && !k.slice {
				t.DeletePolicySlice(namespace, name)
			}
		}
	}
}

func (t *Tracker) pair(name objectName) policyPair {
	if s := t.spaces[name.namespace]; s != nil {
		return s.newest[name.name]
	}
	return policyPair{}
}

func (t *Tracker) planSpace(namespace string) {
	s := t.spaces[namespace]
	if s == nil {
		return
	}
	var pods []*LocalPod
	for _, p := range t.pods {
		if p.Namespace == namespace && p.IP.Is4() {
			pods = append(pods, p)
		}
	}
	slices.SortFunc(pods, comparePods)
	units, problems := policyUnits(pods, s.policies())
	for _, p := range s.inForce {
		problems = append(problems, p.problems...)
	}
	t.replaceUnits(namespace, s, units)
	t.setProblems("n"+namespace, problems)
	if len(s.newest) == 0 {
		delete(t.spaces, namespace)
	}
}

func (t *Tracker) replaceUnits(namespace string, s *space, units []*Unit) {
	now := make(map[string]bool, len(units))
	for _, u := range units {
		now[u.ID] = true
	}
	for _, u := range s.units {
		if !now[u.ID] && !t.takenOver(namespace, u.ID) {
			t.edit.remove(u.ID)
		}
	}
	for _, u := range units {
		t.edit.set(u)
	}
	s.units = units
}

// takenOver reports that a unit belongs to a pod whose address has gone over to
// a pod of another namespace, which policies limit as well.
func (t *Tracker) takenOver(namespace, id string) bool {
	for _, sort := range []string{sortEgress, sortIngress} {
		if address, found := strings.CutPrefix(id, sort); found {
			for other, s := range t.spaces {
				if other != namespace && slices.ContainsFunc(s.units, func(u *Unit) bool { return u.ID == sort+address }) {
					return true
				}
			}
		}
	}
	return false
}
