package node

import (
	"context"
	"reflect"
	"sync"

	"github.com/balsa-run/balsa/node/pod"
)

// hookRunner runs hooks beside their containers: each once, for as long as it is
// wanted.
type hookRunner struct {
	a *Agent

	mu   sync.Mutex
	pods map[string]map[pod.HookKey]*hooking // guarded by mu; by uid
}

type hooking struct {
	hook   pod.Hook
	cancel context.CancelFunc
	state  pod.HookState // guarded by the runner's mu
}

func newHookRunner(a *Agent) *hookRunner {
	return &hookRunner{a: a, pods: map[string]map[pod.HookKey]*hooking{}}
}

// set makes these the hooks of a pod: one that runs, or has run, stays as it is.
func (r *hookRunner) set(uid string, hooks []pod.Hook) {
	r.mu.Lock()
	defer r.mu.Unlock()
	have, want := r.pods[uid], map[pod.HookKey]*hooking{}
	for _, h := range hooks {
		if old := have[h.Key()]; old != nil && reflect.DeepEqual(old.hook, h) {
			want[h.Key()] = old
			continue
		}
		want[h.Key()] = r.beginLocked(uid, h)
	}
	for key, old := range have {
		if want[key] != old {
			old.cancel()
		}
	}
	if len(want) == 0 {
		delete(r.pods, uid)
		return
	}
	r.pods[uid] = want
}

func (r *hookRunner) beginLocked(uid string, h pod.Hook) *hooking {
	ctx, cancel := context.WithCancel(r.a.work)
	b := &hooking{hook: h, cancel: cancel, state: pod.HookState{Attempt: h.Attempt}}
	r.a.running.Go(func() {
		defer cancel()
		err := r.run(ctx, h)
		if ctx.Err() != nil {
			return
		}
		r.mu.Lock()
		b.state.Done = true
		if err != nil {
			b.state.Message = err.Error()
		}
		r.mu.Unlock()
		r.a.metrics.hooked(err)
		r.a.wakeAll([]string{uid})
	})
	return b
}

func (r *hookRunner) run(ctx context.Context, h pod.Hook) error {
	switch {
	case len(h.Exec) > 0:
		return r.a.exec(ctx, h.UID, h.Container, h.Exec)
	case h.URL != "":
		return r.a.cfg.Prober.Call(ctx, h.Question)
	default:
		return sleep(ctx, r.a.cfg.Clock, h.Sleep)
	}
}

// states tells how far the hooks of a pod are.
func (r *hookRunner) states(uid string) map[pod.HookKey]pod.HookState {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make(map[pod.HookKey]pod.HookState, len(r.pods[uid]))
	for key, b := range r.pods[uid] {
		out[key] = b.state
	}
	return out
}
