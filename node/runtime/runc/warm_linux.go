package runc

import (
	"context"
	"sync"
	"time"
)

// warmer keeps the kernel ready for moves between cgroups as long as
// containers are being started: balsa-runc moves each into its own, and that
// would wait for a grace period otherwise.
type warmer struct {
	mu     sync.Mutex
	starts int                // guarded by mu
	stop   context.CancelFunc // guarded by mu; nil while no container starts
}

// warmEvery is below the time for which the kernel stays ready.
const warmEvery = 8 * time.Millisecond

// warm begins; the caller calls the returned function when its start is over.
func (r *Runtime) warm() (done func()) {
	w := &r.warmer
	w.mu.Lock()
	defer w.mu.Unlock()
	w.starts++
	if w.starts == 1 {
		ctx, stop := context.WithCancel(r.ctx)
		w.stop = stop
		r.background(func(context.Context) { r.keepWarm(ctx) })
	}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.starts--; w.starts == 0 {
			w.stop()
		}
	}
}

func (r *Runtime) keepWarm(ctx context.Context) {
	ticker := time.NewTicker(warmEvery)
	defer ticker.Stop()
	for ctx.Err() == nil {
		if err := r.cgroups.Warm(); err != nil {
			r.opt.Log.Debug("starts of containers will wait longer", "error", err)
			return
		}
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
}
