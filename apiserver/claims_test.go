package apiserver

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/store"
)

// serviceOf is a Service of a type with ports of these numbers.
func serviceOf(name, kind string, ports ...int32) *balsav1.Service {
	svc := &balsav1.Service{Metadata: &balsav1.ObjectMeta{Name: name}, Spec: &balsav1.ServiceSpec{Type: kind, Selector: map[string]string{"app": name}}}
	for _, p := range ports {
		svc.Spec.Ports = append(svc.Spec.Ports, &balsav1.ServicePort{Name: "p" + strconv.Itoa(int(p)), Port: p})
	}
	return svc
}

func atPorts(svc *balsav1.Service, nodePorts ...int32) *balsav1.Service {
	for i, n := range nodePorts {
		svc.Spec.Ports[i].NodePort = proto.Int32(n)
	}
	return svc
}

func updated(t *testing.T, c *clients, svc *balsav1.Service) *balsav1.Service {
	t.Helper()
	res, err := c.objects.Update(t.Context(), &balsav1.UpdateRequest{Object: object.Wrap(svc)})
	must(t, err)
	return res.GetObject().GetService()
}

// claims are the keys of the store's claims of Services, with their holders.
func (w *world) claims() map[string]string {
	out := map[string]string{}
	for kv := range w.objects().Prefix(object.PrefixClaims) {
		if !strings.HasPrefix(kv.Key, object.PrefixClaims+"podcidr/") && kv.Key != object.ClaimAddressPools {
			out[kv.Key] = string(kv.Value)
		}
	}
	return out
}

// checkClaims: each Service holds what it uses, and nothing else is held.
func (w *world) checkClaims(t *testing.T) {
	t.Helper()
	want := map[string]string{}
	for kv := range w.objects().Prefix("services/") {
		svc := kv.Object.(*balsav1.Service)
		for _, key := range object.ServiceClaims(svc) {
			if other, twice := want[key]; twice {
				t.Fatalf("%s and %s both have %s", other, kv.Key, key)
			}
			want[key] = kv.Key
		}
		checkAllocated(t, svc)
	}
	if got := w.claims(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("claims %v, want %v", got, want)
	}
}

func checkAllocated(t *testing.T, svc *balsav1.Service) {
	t.Helper()
	spec := svc.GetSpec()
	if object.HasClusterIP(spec) != (spec.GetClusterIp() != "") || spec.GetClusterIp() != "" && !slices.Equal(spec.GetClusterIps(), []string{spec.GetClusterIp()}) {
		t.Fatalf("cluster IP %q, list %v, of type %s", spec.GetClusterIp(), spec.GetClusterIps(), spec.GetType())
	}
	for _, p := range spec.GetPorts() {
		n := p.GetNodePort()
		if object.NeedsNodePorts(spec) && n == 0 || !object.TakesNodePorts(spec) && n != 0 || n != 0 && !object.NodePortRange().Contains(n) {
			t.Fatalf("node port %d of type %s", n, spec.GetType())
		}
	}
}

func TestNodePorts(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.admin()
		svc := create(t, c, serviceOf("web", object.ServiceNodePort, 80, 443))
		for _, p := range svc.GetSpec().GetPorts() {
			if !object.ChosenNodePorts().Contains(p.GetNodePort()) {
				t.Errorf("node port %d, want one of %v", p.GetNodePort(), object.ChosenNodePorts())
			}
		}
		key := object.ClaimNodePort(object.NodePort{Port: svc.Spec.Ports[0].GetNodePort(), Protocol: "TCP"})
		if kv, ok := w.objects().Get(key); !ok || string(kv.Value) != "services/default/web" {
			t.Errorf("claim %s: %v %s", key, ok, kv.Value)
		}
		_, err := c.objects.Create(t.Context(), &balsav1.CreateRequest{Object: object.Wrap(atPorts(serviceOf("thief", object.ServiceNodePort, 1), svc.Spec.Ports[1].GetNodePort()))})
		d := refused(t, err, connect.CodeInvalidArgument, "Invalid")
		if len(d.GetViolations()) != 1 || d.GetViolations()[0].GetField() != "spec.ports[0].nodePort" || !strings.Contains(d.GetViolations()[0].GetMessage(), "belongs to services/default/web") {
			t.Errorf("%v", d)
		}
		// Another protocol has a port of the same number.
		udp := atPorts(serviceOf("udp", object.ServiceNodePort, 1), svc.Spec.Ports[1].GetNodePort())
		udp.Spec.Ports[0].Protocol = "UDP"
		create(t, c, udp)
		w.checkClaims(t)
		_, err = c.objects.Delete(t.Context(), &balsav1.DeleteRequest{Kind: "svc", Name: "web"})
		must(t, err)
		create(t, c, atPorts(serviceOf("thief", object.ServiceNodePort, 1), svc.Spec.Ports[1].GetNodePort()))
		w.checkClaims(t)
	})
}

