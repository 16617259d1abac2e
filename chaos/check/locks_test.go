package check_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/balsa-run/balsa/chaos/check"
	"github.com/balsa-run/balsa/chaos/history"
)

// locksmith is a correct store with leases and locks, and clients that use them.
type locksmith struct {
	*stage
	*space
	leases map[int64]*granted
	locks  map[string]held
	fences map[string]int64
	// What clients know.
	known []int64
	held  []held
}

type granted struct {
	expires time.Duration
	ttl     time.Duration
}

type held struct {
	name         string
	token, lease int64
}

// sweep expires leases; some only much later than they might be.
func (s *locksmith) sweep() {
	for id := int64(1); id <= int64(len(s.known))+100; id++ {
		l, ok := s.leases[id]
		if ok && s.now > l.expires && s.dice(3) == 0 {
			s.drop(id)
		}
	}
}

func (s *locksmith) drop(id int64) {
	delete(s.leases, id)
	for _, kv := range s.list("lease/", "lease0") {
		if kv.Lease == id {
			s.remove(kv.Key)
		}
	}
	for _, name := range lockNames {
		if s.locks[name].lease == id {
			delete(s.locks, name)
		}
	}
}

var lockNames = []string{"lock/a", "lock/b"}

func refuse(end *history.Record, why string) { end.Type, end.Error = history.Refused, why }

// use is a random operation.
func (s *locksmith) use() act {
	kind := s.dice(10)
	if len(s.known) == 0 {
		kind = 0
	}
	if kind >= 4 && kind <= 6 && len(s.held) == 0 {
		kind = 3
	}
	switch kind {
	case 0:
		return s.grant()
	case 1, 2:
		return s.keepAlive(s.known[s.dice(len(s.known))])
	case 3:
		return s.take(lockNames[s.dice(2)])
	case 4:
		return s.free(s.held[s.dice(len(s.held))])
	case 5, 6:
		return s.fenced(s.held[s.dice(len(s.held))])
	case 7:
		if s.dice(4) == 0 {
			return s.revoke(s.known[s.dice(len(s.known))])
		}
		return s.keepAlive(s.known[len(s.known)-1])
	}
	return s.bound("lease/" + string(rune('a'+s.dice(2))))
}

func (s *locksmith) grant() act {
	ttl := time.Duration(20+s.dice(100)) * time.Millisecond
	id := int64(s.written + 1)
	s.written++
	return act{invoke: history.Record{F: history.Grant, Lease: id, TTL: ttl}, effect: func(*history.Record) {
		s.leases[id] = &granted{s.now + ttl, ttl}
	}, then: func(end history.Record) {
		if end.Type == history.OK {
			s.known = append(s.known, id)
		}
	}}
}

func (s *locksmith) keepAlive(id int64) act {
	return act{invoke: history.Record{F: history.KeepAlive, Lease: id}, effect: func(end *history.Record) {
		s.sweep()
		l, ok := s.leases[id]
		if !ok {
			refuse(end, "requested lease not found")
			return
		}
		l.expires, end.TTL = s.now+l.ttl, l.ttl
	}}
}

func (s *locksmith) revoke(id int64) act {
	return act{invoke: history.Record{F: history.Revoke, Lease: id}, effect: func(end *history.Record) {
		if s.leases[id] == nil {
			refuse(end, "requested lease not found")
			return
		}
		s.drop(id)
	}}
}

func (s *locksmith) take(name string) act {
	id := s.known[s.dice(len(s.known))]
	return act{invoke: history.Record{F: history.Lock, Key: name, Lease: id}, effect: func(end *history.Record) {
		s.sweep()
		if s.locks[name].token != 0 || s.leases[id] == nil {
			refuse(end, "held, or no lease")
			return
		}
		s.revision++
		s.locks[name] = held{name, s.revision, id}
		end.Base = s.revision
	}, then: func(end history.Record) {
		if end.Type == history.OK {
			s.held = append(s.held, held{name, end.Base, id})
		}
	}}
}

