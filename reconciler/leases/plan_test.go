package leases

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/store"
)

// naive is the table's dumb twin: a list that is looked through.
type naive struct {
	leases map[int64]*naiveLease
}

type naiveLease struct {
	ttl, deadline time.Duration
	over          bool
}

func (n *naive) expire(now time.Duration, limit int) []int64 {
	var ids []int64
	for id, l := range n.leases {
		if !l.over && l.deadline <= now {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b int64) int {
		if x, y := n.leases[a], n.leases[b]; x.deadline != y.deadline {
			return int(x.deadline - y.deadline)
		}
		return int(a - b)
	})
	ids = ids[:min(limit, len(ids))]
	for _, id := range ids {
		n.leases[id].over = true
	}
	return ids
}

func (n *naive) sync(all []store.Lease, now time.Duration) {
	there := map[int64]bool{}
	for _, granted := range all {
		there[granted.ID] = true
		ttl := time.Duration(granted.TTLSeconds) * time.Second
		if l, known := n.leases[granted.ID]; !known || !l.over && l.ttl != ttl {
			n.leases[granted.ID] = &naiveLease{ttl: ttl, deadline: now + ttl}
		}
	}
	for id, l := range n.leases {
		if !there[id] && !l.over {
			delete(n.leases, id)
		}
	}
}

// differences are what a store tells between two states.
func differences(old, now map[int64]int64) (changes []store.LeaseChange) {
	for id := int64(1); id <= 8; id++ {
		ttl, there := now[id]
		was, had := old[id]
		switch {
		case there && (!had || was != ttl):
			changes = append(changes, store.LeaseChange{Lease: store.Lease{ID: id, TTLSeconds: ttl}})
		case had && !there:
			changes = append(changes, store.LeaseChange{Lease: store.Lease{ID: id, TTLSeconds: was}, Gone: true})
		}
	}
	return changes
}

func listed(space map[int64]int64) (all []store.Lease) {
	for id, ttl := range space {
		all = append(all, store.Lease{ID: id, TTLSeconds: ttl})
	}
	return all
}

// TestTableIsTheNaiveOne: the table, which is told of changes, is the one that looks at
// all leases each time.
func TestTableIsTheNaiveOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table, twin, now := newTable(), &naive{map[int64]*naiveLease{}}, time.Duration(0)
		space := map[int64]int64{}
		ids := rapid.Int64Range(1, 8)
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			switch rapid.IntRange(0, 4).Draw(t, "step") {
			case 0:
				next := maps.Clone(space)
				for range rapid.IntRange(1, 8).Draw(t, "changes") {
					id := ids.Draw(t, "changed")
					if rapid.Bool().Draw(t, "there") {
						next[id] = rapid.Int64Range(0, 5).Draw(t, "ttl")
					} else {
						delete(next, id)
					}
				}
				table.follow(slices.Values(differences(space, next)), now)
				twin.sync(listed(next), now)
				space = next
			case 1:
				id := ids.Draw(t, "renewed")
				l, known := twin.leases[id]
				want := known && !l.over && l.deadline > now
				if want {
					l.deadline = now + l.ttl
				}
				if got := table.renew(id, now); got != want {
					t.Fatalf("renew %d at %v: %v, want %v", id, now, got, want)
				}
			case 2:
				limit := rapid.IntRange(0, 4).Draw(t, "limit")
				if got, want := table.expire(now, limit), twin.expire(now, limit); !slices.Equal(got, want) {
					t.Fatalf("at %v, limit %d: over are %v, want %v", now, limit, got, want)
				}
			case 3:
				id := ids.Draw(t, "settled")
				table.settled(id)
				if l, known := twin.leases[id]; known && l.over {
					delete(twin.leases, id)
				}
				// As the lessor does it: nobody else tells of one that was granted anew.
				if ttl, there := space[id]; there {
					table.put(store.Lease{ID: id, TTLSeconds: ttl}, now)
					twin.sync(listed(space), now)
				}
			case 4:
				now += time.Duration(rapid.IntRange(0, 3000).Draw(t, "ms")) * time.Millisecond
			}
			for id := int64(1); id <= 8; id++ {
				l, known := twin.leases[id]
				want := known && !l.over && l.deadline > now
				left, got := table.left(id, now)
				if got != want || want && left != l.deadline-now {
					t.Fatalf("lease %d at %v has %v left (%v), the twin says %v", id, now, left, got, want)
				}
			}
		}
	})
}

