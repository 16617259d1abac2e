package object_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"pgregory.net/rapid"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
)

func randomService(t *rapid.T) *balsav1.Service {
	spec := &balsav1.ServiceSpec{
		Type:            rapid.SampledFrom([]string{"", "ClusterIP", "NodePort", "LoadBalancer", "ExternalName"}).Draw(t, "type"),
		ClusterIp:       rapid.SampledFrom([]string{"", "None", "10.96.0.7"}).Draw(t, "ip"),
		SessionAffinity: rapid.SampledFrom([]string{"", "None", "ClientIP"}).Draw(t, "affinity"),
		ExternalIps:     rapid.SampledFrom([][]string{nil, {"192.0.2.1"}}).Draw(t, "external"),
	}
	if rapid.Bool().Draw(t, "declines") {
		spec.AllocateLoadBalancerNodePorts = proto.Bool(false)
	}
	for i := range rapid.IntRange(0, 3).Draw(t, "ports") {
		p := &balsav1.ServicePort{Name: fmt.Sprintf("p%d", i), Port: 80 + int32(i), Protocol: rapid.SampledFrom([]string{"", "TCP", "UDP"}).Draw(t, "protocol")}
		if n := rapid.Int32Range(30000, 30003).Draw(t, "node port"); n != 30000 {
			p.NodePort = &n
		}
		spec.Ports = append(spec.Ports, p)
	}
	return &balsav1.Service{Metadata: &balsav1.ObjectMeta{Name: "s"}, Spec: spec}
}

func randomPolicy(t *rapid.T) *balsav1.NetworkPolicy {
	spec := &balsav1.NetworkPolicySpec{PolicyTypes: rapid.SampledFrom([][]string{nil, {"Egress"}, {"Ingress", "Egress"}}).Draw(t, "types")}
	for range rapid.IntRange(0, 2).Draw(t, "rules") {
		spec.Egress = append(spec.Egress, &balsav1.NetworkPolicyEgressRule{Ports: []*balsav1.NetworkPolicyPort{{Port: object.IntValue(80)}}})
	}
	return &balsav1.NetworkPolicy{Metadata: &balsav1.ObjectMeta{Name: "p"}, Spec: spec}
}

func TestNetworkDefaultsTwiceChangeNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		for _, m := range []object.Message{
			randomService(t), randomPolicy(t), &balsav1.PodDisruptionBudget{Metadata: &balsav1.ObjectMeta{Name: "b"}},
			&balsav1.AddressPool{Metadata: &balsav1.ObjectMeta{Name: "a"}},
		} {
			object.Default(m)
			twice := object.Clone(m)
			object.Default(twice)
			if diff := cmp.Diff(m, twice, protocmp.Transform()); diff != "" {
				t.Fatalf("(-once +twice):\n%s", diff)
			}
		}
	})
}

// A replacement that repeats what was there, whatever the type, is made to fit; and
// what it takes over is no change where the type stays.
func TestServicesTakeOver(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		old := rapid.Custom(func(t *rapid.T) *balsav1.Service {
			svc := randomService(t)
			object.Default(svc)
			return svc
		}).Filter(func(svc *balsav1.Service) bool { return len(object.Validate(svc, object.User)) == 0 }).Draw(t, "old")
		next := object.Clone(old)
		object.CarryOver(old, next)
		object.Default(next)
		if diff := cmp.Diff(old, next, protocmp.Transform()); diff != "" {
			t.Fatalf("nothing was changed (-old +next):\n%s", diff)
		}
		next.Spec.Type = rapid.SampledFrom([]string{"ClusterIP", "NodePort", "LoadBalancer", "ExternalName"}).Draw(t, "next type")
		if next.Spec.Type == "ExternalName" {
			next.Spec.ExternalName, next.Spec.ExternalIps, next.Spec.SessionAffinity = "db", nil, ""
		}
		if len(next.Spec.Ports) == 0 {
			next.Spec.Ports = []*balsav1.ServicePort{{Port: 80}}
		}
		object.CarryOver(old, next)
		object.Default(next)
		headless := old.Spec.ClusterIp == "None" && object.TakesNodePorts(next.Spec)
		if v := object.ValidateUpdate(old, next, object.User); len(v) > 0 && !headless {
			t.Fatalf("from %v\nto %v: %v", old.Spec, next.Spec, v)
		}
	})
}

