package etcdtest

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/balsa-run/balsa/etcdapi"
)

const (
	// longRun is how long a fuzz runs for every accepted difference to have to show.
	longRun = 30 * time.Minute
	// differencesMost is where a fuzz gives up.
	differencesMost = 8
	// shrinkFor bounds the search for a shorter sequence.
	shrinkFor = 40 * time.Second
	// sequenceFor bounds a sequence.
	sequenceFor = 2 * time.Minute
	// beginFor bounds the emptying of the space before one.
	beginFor = 30 * time.Second
)

// TestDifferentialFuzz drives etcd and Balsa with the same random operations and
// compares everything that they answer.
func TestDifferentialFuzz(t *testing.T) {
	t.Parallel()
	d := &duel{agreeWithin: 3 * time.Second, again: func() *side { return startEtcd(t) }, balsa: startSolo(t, etcdapi.Limits{}), accepted: acceptedDifferences()}
	if *fuzzReplay != "" {
		d.replay(t, *fuzzReplay)
		return
	}
	seed := *fuzzSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	began, found, once := time.Now(), 0, 0
	for n := uint64(0); time.Since(began) < *fuzzFor && found < differencesMost; n++ {
		ops := drawSequence(seed + n)
		first := d.run(t, ops)
		if first == nil {
			continue
		}
		again := d.run(t, ops)
		if again == nil {
			// An answer that depends on the moment is a mistake of this test's.
			once++
			t.Logf("seed %d differed once in two runs:\n%s%v", seed+n, brief(printOps(ops[:first.at+1])), first)
			continue
		}
		found++
		ops, again = d.shrink(t, ops[:again.at+1], again)
		t.Errorf("seed %d: the shortest sequence that differs (replay it with -fuzz-replay FILE):\n%s%v", seed+n, brief(printOps(ops)), again)
	}
	t.Logf("seed %d: %d sequences, %d operations, %d answered with an error, %d watched events, in %v; differences: %d, not repeated: %d",
		seed, d.sequences, d.operations, d.errors, d.events, time.Since(began).Round(time.Second), found, once)
	if d.sequences > 50 && once > d.sequences/50 {
		t.Errorf("%d of %d sequences differed once and not again", once, d.sequences)
	}
	if d.errors*3 > d.operations*2 || d.errors == 0 || d.events == 0 {
		t.Errorf("%d of %d operations failed, %d events were watched: the generator is not worth much", d.errors, d.operations, d.events)
	}
	for _, a := range d.accepted {
		t.Logf("accepted %d times: %s: %s", a.used, a.name, a.reason)
		if a.used == 0 && !a.rare && *fuzzFor >= longRun {
			t.Errorf("the accepted difference %q has not shown in %v: take it off the list", a.name, *fuzzFor)
		}
	}
}

// duel is the two sides and what they were through.
type duel struct {
	etcd, balsa *side
	// again starts another etcd, for the first and where one has died.
	again func() *side
	// agreeWithin is how long watches may take to show both sides the same.
	agreeWithin                           time.Duration
	accepted                              []*acceptedDifference
	sequences, operations, errors, events int
}

// difference is where a sequence came to two things.
type difference struct {
	// at is the operation after which it showed.
	at   int
	what string
}

func (d *difference) String() string {
	return fmt.Sprintf("after operation %d: %s", d.at+1, brief(d.what))
}

// run carries a sequence out on both sides, up to the first difference.
func (d *duel) run(t testing.TB, ops []op) *difference {
	t.Helper()
	d.sequences++
	ctx, cancel := context.WithTimeout(t.Context(), sequenceFor)
	defer cancel()
	theirs := d.beginTheirs(ctx, t)
	defer theirs.end()
	ours, err := begin(ctx, d.balsa)
	if err != nil {
		t.Fatal(err)
	}
	defer ours.end()
	m := &match{duel: d, theirs: theirs, ours: ours}
	for i, o := range ops {
		d.operations++
		what, over := m.step(o)
		m.done = append(m.done, o)
		if what != "" {
			return &difference{at: i, what: what}
		}
		if over {
			return nil
		}
	}
	if what := m.settle(); what != "" {
		return &difference{at: len(ops) - 1, what: what}
	}
	d.events += theirs.events()
	return nil
}

// beginTheirs begins a sequence on etcd, another one where it has died. That it died is
// for the sequence in which it did to tell: there it gave no answer.
func (d *duel) beginTheirs(ctx context.Context, t testing.TB) *session {
	t.Helper()
	for ended := false; ; ended = true {
		if d.etcd == nil || d.etcd.hasEndedBy(0) {
			d.etcd = d.again()
		}
		theirs, err := begin(ctx, d.etcd)
		if err == nil {
			return theirs
		}
		// Before it ends one that panics writes for a while.
		if ended || !d.etcd.hasEndedBy(time.Second) {
			t.Fatal(err)
		}
		t.Logf("etcd has died: %v", err)
		d.etcd = nil
	}
}

// hasEndedBy says that the process of an etcd has ended, or does so in a while.
func (s *side) hasEndedBy(wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-s.ended:
		return true
	case <-timer.C:
	}
	select {
	case <-s.ended: // both may have been true
		return true
	default:
		return false
	}
}