func (s *locksmith) free(h held) act {
	return act{invoke: history.Record{F: history.Unlock, Key: h.name, Base: h.token}, effect: func(end *history.Record) {
		if s.locks[h.name].token != h.token {
			refuse(end, "lost")
			return
		}
		delete(s.locks, h.name)
	}}
}

func (s *locksmith) fenced(h held) act {
	r := history.Record{F: history.Fenced, Key: h.name + "-data", Base: h.token, Value: s.value()}
	return act{invoke: r, effect: func(end *history.Record) {
		if h.token < s.fences[r.Key] {
			refuse(end, "an old token")
			return
		}
		s.fences[r.Key] = h.token
		end.Revision = s.put(r.Key, r.Value)
	}}
}

// bound is an operation on a key that may be bound to a lease.
func (s *locksmith) bound(key string) act {
	switch s.dice(8) {
	case 0:
		return act{invoke: history.Record{F: history.Delete, Key: key}, effect: func(end *history.Record) { end.Revision = s.remove(key) }}
	case 1, 2:
		id := s.known[s.dice(len(s.known))]
		return act{invoke: history.Record{F: history.Put, Key: key, Lease: id}, effect: func(end *history.Record) {
			if s.leases[id] == nil {
				refuse(end, "requested lease not found")
				return
			}
			s.revision++
			s.set(key, "", id)
			end.Revision = s.revision
		}}
	}
	return act{invoke: history.Record{F: history.Read, Key: key}, effect: func(end *history.Record) {
		s.sweep()
		end.Revision = s.keys[key].ModRevision
	}}
}

func newLocksmith(dice dice) *locksmith {
	return &locksmith{stage: &stage{dice: dice}, space: newSpace(), leases: map[int64]*granted{}, locks: map[string]held{}, fences: map[string]int64{}}
}

const drift = 2 * time.Millisecond

func TestLocksAcceptsWhatIsRight(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newLocksmith(rapidDice(t))
		s.run(rapid.IntRange(1, 60).Draw(t, "n"), s.use)
		accepts(t, judged(check.NewLocks(drift), s.records, s.members()), s.records)
	})
	expired := 0
	for seed := range 200 {
		s := newLocksmith(seeded(seed))
		s.run(300, s.use)
		v := judged(check.NewLocks(drift), s.records, s.members())
		accepts(t, v, s.records)
		accepts(t, judged(check.NewLocks(drift), s.records, nil), s.records)
		if strings.Contains(strings.Join(v.Notes, "\n"), "were seen to have expired") {
			expired++
		}
	}
	if expired < 100 {
		t.Errorf("leases expired in %d of 200 histories: the test does too little", expired)
	}
}

// at is a record at a time; process 0 is to be a new one each time.
func at(ms int, process int32, typ history.Type, r history.Record) history.Record {
	r.Time, r.Process, r.Type = time.Duration(ms)*time.Millisecond, 5000+process, typ
	return r
}

// both is an operation that begins and ends.
func both(begin, end int, process int32, invoke history.Record, answer func(r *history.Record)) []history.Record {
	last := invoke
	answer(&last)
	if last.Type == 0 {
		last.Type = history.OK
	}
	return []history.Record{at(begin, process, history.Invoke, invoke), at(end, process, last.Type, last)}
}

func ok(*history.Record) {}

func notFound(r *history.Record) { refuse(r, "requested lease not found") }

func granting(begin int, lease int64, ttl int) []history.Record {
	return both(begin, begin+1, 1, history.Record{F: history.Grant, Lease: lease, TTL: time.Duration(ttl) * time.Millisecond}, ok)
}

func locking(begin int, process int32, lease, token int64) []history.Record {
	return both(begin, begin+1, process, history.Record{F: history.Lock, Key: "lock/plant", Lease: lease}, func(r *history.Record) { r.Base = token })
}

func unlocking(begin int, process int32, token int64, answer func(r *history.Record)) []history.Record {
	return both(begin, begin+1, process, history.Record{F: history.Unlock, Key: "lock/plant", Base: token}, answer)
}

