package netproxy_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/netproxy"
	world "github.com/balsa-run/balsa/netproxy/netproxytest"
)

// policyFor lets pods that a selector stands for in to pod a; slice is its
// resolution for a generation.
func policyFor(generation int64, peers ...string) (*balsav1.NetworkPolicy, *balsav1.NetworkPolicySlice) {
	meta := &balsav1.ObjectMeta{Namespace: "default", Name: "p", Generation: generation}
	policy := &balsav1.NetworkPolicy{Metadata: meta, Spec: &balsav1.NetworkPolicySpec{PodSelector: &balsav1.LabelSelector{MatchLabels: map[string]string{"pod": "a"}},
		Ingress: []*balsav1.NetworkPolicyIngressRule{{From: []*balsav1.NetworkPolicyPeer{{PodSelector: &balsav1.LabelSelector{}}}}}}}
	slice := &balsav1.NetworkPolicySlice{Metadata: meta, ObservedGeneration: generation, Peers: []*balsav1.ResolvedPeer{{Direction: "Ingress"}}}
	for _, ip := range peers {
		slice.Peers[0].Pods = append(slice.Peers[0].Pods, &balsav1.ResolvedPod{Ip: ip})
	}
	return policy, slice
}

func admitted(r netproxy.Ruleset, from string) bool {
	_, ingress := r.Judge(netproxy.Connection{From: addr(from), To: addr(world.PodA), Protocol: netproxy.TCP, Port: 80})
	return ingress
}

// Of servers whose slices have no copy of the policy, its new spec waits for the
// addresses of its selectors; meanwhile the one before is in force, so that an edit
// refuses nobody. One that was resolved for another generation only refuses what
// its selectors would allow, and says so.
func TestTrackerHoldsPoliciesBack(t *testing.T) {
	w := world.New()
	tracker := netproxy.NewTracker(w.Node)
	tracker.Set(w.Objects())
	first, firstSlice := policyFor(1, world.PodB)
	tracker.SetPolicy(first)
	r := tracker.Ruleset(1)
	if !admitted(r, world.PodC) || len(r.Problems) > 0 {
		t.Errorf("a policy begins before its slice is there; problems %v", r.Problems)
	}
	_, other := policyFor(9, world.PodB)
	tracker.SetPolicySlice(other)
	r = tracker.Ruleset(1)
	if admitted(r, world.PodB) || len(r.Problems) != 1 || !strings.Contains(r.Problems[0].Reason, "not resolved for generation 1") {
		t.Errorf("unresolved: admitted, or problems %v", r.Problems)
	}
	tracker.SetPolicySlice(firstSlice)
	if r = tracker.Ruleset(2); !admitted(r, world.PodB) || len(r.Problems) > 0 {
		t.Errorf("resolved: refused, or problems %v", r.Problems)
	}
	if !r.Limits(addr(world.PodA), netproxy.Ingress) || r.Limits(addr(world.PodA), netproxy.Egress) || r.Limits(addr(world.PodB), netproxy.Ingress) {
		t.Error("Limits does not say which pods policies limit")
	}
	second, secondSlice := policyFor(2, world.PodC)
	tracker.SetPolicy(second)
	if r = tracker.Ruleset(3); !admitted(r, world.PodB) || admitted(r, world.PodC) || len(r.Problems) > 0 {
		t.Errorf("edited, not resolved yet: the policy before is not in force; problems %v", r.Problems)
	}
	before := r
	tracker.SetPolicySlice(secondSlice)
	if r = tracker.Ruleset(4); admitted(r, world.PodB) || !admitted(r, world.PodC) {
		t.Error("resolved: the new policy is not in force")
	}
	if c := netproxy.Diff(before, r); len(c.Judge) != 1 || c.Judge[0] != addr(world.PodA) {
		t.Errorf("pods to be judged again: %v, want pod a", c.Judge)
	}
	_, more := policyFor(2, world.PodB, world.PodC)
	before = r
	tracker.SetPolicySlice(more)
	if c := netproxy.Diff(before, tracker.Ruleset(5)); len(c.Judge) > 0 || c.Elements() == 0 {
		t.Errorf("a peer more: %v", c)
	}
	tracker.DeletePolicy("default", "p")
	tracker.DeletePolicySlice("default", "p")
	if r = tracker.Ruleset(6); r.Limits(addr(world.PodA), netproxy.Ingress) {
		t.Error("deleted, and still in force")
	}
}

