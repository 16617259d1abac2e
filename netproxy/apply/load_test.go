//go:build linux

//balsa:real-processes

package apply_test

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/netproxy"
	world "github.com/balsa-run/balsa/netproxy/netproxytest"
	"github.com/balsa-run/balsa/object"
)

// No connection is lost while endpoints, affinity and policies change under
// load, as long as each state by itself would serve it: through a ClusterIP from
// a limited pod to limited pods, through a node port from outside, and through a
// load balancer's address with policy Local.
func TestChangesUnderLoadDropNoConnection(t *testing.T) {
	s := newSite(t, true)
	w := world.New()
	tracker := netproxy.NewTracker(w.Node)
	tracker.Set(w.Objects())
	step := func(i int) {
		loadState(tracker, i)
		if _, err := s.kernel.Sync(context.Background(), tracker.Ruleset(int64(i))); err != nil {
			t.Fatal(err)
		}
	}
	step(0)
	load := s.begin([2]string{world.PodB, world.VIPs[0] + ":80"}, [2]string{world.Outside, world.Node1 + ":30080"},
		[2]string{world.Outside, world.Balancers[0] + ":80"}, [2]string{world.PodA, world.VIPs[1] + ":80"})
	for i := range 80 {
		step(i)
	}
	load.end(t)
}

// load is connections that are made without pause, each client's one after another.
type load struct {
	stop     chan struct{}
	failures chan error
	clients  int
}

// begin makes each client, an address, connect to its service.
func (s *site) begin(clients ...[2]string) *load {
	l := &load{make(chan struct{}), make(chan error, len(clients)), len(clients)}
	for _, c := range clients {
		go func() { l.failures <- s.hammer(c[0], c[1], l.stop) }()
	}
	return l
}

// end reports the first connection of each client that was lost.
func (l *load) end(t *testing.T) {
	t.Helper()
	close(l.stop)
	for range l.clients {
		if err := <-l.failures; err != nil {
			t.Error(err)
		}
	}
}

// loadState gives services other endpoints and policies other peers, of which each
// serves whoever asks.
func loadState(tracker *netproxy.Tracker, i int) {
	endpoints := [][]string{{world.PodA}, {world.PodA, world.PodB}, {world.PodB}, {world.PodA, world.PodB, world.PodC}}[i%4]
	for n, spec := range loadServices(i) {
		name := fmt.Sprint("s", n)
		meta := &balsav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{object.LabelServiceName: name}}
		spec.Ports = []*balsav1.ServicePort{{Port: 80, NodePort: spec.Ports[0].NodePort}}
		tracker.SetService(&balsav1.Service{Metadata: meta, Spec: spec, Status: &balsav1.ServiceStatus{LoadBalancer: &balsav1.LoadBalancerStatus{
			Ingress: []*balsav1.LoadBalancerIngress{{Ip: world.Balancers[0]}}}}})
		slice := &balsav1.EndpointSlice{Metadata: meta, Ports: []*balsav1.EndpointPort{{Port: 8080}}}
		for _, e := range endpoints {
			slice.Endpoints = append(slice.Endpoints, &balsav1.Endpoint{Addresses: []string{e}})
		}
		tracker.SetSlice(slice)
	}
	loadPolicies(tracker, i)
}

// loadServices are a plain one with a node port, one with affinity that comes and
// goes, and one of policy Local.
func loadServices(i int) []*balsav1.ServiceSpec {
	port := int32(30080)
	affinity := "None"
	if i%3 > 0 {
		affinity = "ClientIP"
	}
	return []*balsav1.ServiceSpec{
		{Type: "NodePort", ClusterIp: world.VIPs[0], Ports: []*balsav1.ServicePort{{NodePort: &port}}},
		{Type: "ClusterIP", ClusterIp: world.VIPs[1], SessionAffinity: affinity, Ports: []*balsav1.ServicePort{{}}},
		{Type: "LoadBalancer", ClusterIp: world.VIPs[2], ExternalTrafficPolicy: "Local", Ports: []*balsav1.ServicePort{{}}},
	}
}

// loadPolicies changes which policies select the pods, and whom they name; each
// lets everybody in who knocks.
func loadPolicies(tracker *netproxy.Tracker, i int) {
	for n := range 2 {
		name := fmt.Sprint("p", n)
		if (i+n)%5 == 0 {
			tracker.DeletePolicy("default", name)
			continue
		}
		peers := []*balsav1.NetworkPolicyPeer{block("192.168.77.0/24"), block("10.244.0.0/16")}
		if i%2 == 0 {
			peers = append(peers[:1], block("10.244.1.0/24"), block("10.244.2.0/23"))
		}
		tracker.SetPolicy(&balsav1.NetworkPolicy{Metadata: &balsav1.ObjectMeta{Namespace: "default", Name: name, Generation: int64(i)}, Spec: &balsav1.NetworkPolicySpec{
			Ingress: []*balsav1.NetworkPolicyIngressRule{{From: peers}}, Egress: []*balsav1.NetworkPolicyEgressRule{{To: peers}}}})
	}
}

func (s *site) hammer(from, to string, stop chan struct{}) error {
	p := packet(from, to, netproxy.TCP)
	for i := 0; ; i++ {
		select {
		case <-stop:
			if i >= 20 {
				return nil
			}
		default:
		}
		if _, _, err := s.knock(p, 10*time.Second); err != nil {
			return fmt.Errorf("%s to %s, request %d: %w", from, netip.AddrPortFrom(p.To, p.Port), i, err)
		}
	}
}
