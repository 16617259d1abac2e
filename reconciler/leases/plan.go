package leases

import (
	"container/heap"
	"iter"
	"math"
	"time"

	"github.com/balsa-run/balsa/internal/mutate"
	"github.com/balsa-run/balsa/store"
)

// table is the leases of a term and when each is over: pure, and told the time.
// Times are counted from the term's beginning.
type table struct {
	leases map[int64]*lease
	// due are the leases that are not over, the next one first.
	due deadlines
}

type lease struct {
	id       int64
	ttl      time.Duration
	deadline time.Duration
	// place is where the lease is in due; -1 once it is over. Then its revocation
	// is on its way, and nothing brings it back.
	place int
}

func newTable() *table { return &table{leases: map[int64]*lease{}} }

func seconds(ttl int64) time.Duration {
	if ttl > int64(math.MaxInt64/time.Second) {
		return math.MaxInt64
	}
	if mutate.On(mutate.LeaseEarly) {
		return time.Duration(max(ttl, 0)) * time.Second / 2
	}
	return time.Duration(max(ttl, 0)) * time.Second
}

// after is a time that does not run over.
func after(now, d time.Duration) time.Duration {
	if d > math.MaxInt64-now {
		return math.MaxInt64
	}
	return now + d
}

// follow does to the table what was done to the space: each new lease gets its full
// time, one whose time to live is another as well, since it was revoked and granted anew.
func (t *table) follow(changes iter.Seq[store.LeaseChange], now time.Duration) {
	for c := range changes {
		if c.Gone {
			t.drop(c.ID)
			continue
		}
		t.put(c.Lease, now)
	}
}

// drop forgets a lease that the space does not have any more. One whose revocation is on
// its way stays until the outcome is known: a lease granted anew under its id must not be
// taken for good meanwhile.
func (t *table) drop(id int64) {
	if l, known := t.leases[id]; known && l.place >= 0 {
		heap.Remove(&t.due, l.place)
		delete(t.leases, id)
	}
}

// put makes sure that a lease of the space is in the table; a new one gets its full time.
func (t *table) put(granted store.Lease, now time.Duration) (added bool) {
	ttl := seconds(granted.TTLSeconds)
	l, known := t.leases[granted.ID]
	switch {
	case !known:
		l = &lease{id: granted.ID, ttl: ttl, deadline: after(now, ttl)}
		t.leases[l.id] = l
		heap.Push(&t.due, l)
	case l.ttl != ttl && l.place >= 0:
		l.ttl, l.deadline = ttl, after(now, ttl)
		heap.Fix(&t.due, l.place)
	}
	return !known
}

// renew gives a lease its full time again; false for one that is over.
func (t *table) renew(id int64, now time.Duration) bool {
	l, known := t.leases[id]
	if !known || l.place < 0 || l.deadline <= now {
		return false
	}
	l.deadline = after(now, l.ttl)
	heap.Fix(&t.due, l.place)
	return true
}

// left is the time that a lease has; false for one that is over or not there.
func (t *table) left(id int64, now time.Duration) (time.Duration, bool) {
	l, known := t.leases[id]
	if !known || l.place < 0 || l.deadline <= now {
		return 0, false
	}
	return l.deadline - now, true
}

// expire takes up to limit leases that are over out of the count, those that have
// waited longest first. They are to be revoked, each until that is settled.
func (t *table) expire(now time.Duration, limit int) (over []int64) {
	for len(over) < limit && len(t.due) > 0 && t.due[0].deadline <= now {
		l := heap.Pop(&t.due).(*lease)
		over = append(over, l.id)
	}
	return over
}

// settled forgets a lease whose revocation came to an end.
func (t *table) settled(id int64) {
	if l, known := t.leases[id]; known && l.place < 0 {
		delete(t.leases, id)
	}
}

// next is when the next lease is over.
func (t *table) next() (time.Duration, bool) {
	if len(t.due) == 0 {
		return 0, false
	}
	return t.due[0].deadline, true
}

// deadlines is a heap. Of equal deadlines the smaller id goes first, so that the
// order does not depend on that of a map.
type deadlines []*lease

func (d deadlines) Len() int { return len(d) }
func (d deadlines) Less(i, j int) bool {
	if d[i].deadline != d[j].deadline {
		return d[i].deadline < d[j].deadline
	}
	return d[i].id < d[j].id
}

func (d deadlines) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].place, d[j].place = i, j
}

func (d *deadlines) Push(x any) {
	l := x.(*lease)
	l.place = len(*d)
	*d = append(*d, l)
}

func (d *deadlines) Pop() any {
	last := len(*d) - 1
	l := (*d)[last]
	(*d)[last] = nil
	*d = (*d)[:last]
	l.place = -1
	return l
}