func renewing(begin, end int, lease int64, ttl int) []history.Record {
	return both(begin, end, 4, history.Record{F: history.KeepAlive, Lease: lease}, func(r *history.Record) { r.TTL = time.Duration(ttl) * time.Millisecond })
}

func fencing(begin int, process int32, token, revision int64, value string) []history.Record {
	return both(begin, begin+1, process, history.Record{F: history.Fenced, Key: "lock/plant-data", Base: token, Value: value}, func(r *history.Record) { r.Revision = revision })
}

func leased(begin int, lease int64) []history.Record {
	return both(begin, begin+1, 6, history.Record{F: history.Put, Key: "lease/plant", Lease: lease}, func(r *history.Record) { r.Revision = 5 })
}

func reading(begin int, revision int64) []history.Record {
	return both(begin, begin+1, 7, history.Record{F: history.Read, Key: "lease/plant"}, func(r *history.Record) { r.Revision = revision })
}

func dropping(begin int, lease int64) []history.Record {
	return both(begin, begin+1, 8, history.Record{F: history.Revoke, Lease: lease}, ok)
}

// together are records in the order of their times.
func together(parts ...[]history.Record) []history.Record {
	all := slices.Concat(parts...)
	slices.SortStableFunc(all, func(a, b history.Record) int { return int(a.Time - b.Time) })
	return all
}

// among puts records in the midst of a correct history, by their times.
func among(dice dice, fragment []history.Record) []history.Record {
	s := newLocksmith(dice)
	s.run(60, s.use)
	shift := time.Duration(dice(200)) * time.Millisecond
	for i := range fragment {
		fragment[i].Time += shift
		fragment[i].Lease += 1_000_000 * min(fragment[i].Lease, 1)
	}
	out := together(s.records, fragment)
	for i := range out {
		out[i].Index = int64(i)
	}
	return out
}