// Policy types that nobody gave follow from the rules of the next manifest.
func TestNetworkPolicyTypesFollowTheRules(t *testing.T) {
	policy := func(types []string, egress ...*balsav1.NetworkPolicyEgressRule) *balsav1.NetworkPolicy {
		return &balsav1.NetworkPolicy{Metadata: &balsav1.ObjectMeta{Name: "p"}, Spec: &balsav1.NetworkPolicySpec{PolicyTypes: types, Egress: egress}}
	}
	rule := &balsav1.NetworkPolicyEgressRule{}
	for _, c := range []struct {
		about        string
		first, again *balsav1.NetworkPolicy
		want         []string
	}{
		{"none", policy(nil), policy(nil), []string{"Ingress"}},
		{"a rule comes", policy(nil), policy(nil, rule), []string{"Ingress", "Egress"}},
		{"the rules go", policy(nil, rule), policy(nil), []string{"Ingress"}},
		{"given", policy([]string{"Egress"}), policy([]string{"Egress"}, rule), []string{"Egress"}},
		{"not given any more", policy([]string{"Egress"}, rule), policy(nil, rule), []string{"Ingress", "Egress"}},
	} {
		live := apply(t, nil, c.first, "cli", 1)
		if got := apply(t, live, c.again, "cli", 2).(*balsav1.NetworkPolicy); !slices.Equal(got.Spec.PolicyTypes, c.want) {
			t.Errorf("%s: %v, want %v", c.about, got.Spec.PolicyTypes, c.want)
		} else if !object.PolicyApplies(got, c.want[0]) || got.Spec.PodSelector == nil {
			t.Errorf("%s: %v", c.about, got.Spec)
		}
	}
}

// What the server chose stays with a port that others' manifests mention, and what
// only the type before had goes, unless a manifest says it.
func TestApplyKeepsWhatTheServerChose(t *testing.T) {
	service := func(kind string, ports ...*balsav1.ServicePort) *balsav1.Service {
		return &balsav1.Service{Metadata: &balsav1.ObjectMeta{Name: "s"}, Spec: &balsav1.ServiceSpec{Type: kind, Ports: ports}}
	}
	port := func(n int32) *balsav1.ServicePort { return &balsav1.ServicePort{Name: "web", Port: n} }
	live := apply(t, nil, service("LoadBalancer", port(80)), "cli", 1).(*balsav1.Service)
	live.Spec.ClusterIp, live.Spec.ClusterIps, live.Spec.Ports[0].NodePort = "10.96.0.7", []string{"10.96.0.7"}, proto.Int32(30080)
	live.Status = &balsav1.ServiceStatus{LoadBalancer: &balsav1.LoadBalancerStatus{Ingress: []*balsav1.LoadBalancerIngress{{Ip: "192.0.2.1"}}}}
	moved := apply(t, live, service("LoadBalancer", port(8080)), "cli", 2).(*balsav1.Service)
	if moved.Spec.Ports[0].GetNodePort() != 30080 || len(moved.Spec.Ports) != 1 || moved.Status.LoadBalancer == nil {
		t.Errorf("%v", moved)
	}
	plain := apply(t, live, service("ClusterIP", port(80)), "cli", 2).(*balsav1.Service)
	if v := object.ValidateUpdate(live, plain, object.User); len(v) > 0 || plain.Spec.Ports[0].NodePort != nil || plain.Status.GetLoadBalancer() != nil || plain.Spec.ClusterIp != "10.96.0.7" {
		t.Errorf("%v: %v", v, plain)
	}
	if live.Status.LoadBalancer == nil {
		t.Error("the live object was changed")
	}
	named := port(80)
	named.NodePort = proto.Int32(30080)
	if v := object.ValidateUpdate(live, apply(t, live, service("ClusterIP", named), "cli", 2), object.User); len(v) != 1 || v[0].Field != "spec.ports[0].nodePort" {
		t.Errorf("%v", v)
	}
	if again := apply(t, plain, service("ClusterIP", port(80)), "cli", 3); !object.Same(plain, again) {
		t.Errorf("a second apply changes %v to %v", plain, again)
	}
}

