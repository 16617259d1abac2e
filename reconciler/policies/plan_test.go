package policies

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
)

func policy(ingress []*balsav1.NetworkPolicyPeer, egress *balsav1.NetworkPolicyEgressRule) *balsav1.NetworkPolicy {
	p := &balsav1.NetworkPolicy{
		Metadata: &balsav1.ObjectMeta{Name: "p", Namespace: "shop", Uid: "u", Generation: 3},
		Spec:     &balsav1.NetworkPolicySpec{PodSelector: &balsav1.LabelSelector{}},
	}
	if ingress != nil {
		p.Spec.Ingress = []*balsav1.NetworkPolicyIngressRule{{From: ingress}}
	}
	if egress != nil {
		p.Spec.Egress = []*balsav1.NetworkPolicyEgressRule{egress}
	}
	return p
}

func labelled(words ...string) *balsav1.LabelSelector {
	s := &balsav1.LabelSelector{MatchLabels: map[string]string{}}
	for _, w := range words {
		k, v, _ := strings.Cut(w, "=")
		s.MatchLabels[k] = v
	}
	return s
}

func pod(namespace, name, ip string, labels ...string) *balsav1.Pod {
	return &balsav1.Pod{
		Metadata: &balsav1.ObjectMeta{Name: name, Namespace: namespace, Labels: labelled(labels...).MatchLabels},
		Spec:     &balsav1.PodSpec{Containers: []*balsav1.Container{{Name: "c"}}},
		Status:   &balsav1.PodStatus{Phase: object.PodRunning, PodIp: ip},
	}
}

func world(pods ...*balsav1.Pod) View {
	v := View{Pods: func(namespace string) (out []*balsav1.Pod) {
		for _, p := range pods {
			if p.GetMetadata().GetNamespace() == namespace {
				out = append(out, p)
			}
		}
		return out
	}}
	for _, name := range []string{"shop", "lab"} {
		v.Namespaces = append(v.Namespaces, &balsav1.Namespace{Metadata: &balsav1.ObjectMeta{Name: name, Labels: map[string]string{"team": name}}})
	}
	return v
}

func TestPlan(t *testing.T) {
	db := pod("lab", "db", "10.0.0.9", "app=db")
	db.Spec.Containers[0].Ports = []*balsav1.ContainerPort{{Name: "sql", ContainerPort: 5432}, {Name: "stats", ContainerPort: 9100}}
	host, over, waiting := pod("shop", "host", "192.0.2.1", "app=web"), pod("shop", "over", "10.0.0.7", "app=web"), pod("shop", "waiting", "", "app=web")
	yes := true
	host.Spec.HostNetwork, over.Status.Phase = &yes, object.PodSucceeded
	v := world(pod("shop", "b", "10.0.0.10", "app=web"), pod("shop", "a", "10.0.0.2", "app=web"), pod("lab", "web", "10.0.0.3", "app=web"), db, host, over, waiting)
	for name, test := range map[string]struct {
		policy *balsav1.NetworkPolicy
		want   string
	}{
		"pods of the policy's namespace, by address": {
			policy([]*balsav1.NetworkPolicyPeer{{PodSelector: labelled("app=web")}}, nil),
			"create p generation 3\nIngress rule 0 peer 0\n  10.0.0.2 shop/a\n  10.0.0.10 shop/b\n",
		},
		"every pod of a namespace": {
			policy([]*balsav1.NetworkPolicyPeer{{NamespaceSelector: labelled("team=lab")}}, nil),
			"create p generation 3\nIngress rule 0 peer 0\n  10.0.0.3 lab/web\n  10.0.0.9 lab/db\n",
		},
		"pods of other namespaces": {
			policy([]*balsav1.NetworkPolicyPeer{{NamespaceSelector: labelled(), PodSelector: labelled("app=web")}}, nil),
			"create p generation 3\nIngress rule 0 peer 0\n  10.0.0.2 shop/a\n  10.0.0.3 lab/web\n  10.0.0.10 shop/b\n",
		},
		"addresses need no pods": {
			policy([]*balsav1.NetworkPolicyPeer{{IpBlock: &balsav1.IPBlock{Cidr: "0.0.0.0/0"}}, {PodSelector: labelled("app=db")}}, nil),
			"create p generation 3\nIngress rule 0 peer 1\n",
		},
		"names of ports that are connected to": {
			policy(nil, &balsav1.NetworkPolicyEgressRule{
				To:    []*balsav1.NetworkPolicyPeer{{NamespaceSelector: labelled(), PodSelector: labelled("app=db")}},
				Ports: []*balsav1.NetworkPolicyPort{{Port: object.StringValue("sql")}, {Port: object.IntValue(80)}},
			}),
			"create p generation 3\nEgress rule 0 peer 0\n  10.0.0.9 lab/db sql=5432/TCP\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			v := v
			v.Policy = test.policy
			a, err := Plan(v)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, a.String()); diff != "" {
				t.Error(diff)
			}
			v.Slice = a.Create
			if again, err := Plan(v); err != nil || !again.Empty() {
				t.Errorf("planned again: %v %v", again.String(), err)
			}
		})
	}
}

func TestBadSelector(t *testing.T) {
	v := world()
	v.Policy = policy([]*balsav1.NetworkPolicyPeer{{PodSelector: &balsav1.LabelSelector{MatchExpressions: []*balsav1.LabelSelectorRequirement{{Key: "a", Operator: "Near"}}}}}, nil)
	if _, err := Plan(v); err == nil || !strings.Contains(err.Error(), "Ingress rule 0 peer 0: podSelector") {
		t.Errorf("got %v", err)
	}
}

