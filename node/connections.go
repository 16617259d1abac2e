package node

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/balsa-run/balsa/node/pod"
)

// Connections counts connections that are open to pods; podnet.Linux is one.
type Connections interface {
	// Connections is how many connections that others have opened to each of these
	// addresses are established, or about to be. An address without any may be
	// left out.
	Connections(ctx context.Context, to []netip.Addr) (map[netip.Addr]int, error)
}

const (
	// countEvery is the pause between two counts of the connections to pods that
	// are about to be stopped; countShare how many times as long as a count took
	// the pause is at least: the kernel lists all connections of the node.
	countEvery = 50 * time.Millisecond
	countShare = 9
)

// tally counts the connections to the pods whose end waits for them.
type tally struct {
	a      *Agent
	toLook signal

	mu     sync.Mutex
	wanted map[string]netip.Addr // guarded by mu; by uid
	open   map[string]int        // guarded by mu; by uid, of those that were counted
}

func newTally(a *Agent) *tally {
	return &tally{a: a, toLook: newSignal(), wanted: map[string]netip.Addr{}, open: map[string]int{}}
}

// set says whether a pod's connections are to be counted.
func (c *tally) set(uid string, ip netip.Addr, wanted bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !wanted || !ip.IsValid() {
		delete(c.wanted, uid)
		delete(c.open, uid)
		return
	}
	if c.wanted[uid] != ip {
		c.wanted[uid] = ip
		delete(c.open, uid)
		c.toLook.raise()
	}
}

// state is how many connections a pod has; nil: they were not counted yet. Where
// there is nobody to count them there are none to wait for.
func (c *tally) state(uid string) *int {
	if c.a.plant.Connections == nil {
		return new(int)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	n, counted := c.open[uid]
	if !counted {
		return nil
	}
	return &n
}

// run counts for as long as there is a pod that waits.
func (c *tally) run(ctx context.Context) error {
	rest := time.Duration(0)
	for {
		if err := c.toLook.wait(ctx, c.a.cfg.Clock, rest); err != nil {
			return err
		}
		began := c.a.cfg.Clock.Now()
		if !c.count(ctx) {
			rest = 0
			continue
		}
		rest = max(countEvery, countShare*c.a.cfg.Clock.Now().Sub(began))
	}
}

// count counts once, and tells whether there was anything to count. Pods whose
// connections cannot be counted wait for as long as they may.
func (c *tally) count(ctx context.Context) bool {
	c.mu.Lock()
	wanted := maps.Clone(c.wanted)
	c.mu.Unlock()
	if len(wanted) == 0 || c.a.plant.Connections == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, actionTimeout)
	defer cancel()
	found, err := c.a.plant.Connections.Connections(ctx, slices.Collect(maps.Values(wanted)))
	c.a.metrics.counted(err)
	if err != nil {
		c.a.log.Warn("the connections to pods that end cannot be counted; they have their whole time", "pods", len(wanted), "error", err)
		return true
	}
	var changed []string
	c.mu.Lock()
	for uid, ip := range wanted {
		old, counted := c.open[uid]
		if c.wanted[uid] == ip && (!counted || old != found[ip]) {
			c.open[uid] = found[ip]
			changed = append(changed, uid)
		}
	}
	c.mu.Unlock()
	c.a.wakeAll(changed)
	return true
}

// connectionsOf takes over what a step says about a pod's connections.
func (w *worker) connectionsOf(view pod.View, plan pod.Plan) {
	ip := view.IP
	if !ip.IsValid() && view.Pod != nil { // not connected by this process
		ip, _ = netip.ParseAddr(view.Pod.GetStatus().GetPodIp())
	}
	w.a.tally.set(w.uid, ip, plan.CountConnections)
}
