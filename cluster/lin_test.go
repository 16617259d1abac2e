package cluster

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// operation is one call on the register "k" and what is known of it.
type operation struct {
	write      bool
	value      string
	revision   int64 // of the write, or of what was read
	begin, end time.Time
	outcome    Class // 0: it succeeded
}

// history checks a register by revision order: the store numbers every write, so
// one sort decides. Between operations that do not overlap, revisions must not
// fall, and a write's must grow.
type history struct {
	mu  sync.Mutex
	ops []operation
}

func (h *history) add(o operation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, o)
}

// check returns every violation.
func (h *history) check() []string {
	var bad []string
	values, unknown, refused := map[int64]string{0: ""}, map[string]bool{}, map[string]bool{}
	for _, o := range h.ops {
		switch {
		case !o.write:
		case o.outcome == NotApplied:
			refused[o.value] = true
		case o.outcome == Unknown:
			unknown[o.value] = true
		case values[o.revision] != "":
			bad = append(bad, fmt.Sprintf("writes %s and %s both have revision %d", o.value, values[o.revision], o.revision))
		default:
			values[o.revision] = o.value
		}
	}
	for _, o := range h.ops {
		if o.write || o.outcome != 0 {
			continue
		}
		want, known := values[o.revision]
		if known && want != o.value || !known && !unknown[o.value] {
			bad = append(bad, fmt.Sprintf("read %q at revision %d, written was %q", o.value, o.revision, want))
		}
		if refused[o.value] {
			bad = append(bad, fmt.Sprintf("read %q, which was NOT_APPLIED", o.value))
		}
	}
	return append(bad, h.checkOrder()...)
}

// checkOrder sweeps over time: before an operation begins, the highest revision
// of those that have ended by then is the least that it may have.
func (h *history) checkOrder() []string {
	var done []operation
	for _, o := range h.ops {
		if o.outcome == 0 {
			done = append(done, o)
		}
	}
	byEnd := slices.Clone(done)
	slices.SortFunc(done, func(a, b operation) int { return a.begin.Compare(b.begin) })
	slices.SortFunc(byEnd, func(a, b operation) int { return a.end.Compare(b.end) })
	var bad []string
	var newest operation
	for _, later := range done {
		for len(byEnd) > 0 && byEnd[0].end.Before(later.begin) {
			if byEnd[0].revision >= newest.revision {
				newest = byEnd[0]
			}
			byEnd = byEnd[1:]
		}
		if later.revision < newest.revision || later.write && later.revision == newest.revision && newest.revision > 0 {
			bad = append(bad, fmt.Sprintf("%s began after %s had ended", later, newest))
		}
	}
	return bad
}

func (o operation) String() string {
	kind := "read"
	if o.write {
		kind = "write"
	}
	return fmt.Sprintf("%s %q at revision %d", kind, o.value, o.revision)
}

// enough is what a history must hold to prove something, and longest the time in
// which it does.
const (
	enoughDone   = 1000 // writes, and as many reads
	enoughFailed = 10
	longest      = 10 * time.Minute
)

// chaos runs clients on every member while links break and members pause their
// disks, for a while and until enough happened, and returns the history.
func chaos(t *testing.T, seed uint64, length time.Duration) *history {
	h := &history{}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Timing.LeaderWait = 200 * time.Millisecond })
		defer w.stop()
		w.start("a", "b", "c")
		stop := make(chan struct{})
		var all sync.WaitGroup
		for i := range 9 {
			n := w.nodes[w.names[i%3]]
			random := rand.New(rand.NewPCG(seed, uint64(i)))
			all.Go(func() { client(n, i, random, stop, h) })
		}
		random := rand.New(rand.NewPCG(seed, 1000))
		for begin := time.Now(); time.Since(begin) < length || !h.enough() && time.Since(begin) < longest; {
			time.Sleep(time.Duration(random.IntN(1200)) * time.Millisecond)
			breakSomething(w, random)
		}
		close(stop)
		w.net.HealAll()
		for _, n := range w.nodes {
			n.disk.Release()
		}
		all.Wait()
	})
	return h
}

func breakSomething(w *world, random *rand.Rand) {
	from, to := w.names[random.IntN(3)], w.names[random.IntN(3)]
	switch random.IntN(8) {
	case 0, 1:
		w.net.Isolate(from, w.names...)
	case 2:
		if from != to {
			w.net.Cut(from, to)
		}
	case 3:
		w.net.Delay(from, to, time.Duration(random.IntN(300))*time.Millisecond)
	case 4:
		w.nodes[from].disk.Hang()
		time.AfterFunc(time.Duration(random.IntN(3000))*time.Millisecond, w.nodes[from].disk.Release)
	default:
		w.net.HealAll()
	}
}