// The ports of a name server have one number on TCP and UDP, and so on the nodes.
func TestNodePortsOfTwoProtocols(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		dns := serviceOf("dns", object.ServiceNodePort, 53, 53)
		dns.Spec.Ports[0].Name, dns.Spec.Ports[1].Name, dns.Spec.Ports[1].Protocol = "tcp", "udp", "UDP"
		ports := create(t, w.admin(), dns).GetSpec().GetPorts()
		if ports[0].GetNodePort() != ports[1].GetNodePort() {
			t.Errorf("node ports %d and %d", ports[0].GetNodePort(), ports[1].GetNodePort())
		}
		w.checkClaims(t)
	})
}

// Every type becomes every other, with what users do: get, change type, update; or
// apply a manifest.
func TestServiceTransitions(t *testing.T) {
	types := []string{object.ServiceClusterIP, object.ServiceNodePort, object.ServiceLoadBalancer, object.ServiceExternalName}
	run(t, func(t *testing.T, w *world) {
		c := w.admin()
		for _, from := range types {
			for _, to := range types {
				name := strings.ToLower(from + "-" + to)
				svc := create(t, c, externalNamed(serviceOf(name, from, 80)))
				had := proto.CloneOf(svc)
				svc.Spec.Type = to
				next := updated(t, c, externalNamed(svc))
				if object.HasClusterIP(had.Spec) && object.HasClusterIP(next.Spec) && next.Spec.ClusterIp != had.Spec.ClusterIp {
					t.Errorf("%s: the cluster IP changed from %s to %s", name, had.Spec.ClusterIp, next.Spec.ClusterIp)
				}
				if object.NeedsNodePorts(had.Spec) && object.NeedsNodePorts(next.Spec) && next.Spec.Ports[0].GetNodePort() != had.Spec.Ports[0].GetNodePort() {
					t.Errorf("%s: the node port changed from %d to %d", name, had.Spec.Ports[0].GetNodePort(), next.Spec.Ports[0].GetNodePort())
				}
				w.checkClaims(t)
				apply(t, c, externalNamed(serviceOf(name+"-a", from, 80)), "m")
				apply(t, c, externalNamed(serviceOf(name+"-a", to, 80)), "m")
				w.checkClaims(t)
			}
		}
	})
}

func externalNamed(svc *balsav1.Service) *balsav1.Service {
	if svc.Spec.Type == object.ServiceExternalName {
		svc.Spec.ExternalName = "db.example.com"
	}
	return svc
}

func TestNodePortsFollowTheirPorts(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.admin()
		apply(t, c, serviceOf("web", object.ServiceNodePort, 80, 443), "m")
		before := get[*balsav1.Service](t, c, "", "web").Spec.Ports
		// Another number under the same name keeps the node port that clients know.
		next := serviceOf("web", object.ServiceNodePort, 8080, 443)
		next.Spec.Ports[0].Name = "p80"
		apply(t, c, next, "m")
		after := get[*balsav1.Service](t, c, "", "web").Spec.Ports
		if after[0].GetPort() == 8080 && after[0].GetNodePort() != before[0].GetNodePort() || len(after) != 2 {
			t.Errorf("%v, before %v", after, before)
		}
		w.checkClaims(t)
		// A port that goes gives its node port back, one that comes gets one.
		apply(t, c, serviceOf("web", object.ServiceNodePort, 443, 9000), "m")
		w.checkClaims(t)
		// A manifest that declines node ports, and names none, loses them.
		lb := serviceOf("web", object.ServiceLoadBalancer, 443)
		lb.Spec.AllocateLoadBalancerNodePorts = proto.Bool(false)
		apply(t, c, lb, "m")
		if got := get[*balsav1.Service](t, c, "", "web").Spec.Ports; got[0].NodePort != nil {
			t.Errorf("%v", got)
		}
		w.checkClaims(t)
		// One that names a node port with a type that has none is told so.
		_, err := c.objects.Apply(t.Context(), &balsav1.ApplyRequest{Object: object.Wrap(atPorts(serviceOf("web", object.ServiceClusterIP, 443), 30443)), Manager: "m"})
		refused(t, err, connect.CodeInvalidArgument, "Invalid")
	})
}

