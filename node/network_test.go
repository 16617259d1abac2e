package node_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/netproxy"
	"github.com/balsa-run/balsa/node"
	"github.com/balsa-run/balsa/object"
)

// brokenProxy fails for as long as it is told to.
type brokenProxy struct {
	node.Proxy
	broken atomic.Bool
	syncs  atomic.Int64
}

func (b *brokenProxy) Sync(ctx context.Context, r netproxy.Ruleset) (netproxy.Result, error) {
	b.syncs.Add(1)
	if b.broken.Load() {
		return netproxy.Result{}, errors.New("the kernel refuses")
	}
	return b.Proxy.Sync(ctx, r)
}

// withProxy puts the failpoint between the agent and the kernel.
func withProxy(t *testing.T, test func(l *lab, proxy *brokenProxy)) {
	proxy := &brokenProxy{}
	onNode(t, func(l *lab) {
		l.stop()
		l.tweak = func(c *node.Config) {
			open := c.Open
			c.Open = func(ctx context.Context, facts node.ClusterFacts) (node.Plant, error) {
				plant, err := open(ctx, facts)
				proxy.Proxy, plant.Proxy = plant.Proxy, proxy
				return plant, err
			}
		}
		l.start()
		test(l, proxy)
	})
}

// allowNobody selects pods with app=closed.
func allowNobody() *balsav1.NetworkPolicy {
	return &balsav1.NetworkPolicy{Metadata: &balsav1.ObjectMeta{Name: "closed", Namespace: "default", Generation: 1},
		Spec: &balsav1.NetworkPolicySpec{PodSelector: &balsav1.LabelSelector{MatchLabels: map[string]string{"app": "closed"}}, PolicyTypes: []string{"Ingress"}}}
}

func sliceOf(p *balsav1.NetworkPolicy) *balsav1.NetworkPolicySlice {
	return &balsav1.NetworkPolicySlice{Metadata: &balsav1.ObjectMeta{Name: p.Metadata.Name, Namespace: p.Metadata.Namespace}, ObservedGeneration: p.Metadata.Generation}
}

// A pod that a new policy selects does not start before the slice says whom the
// policy means, whichever edition the node enforces meanwhile.
func TestFirstContainerWaitsForAPolicysSlice(t *testing.T) {
	withProxy(t, func(l *lab, _ *brokenProxy) {
		closed := func(name string) *balsav1.Pod {
			p := newPod(name, "forever")
			p.Metadata.Labels = map[string]string{"app": "closed"}
			return p
		}
		l.server.put(allowNobody())
		l.server.put(closed("early"))
		l.server.put(newPod("open", "forever"))
		l.within(time.Second, "the pod that no policy is about runs", func() bool { return l.isRunning("uid-open", "c") })
		l.always(10*time.Second, "the other waits", func() bool { return l.attempt("uid-early", "c").Status == "" })
		if !l.said("no server has told whom the selectors of default/closed stand for") {
			t.Error("nobody says what the pod waits for")
		}
		whole := sliceOf(allowNobody())
		whole.Policy = allowNobody().Spec
		l.server.put(whole)
		l.within(30*time.Second, "it runs", func() bool { return l.isRunning("uid-early", "c") })
		addrs := l.network.Addresses()
		if _, ingress := l.kernel.Judge(netproxy.Connection{From: addrs["uid-open"], To: addrs["uid-early"], Protocol: netproxy.TCP, Port: 80}); ingress {
			t.Error("the pod runs and its policy is not in the kernel")
		}
		edited := allowNobody() // it is for others now, which the slice does not know yet
		edited.Metadata.Generation, edited.Spec.PodSelector.MatchLabels = 2, map[string]string{"app": "other"}
		l.server.put(edited)
		l.server.put(closed("late"))
		l.within(5*time.Second, "a pod that only the edition in force selects has its rules and runs", func() bool { return l.isRunning("uid-late", "c") })
		addrs = l.network.Addresses()
		if _, ingress := l.kernel.Judge(netproxy.Connection{From: addrs["uid-open"], To: addrs["uid-late"], Protocol: netproxy.TCP, Port: 80}); ingress {
			t.Error("the edition in force is not in the kernel")
		}
		other := newPod("other", "forever")
		other.Metadata.Labels = map[string]string{"app": "other"}
		l.server.put(other)
		l.always(5*time.Second, "a pod that the new edition selects waits", func() bool { return l.attempt("uid-other", "c").Status == "" })
		whole = object.Clone(whole)
		whole.ObservedGeneration, whole.Policy = 2, edited.Spec
		l.server.put(whole)
		l.within(30*time.Second, "it runs", func() bool { return l.isRunning("uid-other", "c") })
	})
}