func client(n *node, id int, random *rand.Rand, stop <-chan struct{}, h *history) {
	for i := 0; ; i++ {
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(1+random.IntN(20)) * time.Millisecond):
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		if random.IntN(2) == 0 {
			h.add(write(ctx, n, fmt.Sprintf("%d-%d", id, i)))
		} else {
			h.add(readOnce(ctx, n, readIndex))
		}
		cancel()
	}
}

func write(ctx context.Context, n *node, value string) operation {
	o := operation{write: true, value: value, begin: time.Now()}
	result, err := n.Propose(ctx, put("k", value))
	o.end = time.Now()
	switch {
	case err == nil:
		o.revision = result.GetRevision()
	case IsUnknown(err):
		o.outcome = Unknown
	default:
		o.outcome = NotApplied
	}
	return o
}

// readIndex and trustLeader are two ways to allow a read.
func readIndex(ctx context.Context, n *node) bool {
	_, err := n.ReadIndex(ctx)
	return err == nil
}

func trustLeader(_ context.Context, n *node) bool { return n.raft.Load().State() == raft.Leader }

func readOnce(ctx context.Context, n *node, allow func(context.Context, *node) bool) operation {
	o := operation{begin: time.Now()}
	if !allow(ctx, n) {
		o.outcome = NotApplied
	}
	o.value, o.revision = n.machine.get("k")
	o.end = time.Now()
	return o
}

func (h *history) counts() (writes, reads, failed int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, o := range h.ops {
		switch {
		case o.outcome != 0:
			failed++
		case o.write:
			writes++
		default:
			reads++
		}
	}
	return writes, reads, failed
}

func (h *history) enough() bool {
	writes, reads, failed := h.counts()
	return writes >= enoughDone && reads >= enoughDone && failed >= enoughFailed
}

func TestLinearizableUnderPartitions(t *testing.T) {
	for seed := range uint64(3) {
		h := chaos(t, seed, 20*time.Second)
		for _, violation := range h.check() {
			t.Errorf("seed %d: %s", seed, violation)
		}
		writes, reads, failed := h.counts()
		t.Logf("seed %d: %d writes, %d reads, %d failed", seed, writes, reads, failed)
		if !h.enough() {
			t.Errorf("seed %d: %d writes, %d reads, %d failures in %v: too little happened", seed, writes, reads, failed, longest)
		}
	}
}

// deposed cuts off a leader in such a way that it cannot know: its disk hangs,
// so that the library's main loop looks at no lease, and its network is gone.
// The others elect, a client writes there, and another reads on the old leader.
func deposed(t *testing.T, allow func(context.Context, *node) bool) (h *history, allowed bool) {
	h = &history{}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Timing.LeaderWait = 200 * time.Millisecond })
		defer w.stop()
		w.start("a", "b", "c")
		old := w.leader()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		h.add(write(ctx, old, "1"))
		old.disk.Hang()
		stuck := make(chan operation, 1)
		go func() { stuck <- write(ctx, old, "stuck") }()
		synctest.Wait() // the main loop is in the disk now
		w.net.Isolate(old.id, w.names...)
		h.add(write(ctx, w.leaderBut(old.id), "2"))
		time.Sleep(time.Millisecond) // the read begins strictly after the write ended
		read := readOnce(ctx, old, allow)
		h.add(read)
		h.add(<-stuck)
		allowed = read.outcome == 0
	})
	return h, allowed
}

// TestTheCheckerFindsStaleReads: a reader that trusts the leader's word must not
// pass; one that asks for a read index does, on the same server at the same time.
func TestTheCheckerFindsStaleReads(t *testing.T) {
	naive, allowed := deposed(t, trustLeader)
	if bad := naive.check(); !allowed || len(bad) != 1 || !strings.Contains(bad[0], "began after") {
		t.Errorf("a reader who trusts the leader's word: allowed %v, found %q", allowed, bad)
	}
	careful, allowed := deposed(t, readIndex)
	if bad := careful.check(); allowed || len(bad) > 0 {
		t.Errorf("a reader who asks for a read index: allowed %v, found %q", allowed, bad)
	}
}
