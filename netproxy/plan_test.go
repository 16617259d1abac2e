package netproxy_test

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/netproxy"
	"github.com/balsa-run/balsa/object"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestGolden reads a history of views from each testdata/*.txtar, one file a
// step, and compares plans and differences with the recorded ones. A step has
// lines "VIP proto port [name] endpoint[:state]…".
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("golden files: %v, %v", files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) { golden(t, file) })
	}
}

func golden(t *testing.T, file string) {
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	got := &txtar.Archive{Comment: archive.Comment}
	var old netproxy.Ruleset
	for i, f := range archive.Files {
		if !strings.HasSuffix(f.Name, ".view") {
			continue
		}
		plan := netproxy.Plan(parse(t, string(f.Data)))
		change := netproxy.Full(plan)
		if i > 0 {
			change = netproxy.Diff(old, plan)
		}
		name := strings.TrimSuffix(f.Name, ".view")
		got.Files = append(got.Files, f, txtar.File{Name: name + ".plan", Data: []byte(plan.String())},
			txtar.File{Name: name + ".change", Data: []byte(change.String())})
		old = plan
	}
	if *update {
		if err := os.WriteFile(file, txtar.Format(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if d := cmp.Diff(string(txtar.Format(archive)), string(txtar.Format(got))); d != "" {
		t.Errorf("recorded and planned differ (run with -update to accept):\n%s", d)
	}
}

func parse(t *testing.T, text string) netproxy.View {
	t.Helper()
	v := emptyView()
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 4 {
			t.Fatalf("line %q: want VIP proto port name endpoints…", line)
		}
		s := netproxy.ServicePort{Namespace: "default", Name: fields[3], VIP: netip.MustParseAddr(fields[0])}
		s.Protocol = map[string]netproxy.Protocol{"tcp": netproxy.TCP, "udp": netproxy.UDP}[fields[1]]
		if _, err := fmt.Sscan(fields[2], &s.Port); err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		for _, e := range fields[4:] {
			ip, state, _ := strings.Cut(e, "/")
			s.Endpoints = append(s.Endpoints, netproxy.Endpoint{IP: netip.MustParseAddr(ip), Port: 8080, Ready: state == "", Serving: state == "serving"})
		}
		v.Services = append(v.Services, s)
	}
	return v
}

func emptyView() netproxy.View {
	return netproxy.View{PodCIDR: netip.MustParsePrefix("10.244.1.0/24"),
		ServiceCIDR: netip.MustParsePrefix("10.96.0.0/12"), NodeIP: netip.MustParseAddr("192.168.77.1")}
}

func drawView(t *rapid.T) netproxy.View {
	v := emptyView()
	if rapid.IntRange(0, 9).Draw(t, "other pod CIDR") == 0 {
		v.PodCIDR = netip.MustParsePrefix("10.244.2.0/24")
	}
	for i := range rapid.IntRange(0, 8).Draw(t, "services") {
		s := netproxy.ServicePort{
			Namespace: "default", Name: fmt.Sprint("s", i),
			VIP:      netip.AddrFrom4([4]byte{10, 96, 0, rapid.ByteRange(1, 4).Draw(t, "vip")}),
			Protocol: rapid.SampledFrom([]netproxy.Protocol{netproxy.TCP, netproxy.UDP, 132}).Draw(t, "protocol"),
			Port:     rapid.SampledFrom([]uint16{0, 80, 443}).Draw(t, "port"),
		}
		for range rapid.IntRange(0, 5).Draw(t, "endpoints") {
			s.Endpoints = append(s.Endpoints, netproxy.Endpoint{
				IP:   netip.AddrFrom4([4]byte{10, 244, rapid.ByteRange(1, 2).Draw(t, "node"), rapid.ByteRange(1, 5).Draw(t, "pod")}),
				Port: rapid.SampledFrom([]uint16{0, 8080, 8081}).Draw(t, "endpoint port"), Ready: rapid.Bool().Draw(t, "ready"),
				Serving: rapid.Bool().Draw(t, "serving"),
			})
		}
		v.Services = append(v.Services, s)
	}
	return v
}

// The order of services and endpoints in a view changes nothing.
func TestPlanIgnoresOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := drawView(t)
		a := netproxy.Plan(v)
		v.Services = rapid.Permutation(v.Services).Draw(t, "services")
		for i := range v.Services {
			slices.Reverse(v.Services[i].Endpoints)
		}
		b := netproxy.Plan(v)
		a.Problems, b.Problems = nil, nil
		if d := cmp.Diff(a.String(), b.String()); d != "" {
			t.Fatal(d)
		}
	})
}

func TestLimits(t *testing.T) {
	v := emptyView()
	s := netproxy.ServicePort{Namespace: "default", Name: "big", VIP: netip.MustParseAddr("10.96.0.1"), Protocol: netproxy.TCP, Port: 80}
	for i := range netproxy.MaxEndpoints + 1 {
		s.Endpoints = append(s.Endpoints, netproxy.Endpoint{IP: netip.AddrFrom4([4]byte{10, 245, byte(i >> 8), byte(i)}), Port: 80, Ready: true})
	}
	client := netip.MustParseAddr("10.244.1.1")
	for limit, affinity := range map[int]time.Duration{netproxy.MaxEndpoints: 0, netproxy.MaxAffinityEndpoints: time.Hour} {
		s.Affinity = affinity
		v.Services = []netproxy.ServicePort{s}
		r := netproxy.Plan(v)
		if p := r.Route(netproxy.Packet{From: client, To: s.VIP, Protocol: s.Protocol, Port: 80}); len(p.Targets) != limit || len(r.Problems) != 1 {
			t.Errorf("%d targets, want %d; problems %v", len(p.Targets), limit, r.Problems)
		}
	}
	v.Services = nil
	for i := range netproxy.MaxServicePorts + 1 {
		v.Services = append(v.Services, netproxy.ServicePort{VIP: netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), Protocol: netproxy.TCP, Port: 80})
	}
	if r := netproxy.Plan(v); r.Elements() != netproxy.MaxServicePorts || len(r.Problems) != 1 {
		t.Errorf("%d services, problems %v", r.Elements(), r.Problems)
	}
}

// A policy that allows more than a profile may hold is cut, and says so.
func TestProfileLimit(t *testing.T) {
	policy := &balsav1.NetworkPolicy{Metadata: &balsav1.ObjectMeta{Namespace: "default", Name: "wide"}, Spec: &balsav1.NetworkPolicySpec{
		Ingress: []*balsav1.NetworkPolicyIngressRule{{From: []*balsav1.NetworkPolicyPeer{{PodSelector: &balsav1.LabelSelector{}}}}}}}
	slice := &balsav1.NetworkPolicySlice{Metadata: policy.Metadata, Peers: []*balsav1.ResolvedPeer{{Direction: "Ingress"}}}
	for i := range netproxy.MaxProfileElements + 1 {
		ip := netip.AddrFrom4([4]byte{10, byte(i >> 15), byte(i >> 7), byte(i << 1)}) // no neighbours, which would be one range
		slice.Peers[0].Pods = append(slice.Peers[0].Pods, &balsav1.ResolvedPod{Ip: ip.String()})
	}
	r := netproxy.Plan(netproxy.FromObjects(1, netproxy.NodeParams{PodCIDR: emptyView().PodCIDR, ServiceCIDR: emptyView().ServiceCIDR, NodeIP: emptyView().NodeIP},
		netproxy.Objects{Policies: []*balsav1.NetworkPolicy{policy}, PolicySlices: []*balsav1.NetworkPolicySlice{slice},
			Pods: []netproxy.LocalPod{{IP: netip.MustParseAddr("10.244.1.1"), Namespace: "default", Name: "a"}}}))
	if n := r.Elements(); n != netproxy.MaxProfileElements+2 || len(r.Problems) != 1 || !strings.Contains(r.Problems[0].Reason, "MaxProfileElements") {
		t.Errorf("%d elements, problems %v", n, r.Problems)
	}
}

// How long planning takes before the kernel is asked: from objects to change,
// everything from nothing, and with one endpoint changed.
func BenchmarkPlan(b *testing.B) {
	for _, n := range []int{1000, 10_000} {
		services, slices := manyObjects(n, 3)
		params := netproxy.NodeParams{PodCIDR: emptyView().PodCIDR, ServiceCIDR: emptyView().ServiceCIDR, NodeIP: emptyView().NodeIP}
		o := netproxy.Objects{Services: services, Slices: slices}
		view := netproxy.FromObjects(1, params, o)
		b.Run(fmt.Sprint("from-objects/", n), func(b *testing.B) {
			for b.Loop() {
				netproxy.FromObjects(1, params, o)
			}
		})
		b.Run(fmt.Sprint("plan/", n), func(b *testing.B) {
			for b.Loop() {
				netproxy.Plan(view)
			}
		})
		plan := netproxy.Plan(view)
		b.Run(fmt.Sprint("full/", n), func(b *testing.B) {
			for b.Loop() {
				netproxy.Full(plan)
			}
		})
		b.Run(fmt.Sprint("tracker-from-nothing/", n), func(b *testing.B) {
			for b.Loop() {
				t := netproxy.NewTracker(params)
				t.Set(o)
				t.Ruleset(1)
			}
		})
		t := netproxy.NewTracker(params)
		t.Set(o)
		old := t.Ruleset(1)
		b.Run(fmt.Sprint("tracker-one-endpoint/", n), func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				s := proto.CloneOf(slices[i%n])
				s.Endpoints[0].Addresses[0] = netip.AddrFrom4([4]byte{10, 245, byte(i >> 8), byte(i)}).String()
				t.SetSlice(s)
				next := t.Ruleset(2)
				netproxy.Diff(old, next)
				old = next
			}
		})
	}
}

// What one peer more costs where ten policies of a thousand peers each select a
// hundred pods of the node.
func BenchmarkPolicyPeer(b *testing.B) {
	t := netproxy.NewTracker(netproxy.NodeParams{PodCIDR: emptyView().PodCIDR, ServiceCIDR: emptyView().ServiceCIDR, NodeIP: emptyView().NodeIP})
	for i := range 100 {
		t.SetPod(netproxy.LocalPod{IP: netip.AddrFrom4([4]byte{10, 244, 1, byte(i)}), Namespace: "default", Name: fmt.Sprint("pod", i)})
	}
	var last *balsav1.NetworkPolicySlice
	for i := range 10 {
		meta := &balsav1.ObjectMeta{Namespace: "default", Name: fmt.Sprint("p", i)}
		t.SetPolicy(&balsav1.NetworkPolicy{Metadata: meta, Spec: &balsav1.NetworkPolicySpec{
			Ingress: []*balsav1.NetworkPolicyIngressRule{{From: []*balsav1.NetworkPolicyPeer{{PodSelector: &balsav1.LabelSelector{}}}}}}})
		last = &balsav1.NetworkPolicySlice{Metadata: meta, Peers: []*balsav1.ResolvedPeer{{Direction: "Ingress"}}}
		for j := range 1000 {
			last.Peers[0].Pods = append(last.Peers[0].Pods, &balsav1.ResolvedPod{Ip: netip.AddrFrom4([4]byte{10, byte(i), byte(j >> 8), byte(j)}).String()})
		}
		t.SetPolicySlice(last)
	}
	old := t.Ruleset(1)
	for i := 0; b.Loop(); i++ {
		s := proto.CloneOf(last)
		s.Peers[0].Pods[0].Ip = netip.AddrFrom4([4]byte{11, 0, byte(i >> 8), byte(i)}).String()
		t.SetPolicySlice(s)
		next := t.Ruleset(2)
		netproxy.Diff(old, next)
		old = next
	}
}

func manyObjects(services, endpoints int) ([]*balsav1.Service, []*balsav1.EndpointSlice) {
	var out []*balsav1.Service
	var slices []*balsav1.EndpointSlice
	for i := range services {
		name := fmt.Sprint("s", i)
		out = append(out, &balsav1.Service{Metadata: &balsav1.ObjectMeta{Namespace: "default", Name: name},
			Spec: &balsav1.ServiceSpec{ClusterIp: netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}).String(), Ports: []*balsav1.ServicePort{{Port: 80}}}})
		slice := &balsav1.EndpointSlice{Metadata: &balsav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{object.LabelServiceName: name}},
			Ports: []*balsav1.EndpointPort{{Port: 8080}}}
		for j := range endpoints {
			k := i*endpoints + j
			slice.Endpoints = append(slice.Endpoints, &balsav1.Endpoint{Addresses: []string{netip.AddrFrom4([4]byte{10, 244, byte(k >> 8), byte(k)}).String()}})
		}
		slices = append(slices, slice)
	}
	return out, slices
}