func TestServiceClaims(t *testing.T) {
	svc := &balsav1.Service{
		Metadata: &balsav1.ObjectMeta{Name: "s", Namespace: "default"},
		Spec: &balsav1.ServiceSpec{Type: "LoadBalancer", ClusterIp: "10.96.0.7", Ports: []*balsav1.ServicePort{
			{Port: 53, Protocol: "UDP", NodePort: proto.Int32(30053)}, {Port: 53, NodePort: proto.Int32(30053)}, {Port: 54},
		}},
		Status: &balsav1.ServiceStatus{LoadBalancer: &balsav1.LoadBalancerStatus{Ingress: []*balsav1.LoadBalancerIngress{{Ip: "192.0.2.1"}, {Hostname: "a"}}}},
	}
	want := []string{"claims/clusterip/10.96.0.7", "claims/nodeport/udp/30053", "claims/nodeport/tcp/30053", "claims/loadbalancer/192.0.2.1"}
	if diff := cmp.Diff(want, object.ServiceClaims(svc)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// Addresses that a controller outside gave are nobody's claims.
	svc.Spec.LoadBalancerClass = proto.String("example.com/cloud")
	if diff := cmp.Diff(want[:3], object.ServiceClaims(svc)); diff != "" {
		t.Errorf("with a class (-want +got):\n%s", diff)
	}
	if got := object.ServiceClaims(&balsav1.Service{Spec: &balsav1.ServiceSpec{ClusterIp: "None"}}); got != nil {
		t.Errorf("headless: %v", got)
	}
	if got := object.ClaimPodCIDR(netip.MustParsePrefix("10.244.3.0/24")); got != "claims/podcidr/10.244.3.0_24" {
		t.Error(got)
	}
}

func TestHostPortsClash(t *testing.T) {
	all, one, other := object.HostPort{Port: 80, Protocol: "TCP"}, object.HostPort{IP: "10.0.0.1", Port: 80, Protocol: "TCP"}, object.HostPort{IP: "10.0.0.2", Port: 80, Protocol: "TCP"}
	udp := object.HostPort{Port: 80, Protocol: "UDP"}
	for _, c := range []struct {
		a, b object.HostPort
		want bool
	}{{all, all, true}, {all, one, true}, {one, one, true}, {one, other, false}, {all, udp, false}, {one, udp, false}} {
		if c.a.Clashes(c.b) != c.want || c.b.Clashes(c.a) != c.want {
			t.Errorf("%s and %s: want %v", c.a, c.b, c.want)
		}
	}
	spec := &balsav1.PodSpec{Containers: []*balsav1.Container{{Ports: []*balsav1.ContainerPort{
		{ContainerPort: 1}, {ContainerPort: 2, HostPort: proto.Int32(82), HostIp: "0.0.0.0"}, {ContainerPort: 3, HostPort: proto.Int32(83), HostIp: "10.0.0.1", Protocol: "UDP"},
	}}}}
	if got := fmt.Sprint(object.HostPorts(spec)); got != "[82/TCP 10.0.0.1:83/UDP]" {
		t.Error(got)
	}
}

func TestAddressRanges(t *testing.T) {
	for text, want := range map[string]string{
		"192.0.2.0/28": "192.0.2.0-192.0.2.15", "192.0.2.9 - 192.0.2.11": "192.0.2.9-192.0.2.11", "192.0.2.7": "192.0.2.7", "192.0.2.7/32": "192.0.2.7",
		"0.0.0.0/0": "0.0.0.0-255.255.255.255",
	} {
		r, err := object.ParseAddressRange(text)
		if err != nil || r.String() != want || r.At(0) != r.First || r.At(r.Size()-1) != r.Last || !r.Contains(r.Last) {
			t.Errorf("%s: %v, %v", text, r, err)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string) object.AddressRange {
			a, b := rapid.ByteRange(0, 20).Draw(t, name), rapid.ByteRange(0, 20).Draw(t, name)
			return object.AddressRange{First: netip.AddrFrom4([4]byte{10, 0, 0, min(a, b)}), Last: netip.AddrFrom4([4]byte{10, 0, 0, max(a, b)})}
		}
		x, y := draw("x"), draw("y")
		dumb := false
		for i := range x.Size() {
			dumb = dumb || y.Contains(x.At(i))
		}
		if x.Overlaps(y) != dumb || y.Overlaps(x) != dumb {
			t.Fatalf("%s and %s: want %v", x, y, dumb)
		}
	})
}

// Every address is found, as long as one is free, and none that is taken.
func TestChooseAddress(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var ranges []object.AddressRange
		all := map[netip.Addr]bool{}
		for i := range rapid.ByteRange(0, 3).Draw(t, "ranges") {
			first := rapid.ByteRange(0, 100).Draw(t, "first")
			r := object.AddressRange{First: netip.AddrFrom4([4]byte{10, 0, i, first}), Last: netip.AddrFrom4([4]byte{10, 0, i, first + rapid.ByteRange(0, 100).Draw(t, "size")})}
			ranges = append(ranges, r)
			for j := range r.Size() {
				all[r.At(j)] = true
			}
		}
		taken := map[netip.Addr]bool{}
		free := rapid.IntRange(0, len(all)).Draw(t, "free")
		for ip := range all {
			if len(all)-len(taken) > free {
				taken[ip] = true
			}
		}
		ip, ok := object.ChooseAddress(ranges, func(a netip.Addr) bool { return taken[a] }, func(below int64) int64 { return rapid.Int64Range(0, below-1).Draw(t, "random") })
		if ok != (free > 0) || ok && (taken[ip] || !all[ip]) {
			t.Fatalf("%v, %v, with %d of %d free", ip, ok, free, len(all))
		}
	})
}

func TestNodePortRanges(t *testing.T) {
	all, chosen := object.NodePortRange(), object.ChosenNodePorts()
	if all.Size() != 2768 || !all.Contains(30000) || !all.Contains(32767) || all.Contains(29999) || all.Contains(32768) || chosen.First != 30086 || chosen.Last != all.Last {
		t.Errorf("%v, %v", all, chosen)
	}
}
