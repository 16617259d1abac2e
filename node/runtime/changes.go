package runtime

import (
	"context"
	"slices"
	"sync"
)

// Changes is the set of pods whose state may have changed: what NextChange
// waits on. It holds at most one entry a pod, so it is bounded by the number
// of pods and no writer ever waits. The zero value is not usable.
type Changes struct {
	mu    sync.Mutex
	dirty []PodUID      // guarded by mu; in order of first mention
	wake  chan struct{} // closed and replaced when dirty becomes non-empty; guarded by mu
}

// NewChanges returns an empty set.
func NewChanges() *Changes { return &Changes{wake: make(chan struct{})} }

// Add names a pod. Adding it twice before it is taken counts once.
func (c *Changes) Add(uid PodUID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if slices.Contains(c.dirty, uid) {
		return
	}
	c.dirty = append(c.dirty, uid)
	if len(c.dirty) == 1 {
		close(c.wake)
		c.wake = make(chan struct{})
	}
}

// Next takes the oldest pod out of the set, or waits for one.
func (c *Changes) Next(ctx context.Context) (PodUID, error) {
	for {
		uid, ok, wake := c.take()
		if ok {
			return uid, nil
		}
		select {
		case <-ctx.Done():
			return "", context.Cause(ctx)
		case <-wake:
		}
	}
}

func (c *Changes) take() (PodUID, bool, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.dirty) == 0 {
		return "", false, c.wake
	}
	uid := c.dirty[0]
	c.dirty = slices.Delete(c.dirty, 0, 1)
	return uid, true, nil
}