func withPort(p *balsav1.Pod, containerPort, hostPort int32) *balsav1.Pod {
	p.Spec.Containers[0].Ports = []*balsav1.ContainerPort{{Name: "http", ContainerPort: containerPort, HostPort: &hostPort, Protocol: "TCP"}}
	return p
}

// A pod's first container starts only when the kernel knows the pod's address, if
// a policy or a host port is about the pod; others do not wait.
func TestFirstContainerWaitsForItsRules(t *testing.T) {
	withProxy(t, func(l *lab, proxy *brokenProxy) {
		l.server.put(allowNobody())
		l.server.put(sliceOf(allowNobody()))
		l.within(2*time.Second, "the policy has come", func() bool { return l.agent.Status().AppliedRevision >= l.server.now() })
		proxy.broken.Store(true)
		closed := newPod("closed", "forever")
		closed.Metadata.Labels = map[string]string{"app": "closed"}
		l.server.put(closed)
		l.server.put(withPort(newPod("hosted", "forever"), 8080, 9090))
		l.server.put(newPod("open", "forever"))
		l.within(time.Second, "the pod that no rule is about runs", func() bool { return l.isRunning("uid-open", "c") })
		l.always(20*time.Second, "the others wait", func() bool {
			return l.attempt("uid-closed", "c").Status == "" && l.attempt("uid-hosted", "c").Status == ""
		})
		if !l.said("the rules for the pod's address are not in the kernel yet: proxy at revision") {
			t.Error("nobody says what the pods wait for")
		}
		proxy.broken.Store(false)
		l.within(30*time.Second, "they run", func() bool { return l.isRunning("uid-closed", "c") && l.isRunning("uid-hosted", "c") })
		addrs := l.network.Addresses()
		if _, ingress := l.kernel.Judge(netproxy.Connection{From: addrs["uid-open"], To: addrs["uid-closed"], Protocol: netproxy.TCP, Port: 80}); ingress {
			t.Error("the pod runs and its policy is not in the kernel")
		}
		l.hostPortLeads(t, netip.AddrPortFrom(addrs["uid-hosted"], 8080))
	})
}

func (l *lab) hostPortLeads(t *testing.T, to netip.AddrPort) {
	t.Helper()
	path := l.kernel.Route(netproxy.Packet{From: netip.MustParseAddr("192.0.2.1"), To: netip.MustParseAddr("10.0.0.11"), Protocol: netproxy.TCP, Port: 9090, ToNode: true})
	if got := fmt.Sprint(path.Targets); got != fmt.Sprintf("[%s . %d]", to.Addr(), to.Port()) {
		t.Errorf("the host port leads to %s, want %s", got, to)
	}
}

func (l *lab) said(part string) bool {
	l.server.mu.Lock()
	defer l.server.mu.Unlock()
	for _, e := range l.server.events {
		if strings.Contains(e.GetMessage(), part) {
			return true
		}
	}
	return false
}

// pass lets virtual time go by.
func (l *lab) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (l *lab) times(reason string) int {
	l.server.mu.Lock()
	defer l.server.mu.Unlock()
	n := 0
	for _, e := range l.server.events {
		if e.GetReason() == reason {
			n++
		}
	}
	return n
}

