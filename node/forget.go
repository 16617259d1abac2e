package node

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	// forgetEvery is the least pause between two looks at the kernel's connections,
	// forgetShare how many times as long as a look took it is at least: each look
	// lists them all.
	forgetEvery = time.Second
	forgetShare = 19
	// maxGone bounds the addresses that wait for a look; the oldest are left to end by
	// the kernel's own times.
	maxGone = 10_000
)

// departed are addresses that were endpoints, until what the kernel still tracks of
// connections to them is forgotten. It is not done while services are synced: on
// that others wait.
type departed struct {
	toLook signal

	mu   sync.Mutex
	gone []netip.Addr // guarded by mu
}

func newDeparted() *departed { return &departed{toLook: newSignal()} }

func (d *departed) add(gone []netip.Addr) {
	if len(gone) == 0 {
		return
	}
	d.mu.Lock()
	d.gone = append(d.gone, gone...)
	d.gone = d.gone[max(0, len(d.gone)-maxGone):]
	d.mu.Unlock()
	d.toLook.raise()
}

func (d *departed) take() []netip.Addr {
	d.mu.Lock()
	defer d.mu.Unlock()
	gone := d.gone
	d.gone = nil
	slices.SortFunc(gone, netip.Addr.Compare)
	return slices.Compact(gone)
}

// forgetLoop looks as often as there is something to forget, and no more often than
// is worth it. A look that fails is not repeated: those connections end by
// themselves, only later.
func (a *Agent) forgetLoop(ctx context.Context) error {
	for {
		if err := a.departed.toLook.wait(ctx, a.cfg.Clock, 0); err != nil {
			return err
		}
		began := a.cfg.Clock.Now()
		a.forget(ctx, a.departed.take())
		if err := sleep(ctx, a.cfg.Clock, max(forgetEvery, forgetShare*a.cfg.Clock.Now().Sub(began))); err != nil {
			return err
		}
	}
}

func (a *Agent) forget(ctx context.Context, gone []netip.Addr) {
	if a.plant.Proxy == nil || len(gone) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, actionTimeout)
	defer cancel()
	n, err := a.plant.Proxy.Forget(ctx, gone)
	if err != nil {
		a.log.Warn("what is left of connections to endpoints that are gone cannot be forgotten", "addresses", len(gone), "error", err)
		return
	}
	if n > 0 {
		a.log.Info("forgot what was left of connections to endpoints that are gone", "connections", n, "addresses", len(gone))
	}
}