// Naive planning cannot know the policy before: it refuses and says so.
func TestUnresolvedPolicyIsAProblem(t *testing.T) {
	w := world.New()
	o := w.Objects()
	policy, _ := policyFor(2, world.PodB)
	_, old := policyFor(1, world.PodB)
	o.Policies, o.PolicySlices = []*balsav1.NetworkPolicy{policy}, []*balsav1.NetworkPolicySlice{old}
	if r := netproxy.Plan(netproxy.FromObjects(1, w.Node, o)); admitted(r, world.PodB) || len(r.Problems) != 1 {
		t.Errorf("admitted by another generation's addresses, or problems %v", r.Problems)
	}
	v := netproxy.Explain(o, netproxy.Connection{From: addr(world.PodB), To: addr(world.PodA), Protocol: netproxy.TCP, Port: 80})
	if v.Allowed || len(v.Problems) != 1 || len(v.Ingress.Policies) != 1 {
		t.Errorf("%+v", v)
	}
}

func TestExplainNamesTheRule(t *testing.T) {
	w := world.New()
	o := w.Objects()
	policy, slice := policyFor(1, world.PodB)
	policy.Spec.Ingress = append([]*balsav1.NetworkPolicyIngressRule{{From: []*balsav1.NetworkPolicyPeer{{IpBlock: &balsav1.IPBlock{Cidr: "192.0.2.0/24"}}}}}, policy.Spec.Ingress...)
	slice.Peers[0].Rule = 1
	o.Policies, o.PolicySlices = []*balsav1.NetworkPolicy{policy}, []*balsav1.NetworkPolicySlice{slice}
	v := netproxy.Explain(o, netproxy.Connection{From: addr(world.PodB), To: addr(world.PodA), Protocol: netproxy.TCP, Port: 80})
	if !v.Allowed || v.Ingress.Policy != "default/p" || v.Ingress.Field(netproxy.Ingress) != "spec.ingress[1]" || v.Egress.Limited {
		t.Errorf("%+v", v)
	}
	v = netproxy.Explain(o, netproxy.Connection{From: addr(world.PodC), To: addr(world.PodA), Protocol: netproxy.TCP, Port: 80})
	if v.Allowed || !v.Egress.Allowed || v.Ingress.Allowed || v.Ingress.Field(netproxy.Ingress) != "" || len(v.Ingress.Policies) != 1 {
		t.Errorf("%+v", v)
	}
}

// An address goes from a pod to another one of another namespace; whichever is
// told first, the newest has it.
func TestAddressesChangeHands(t *testing.T) {
	w := world.New()
	tracker := netproxy.NewTracker(w.Node)
	policy, slice := policyFor(1, world.PodB)
	tracker.SetPolicy(policy)
	tracker.SetPolicySlice(slice)
	a := w.Local()[0]
	tracker.SetPod(a)
	tracker.Ruleset(1)
	heir := netproxy.LocalPod{IP: a.IP, Namespace: "other", Name: "heir", Labels: a.Labels}
	tracker.SetPod(heir)
	tracker.DeletePod(a.IP, a.Namespace, a.Name) // late news of the old pod
	if r := tracker.Ruleset(2); r.Limits(a.IP, netproxy.Ingress) {
		t.Error("the heir is limited by another namespace's policy")
	}
	tracker.DeletePod(heir.IP, heir.Namespace, heir.Name)
	if r := tracker.Ruleset(3); r.Elements() != 0 {
		t.Errorf("left over:\n%v", r)
	}
}

