package node_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"sync"
	"testing"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/netproxy"
	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/object"
)

// openConnections are the connections that are open to pods.
type openConnections struct {
	mu    sync.Mutex
	to    map[string]int // guarded by mu; by address
	fails bool           // guarded by mu
	asked int            // guarded by mu
}

func (o *openConnections) set(ip string, n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.to[ip] = n
}

func (o *openConnections) fail(fails bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.fails = fails
}

func (o *openConnections) counts() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.asked
}

// Connections implements node.Connections.
func (o *openConnections) Connections(_ context.Context, to []netip.Addr) (map[netip.Addr]int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.asked++
	if o.fails {
		return nil, errors.New("injected")
	}
	out := map[netip.Addr]int{}
	for _, ip := range to {
		out[ip] = o.to[ip.String()]
	}
	return out, nil
}

// drain says that a pod is out of service.
func (s *server) drain(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := object.Clone(s.objects["pods/default/"+name].(*balsav1.Pod))
	drained(p)
	s.putLocked(p)
}

func (l *lab) runs(name string) func() bool {
	return func() bool { _, c := l.state("uid-" + name); return c.Status == runtime.ContainerRunning }
}

func (l *lab) gone(name string) func() bool {
	return func() bool { return l.server.pod(name) == nil && !l.exists("uid-"+name) }
}

// begin runs a pod that ends with SIGTERM, and asks for its end.
func (l *lab) begin(name string) (ip string) {
	l.server.put(newPod(name, "term=0", "forever"))
	l.within(2*time.Second, "it runs", l.ready(name))
	ip = l.server.pod(name).GetStatus().GetPodIp()
	l.server.deletePod(name, 30)
	return ip
}

func TestStopWaitsUntilDrained(t *testing.T) {
	onNode(t, func(l *lab) {
		l.server.silent = true
		l.begin("a")
		l.always(4*time.Second, "it runs while connections may come", l.runs("a"))
		l.server.drain("a")
		l.within(time.Second, "it goes when none do", l.gone("a"))

		l.begin("b")
		l.always(time.Second, "it waits for the servers", l.runs("b"))
		l.server.setDown(true)
		l.always(6*time.Second, "without servers it waits", l.runs("b"))
		l.within(2*time.Second, "but not for ever", func() bool { return !l.exists("uid-b") })
	})
}

// TestStopWaitsForOpenConnections: as long as they are open, for 2 s, or what the
// pod says; and if they cannot be counted for all that time.
func TestStopWaitsForOpenConnections(t *testing.T) {
	onNode(t, func(l *lab) {
		l.server.silent = true
		ip := l.begin("a")
		l.open.set(ip, 2)
		l.server.drain("a")
		l.always(time.Second, "it runs while two are open", l.runs("a"))
		l.open.set(ip, 0)
		l.within(500*time.Millisecond, "it goes when they have finished", l.gone("a"))
		counted := l.open.counts()
		l.always(2*time.Second, "nobody counts when nobody waits", func() bool { return l.open.counts() == counted })

		l.open.set(l.begin("b"), 1)
		l.server.drain("b")
		l.always(1900*time.Millisecond, "it runs while one is open", l.runs("b"))
		l.within(time.Second, "but not for ever", l.gone("b"))

		l.open.fail(true)
		l.begin("c")
		l.server.drain("c")
		l.always(1900*time.Millisecond, "it runs since it is not known", l.runs("c"))
		l.within(time.Second, "but not for ever", l.gone("c"))
	})
}

// TestDrainSurvivesTheAgent kills the agent in every state of a drain: what has
// passed has passed, and no time begins anew.
func TestDrainSurvivesTheAgent(t *testing.T) {
	onNode(t, func(l *lab) {
		l.server.silent = true
		ip := l.begin("a")
		l.open.set(ip, 1)
		l.always(2*time.Second, "it waits for the servers", l.runs("a"))
		l.restart()
		l.always(time.Second, "it still does", l.runs("a"))
		l.server.drain("a")
		l.always(time.Second, "it waits for a connection", l.runs("a"))
		l.restart()
		l.always(800*time.Millisecond, "it still does", l.runs("a"))
		l.within(time.Second, "2 s in all", l.gone("a"))

		l.server.put(newPod("b", "term=ignore", "forever")) // SIGTERM does not end it
		l.within(2*time.Second, "b runs", l.ready("b"))
		l.server.deletePod("b", 4)
		l.server.drain("b")
		l.always(3*time.Second, "it has its grace period", l.runs("b"))
		l.restart()
		l.within(2*time.Second, "which does not begin anew", l.gone("b"))
	})
}

// TestConnectionsToTheGoneAreForgotten: once an endpoint is in no slice any more, and
// not while it is only not ready, what is left of connections to it is forgotten.
func TestConnectionsToTheGoneAreForgotten(t *testing.T) {
	onNode(t, func(l *lab) {
		slice := func(ready bool, ips ...string) *balsav1.EndpointSlice {
			s := &balsav1.EndpointSlice{Metadata: &balsav1.ObjectMeta{Name: "web", Namespace: "default", Labels: map[string]string{object.LabelServiceName: "web"}},
				AddressType: "IPv4", Ports: []*balsav1.EndpointPort{{Port: 8080, Protocol: "TCP"}}}
			for _, ip := range ips {
				s.Endpoints = append(s.Endpoints, &balsav1.Endpoint{Addresses: []string{ip}, Conditions: &balsav1.EndpointConditions{Ready: &ready}})
			}
			return s
		}
		l.server.put(slice(true, "10.244.2.7", "10.244.2.8"))
		l.server.put(slice(false, "10.244.2.7", "10.244.2.8"))
		l.always(5*time.Second, "all are still there", func() bool { return len(l.kernel.Forgotten()) == 0 })
		l.server.put(slice(false, "10.244.2.7"))
		l.within(2*time.Second, "one has gone", func() bool { return fmt.Sprint(l.kernel.Forgotten()) == "[10.244.2.8]" })
		l.server.remove("endpointslices/default/web")
		l.within(2*time.Second, "the other", func() bool { return fmt.Sprint(l.kernel.Forgotten()) == "[10.244.2.8 10.244.2.7]" })
	})
}

