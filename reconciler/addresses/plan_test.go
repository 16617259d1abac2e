package addresses

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/reconciler/nodes"
)

var now = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

// world is what plans are carried out on.
type world struct {
	View
	claims map[netip.Addr]string
	ready  map[string]bool // "service node"
}

func newWorld() *world {
	w := &world{claims: map[netip.Addr]string{}, ready: map[string]bool{}}
	w.Claimed = func(ip netip.Addr) string { return w.claims[ip] }
	w.Serves = func(svc *balsav1.Service, node string) bool { return w.ready[svc.GetMetadata().GetName()+" "+node] }
	return w
}

func (w *world) pool(name string, addresses ...string) *balsav1.AddressPool {
	p := &balsav1.AddressPool{Metadata: &balsav1.ObjectMeta{Name: name}, Spec: &balsav1.AddressPoolSpec{Addresses: addresses}}
	w.Pools = append(w.Pools, p)
	return p
}

func (w *world) service(name string) *balsav1.Service {
	s := &balsav1.Service{Metadata: &balsav1.ObjectMeta{Name: name, Namespace: "shop"}, Spec: &balsav1.ServiceSpec{Type: object.ServiceLoadBalancer}}
	w.Services = append(w.Services, s)
	return s
}

func (w *world) node(name string, conditions ...*balsav1.Condition) *balsav1.Node {
	n := &balsav1.Node{Metadata: &balsav1.ObjectMeta{Name: name}, Status: &balsav1.NodeStatus{
		Conditions: append([]*balsav1.Condition{{Type: object.ConditionReady, Status: object.ConditionTrue}}, conditions...)}}
	w.Nodes = append(w.Nodes, n)
	return n
}

// plan carries a plan out, and expects that it leaves nothing to do.
func (w *world) plan(t interface {
	Helper()
	Fatalf(string, ...any)
}) string {
	t.Helper()
	text := ""
	for range 3 { // an address that is given back is free in the next plan
		a, err := Plan(w.View, now)
		if err != nil {
			t.Fatalf("%v", err)
		}
		if a.Empty() {
			return text
		}
		text += a.String()
		w.apply(t, a)
	}
	t.Fatalf("it does not come to rest:\n%s", text)
	return ""
}

func (w *world) apply(t interface{ Fatalf(string, ...any) }, a Actions) {
	for _, s := range a.Assign {
		i := slices.IndexFunc(w.Services, func(o *balsav1.Service) bool { return object.KeyOf(o) == object.KeyOf(s.Service) })
		w.Services[i] = s.Service
		for _, ip := range s.Release {
			if w.claims[ip] != object.KeyOf(s.Service) {
				t.Fatalf("%s gives back %s, which %q has", object.Describe(s.Service), ip, w.claims[ip])
			}
			delete(w.claims, ip)
		}
		for _, ip := range s.Claim {
			if w.claims[ip] != "" {
				t.Fatalf("%s takes %s, which %q has", object.Describe(s.Service), ip, w.claims[ip])
			}
			w.claims[ip] = object.KeyOf(s.Service)
		}
	}
	for _, p := range a.Pools {
		i := slices.IndexFunc(w.Pools, func(o *balsav1.AddressPool) bool { return object.KeyOf(o) == object.KeyOf(p) })
		w.Pools[i] = p
	}
}

func expect(t *testing.T, want, got string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestAddresses(t *testing.T) {
	w := newWorld()
	w.node("n1")
	w.service("web")
	expect(t, "service web NoPool claim=[] release=[]: there is no AddressPool that assigns by itself: make one, or name an address of another with spec.loadBalancerIP\n", w.plan(t))

	w.pool("small", "192.0.2.1-192.0.2.2")
	expect(t, "service web Assigned claim=[192.0.2.1] release=[]: of AddressPool small\npool small 1 of 2\n  192.0.2.1 shop/web on \"n1\" \n", w.plan(t))

	w.service("second")
	w.service("third")
	w.service("other").Spec.LoadBalancerClass = new(string)
	*w.Services[3].Spec.LoadBalancerClass = "metallb"
	expect(t, "service second Assigned claim=[192.0.2.2] release=[]: of AddressPool small\n"+
		"service third Exhausted claim=[] release=[]: every address of small is taken: add addresses, or remove Services of type LoadBalancer\n"+
		"pool small 2 of 2\n  192.0.2.1 shop/web on \"n1\" \n  192.0.2.2 shop/second on \"n1\" \n", w.plan(t))

	// What a Service asks for and cannot have does not cost it what it has.
	web := object.Clone(w.Services[0])
	web.Spec.LoadBalancerIp = "192.0.2.9"
	w.Services[0] = web
	expect(t, "service web NotInPool claim=[] release=[]: spec.loadBalancerIP 192.0.2.9 is of no AddressPool; it keeps 192.0.2.1\n", w.plan(t))
	w.Services[0] = object.Clone(w.Services[0])
	w.Services[0].Spec.LoadBalancerIp = "192.0.2.2"
	expect(t, "service web Taken claim=[] release=[]: spec.loadBalancerIP 192.0.2.2 belongs to services/shop/second; it keeps 192.0.2.1\n", w.plan(t))

	// A pool that does not assign gives to those who ask by address.
	no := false
	w.pool("asked", "198.51.100.0/30").Spec.AutoAssign = &no
	w.Services[0] = object.Clone(w.Services[0])
	w.Services[0].Spec.LoadBalancerIp = "198.51.100.3"
	expect(t, "service web Assigned claim=[198.51.100.3] release=[192.0.2.1]: of AddressPool asked\n"+
		"pool small 1 of 2\n  192.0.2.2 shop/second on \"n1\" \npool asked 1 of 4\n  198.51.100.3 shop/web on \"n1\" \n"+
		"service third Assigned claim=[192.0.2.1] release=[]: of AddressPool small\npool small 2 of 2\n  192.0.2.1 shop/third on \"n1\" \n  192.0.2.2 shop/second on \"n1\" \n", w.plan(t))
}

func TestWhoAnnounces(t *testing.T) {
	unreachable := &balsav1.Condition{Type: nodes.ConditionHostReachable, Status: object.ConditionFalse}
	for name, test := range map[string]struct {
		change func(w *world)
		want   string
	}{
		"a node that is Ready":         {func(w *world) { w.node("n1").Status.Conditions[0].Status = object.ConditionFalse; w.node("n2") }, `on "n2" `},
		"a host that answers":          {func(w *world) { w.node("n1", unreachable); w.node("n2") }, `on "n2" `},
		"nobody":                       {func(w *world) { w.node("n1", unreachable) }, `on "" no node is Ready`},
		"one that the pool selects":    {func(w *world) { w.node("n1"); w.Pools[0].Spec.NodeSelector = map[string]string{"edge": "yes"} }, `on "" no node matches spec.nodeSelector`},
		"one that is not excluded":     {func(w *world) { w.node("n1").Metadata.Labels = map[string]string{labelExclude: ""}; w.node("n2") }, `on "n2" `},
		"one with an endpoint":         {func(w *world) { local(w); w.node("n1"); w.node("n2"); w.ready["web n2"] = true }, `on "n2" `},
		"none without an endpoint":     {func(w *world) { local(w); w.node("n1") }, `on "" no node that is Ready has a ready endpoint, which externalTrafficPolicy Local asks for`},
		"the one that did, not moving": {func(w *world) { w.node("n1"); w.plan(panics{}); w.node("n0"); w.node("n2") }, `on "n1" `},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.service("web")
			w.pool("p", "192.0.2.7")
			test.change(w)
			w.plan(t)
			a := w.Pools[0].GetStatus().GetAnnounced()
			if len(a) != 1 {
				t.Fatalf("announced: %v", a)
			}
			expect(t, test.want, fmt.Sprintf("on %q %s", a[0].GetNodeName(), a[0].GetMessage()))
		})
	}
}