func TestTimeDoesNotRunOver(t *testing.T) {
	table := newTable()
	for _, l := range []store.Lease{{ID: 1, TTLSeconds: store.MaxLeaseTTLSeconds}, {ID: 2, TTLSeconds: math.MaxInt64}, {ID: 3, TTLSeconds: -4}} {
		table.put(l, 1<<62)
	}
	if got := table.expire(1<<62, 10); !slices.Equal(got, []int64{3}) {
		t.Errorf("over at once are %v, want only the one without time", got)
	}
	if left, ok := table.left(1, 1<<62); !ok || left < 1<<61 {
		t.Errorf("the longest lease has %v left (%v)", left, ok)
	}
}

// TestClockThatJumps: only what passes between looks counts, and of a jump little.
func TestClockThatJumps(t *testing.T) {
	at := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	fake := clock.NewFake(at)
	watch := newStopwatch(fake)
	for _, step := range []struct {
		name string
		move func()
		want time.Duration
	}{
		{"a moment", func() { fake.Advance(300 * time.Millisecond) }, 300 * time.Millisecond},
		{"back by an hour", func() { fake.Set(at.Add(-time.Hour)) }, 300 * time.Millisecond},
		{"a moment after it", func() { fake.Advance(200 * time.Millisecond) }, 500 * time.Millisecond},
		{"forward by a day", func() { fake.Advance(24 * time.Hour) }, 500*time.Millisecond + maxStep},
		{"nothing", func() {}, 500*time.Millisecond + maxStep},
	} {
		step.move()
		if got := watch.now(); got != step.want {
			t.Errorf("after %s: %v passed, want %v", step.name, got, step.want)
		}
	}
}

func TestAllowance(t *testing.T) {
	a := allowance{perSecond: 1000, most: 250, tokens: 250}
	a.take(a.at(0))
	if got := a.at(0); got != 0 {
		t.Fatalf("an empty bucket gives %d", got)
	}
	given := 0
	for now := time.Duration(0); now <= 10*time.Second; now += 700 * time.Microsecond {
		n := a.at(now)
		a.take(n)
		given += n
	}
	if given < 9_990 || given > 10_000 {
		t.Errorf("10 s at 1000/s gave %d", given)
	}
	if got := a.at(time.Hour); got != 250 {
		t.Errorf("a long rest gives %d, want no more than the bucket", got)
	}
}

// BenchmarkSync is what a lease that comes, and one that goes, cost a leader that has
// many.
func BenchmarkSync(b *testing.B) {
	for _, many := range []int64{1_000, 100_000} {
		b.Run(fmt.Sprint(many), func(b *testing.B) {
			s, index := store.New(store.Options{}), uint64(0)
			apply := func(command *internalv1.Command) {
				index++
				command.Space = store.SpaceEtcd
				s.Apply(index, 1, []*internalv1.Command{command})
			}
			grant := func(id int64) {
				apply(&internalv1.Command{Op: &internalv1.Command_LeaseGrant{LeaseGrant: &internalv1.LeaseGrant{Id: id, TtlSeconds: 60}}})
			}
			for id := range many {
				grant(2 + 2*id)
			}
			l := New(Options{Space: s.Space(store.SpaceEtcd), Clock: clock.NewFake(time.Unix(0, 0))})
			l.sync()
			b.ResetTimer()
			for n := range b.N {
				b.StopTimer()
				id := 1 + 2*(int64(n/2)*7919%many)
				if n%2 == 0 {
					grant(id)
				} else {
					apply(&internalv1.Command{Op: &internalv1.Command_LeaseRevoke{LeaseRevoke: &internalv1.LeaseRevoke{Id: id}}})
				}
				b.StartTimer()
				l.sync()
			}
			if want := int(many) + b.N%2; len(l.table.leases) != want {
				b.Fatalf("%d leases are counted, want %d", len(l.table.leases), want)
			}
		})
	}
}