// Two servers choose the same node port at once.
func TestNodePortRace(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c, stolen := w.admin(), ""
		w.backend.before = func(cmd *internalv1.Command) error {
			for _, op := range cmd.GetTxn().GetSuccess() {
				if p := op.GetPut(); stolen == "" && strings.HasPrefix(string(p.GetKey()), "claims/nodeport/") {
					stolen = string(p.GetKey())
					w.txn(store.SpaceObjects, &internalv1.Op{Op: &internalv1.Op_Put{Put: &internalv1.Put{Key: p.GetKey(), Value: []byte("services/x/other")}}})
				}
			}
			return nil
		}
		port := create(t, c, serviceOf("s", object.ServiceNodePort, 80)).Spec.Ports[0].GetNodePort()
		mine := object.ClaimNodePort(object.NodePort{Port: port, Protocol: "TCP"})
		if got := w.claims(); got[mine] != "services/default/s" || got[stolen] != "services/x/other" || mine == stolen {
			t.Errorf("%s, stolen %s: %v", mine, stolen, got)
		}
	})
}

// A full range is said to be full, and the part for named ports is used last.
func TestNodePortsRunOut(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c, all := w.admin(), object.NodePortRange()
		hold := func(r object.PortRange, but int32) {
			var ops []*internalv1.Op
			for n := r.First; n <= r.Last; n++ {
				if n != but {
					ops = append(ops, &internalv1.Op{Op: &internalv1.Op_Put{Put: &internalv1.Put{Key: []byte(object.ClaimNodePort(object.NodePort{Port: n, Protocol: "TCP"})), Value: []byte("services/x/other")}}})
				}
			}
			for chunk := range slices.Chunk(ops, 100) {
				w.txn(store.SpaceObjects, chunk...)
			}
		}
		hold(object.ChosenNodePorts(), 0)
		if got := create(t, c, serviceOf("a", object.ServiceNodePort, 80)).Spec.Ports[0].GetNodePort(); object.ChosenNodePorts().Contains(got) || !all.Contains(got) {
			t.Errorf("node port %d", got)
		}
		hold(all, 30001)
		w.directDelete(object.ClaimNodePort(object.NodePort{Port: 30001, Protocol: "TCP"}))
		if got := create(t, c, serviceOf("b", object.ServiceNodePort, 80)).Spec.Ports[0].GetNodePort(); got != 30001 {
			t.Errorf("node port %d, want the last free one", got)
		}
		_, err := c.objects.Create(t.Context(), &balsav1.CreateRequest{Object: object.Wrap(serviceOf("c", object.ServiceNodePort, 80))})
		refused(t, err, connect.CodeResourceExhausted, "LimitReached")
	})
}

// All node ports of a large Service do not fit into one transaction twice.
func TestManyNodePortsAtOnce(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.admin()
		ports := make([]int32, 100)
		for i := range ports {
			ports[i] = int32(i + 1)
		}
		svc := create(t, c, serviceOf("large", object.ServiceNodePort, ports...))
		w.checkClaims(t)
		next := proto.CloneOf(svc)
		for i, p := range next.Spec.Ports {
			p.NodePort = proto.Int32(30000 + int32(i)%86)
			p.Protocol = []string{"TCP", "UDP"}[i/86]
		}
		_, err := c.objects.Update(t.Context(), &balsav1.UpdateRequest{Object: object.Wrap(next)})
		refused(t, err, connect.CodeResourceExhausted, "LimitReached")
		svc.Spec.Type = object.ServiceClusterIP
		updated(t, c, svc)
		w.checkClaims(t)
	})
}

// Random writes by users and by reconciler/addresses leave no claim behind, and
// take none from anybody.
func TestClaimsProperty(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(strconv.Itoa(int(seed)), func(t *testing.T) {
			run(t, func(t *testing.T, w *world) { randomServices(t, w, rand.New(rand.NewPCG(seed, 7))) })
		})
	}
}

