package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/netproxy"
	"github.com/balsa-run/balsa/node/pod"
	"github.com/balsa-run/balsa/object"
)

// rulesPatience is how long a pod's first container waits in one go for the rules
// that are about the pod; then it says so, and tries again.
const rulesPatience = 3 * time.Second

// errNoRules: a policy or a host port is about a pod, and the kernel does not know
// the pod's address yet.
var errNoRules = errors.New("the rules for the pod's address are not in the kernel yet")

// knownPods are the pods whose addresses the proxy has applied rules for.
type knownPods struct {
	mu    sync.Mutex
	known map[string]netip.Addr // guarded by mu; by uid
	told  chan struct{}         // guarded by mu; closed when known changes
	why   error                 // guarded by mu; why it does not
	// pending are policies that select a pod and have not begun; guarded by mu; by uid.
	pending map[string][]string
}

func newKnownPods() *knownPods { return &knownPods{told: make(chan struct{})} }

// set takes the pods that the rules now in the kernel know. Those that a policy is
// about which these rules do not have yet are not among them.
func (k *knownPods) set(pods map[string]netproxy.LocalPod, pending func(netproxy.LocalPod) []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.known, k.pending, k.why = make(map[string]netip.Addr, len(pods)), map[string][]string{}, nil
	for uid, p := range pods {
		if names := pending(p); len(names) > 0 {
			k.pending[uid] = names
			continue
		}
		k.known[uid] = p.IP
	}
	close(k.told)
	k.told = make(chan struct{})
}

// failed keeps why the rules are not newer.
func (k *knownPods) failed(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.why = err
}

// await waits until the rules know the pod by its address.
func (k *knownPods) await(ctx context.Context, c clock.Clock, uid string, ip netip.Addr) error {
	timer := c.NewTimer(rulesPatience)
	defer timer.Stop()
	for {
		k.mu.Lock()
		known, told, why, pending := k.known[uid] == ip, k.told, k.why, k.pending[uid]
		k.mu.Unlock()
		if known {
			return nil
		}
		select {
		case <-told:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timer.C():
			switch {
			case why != nil:
				return fmt.Errorf("%w: %w", errNoRules, why)
			case len(pending) > 0:
				return fmt.Errorf("%w: no server has told whom the selectors of %s stand for", errNoRules, some(pending))
			}
			return errNoRules
		}
	}
}

// rulesFirst holds a pod's first container back until its rules are there: no
// packet shall come in that a policy forbids, and none be refused at a host port.
// That includes policies that are newer than their slices.
// A pod that has run already goes on: its rules are those of the agent before.
func (w *worker) rulesFirst(ctx context.Context, view pod.View, ip netip.Addr) error {
	if w.a.plant.Proxy == nil || view.Pod == nil || view.Runtime != nil && len(view.Runtime.Containers) > 0 {
		return nil
	}
	w.a.toSync.raise()
	if !w.a.set.limits(view.Pod) && len(netproxy.HostPortsOf(view.Pod)) == 0 {
		return nil
	}
	return w.a.rules.await(ctx, w.a.cfg.Clock, w.uid, ip)
}

// localPods are the pods of this node with an address of their own, by uid: as the
// network knows them, which is before any server does and also right after a
// restart. One that has gone from the set keeps what was known of it for as long
// as it has its address, since until then something of it may run.
func (a *Agent) localPods(before map[string]netproxy.LocalPod) map[string]netproxy.LocalPod {
	now := map[string]netproxy.LocalPod{}
	for uid, ip := range a.plant.Network.Addresses() {
		p := a.set.pod(uid)
		switch {
		case p == nil:
			if old, ok := before[uid]; ok && old.IP == ip {
				now[uid] = old
			}
		case !p.GetSpec().GetHostNetwork() && !object.PodFinished(p):
			now[uid] = netproxy.LocalPodOf(p, ip)
		}
	}
	return now
}

// searches are the domains that each pod of the node tries names with.
func (a *Agent) searches(pods map[string]netproxy.LocalPod) map[netip.Addr][]string {
	out := map[netip.Addr][]string{}
	for uid, local := range pods {
		if p := a.set.pod(uid); p != nil {
			out[local.IP] = pod.Searches(p, a.facts.DNSDomain)
		}
	}
	return out
}

// sameLocalPod compares what the rules depend on.
func sameLocalPod(a, b netproxy.LocalPod) bool {
	return a.IP == b.IP && a.Namespace == b.Namespace && a.Name == b.Name && maps.Equal(a.Labels, b.Labels) &&
		slices.Equal(a.Ports, b.Ports) && slices.Equal(a.HostPorts, b.HostPorts)
}
