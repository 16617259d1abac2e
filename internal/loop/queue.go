package loop

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/balsa-run/balsa/internal/clock"
)

// DefaultQueueLimit bounds the keys of a queue that names no limit.
const DefaultQueueLimit = 10_000

// Queue is a set of keys that are due now or at a time. A key is in it once. Its
// methods may be called from any goroutine.
type Queue struct {
	clock clock.Clock
	limit int
	wake  chan struct{}

	mu  sync.Mutex
	due map[string]time.Time // guarded by mu; the zero time: now
	all bool                 // guarded by mu; every key there is, is due
}

// NewQueue makes an empty queue of at most limit keys; 0: DefaultQueueLimit.
func NewQueue(c clock.Clock, limit int) *Queue {
	if limit <= 0 {
		limit = DefaultQueueLimit
	}
	return &Queue{clock: c, limit: limit, wake: make(chan struct{}, 1), due: map[string]time.Time{}}
}

// Add makes keys due now.
func (q *Queue) Add(keys ...string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, key := range keys {
		q.putLocked(key, time.Time{})
	}
	q.signal()
}

// AddAfter makes a key due in d, unless it is due before.
func (q *Queue) AddAfter(key string, d time.Duration) {
	at := time.Time{}
	if d > 0 {
		at = q.clock.Now().Add(d)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.putLocked(key, at)
	q.signal()
}

// AddAll makes every key due that the loop's list knows.
func (q *Queue) AddAll() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.all = true
	q.signal()
}

// Len is the number of keys that are due now or later.
func (q *Queue) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.due)
}

func (q *Queue) putLocked(key string, at time.Time) {
	old, known := q.due[key]
	if known && !at.Before(old) {
		return
	}
	if !known && len(q.due) >= q.limit {
		clear(q.due)
		q.all = true
		return
	}
	q.due[key] = at
}

func (q *Queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// wait blocks until something is due, or until deadline.
func (q *Queue) wait(ctx context.Context, deadline time.Time) error {
	for ctx.Err() == nil {
		next, ok := q.next()
		if !ok || deadline.Before(next) {
			next = deadline
		}
		delay := next.Sub(q.clock.Now())
		if delay <= 0 {
			return nil
		}
		timer := q.clock.NewTimer(delay)
		select {
		case <-ctx.Done():
		case <-q.wake:
		case <-timer.C():
		}
		timer.Stop()
	}
	return context.Cause(ctx)
}

// next is when the first key is due; the zero time: now.
func (q *Queue) next() (at time.Time, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.all {
		return time.Time{}, true
	}
	for _, t := range q.due {
		if !ok || t.Before(at) {
			at, ok = t, true
		}
	}
	return at, ok
}

// take removes at most limit keys that are due, in order. all: everything was
// asked for since the last take.
func (q *Queue) take(limit int) (keys []string, all bool) {
	now := q.clock.Now()
	q.mu.Lock()
	defer q.mu.Unlock()
	for key, at := range q.due {
		if !at.After(now) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	keys = keys[:min(limit, len(keys))]
	for _, key := range keys {
		delete(q.due, key)
	}
	all, q.all = q.all, false
	return keys, all
}
