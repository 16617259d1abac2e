//go:build linux

//balsa:real-processes

package apply_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/netproxy"
	world "github.com/balsa-run/balsa/netproxy/netproxytest"
)

// limits are objects with the world's pods and policies.
func limits(t *testing.T, s *site, policies ...*balsav1.NetworkPolicy) netproxy.Result {
	t.Helper()
	w := world.New()
	o := w.Objects()
	o.Policies = policies
	for _, p := range policies {
		o.PolicySlices = append(o.PolicySlices, resolved(p))
	}
	v := netproxy.FromObjects(1, w.Node, o)
	v.Services = siteView(nil, world.PodA).Services
	return sync(t, s.kernel, v)
}

// resolved names pod c wherever a selector stands.
func resolved(p *balsav1.NetworkPolicy) *balsav1.NetworkPolicySlice {
	s := &balsav1.NetworkPolicySlice{Metadata: p.GetMetadata(), ObservedGeneration: p.GetMetadata().GetGeneration(), Policy: p.GetSpec()}
	for i := range p.GetSpec().GetIngress() {
		s.Peers = append(s.Peers, &balsav1.ResolvedPeer{Direction: "Ingress", Rule: int32(i), Pods: []*balsav1.ResolvedPod{{Ip: world.PodC}}})
	}
	return s
}

func ingress(generation int64, from ...*balsav1.NetworkPolicyPeer) *balsav1.NetworkPolicy {
	return &balsav1.NetworkPolicy{Metadata: &balsav1.ObjectMeta{Namespace: "default", Name: "p", Generation: generation},
		Spec: &balsav1.NetworkPolicySpec{PodSelector: &balsav1.LabelSelector{MatchLabels: map[string]string{"pod": "a"}},
			Ingress: []*balsav1.NetworkPolicyIngressRule{{From: from}}, PolicyTypes: []string{"Ingress"}}}
}

func block(cidr string) *balsav1.NetworkPolicyPeer {
	return &balsav1.NetworkPolicyPeer{IpBlock: &balsav1.IPBlock{Cidr: cidr}}
}

func denyEgress(pod string) *balsav1.NetworkPolicy {
	return &balsav1.NetworkPolicy{Metadata: &balsav1.ObjectMeta{Namespace: "default", Name: "out-" + pod, Generation: 1},
		Spec: &balsav1.NetworkPolicySpec{PodSelector: &balsav1.LabelSelector{MatchLabels: map[string]string{"pod": pod}}, PolicyTypes: []string{"Egress"}}}
}

func (s *site) expectProhibited(t *testing.T, from, to string) {
	t.Helper()
	for p, want := range map[netproxy.Protocol]syscall.Errno{netproxy.TCP: syscall.ECONNREFUSED, netproxy.UDP: syscall.EHOSTUNREACH} {
		if name, _, err := s.knock(packet(from, to, p), 2*time.Second); !errors.Is(err, want) {
			t.Errorf("%s from %s to %s: answer by %q, %v; want %v", p, from, to, name, err, want)
		}
	}
}

func TestPolicies(t *testing.T) {
	for _, bridgeNF := range []bool{false, true} {
		t.Run(fmt.Sprint("bridge-nf-", bridgeNF), func(t *testing.T) {
			s := newSite(t, bridgeNF)
			limits(t, s, ingress(1, &balsav1.NetworkPolicyPeer{PodSelector: &balsav1.LabelSelector{}}), denyEgress("b"))
			direct := world.PodA + ":8080"
			for _, to := range append(fronts(), direct) {
				s.expectProhibited(t, world.PodB, to)
				seen := world.PodC
				if to != direct {
					seen = world.Node1 // masqueraded, and judged by where it came from
				}
				s.expect(t, world.PodC, to, "a", seen)
				s.expectProhibited(t, world.Outside, to)
				s.expect(t, world.Node1, to, "a", world.Node1) // as probes do
			}
			for _, to := range fronts() {
				s.expect(t, world.PodA, to, "a", world.Node1) // a pod reaches itself
			}
			s.expectProhibited(t, world.PodB, world.PodC+":8080")          // b may connect to nobody,
			s.expect(t, world.PodC, world.PodB+":8080", "b", world.PodC)   // but answer,
			s.expect(t, world.Node1, world.PodB+":8080", "b", world.Node1) // to the node too.
		})
	}
}

func TestPolicyCounters(t *testing.T) {
	s := newSite(t, false)
	limits(t, s, ingress(1, block(world.PodC+"/32")), denyEgress("b"))
	tcp := func(from string) {
		_, _, _ = s.knock(packet(from, world.PodA+":8080", netproxy.TCP), 2*time.Second)
	}
	for range 3 {
		tcp(world.PodC)
	}
	for range 2 {
		tcp(world.Outside)
	}
	tcp(world.PodB)
	got, err := s.kernel.PolicyCounters(context.Background())
	want := []netproxy.PolicyCount{{PodIP: ip(world.PodA), Direction: netproxy.Ingress, Allowed: 3, Refused: 2}, {PodIP: ip(world.PodB), Direction: netproxy.Egress, Refused: 1}}
	if err != nil || len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("counters %+v, %v; want %+v", got, err, want)
	}
	if report := scrub(t, s.kernel); len(report.Findings) > 0 {
		t.Error(report.Findings)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.kernel.PolicyCounters(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// What policies say of connections that exist: a policy that changes ends those
// that it no longer allows, and a peer that is no longer one keeps those it has.
func TestEstablishedConnections(t *testing.T) {
	s := newSite(t, true)
	limits(t, s)
	conns := func() map[string]net.Conn {
		return map[string]net.Conn{
			"tcp":        dial(t, s.ns[world.PodC], "tcp4", world.PodA+":8080"),
			"udp":        dial(t, s.ns[world.PodC], "udp4", world.PodA+":8080"),
			"service":    dial(t, s.ns[world.PodC], "tcp4", webVIP+":80"),
			"from a pod": dial(t, s.ns[world.PodB], "tcp4", world.PodA+":8080"),
		}
	}
	open := conns()
	node := dial(t, s.n1, "tcp4", world.PodA+":8080")
	alive := func(step string) {
		t.Helper()
		for name, c := range open {
			if got, err := s.steady(c); err != nil || got != "a" {
				t.Errorf("%s: %s: %q, %v", step, name, got, err)
			}
		}
	}
	alive("no policy")
	limits(t, s, ingress(1, block("10.244.0.0/16")))
	alive("a policy that allows them")
	// The same policy, whose peers are others now: nothing is cut.
	if r := limits(t, s, ingress(1, block("10.244.9.0/24"))); r.ForgottenFlows != 0 {
		t.Errorf("peers that went cost %d flows", r.ForgottenFlows)
	}
	alive("peers that went")
	s.expectProhibited(t, world.PodC, world.PodA+":8080") // new connections are refused
	// A new generation of the policy: all are judged again.
	limits(t, s, ingress(2, block("10.244.1.0/24")))
	for name, c := range open {
		got, err := s.steady(c)
		if allowed := name == "from a pod"; allowed != (err == nil) {
			t.Errorf("after the policy changed: %s: %q, %v; allowed: %v", name, got, err, allowed)
		}
	}
	if got := must(t, node); !strings.HasPrefix(got, "a ") {
		t.Errorf("the node's own connection: %q", got)
	}
}