// match is a sequence on both sides.
type match struct {
	*duel
	theirs, ours *session
	// done are the operations so far.
	done []op
}

// step carries out one operation. over says that the sides have parted in an
// accepted way, after which nothing can be compared.
func (m *match) step(o op) (what string, over bool) {
	if o.kind == watchKind {
		return m.watch(o), false
	}
	// What a watch is sent of a history that is compacted behind it depends on how
	// quick it was.
	if o.kind == "compact" {
		if what := m.settle(); what != "" {
			return what, false
		}
	}
	answered := make(chan answer, 1)
	go func() { answered <- m.theirs.do(o) }()
	ours := m.ours.do(o)
	theirs := <-answered
	if theirs.code != 0 {
		m.errors++
	}
	if theirs == ours {
		return "", false
	}
	for _, a := range m.accepted {
		if a.match(o, theirs, ours) && (a.after == nil || a.after(m.done)) {
			a.used++
			if a.kills {
				m.etcd = nil
			}
			return "", true
		}
	}
	return fmt.Sprintf("%s\n  etcd:  %v\n  balsa: %v", o, theirs, ours), false
}

func (m *match) watch(o op) string {
	// The same with what a watch is sent that is canceled behind it.
	if o.msg.(*pb.WatchRequest).GetCancelRequest() != nil {
		if what := m.settle(); what != "" {
			return what
		}
	}
	for _, s := range []*session{m.theirs, m.ours} {
		if err := s.watch(o); err != nil {
			return fmt.Sprintf("%s\n  %s: %v", o, s.name, err)
		}
	}
	return ""
}

// settle waits until the watches of both sides have shown the same, and says what
// they did not.
func (m *match) settle() string {
	if !m.theirs.watching() {
		return ""
	}
	var both sync.WaitGroup
	both.Go(m.theirs.catchUp)
	both.Go(m.ours.catchUp)
	both.Wait()
	var theirs, ours string
	agree := waitFor(m.agreeWithin, func() bool {
		theirs, ours = m.theirs.transcript(), m.ours.transcript()
		return theirs == ours
	})
	if !agree {
		return "watches differ (-etcd +balsa):\n" + cmp.Diff(strings.Split(theirs, "\n"), strings.Split(ours, "\n"))
	}
	for _, s := range []*session{m.theirs, m.ours} {
		if err := s.broken(); err != nil {
			return fmt.Sprintf("%s: %v", s.name, err)
		}
	}
	return ""
}

// shrink looks for a shorter sequence that differs, by leaving out ever smaller
// pieces (delta debugging: Zeller and Hildebrandt, 2002).
func (d *duel) shrink(t testing.TB, ops []op, found *difference) ([]op, *difference) {
	t.Helper()
	end := time.Now().Add(shrinkFor)
	for size := max(1, len(ops)/2); time.Now().Before(end); {
		smaller := false
		for from := 0; from < len(ops) && time.Now().Before(end); {
			candidate := append(append([]op{}, ops[:from]...), ops[min(len(ops), from+size):]...)
			if len(candidate) == 0 {
				break
			}
			if diff := d.run(t, candidate); diff != nil {
				ops, found, smaller = candidate[:diff.at+1], diff, true
			} else {
				from += size
			}
		}
		if !smaller && size == 1 {
			break
		}
		size = max(1, size/2)
	}
	return ops, found
}

func (d *duel) replay(t *testing.T, file string) {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	ops, err := parseOps(string(raw))
	if err != nil {
		t.Fatal(err)
	}
	if diff := d.run(t, ops); diff != nil {
		t.Error(diff)
	}
}

// TestSequencesCanBeReplayed: what a difference prints is what it ran.
func TestSequencesCanBeReplayed(t *testing.T) {
	for seed := range uint64(200) {
		printed := printOps(drawSequence(seed))
		ops, err := parseOps(printed)
		if err != nil {
			t.Fatal(err)
		}
		if again := printOps(ops); again != printed {
			t.Fatalf("seed %d is read as another sequence (-printed +read):\n%s", seed, cmp.Diff(printed, again))
		}
	}
	for _, bad := range []string{"nothing key:\"a\"", "put key:", "watch 9 ", "watch x ", "range unknown:1"} {
		if _, err := parseOps(bad); err == nil {
			t.Errorf("%q was read as an operation", bad)
		}
	}
}

// TestTheFuzzOutlivesEtcd: an etcd that has died is no difference of the next sequence.
func TestTheFuzzOutlivesEtcd(t *testing.T) {
	t.Parallel()
	first, stop := startEtcdOn(t, t.TempDir())
	d := &duel{agreeWithin: 3 * time.Second, etcd: first, again: func() *side { return startEtcd(t) }, balsa: startSolo(t, etcdapi.Limits{}), accepted: acceptedDifferences()}
	stop()
	if diff := d.run(t, drawSequence(1)); diff != nil {
		t.Error(diff)
	}
	if d.etcd == first {
		t.Error("it goes on with the one that has died")
	}
}