// An agent that restarts, without servers, gives the kernel the very rules that
// were there: pods' addresses are known before any of them is looked at. A pod
// that has run does not wait for anything.
func TestRulesSurviveARestart(t *testing.T) {
	withProxy(t, func(l *lab, proxy *brokenProxy) {
		l.server.put(allowNobody())
		l.server.put(sliceOf(allowNobody()))
		closed := newPod("closed", "forever")
		closed.Metadata.Labels = map[string]string{"app": "closed"}
		l.server.put(withPort(closed, 8080, 9090))
		l.within(5*time.Second, "it runs", func() bool { return l.isRunning("uid-closed", "c") })
		l.pass(2 * time.Second) // the set is on disk
		ip := l.network.Addresses()["uid-closed"]
		l.stop()
		l.server.setDown(true)
		l.kernel = &netproxy.Fake{}
		before := proxy.syncs.Load()
		l.start()
		l.within(5*time.Second, "the rules are there", func() bool { return proxy.syncs.Load() > before })
		l.hostPortLeads(t, netip.AddrPortFrom(ip, 8080))
		if _, ingress := l.kernel.Judge(netproxy.Connection{From: netip.MustParseAddr("10.244.2.9"), To: ip, Protocol: netproxy.TCP, Port: 80}); ingress {
			t.Error("the first rules of the new agent let everybody in")
		}
	})
}

// Rules about a pod go with its network.
func TestRulesGoWithThePod(t *testing.T) {
	onNode(t, func(l *lab) {
		l.server.put(withPort(newPod("a", "forever"), 8080, 9090))
		l.within(5*time.Second, "it runs", func() bool { return l.isRunning("uid-a", "c") })
		l.hostPortLeads(t, netip.AddrPortFrom(l.network.Addresses()["uid-a"], 8080))
		l.server.deletePod("a", 0)
		l.within(10*time.Second, "the host port is free", func() bool {
			path := l.kernel.Route(netproxy.Packet{From: netip.MustParseAddr("192.0.2.1"), To: netip.MustParseAddr("10.0.0.11"), Protocol: netproxy.TCP, Port: 9090, ToNode: true})
			return len(path.Targets) == 0 && l.server.pod("a") == nil
		})
	})
}

func pool(node string, ips ...string) *balsav1.AddressPool {
	p := &balsav1.AddressPool{ApiVersion: object.APIVersionBalsa, Kind: "AddressPool", Metadata: &balsav1.ObjectMeta{Name: "front"}, Status: &balsav1.AddressPoolStatus{}}
	for _, ip := range ips {
		p.Status.Announced = append(p.Status.Announced, &balsav1.AnnouncedAddress{Ip: ip, NodeName: node})
	}
	return p
}

// The node answers for what the store says that it answers for, once a server has
// said so: what lies on its disk may be another node's by now.
func TestNodeAnnounces(t *testing.T) {
	onNode(t, func(l *lab) {
		announced := func(want string) func() bool {
			return func() bool { return fmt.Sprint(l.network.Announced()) == want }
		}
		l.server.put(pool("n1", "192.0.2.7", "192.0.2.6"))
		l.within(time.Second, "two addresses", announced("[192.0.2.6 192.0.2.7]"))
		l.server.put(pool("n2", "192.0.2.7"))
		l.within(time.Second, "none", announced("[]"))
		l.network.SetStranger(netip.MustParseAddr("192.0.2.8"), true)
		l.server.put(pool("n1", "192.0.2.8", "192.0.2.9"))
		l.within(time.Second, "one is a stranger's", announced("[192.0.2.9]"))
		l.within(time.Second, "that is told", func() bool { return l.said("a stranger has the address: 192.0.2.8") })
		l.always(time.Minute, "it is told once", func() bool { return l.times("NetworkProblem") == 1 })
		l.network.SetStranger(netip.MustParseAddr("192.0.2.8"), false)
		l.within(15*time.Second, "the stranger has gone", announced("[192.0.2.8 192.0.2.9]"))

		l.pass(2 * time.Second) // the set is on disk
		l.stop()
		if err := l.network.SyncAnnounced(context.Background(), nil); err != nil {
			t.Fatal(err)
		}
		l.server.setDown(true)
		l.start()
		l.always(20*time.Second, "nothing is announced from disk", announced("[]"))
		l.server.setDown(false)
		l.within(20*time.Second, "a server has confirmed it", announced("[192.0.2.8 192.0.2.9]"))
	})
}