func randomServices(t *testing.T, w *world, r *rand.Rand) {
	c := w.admin()
	types := []string{object.ServiceClusterIP, object.ServiceNodePort, object.ServiceLoadBalancer, object.ServiceExternalName}
	for range 150 {
		var ports []int32
		for p := range int32(3) {
			if r.IntN(2) == 0 {
				ports = append(ports, 80+p)
			}
		}
		svc := externalNamed(serviceOf("s"+strconv.Itoa(r.IntN(4)), types[r.IntN(4)], append(ports, 79)...))
		if r.IntN(3) == 0 && object.TakesNodePorts(svc.Spec) {
			atPorts(svc, int32(30000+r.IntN(6)))
		}
		if svc.Spec.Type == object.ServiceLoadBalancer && r.IntN(3) == 0 {
			svc.Spec.AllocateLoadBalancerNodePorts = proto.Bool(false)
		}
		// Refusals, of clashes and of what does not exist, are as good: nothing changes.
		switch r.IntN(5) {
		case 0:
			_, _ = c.objects.Create(t.Context(), &balsav1.CreateRequest{Object: object.Wrap(svc)})
		case 1:
			_, _ = c.objects.Update(t.Context(), &balsav1.UpdateRequest{Object: object.Wrap(svc)})
		case 2:
			_, _ = c.objects.Apply(t.Context(), &balsav1.ApplyRequest{Object: object.Wrap(svc), Manager: "m" + strconv.Itoa(r.IntN(2))})
		case 3:
			w.assign(svc.Metadata.Name, netip.AddrFrom4([4]byte{192, 0, 2, byte(r.IntN(4))}))
		default:
			_, _ = c.objects.Delete(t.Context(), &balsav1.DeleteRequest{Kind: "svc", Name: svc.Metadata.Name})
		}
		w.checkClaims(t)
	}
}

// assign gives a load balancer an address of a pool, as reconciler/addresses does.
func (w *world) assign(name string, ip netip.Addr) {
	kv, ok := w.objects().Get("services/default/" + name)
	_, taken := w.objects().Get(object.ClaimLoadBalancer(ip))
	if !ok || taken || !object.WantsPoolAddress(kv.Object.(*balsav1.Service)) || len(object.PoolAddresses(kv.Object.(*balsav1.Service))) > 0 {
		return
	}
	next := proto.CloneOf(kv.Object.(*balsav1.Service))
	next.Status = &balsav1.ServiceStatus{LoadBalancer: &balsav1.LoadBalancerStatus{Ingress: []*balsav1.LoadBalancerIngress{{Ip: ip.String()}}}}
	w.direct(next)
	w.txn(store.SpaceObjects, &internalv1.Op{Op: &internalv1.Op_Put{Put: &internalv1.Put{Key: []byte(object.ClaimLoadBalancer(ip)), Value: []byte(kv.Key)}}})
}

// A Service that is no load balancer any more gives its addresses back, in status
// and claim; one that still is keeps them.
func TestLoadBalancerAddresses(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c, ip := w.admin(), netip.MustParseAddr("192.0.2.7")
		create(t, c, serviceOf("lb", object.ServiceLoadBalancer, 80))
		w.assign("lb", ip)
		w.checkClaims(t)
		wants := serviceOf("wants", object.ServiceLoadBalancer, 80)
		wants.Spec.LoadBalancerIp = ip.String()
		_, err := c.objects.Create(t.Context(), &balsav1.CreateRequest{Object: object.Wrap(wants)})
		if d := refused(t, err, connect.CodeInvalidArgument, "Invalid"); !strings.Contains(d.GetViolations()[0].GetMessage(), "belongs to services/default/lb") {
			t.Errorf("%v", d)
		}
		svc := get[*balsav1.Service](t, c, "", "lb")
		svc.Spec.LoadBalancerIp = ip.String() // what it has already
		svc = updated(t, c, svc)
		svc.Spec.Type = object.ServiceNodePort
		svc = updated(t, c, svc)
		if svc.GetStatus().GetLoadBalancer() != nil || svc.GetSpec().GetLoadBalancerIp() != "" {
			t.Errorf("status %v, spec %v", svc.GetStatus(), svc.GetSpec())
		}
		w.checkClaims(t)
		create(t, c, wants)
		w.assign("wants", ip)
		_, err = c.objects.Delete(t.Context(), &balsav1.DeleteRequest{Kind: "svc", Name: "wants"})
		must(t, err)
		w.checkClaims(t)
	})
}

func pool(name string, addresses ...string) *balsav1.AddressPool {
	return &balsav1.AddressPool{Metadata: &balsav1.ObjectMeta{Name: name}, Spec: &balsav1.AddressPoolSpec{Addresses: addresses}}
}