func TestLocksFindsWhatIsPlanted(t *testing.T) {
	holding := func(at int) []history.Record {
		return []history.Record{{F: history.Deliver, Type: history.OK, Time: time.Duration(at) * time.Millisecond, Process: 5009, KVs: []history.KV{{Key: "lease/plant", ModRevision: 6, Deleted: true}}}}
	}
	watching := []history.Record{at(0, 9, history.Invoke, history.Record{F: history.Watch, Key: "lease/", End: "lease0"})}
	for _, test := range []struct {
		name, rule string
		records    func() []history.Record
	}{
		{"two holders", "overlap", func() []history.Record {
			return together(granting(1, 1, 100), granting(3, 2, 100), locking(5, 2, 1, 10), locking(20, 3, 2, 11))
		}},
		{"two holders without leases", "overlap", func() []history.Record {
			return together(locking(5, 2, 0, 10), locking(9000, 3, 0, 11))
		}},
		{"two holders, the lease of the first is renewed later", "overlap", func() []history.Record {
			return together(granting(1, 1, 100), granting(3, 2, 900), locking(5, 2, 1, 10), renewing(90, 95, 1, 100), locking(150, 3, 2, 11), renewing(160, 165, 1, 100))
		}},
		{"two holders, and the first gives it back too late", "overlap", func() []history.Record {
			return together(granting(1, 1, 100), granting(3, 2, 100), locking(5, 2, 1, 10), locking(20, 3, 2, 11), unlocking(30, 2, 10, func(r *history.Record) { refuse(r, "lost") }))
		}},
		{"two holders, and the first was not let go", "overlap", func() []history.Record {
			return together(locking(5, 2, 0, 10), unlocking(7, 2, 10, func(r *history.Record) { refuse(r, "no") }), locking(20, 3, 0, 11))
		}},
		{"a third holder", "overlap", func() []history.Record {
			return together(granting(1, 1, 100), locking(5, 2, 1, 10), locking(20, 3, 1, 11), unlocking(21, 3, 11, ok), locking(30, 3, 1, 12), unlocking(40, 3, 12, ok))
		}},
		{"a token that goes back", "token", func() []history.Record {
			return together(granting(1, 1, 100), locking(5, 2, 1, 10), unlocking(10, 2, 10, ok), locking(20, 3, 1, 9))
		}},
		{"a token again", "token", func() []history.Record {
			return together(granting(1, 1, 100), locking(5, 2, 1, 10), unlocking(10, 2, 10, ok), locking(20, 3, 1, 10))
		}},
		{"a token for two at once", "token", func() []history.Record {
			token := func(r *history.Record) { r.Base = 10 }
			lock := history.Record{F: history.Lock, Key: "lock/plant"}
			return together(both(5, 20, 2, lock, token), both(6, 19, 3, lock, token))
		}},
		{"two holders, of a lease that came with the lock", "overlap", func() []history.Record {
			first := locking(5, 2, 1, 10)
			first[1].TTL = 100 * time.Millisecond
			return together(first, locking(50, 3, 0, 11))
		}},
		{"no token", "token", func() []history.Record { return together(granting(1, 1, 100), locking(5, 2, 1, 0)) }},
		{"an older token after a newer one", "fence", func() []history.Record {
			return together(fencing(5, 2, 11, 20, "p1"), fencing(8, 3, 10, 21, "p2"))
		}},
		{"an older token after a newer one by revision", "fence", func() []history.Record {
			two := fencing(5, 3, 10, 21, "p2")
			two[1].Time += 10 * time.Millisecond
			return together(two, fencing(6, 2, 11, 20, "p1"))
		}},
		{"given back after it was lost", "untold", func() []history.Record {
			return together(granting(1, 1, 10), granting(3, 2, 900), locking(5, 2, 1, 10), locking(50, 3, 2, 11), unlocking(60, 2, 10, ok))
		}},
		{"a lease not found too early", "early", func() []history.Record {
			return together(granting(1, 1, 100), both(50, 51, 4, history.Record{F: history.KeepAlive, Lease: 1}, notFound))
		}},
		{"a lease without any time too early", "early", func() []history.Record {
			return together(granting(1, 1, 100), renewing(50, 51, 1, 0))
		}},
		{"a key gone too early", "early", func() []history.Record { return together(granting(1, 1, 100), leased(5, 1), reading(50, 0)) }},
		{"a key gone just too early", "early", func() []history.Record { return together(granting(1, 1, 100), leased(5, 1), reading(97, 0)) }},
		{"a key gone too early after a renewal", "early", func() []history.Record {
			return together(granting(1, 1, 100), leased(5, 1), renewing(90, 92, 1, 100), reading(150, 0))
		}},
		{"a key gone while it is renewed", "early", func() []history.Record {
			return together(granting(1, 1, 100), leased(5, 1), renewing(90, 192, 1, 100), reading(150, 0))
		}},
		{"a key told as gone too early", "early", func() []history.Record {
			return together(watching, granting(1, 1, 100), leased(5, 1), holding(50))
		}},
		{"a lease comes back", "risen", func() []history.Record {
			return together(granting(1, 1, 10), leased(5, 1), reading(50, 0), renewing(60, 61, 1, 10))
		}},
		{"a revoked lease comes back", "risen", func() []history.Record {
			return together(granting(1, 1, 100), dropping(5, 1), renewing(60, 61, 1, 100))
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			for seed := range plants {
				finds(t, judged(check.NewLocks(drift), among(seeded(seed), test.records()), nil), test.rule)
			}
		})
	}
}

// What only members know: what became of writes whose outcome nobody was told.
func TestLocksAsksMembers(t *testing.T) {
	lost := fencing(1, 2, 10, 0, "late")
	lost[1].Type, lost[1].Error = history.Unknown, "timed out"
	records := together(lost, fencing(5, 3, 11, 20, "new"))
	one := history.KV{Key: "lock/plant-data", Value: "new", ModRevision: 20}
	late := history.KV{Key: "lock/plant-data", Value: "late", ModRevision: 21}
	members := []check.Member{{Name: "s1", Revision: 21, Changes: []history.KV{one, late}}}
	finds(t, judged(check.NewLocks(drift), records, members), "fence")
	lost[1].Type = history.Refused
	finds(t, judged(check.NewLocks(drift), together(lost, fencing(5, 3, 11, 20, "new")), members), "refused")
	members[0].Changes = []history.KV{one}
	accepts(t, judged(check.NewLocks(drift), records, members), records)
	if v := judged(check.NewLocks(drift), records, nil); !strings.Contains(fmt.Sprint(v.Left), "no member was asked") {
		t.Errorf("left %q", v.Left)
	}
}