// What somebody else breaks is repaired within seconds, and told once.
func TestNetworkIsRepaired(t *testing.T) {
	onNode(t, func(l *lab) {
		l.server.put(newPod("a", "forever"))
		l.within(5*time.Second, "it runs", l.ready("a"))
		l.pass(3 * time.Second)
		before := l.network.Scrubs()
		l.network.Damage("the route to the pod at 10.244.1.2 was not there")
		l.within(time.Second, "it is looked at", func() bool { return l.network.Scrubs() > before })
		l.within(time.Second, "it is told", func() bool {
			return l.said("somebody else, and is repaired: the route to the pod at 10.244.1.2 was not there")
		})
		l.always(time.Minute, "once", func() bool { return l.times("NetworkRepaired") == 1 })
		for i := range 20 { // a storm
			l.network.Damage(fmt.Sprint("damage ", i))
			l.pass(50 * time.Millisecond)
		}
		l.pass(5 * time.Second)
		if n := l.times("NetworkRepaired"); n > 4 {
			t.Errorf("%d events of one storm", n)
		}
		scrubs := l.network.Scrubs()
		l.pass(time.Minute)
		if more := l.network.Scrubs() - scrubs; more < 5 || more > 7 {
			t.Errorf("%d looks in a quiet minute, want about one in ten seconds", more)
		}
	})
}

// A node whose pod CIDR contradicts others is told, and disturbs nobody.
func TestOverlappingNodes(t *testing.T) {
	onNode(t, func(l *lab) {
		other := func(name, cidr, ip string) *balsav1.Node {
			return &balsav1.Node{Metadata: &balsav1.ObjectMeta{Name: name}, Spec: &balsav1.NodeSpec{PodCidr: cidr},
				Status: &balsav1.NodeStatus{Addresses: []*balsav1.NodeAddress{{Type: "InternalIP", Address: ip}}}}
		}
		l.server.put(other("n5", "10.244.5.0/24", "10.0.0.15"))
		l.within(time.Second, "its pods are reached", func() bool { return len(l.network.Routes()) == 1 })
		l.server.put(other("a-late", "10.244.4.0/23", "10.0.0.14"))
		l.server.put(other("n6", "10.244.6.0/24", "10.0.0.16"))
		l.within(time.Second, "the good ones are reached", func() bool {
			routes := l.network.Routes()
			return len(routes) == 2 && routes[netip.MustParsePrefix("10.244.5.0/24")] == netip.MustParseAddr("10.0.0.15")
		})
		l.within(time.Second, "the bad one is told", func() bool {
			return l.said("node a-late: networks overlap: its pod CIDR 10.244.4.0/23 and that of node n5 (10.244.5.0/24), whose routes stay")
		})
		l.within(2*time.Second, "revisions go on", func() bool { return l.agent.Status().AppliedRevision >= l.server.now() })
	})
}

// TestResolverKnowsItsClients: the resolver tries search domains only for pods that
// were told to ask it and nobody else.
func TestResolverKnowsItsClients(t *testing.T) {
	onNode(t, func(l *lab) {
		searches := func(uid string) []string {
			l.zone.mu.Lock()
			defer l.zone.mu.Unlock()
			return l.zone.clients.Searches(l.network.Addresses()[uid])
		}
		more := newPod("more", "forever")
		more.Spec.DnsConfig = &balsav1.PodDNSConfig{Searches: []string{"corp.example"}}
		other := newPod("other", "forever")
		other.Spec.DnsPolicy = object.DNSDefault
		l.server.put(newPod("a", "forever"))
		l.server.put(more)
		l.server.put(other)
		usual := []string{"default.svc.cluster.local.", "svc.cluster.local.", "cluster.local."}
		l.within(5*time.Second, "the resolver knows them", func() bool {
			return slices.Equal(searches("uid-a"), usual) && slices.Equal(searches("uid-more"), append(slices.Clone(usual), "corp.example.")) && l.isRunning("uid-other", "c")
		})
		if got := searches("uid-other"); got != nil {
			t.Errorf("a pod that asks the node's servers is completed with %v", got)
		}
		ip := l.network.Addresses()["uid-a"]
		l.server.deletePod("a", 0)
		l.within(10*time.Second, "it is forgotten", func() bool {
			l.zone.mu.Lock()
			defer l.zone.mu.Unlock()
			return l.zone.clients.Searches(ip) == nil
		})
	})
}