// TestTheSliceHasTheWholePolicy: nodes enforce the copy, of the generation that the
// addresses are of; it replaces one of another generation, and is written to slices
// of servers that did not know it, and for a policy without a spec.
func TestTheSliceHasTheWholePolicy(t *testing.T) {
	v := world(pod("shop", "a", "10.0.0.2", "app=web"))
	v.Policy = policy([]*balsav1.NetworkPolicyPeer{{PodSelector: labelled("app=web")}}, nil)
	plan := func() *balsav1.NetworkPolicySlice {
		t.Helper()
		a, err := Plan(v)
		if err != nil || a.Empty() {
			t.Fatalf("%v %v", a.String(), err)
		}
		s := a.Update
		if s == nil {
			s = a.Create
		}
		if !proto.Equal(s.GetPolicy(), v.Policy.GetSpec()) || s.GetPolicy() == v.Policy.GetSpec() || s.GetObservedGeneration() != v.Policy.GetMetadata().GetGeneration() {
			t.Fatalf("slice %v of policy %v", s, v.Policy)
		}
		return s
	}
	v.Slice = plan()
	v.Policy = object.Clone(v.Policy)
	v.Policy.Spec.PolicyTypes, v.Policy.Metadata.Generation = []string{Ingress, Egress}, 4
	v.Slice = plan()
	v.Slice.Policy = nil // as older servers wrote it
	v.Slice = plan()
	if a, err := Plan(v); err != nil || !a.Empty() {
		t.Errorf("planned again: %v %v", a.String(), err)
	}
	v.Policy.Spec, v.Slice = nil, nil
	if a, err := Plan(v); err != nil || a.Create.GetPolicy() == nil {
		t.Errorf("of a policy without a spec: %v %v", a.Create, err)
	}
}

// TestTheLimitCloses: what does not fit is left out, never replaced by everybody.
func TestTheLimitCloses(t *testing.T) {
	var pods []*balsav1.Pod
	for i := range MaxPods + 7 {
		pods = append(pods, pod("shop", fmt.Sprint("p", i), fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255), "app=web"))
	}
	v := world(pods...)
	v.Policy = policy([]*balsav1.NetworkPolicyPeer{{PodSelector: labelled("app=web")}, {PodSelector: labelled("app=web")}}, nil)
	a, err := Plan(v)
	if err != nil {
		t.Fatal(err)
	}
	peers := a.Create.GetPeers()
	if len(peers) != 2 || len(peers[0].GetPods()) != MaxPods || len(peers[1].GetPods()) != 0 || a.LeftOut != 7+MaxPods+7 {
		t.Errorf("%d peers, left out %d", len(peers), a.LeftOut)
	}
}

// TestEveryPeerIsItsDefinition: for random pods, namespaces and selectors a peer
// stands for exactly the pods that the definition names, one by one.
func TestEveryPeerIsItsDefinition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		label := rapid.SampledFrom([]string{"app=a", "app=b", "tier=x"})
		var pods []*balsav1.Pod
		for i := range rapid.IntRange(0, 12).Draw(t, "pods") {
			p := pod(rapid.SampledFrom([]string{"shop", "lab"}).Draw(t, "in"), fmt.Sprint("p", i), "", rapid.SliceOfN(label, 0, 2).Draw(t, "labels")...)
			if rapid.Bool().Draw(t, "has an address") {
				p.Status.PodIp = fmt.Sprintf("10.0.0.%d", rapid.IntRange(1, 9).Draw(t, "ip"))
			}
			p.Status.Phase = rapid.SampledFrom([]string{object.PodRunning, object.PodFailed}).Draw(t, "phase")
			pods = append(pods, p)
		}
		peer := &balsav1.NetworkPolicyPeer{}
		if rapid.Bool().Draw(t, "by pods") {
			peer.PodSelector = labelled(rapid.SliceOfN(label, 0, 1).Draw(t, "want")...)
		}
		if peer.PodSelector == nil || rapid.Bool().Draw(t, "by namespaces") {
			peer.NamespaceSelector = labelled(rapid.SampledFrom([][]string{nil, {"team=lab"}, {"team=none"}}).Draw(t, "teams")...)
		}
		v := world(pods...)
		v.Policy = policy([]*balsav1.NetworkPolicyPeer{peer}, nil)
		a, err := Plan(v)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, p := range a.Create.GetPeers()[0].GetPods() {
			got = append(got, p.GetIp())
		}
		slices.Sort(got)
		if diff := cmp.Diff(definition(peer, pods), got); diff != "" {
			t.Fatal(diff)
		}
	})
}

func definition(peer *balsav1.NetworkPolicyPeer, pods []*balsav1.Pod) (ips []string) {
	has := func(labels map[string]string, s *balsav1.LabelSelector) bool {
		for k, v := range s.GetMatchLabels() {
			if labels[k] != v {
				return false
			}
		}
		return true
	}
	for _, p := range pods {
		in := p.GetMetadata().GetNamespace()
		inside := in == "shop"
		if peer.GetNamespaceSelector() != nil {
			inside = has(map[string]string{"team": in}, peer.GetNamespaceSelector())
		}
		if inside && p.GetStatus().GetPodIp() != "" && p.GetStatus().GetPhase() == object.PodRunning && has(p.GetMetadata().GetLabels(), peer.GetPodSelector()) {
			ips = append(ips, p.GetStatus().GetPodIp())
		}
	}
	slices.Sort(ips)
	return slices.Compact(ips)
}
