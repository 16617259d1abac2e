package node

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/balsa-run/balsa/node/pod"
	"github.com/balsa-run/balsa/node/podnet"
)

const (
	// networkScrubEvery is how often the pod network is compared with the kernel
	// without a reason: what the kernel tells nobody about (settings, nftables) is
	// mended within this time.
	networkScrubEvery = 10 * time.Second
	// disturbedSettle is how long a disturbance is given to be over: who restarts
	// a machine's network takes its address away for tens of milliseconds.
	// disturbedPause is the least time between two looks.
	disturbedSettle = 100 * time.Millisecond
	disturbedPause  = time.Second
	// someFindings bounds what an event lists.
	someFindings = 5
)

// guardNetwork repairs what somebody else has broken in the pod network, and says
// so.
func (a *Agent) guardNetwork(ctx context.Context) error {
	for {
		if err := a.disturbed.wait(ctx, a.cfg.Clock, networkScrubEvery); err != nil {
			return err
		}
		if err := sleep(ctx, a.cfg.Clock, disturbedSettle); err != nil {
			return err
		}
		a.scrubNetwork(ctx)
		if err := sleep(ctx, a.cfg.Clock, disturbedPause); err != nil {
			return err
		}
	}
}

func (a *Agent) scrubNetwork(ctx context.Context) {
	call, cancel := context.WithTimeout(ctx, actionTimeout)
	defer cancel()
	repaired, err := a.plant.Network.Scrub(call)
	if ctx.Err() != nil {
		return
	}
	a.notices.tell("routes", linesOf(err))
	if len(repaired) == 0 {
		return
	}
	a.metrics.networkRepairs.Add(float64(len(repaired)))
	for _, r := range repaired {
		a.log.Warn("the pod network was changed by somebody else; repaired", "finding", r)
	}
	a.nodeEvent(pod.Event{Warning: true, Reason: "NetworkRepaired", Message: "the pod network was changed by somebody else, and is repaired: " + some(repaired)})
	// Who has changed this may have changed the services' rules as well.
	a.proxyTouched.Store(true)
	a.toSync.raise()
}

// watchNetwork hears of disturbances of the pod network.
func (a *Agent) watchNetwork(ctx context.Context) error {
	return a.watchAlways(ctx, "changes of the network cannot be watched; it is looked at every "+networkScrubEvery.String(), func(ctx context.Context) error {
		err := a.plant.Network.NextDisturbance(ctx)
		if err == nil {
			a.disturbed.raise()
		}
		return err
	})
}

// watchProxy hears of changes of the service rules by others.
func (a *Agent) watchProxy(ctx context.Context) error {
	return a.watchAlways(ctx, "changes of the service rules cannot be watched; they are looked at every "+scrubEvery.String(), func(ctx context.Context) error {
		return a.plant.Proxy.Watch(ctx, func() {
			a.proxyTouched.Store(true)
			a.toSync.raise()
		})
	})
}

// watchAlways repeats a wait until ctx ends, slower when it fails.
func (a *Agent) watchAlways(ctx context.Context, failing string, wait func(context.Context) error) error {
	pause := a.newRetry()
	for {
		err := wait(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err == nil {
			pause.reset()
			continue
		}
		a.log.Warn(failing, "error", err)
		if err := pause.pause(ctx); err != nil {
			return err
		}
	}
}

// announcing is which addresses the node is to answer for.
type announcing struct {
	mu   sync.Mutex
	want []netip.Addr // guarded by mu; sorted
	told bool         // guarded by mu; want is known, be it empty
}

// announce says which addresses this node answers for from now on. A server must
// have confirmed it: by what an agent has on disk, two nodes could answer.
func (a *Agent) announce(want []netip.Addr) {
	a.announcing.mu.Lock()
	changed := !a.announcing.told || !slices.Equal(a.announcing.want, want)
	a.announcing.want, a.announcing.told = want, true
	a.announcing.mu.Unlock()
	if changed {
		a.toAnnounce.raise()
	}
}

// announceLoop takes and leaves announced addresses beside all else, since asking
// the link who has them takes a moment.
func (a *Agent) announceLoop(ctx context.Context) error {
	pause := a.newRetry()
	rest := time.Duration(0)
	for {
		if err := a.toAnnounce.wait(ctx, a.cfg.Clock, rest); err != nil {
			return err
		}
		a.announcing.mu.Lock()
		want := a.announcing.want
		a.announcing.mu.Unlock()
		call, cancel := context.WithTimeout(ctx, actionTimeout)
		err := a.plant.Network.SyncAnnounced(call, want)
		cancel()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		a.notices.tell("announced", linesOf(err))
		rest = 0
		if err != nil {
			rest = pause.delay()
		} else {
			pause.reset()
		}
	}
}

// notices says what is wrong once, although it is found again and again.
type notices struct {
	a    *Agent
	mu   sync.Mutex
	said map[string][]string // guarded by mu; by source, as last found
}

func newNotices(a *Agent) *notices { return &notices{a: a, said: map[string][]string{}} }

// tell takes all that a source finds wrong now.
func (n *notices) tell(source string, problems []string) {
	n.mu.Lock()
	var fresh []string
	for _, p := range problems {
		if !n.knownLocked(p) {
			fresh = append(fresh, p)
		}
	}
	n.said[source] = slices.Clone(problems)
	n.mu.Unlock()
	if len(fresh) == 0 {
		return
	}
	for _, p := range fresh {
		n.a.log.Warn("a part of the network could not be used", "problem", p)
	}
	n.a.nodeEvent(pod.Event{Warning: true, Reason: "NetworkProblem", Message: some(fresh)})
}

// knownLocked: two that look at the same find the same.
func (n *notices) knownLocked(problem string) bool {
	for _, said := range n.said {
		if slices.Contains(said, problem) {
			return true
		}
	}
	return false
}

// some lists the first few.
func some(list []string) string {
	if len(list) <= someFindings {
		return strings.Join(list, "; ")
	}
	return fmt.Sprintf("%s; and %d more", strings.Join(list[:someFindings], "; "), len(list)-someFindings)
}

// linesOf takes joined errors apart.
func linesOf(err error) []string {
	if err == nil {
		return nil
	}
	var out []string
	for _, e := range podnet.Problems(err) {
		out = append(out, e.Error())
	}
	return out
}