// At the limit the tracker leaves out what Plan leaves out.
func TestTrackerOverTheLimit(t *testing.T) {
	services, slices := manyObjects(netproxy.MaxServicePorts+3, 0)
	for i, s := range services {
		s.Spec.ClusterIp = netip.AddrFrom4([4]byte{10, byte(96 + i>>16), byte(i >> 8), byte(i)}).String()
	}
	o := netproxy.Objects{Services: services, Slices: slices}
	node := world.New().Node
	tracker := netproxy.NewTracker(node)
	tracker.Set(o)
	got, want := tracker.Ruleset(1), netproxy.Plan(netproxy.FromObjects(1, node, o))
	if c := netproxy.Diff(want, got); !c.Empty() || len(got.Problems) != 3 {
		t.Errorf("%d elements differ; problems %v", c.Elements(), got.Problems)
	}
}

// The fake kernel refuses what the real one refuses.
func TestFakeRefuses(t *testing.T) {
	var f netproxy.Fake
	r := netproxy.Plan(emptyView())
	if _, err := f.Sync(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	hairpin := netproxy.Element{Set: netproxy.SetHairpin, Key: "12345678"}
	profile := netproxy.Chain{Name: "from-x", Kind: netproxy.ChainProfile}
	wide := netproxy.Element{Set: "from-x", Key: strings.Repeat("\x00", 12), End: strings.Repeat("\xff", 12)}
	narrow := netproxy.Element{Set: "from-x", Key: strings.Repeat("\x01", 12), End: strings.Repeat("\x01", 12)}
	member := netproxy.Chain{Name: "m", Kind: netproxy.ChainAffinityEndpoint}
	group := netproxy.Chain{Name: "g", Kind: netproxy.ChainAffinity, Members: "m "}
	for want, c := range map[error][]netproxy.Change{
		netproxy.ErrExists: {{Add: []netproxy.Element{hairpin, hairpin}}, {AddChains: []netproxy.Chain{profile, profile}}},
		netproxy.ErrNotFound: {{Delete: []netproxy.Element{hairpin}}, {DropChains: []netproxy.Chain{profile}}, {RewriteChains: []netproxy.Chain{group}},
			{AddChains: []netproxy.Chain{group}}, {Add: []netproxy.Element{{Set: "none", Key: "1234"}}},
			{Add: []netproxy.Element{{Set: netproxy.SetServices, Key: "123456789012", Value: "goto n9"}}}},
		netproxy.ErrOverlap: {{AddChains: []netproxy.Chain{profile}, Add: []netproxy.Element{wide, narrow}}},
		netproxy.ErrBusy: {{AddChains: []netproxy.Chain{member, group}, DropChains: []netproxy.Chain{member}},
			{AddChains: []netproxy.Chain{profile}, Add: []netproxy.Element{wide}, DropChains: []netproxy.Chain{profile}},
			{AddChains: []netproxy.Chain{profile}, Add: []netproxy.Element{{Set: netproxy.SetIngressPods, Key: "1234", Value: "jump from-x"}}, DropChains: []netproxy.Chain{profile}}},
	} {
		for _, change := range c {
			if err := f.Apply(change); !errors.Is(err, want) {
				t.Errorf("%v\n%v, want %v", change, err, want)
			}
		}
	}
	if report, err := f.Scrub(t.Context()); err != nil || len(report.Findings) > 0 {
		t.Errorf("refused changes left %+v, %v", report, err)
	}
}

func TestFakeIsWatchedAndScrubbed(t *testing.T) {
	var f netproxy.Fake
	v := emptyView()
	v.Services = []netproxy.ServicePort{{VIP: addr("10.96.0.1"), Protocol: netproxy.TCP, Port: 80}}
	if _, err := f.Sync(t.Context(), netproxy.Plan(v)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	changed, ended := make(chan struct{}, 10), make(chan error, 1)
	go func() { ended <- f.Watch(ctx, func() { changed <- struct{}{} }) }()
	deadline := time.After(5 * time.Second)
	for noticed := false; !noticed; {
		if err := f.Apply(netproxy.Full(netproxy.Plan(emptyView()))); err != nil {
			t.Fatal(err)
		}
		select {
		case <-changed:
			noticed = true
		case <-deadline:
			t.Fatal("meddling went unnoticed")
		default:
		}
	}
	if r, err := f.Scrub(t.Context()); err != nil || !r.Repaired {
		t.Errorf("%+v, %v", r, err)
	}
	if _, known := f.Lookup(netproxy.Key{VIP: addr("10.96.0.1"), Protocol: netproxy.TCP, Port: 80}); !known {
		t.Error("the damage is still there after a scrub")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestFakeCounts(t *testing.T) {
	var f netproxy.Fake
	w := world.New()
	o := w.Objects()
	policy, slice := policyFor(1, world.PodB)
	o.Policies, o.PolicySlices = []*balsav1.NetworkPolicy{policy}, []*balsav1.NetworkPolicySlice{slice}
	if _, err := f.Sync(t.Context(), netproxy.Plan(netproxy.FromObjects(1, w.Node, o))); err != nil {
		t.Fatal(err)
	}
	for i, from := range []string{world.PodB, world.PodB, world.PodC} {
		f.Judge(netproxy.Connection{From: addr(from), To: addr(world.PodA), Protocol: netproxy.TCP, Port: uint16(i)})
	}
	got, err := f.PolicyCounters(t.Context())
	if want := (netproxy.PolicyCount{PodIP: addr(world.PodA), Direction: netproxy.Ingress, Allowed: 2, Refused: 1}); err != nil || len(got) != 1 || got[0] != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
}

// What cannot be used is left out by name; the rest is used.
func TestBadObjects(t *testing.T) {
	meta := func(name string) *balsav1.ObjectMeta { return &balsav1.ObjectMeta{Namespace: "default", Name: name} }
	port := func(n int32) *balsav1.IntOrString {
		return &balsav1.IntOrString{Value: &balsav1.IntOrString_Int{Int: n}}
	}
	end := int32(70)
	policy := func(name string, in ...*balsav1.NetworkPolicyIngressRule) *balsav1.NetworkPolicy {
		return &balsav1.NetworkPolicy{Metadata: meta(name), Spec: &balsav1.NetworkPolicySpec{Ingress: in}}
	}
	everybody := []*balsav1.NetworkPolicyPeer{{IpBlock: &balsav1.IPBlock{Cidr: "0.0.0.0/0"}}}
	service := func(name string, spec *balsav1.ServiceSpec) *balsav1.Service {
		spec.ClusterIp = "10.96.0.1"
		if spec.Ports == nil {
			spec.Ports = []*balsav1.ServicePort{{Port: 80}}
		}
		return &balsav1.Service{Metadata: meta(name), Spec: spec, Status: &balsav1.ServiceStatus{LoadBalancer: &balsav1.LoadBalancerStatus{
			Ingress: []*balsav1.LoadBalancerIngress{{Ip: "198.51.100.1"}, {Hostname: "lb.example.org"}}}}}
	}
	tooHigh := int32(70000)
	for want, o := range map[string]netproxy.Objects{
		`ports 80 to 70 are no range`:                      {Policies: []*balsav1.NetworkPolicy{policy("p", &balsav1.NetworkPolicyIngressRule{From: everybody, Ports: []*balsav1.NetworkPolicyPort{{Port: port(80), EndPort: &end}}})}},
		`ports 0 to 0 are no range`:                        {Policies: []*balsav1.NetworkPolicy{policy("p", &balsav1.NetworkPolicyIngressRule{From: everybody, Ports: []*balsav1.NetworkPolicyPort{{Port: port(0)}}})}},
		`protocol "SCTP" is not supported`:                 {Policies: []*balsav1.NetworkPolicy{policy("p", &balsav1.NetworkPolicyIngressRule{From: everybody, Ports: []*balsav1.NetworkPolicyPort{{Protocol: "SCTP"}}})}},
		`ipBlock.cidr: "all" is not a prefix`:              {Policies: []*balsav1.NetworkPolicy{policy("p", &balsav1.NetworkPolicyIngressRule{From: []*balsav1.NetworkPolicyPeer{{IpBlock: &balsav1.IPBlock{Cidr: "all"}}}})}},
		`ipBlock.cidr: ::/0 is not IPv4`:                   {Policies: []*balsav1.NetworkPolicy{policy("p", &balsav1.NetworkPolicyIngressRule{From: []*balsav1.NetworkPolicyPeer{{IpBlock: &balsav1.IPBlock{Cidr: "::/0"}}}})}},
		`ipBlock.except: "x" is not a prefix`:              {Policies: []*balsav1.NetworkPolicy{policy("p", &balsav1.NetworkPolicyIngressRule{From: []*balsav1.NetworkPolicyPeer{{IpBlock: &balsav1.IPBlock{Cidr: "0.0.0.0/0", Except: []string{"x"}}}}})}},
		`spec.externalIPs "x" is not an address`:           {Services: []*balsav1.Service{service("s", &balsav1.ServiceSpec{ExternalIps: []string{"x"}})}},
		`external address ::1 left out`:                    {Services: []*balsav1.Service{service("s", &balsav1.ServiceSpec{ExternalIps: []string{"::1"}})}},
		`spec.loadBalancerSourceRanges: "x" is no`:         {Services: []*balsav1.Service{service("s", &balsav1.ServiceSpec{Type: "LoadBalancer", LoadBalancerSourceRanges: []string{"x"}})}},
		`nodePort 70000 is out of`:                         {Services: []*balsav1.Service{service("s", &balsav1.ServiceSpec{Ports: []*balsav1.ServicePort{{Port: 80, NodePort: &tooHigh}}})}},
		`10.96.0.1 . tcp . 80 already belongs to services`: {Services: []*balsav1.Service{service("s", &balsav1.ServiceSpec{}), service("t", &balsav1.ServiceSpec{})}},
		`host port 0 to port 80`:                           {Pods: []netproxy.LocalPod{{IP: addr("10.244.1.9"), Namespace: "default", Name: "h", HostPorts: []netproxy.HostPort{{Port: 80, Protocol: netproxy.TCP}}}}},
		`hostIP ::1 is not`:                                {Pods: []netproxy.LocalPod{{IP: addr("10.244.1.9"), Namespace: "default", Name: "h", HostPorts: []netproxy.HostPort{{Port: 80, HostPort: 80, Protocol: netproxy.TCP, HostIP: addr("::1")}}}}},
		`node . tcp . 80 already belongs to pods`: {Pods: []netproxy.LocalPod{
			{IP: addr("10.244.1.8"), Namespace: "default", Name: "g", HostPorts: []netproxy.HostPort{{Port: 80, HostPort: 80, Protocol: netproxy.TCP}}},
			{IP: addr("10.244.1.9"), Namespace: "default", Name: "h", HostPorts: []netproxy.HostPort{{Port: 80, HostPort: 80, Protocol: netproxy.TCP, HostIP: addr("0.0.0.0")}}}}},
	} {
		t.Run(strings.ReplaceAll(want, "/", ":"), func(t *testing.T) {
			w := world.New()
			o.Pods = append(o.Pods, w.Local()...)
			for _, p := range o.Policies {
				o.PolicySlices = append(o.PolicySlices, w.Resolve(p))
			}
			r := netproxy.Plan(netproxy.FromObjects(1, w.Node, o))
			if !strings.Contains(fmt.Sprint(r.Problems), want) {
				t.Errorf("problems %v, want %q", r.Problems, want)
			}
			if len(o.Policies) > 0 && admitted(r, world.PodB) {
				t.Error("a rule that cannot be read lets somebody in")
			}
			if len(o.Services) > 0 && !strings.Contains(want, "nodePort") && !r.Known(netproxy.Key{VIP: addr("10.96.0.1"), Protocol: netproxy.TCP, Port: 80}) {
				t.Error("the rest of the service is not used")
			}
		})
	}
}
