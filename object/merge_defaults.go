package object

import (
	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// dropStaleDefaults removes what an earlier default filled in and what now would
// contradict the manifest.
func dropStaleDefaults(live, merged Message, p merger) {
	const path = "spec.strategy.rollingUpdate"
	d, ok := merged.(*balsav1.Deployment)
	if ok && d.GetSpec().GetStrategy().GetType() == StrategyRecreate && p.unmentioned(path) {
		d.Spec.Strategy.RollingUpdate = nil
	}
	if svc, ok := merged.(*balsav1.Service); ok {
		svc.Spec = ensure(svc.Spec)
		keepService(ensure(live.(*balsav1.Service).GetSpec()), svc.Spec, func(path string) bool { return !p.unmentioned(path) })
		dropBalancer(svc)
	}
	if policy, ok := merged.(*balsav1.NetworkPolicy); ok {
		policy.Spec = ensure(policy.Spec)
		dropPolicyTypes(live.(*balsav1.NetworkPolicy).GetSpec(), policy.Spec, p)
	}
	dropPullPolicies(live, merged, p)
}

func (p *merger) unmentioned(path string) bool {
	return !p.mentioned.touches(path) && !p.foreign.touches(path)
}

// dropPullPolicies: a policy that nobody gave and that follows from the image
// follows from the new image when it changes.
func dropPullPolicies(live, merged Message, p merger) {
	before, _ := podSpecOf(live)
	spec, path := podSpecOf(merged)
	for _, lists := range []struct {
		name        string
		before, now []*balsav1.Container
	}{{"containers", before.GetContainers(), spec.GetContainers()}, {"initContainers", before.GetInitContainers(), spec.GetInitContainers()}} {
		images := map[string]*balsav1.Container{}
		for _, c := range lists.before {
			images[c.GetName()] = c
		}
		for _, c := range lists.now {
			old := images[c.GetName()]
			stale := old != nil && old.GetImage() != c.GetImage() && old.GetImagePullPolicy() == pullPolicyOf(old.GetImage())
			here := field(path, lists.name) + "[name=" + keyText(c.GetName(), "name") + "].imagePullPolicy"
			if stale && p.unmentioned(here) {
				c.ImagePullPolicy = ""
			}
		}
	}
}

// podSpecOf is the pod's spec that an object is or makes, and its path.
func podSpecOf(m Message) (*balsav1.PodSpec, string) {
	switch m := m.(type) {
	case *balsav1.Pod:
		return m.GetSpec(), "spec"
	case *balsav1.ReplicaSet:
		return m.GetSpec().GetTemplate().GetSpec(), "spec.template.spec"
	case *balsav1.Deployment:
		return m.GetSpec().GetTemplate().GetSpec(), "spec.template.spec"
	}
	return nil, ""
}