// What looks odd and is right.
func TestLocksAcceptsFragments(t *testing.T) {
	for name, records := range map[string]func() []history.Record{
		"the lease may have expired": func() []history.Record {
			return together(granting(1, 1, 10), granting(3, 2, 100), locking(5, 2, 1, 10), locking(20, 3, 2, 11))
		},
		"within the drift": func() []history.Record { return together(granting(1, 1, 100), leased(5, 1), reading(99, 0)) },
		"given back while it is taken": func() []history.Record {
			return together(locking(5, 2, 0, 10), unlocking(7, 2, 10, ok), locking(7, 3, 0, 11))
		},
		"may have been given back": func() []history.Record {
			return together(locking(5, 2, 0, 10), unlocking(7, 2, 10, func(r *history.Record) { r.Type = history.Unknown }), locking(20, 3, 0, 11))
		},
		"revoked": func() []history.Record {
			return together(granting(1, 1, 100), locking(5, 2, 1, 10), leased(7, 1), dropping(9, 1), locking(20, 3, 0, 11), reading(30, 0))
		},
		"somebody deletes the key": func() []history.Record {
			return together(granting(1, 1, 100), leased(5, 1), both(8, 60, 4, history.Record{F: history.Delete, Key: "lease/plant"}, ok), reading(30, 0))
		},
		"a deletion may still come": func() []history.Record {
			return together(granting(1, 1, 100), both(2, 3, 4, history.Record{F: history.Delete, Key: "lease/plant"}, func(r *history.Record) { r.Type = history.Unknown }), leased(5, 1), reading(30, 0))
		},
		"deleted while it is written": func() []history.Record {
			return together(granting(1, 1, 100), both(4, 6, 4, history.Record{F: history.Delete, Key: "lease/plant"}, ok),
				both(5, 8, 6, history.Record{F: history.Put, Key: "lease/plant", Lease: 1}, func(r *history.Record) { r.Revision = 5 }), reading(30, 0))
		},
		"read before it is written": func() []history.Record {
			return together(granting(1, 1, 100), both(3, 20, 7, history.Record{F: history.Read, Key: "lease/plant"}, ok), leased(5, 1))
		},
		"nobody knows for how long": func() []history.Record {
			return together(locking(5, 2, 1, 10), locking(50, 3, 0, 11), leased(60, 1), reading(70, 0))
		},
		"a lease without end": func() []history.Record {
			grant := granting(1, 1, 1)
			grant[0].TTL, grant[1].TTL = history.MaxTime, history.MaxTime
			return together(grant, locking(5, 2, 1, 10), unlocking(7, 2, 10, ok), locking(9, 3, 0, 11))
		},
		"the loser is told": func() []history.Record {
			return together(granting(1, 1, 10), locking(5, 2, 1, 10), locking(50, 3, 0, 11), unlocking(60, 2, 10, func(r *history.Record) { refuse(r, "lost") }))
		},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range plants {
				all := among(seeded(seed), records())
				accepts(t, judged(check.NewLocks(drift), all, nil), all)
			}
		})
	}
}

func TestLocksSaysWhatItDoesNotJudge(t *testing.T) {
	v := judged(check.NewLocks(drift), together(leased(5, 1), reading(10, 0)), nil)
	if len(v.Violations) > 0 || !strings.Contains(fmt.Sprint(v.Left), "1 leases that were gone, of which nobody was told") {
		t.Errorf("%v, left %q", v.Violations, v.Left)
	}
}