func TestPoolsDoNotOverlap(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.admin()
		made := create(t, c, pool("a", "192.0.2.0/28"))
		if !made.GetSpec().GetAutoAssign() {
			t.Error("autoAssign is not true")
		}
		for _, one := range []struct{ addresses, whose string }{
			{"192.0.2.15-192.0.2.20", `addresspool "a"`}, {"10.244.9.0/24", "pod CIDR"}, {"10.96.0.200-10.96.1.9", "service CIDR"},
		} {
			_, err := c.objects.Create(t.Context(), &balsav1.CreateRequest{Object: object.Wrap(pool("b", "198.51.100.0/28", one.addresses))})
			d := refused(t, err, connect.CodeInvalidArgument, "Invalid")
			if v := d.GetViolations(); len(v) != 1 || v[0].GetField() != "spec.addresses[1]" || !strings.Contains(v[0].GetMessage(), one.whose) {
				t.Errorf("%s: %v", one.addresses, d)
			}
		}
		create(t, c, pool("b", "192.0.2.16/28"))
		made.Spec.Addresses = []string{"192.0.2.0/27"}
		_, err := c.objects.Update(t.Context(), &balsav1.UpdateRequest{Object: object.Wrap(made)})
		refused(t, err, connect.CodeInvalidArgument, "Invalid")
		made.Spec.Addresses = []string{"192.0.2.0/28", "192.0.2.32/28"}
		_, err = c.objects.Update(t.Context(), &balsav1.UpdateRequest{Object: object.Wrap(made)})
		must(t, err)
	})
}

// Two servers take pools that overlap at once: the second one looks again.
func TestPoolRace(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c, once := w.admin(), true
		w.backend.before = func(*internalv1.Command) error {
			if once {
				once = false
				other := pool("other", "192.0.2.0/28")
				object.Default(other)
				w.direct(other)
				w.txn(store.SpaceObjects, &internalv1.Op{Op: &internalv1.Op_Put{Put: &internalv1.Put{Key: []byte(object.ClaimAddressPools), Value: []byte("addresspools/other")}}})
			}
			return nil
		}
		_, err := c.objects.Create(t.Context(), &balsav1.CreateRequest{Object: object.Wrap(pool("mine", "192.0.2.8/29"))})
		refused(t, err, connect.CodeInvalidArgument, "Invalid")
	})
}

// Statuses that claims and evictions hang on are the servers'; that of a load
// balancer with a class is its controller's.
func TestStatusesAreDerived(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.admin()
		ours, theirs := create(t, c, serviceOf("ours", object.ServiceLoadBalancer, 80)), serviceOf("theirs", object.ServiceLoadBalancer, 80)
		theirs.Spec.LoadBalancerClass = proto.String("example.com/cloud")
		theirs = create(t, c, theirs)
		balancer := &balsav1.ServiceStatus{LoadBalancer: &balsav1.LoadBalancerStatus{Ingress: []*balsav1.LoadBalancerIngress{{Ip: "192.0.2.1"}}}}
		ours.Status, theirs.Status = balancer, balancer
		addresses := create(t, c, pool("p", "192.0.2.0/28"))
		addresses.Status = &balsav1.AddressPoolStatus{Capacity: 7}
		budget := create(t, c, &balsav1.PodDisruptionBudget{Metadata: &balsav1.ObjectMeta{Name: "b"}, Spec: &balsav1.PodDisruptionBudgetSpec{MinAvailable: object.IntValue(1)}})
		budget.Status = &balsav1.PodDisruptionBudgetStatus{DisruptionsAllowed: 7}
		for _, m := range []object.Message{ours, addresses, budget, &balsav1.NetworkPolicySlice{Metadata: &balsav1.ObjectMeta{Name: "s"}}} {
			_, err := c.objects.UpdateStatus(t.Context(), &balsav1.UpdateStatusRequest{Object: object.Wrap(m)})
			refused(t, err, connect.CodePermissionDenied, "Derived")
		}
		_, err := c.objects.UpdateStatus(t.Context(), &balsav1.UpdateStatusRequest{Object: object.Wrap(theirs)})
		must(t, err)
		w.checkClaims(t)
		for _, m := range []object.Message{&balsav1.NetworkPolicySlice{Metadata: &balsav1.ObjectMeta{Name: "s"}}} {
			_, err := c.objects.Create(t.Context(), &balsav1.CreateRequest{Object: object.Wrap(m)})
			refused(t, err, connect.CodePermissionDenied, "Derived")
			_, err = c.objects.Apply(t.Context(), &balsav1.ApplyRequest{Object: object.Wrap(m), Manager: "m"})
			refused(t, err, connect.CodePermissionDenied, "Derived")
			_, err = c.objects.Delete(t.Context(), &balsav1.DeleteRequest{Kind: "NetworkPolicySlice", Name: "s"})
			refused(t, err, connect.CodePermissionDenied, "Derived")
		}
	})
}