func local(w *world) { w.Services[0].Spec.ExternalTrafficPolicy = object.TrafficLocal }

type panics struct{}

func (panics) Helper()                       {}
func (panics) Fatalf(text string, on ...any) { panic(fmt.Sprintf(text, on...)) }

// TestNobodyShares: whatever changes, an address has one Service, which has
// claimed it and announces it, and what can be kept is kept.
func TestNobodyShares(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld()
		for i := range 3 {
			w.node(fmt.Sprint("n", i))
		}
		names := 0
		for range rapid.IntRange(1, 15).Draw(t, "changes") {
			switch rapid.IntRange(0, 5).Draw(t, "change") {
			case 0:
				names++
				w.pool(fmt.Sprint("p", names), fmt.Sprintf("192.0.2.%d-192.0.2.%d", 10*names, 10*names+rapid.IntRange(0, 2).Draw(t, "size")))
			case 1:
				if len(w.Pools) > 0 {
					w.Pools = slices.Delete(w.Pools, 0, 1)
				}
			case 2, 3:
				names++
				s := w.service(fmt.Sprint("s", names))
				if rapid.Bool().Draw(t, "asks") {
					s.Spec.LoadBalancerIp = fmt.Sprintf("192.0.2.%d", rapid.IntRange(10, 60).Draw(t, "ip"))
				}
			case 4:
				if len(w.Services) > 0 {
					for _, key := range object.PoolAddresses(w.Services[0]) { // as the API does
						delete(w.claims, key)
					}
					w.Services = slices.Delete(w.Services, 0, 1)
				}
			case 5:
				n := rapid.IntRange(0, 2).Draw(t, "node")
				w.Nodes[n] = object.Clone(w.Nodes[n])
				w.Nodes[n].Status.Conditions[0].Status = rapid.SampledFrom([]string{object.ConditionTrue, object.ConditionFalse}).Draw(t, "ready")
			}
			before := holders(w)
			w.plan(t)
			w.check(t, before)
		}
	})
}

func holders(w *world) map[string]netip.Addr {
	out := map[string]netip.Addr{}
	for _, s := range w.Services {
		if ips := object.PoolAddresses(s); len(ips) > 0 {
			out[s.GetMetadata().GetName()] = ips[0]
		}
	}
	return out
}

func (w *world) check(t *rapid.T, before map[string]netip.Addr) {
	announced := map[string]string{}
	for _, p := range w.Pools {
		for _, a := range p.GetStatus().GetAnnounced() {
			announced[a.GetIp()] = a.GetService()
		}
	}
	now := holders(w)
	if len(now) != len(w.claims) || len(now) != len(announced) {
		t.Fatalf("held %v, claimed %v, announced %v", now, w.claims, announced)
	}
	for service, ip := range now {
		if announced[ip.String()] != service {
			t.Fatalf("%s has %s, which is announced for %q", service, ip, announced[ip.String()])
		}
	}
	for _, s := range w.Services {
		old, had := before[s.GetMetadata().GetName()]
		inPool := slices.ContainsFunc(w.Pools, func(p *balsav1.AddressPool) bool {
			ranges, _ := object.PoolRanges(p)
			return poolOf{p, ranges}.has(old)
		})
		if want := s.GetSpec().GetLoadBalancerIp(); had && inPool && want == "" && now[s.GetMetadata().GetName()] != old {
			t.Fatalf("%s had %s and has %v", s.GetMetadata().GetName(), old, now[s.GetMetadata().GetName()])
		}
	}
}