// image is what is on a disk.
func (d *memDisk) image() map[string][]byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.files)
}

func (d *memDisk) restore(image map[string][]byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.files = maps.Clone(image)
}

// kill stops the agent without the last writes that one makes which ends in peace.
func (l *lab) kill() {
	disk, run := l.disk.image(), l.run.image()
	l.stop()
	l.disk.restore(disk)
	l.run.restore(run)
}

// TestKilledAgentDoesNotGoBack: services are saved at leisure, what has changed in
// them before it is acknowledged. An agent that is killed in between and finds no
// server, however long, gives proxy and resolver what was acknowledged: the pod that
// was stopped on its word gets no more requests. Only if that cannot be read, rules
// stay as they are until a server tells what there is, and not for ever.
func TestKilledAgentDoesNotGoBack(t *testing.T) {
	onNode(t, func(l *lab) {
		service := func(name, ip string) *balsav1.Service {
			return &balsav1.Service{Metadata: &balsav1.ObjectMeta{Name: name, Namespace: "default"}, Spec: &balsav1.ServiceSpec{
				Type: "ClusterIP", ClusterIp: ip, Ports: []*balsav1.ServicePort{{Port: 80, Protocol: "TCP"}}}}
		}
		slice := func(ips ...string) *balsav1.EndpointSlice {
			s := &balsav1.EndpointSlice{Metadata: &balsav1.ObjectMeta{Name: "web", Namespace: "default", Labels: map[string]string{object.LabelServiceName: "web"}},
				AddressType: "IPv4", Ports: []*balsav1.EndpointPort{{Port: 8080, Protocol: "TCP"}}}
			for _, ip := range ips {
				s.Endpoints = append(s.Endpoints, &balsav1.Endpoint{Addresses: []string{ip}})
			}
			return s
		}
		knows := func(ip string) (int, bool) {
			found, known := l.kernel.Lookup(netproxy.Key{VIP: netip.MustParseAddr(ip), Protocol: netproxy.TCP, Port: 80})
			return len(found), known
		}
		targets := func() int { n, _ := knows("10.96.0.10"); return n }
		l.server.put(service("web", "10.96.0.10"))
		l.server.put(service("old", "10.96.0.11"))
		l.server.put(slice("10.244.2.7", "10.244.2.8"))
		l.within(time.Second, "both are applied", func() bool { return targets() == 2 })
		l.always(2*time.Second, "and saved", func() bool { return targets() == 2 })
		l.server.remove("services/default/old")
		now := l.server.put(slice("10.244.2.7"))
		l.within(time.Second, "one has gone, and that was told", func() bool { return targets() == 1 && l.lastBeat().GetAppliedRevision() >= now })
		l.kill()
		saved := l.disk.image()
		if data, err := l.disk.Read("services.pb"); err != nil || !bytes.Contains(data, []byte("10.244.2.8")) {
			t.Fatalf("the agent was to be killed before it saved its services: %v", err)
		}
		killed := l.run.image()

		l.kernel = &netproxy.Fake{} // so that what the new agent applies is seen
		l.server.setDown(true)
		l.start()
		l.within(time.Second, "without servers the acknowledged services are applied", func() bool { return targets() == 1 })
		l.always(20*time.Second, "and no older ones", func() bool { return targets() == 1 })
		if _, known := knows("10.96.0.11"); known {
			t.Error("a service that was deleted, which was acknowledged, is there again")
		}
		l.server.setDown(false)
		l.within(20*time.Second, "a server is there", func() bool { return l.agent.Status().FromServer && l.lastBeat().GetAppliedRevision() >= now })
		l.within(5*time.Second, "changes that are saved are not kept", func() bool {
			left, err := l.run.List("changes")
			return err == nil && len(left) == 0
		})

		killed[fmt.Sprintf("changes/%019d", now-1)] = []byte("\x01garbage") // not the last one, which may be cut off
		l.stop()
		l.disk.restore(saved)
		l.run.restore(killed)
		l.server.setDown(true)
		l.start()
		l.always(2*time.Second, "what is known to be old is not applied", func() bool { return targets() == 1 })
		l.within(5*time.Second, "without servers what is old is better than nothing", func() bool { return targets() == 2 })
		l.server.setDown(false)
		l.within(30*time.Second, "a server tells what there is", func() bool { return targets() == 1 })

		l.pass(3 * time.Second)
		l.stop()
		if err := l.disk.Write("services.pb", []byte("\x01garbage")); err != nil {
			t.Fatal(err)
		}
		l.server.setDown(true)
		l.start()
		l.always(20*time.Second, "rules stay while nobody knows what there is", func() bool { return targets() == 1 })
		l.server.setDown(false)
		l.within(30*time.Second, "a server tells", func() bool {
			return l.agent.Status().FromServer && l.agent.Status().AppliedRevision >= now && targets() == 1
		})
	})
}
