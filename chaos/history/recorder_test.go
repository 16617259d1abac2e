package history_test

import (
	"errors"
	"fmt"
	"iter"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/balsa-run/balsa/chaos/history"
	"github.com/google/go-cmp/cmp"
)

// ticking is a clock that goes on by a millisecond each time it is read. The
// recorder reads it under its lock.
func ticking() func() time.Duration {
	now := time.Duration(0)
	return func() time.Duration {
		now += time.Millisecond
		return now
	}
}

func all(records []history.Record) iter.Seq2[history.Record, error] {
	return func(yield func(history.Record, error) bool) {
		for _, r := range records {
			if !yield(r, nil) {
				return
			}
		}
	}
}

func TestRecorder(t *testing.T) {
	var records []history.Record
	rec := history.NewRecorder(ticking(), func(r history.Record) error {
		records = append(records, r)
		return nil
	})
	p := rec.Process("s1")
	put := p.Begin(history.Record{F: history.Put, Key: "k", Value: "v"})
	put.Answer.Revision = 2
	put.OK()
	p.Ask("s2")
	p.Begin(history.Record{F: history.CAS, Key: "k", Value: "w", Base: 7}).Refused(errors.New("it is at 2"))
	p.Begin(history.Record{F: history.Put, Key: "k", Value: "x"}).Unknown(errors.New("timeout"))
	heal := rec.Fault("partition s1")
	watch := p.Begin(history.Record{F: history.Watch, Key: "k", End: "l", Base: 2, Server: "s3"})
	watch.Deliver([]history.KV{{Key: "k", Value: "v", ModRevision: 2}}, 2)
	watch.Refused(errors.New("cancelled"))
	heal()
	rec.Note(history.Record{Type: history.OK, F: history.Hash, Value: "abc", At: 2, Server: "s1"})
	var got []string
	for _, r := range records {
		got = append(got, r.String())
	}
	want := []string{
		`#0 0.001000s p1 invoke put "k" value="v" server=s1`,
		`#1 0.002000s p1 ok put "k" value="v" revision=2 server=s1`,
		`#2 0.003000s p1 invoke cas "k" value="w" base=7 server=s2`,
		`#3 0.004000s p1 refused cas "k" value="w" base=7 error="it is at 2" server=s2`,
		`#4 0.005000s p1 invoke put "k" value="x" server=s2`,
		`#5 0.006000s p1 unknown put "k" value="x" error="timeout" server=s2`,
		`#6 0.007000s p0 invoke fault value="partition s1"`,
		`#7 0.008000s p2 invoke watch ["k", "l") base=2 server=s3`,
		`#8 0.009000s p2 ok deliver ["k", "l") at=2 kvs=["k"="v"@2] server=s3`,
		`#9 0.010000s p2 refused watch ["k", "l") base=2 error="cancelled" server=s3`,
		`#10 0.011000s p0 unknown fault value="partition s1"`,
		`#11 0.012000s p0 ok hash value="abc" at=2 server=s1`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if rec.Len() != 12 || p.ID() != 2 || rec.Err() != nil {
		t.Errorf("got %d records, process %d, error %v", rec.Len(), p.ID(), rec.Err())
	}
	pairs := 0
	for _, err := range history.Pair(all(records)) {
		if err != nil {
			t.Fatal(err)
		}
		pairs++
	}
	if pairs != 7 {
		t.Errorf("got %d operations, want 7", pairs)
	}
}

// Many goroutines: the order of the records is that of their times, and each
// process does one operation at a time.
func TestRecorderOfManyGoroutines(t *testing.T) {
	var records []history.Record
	rec := history.NewRecorder(ticking(), func(r history.Record) error {
		records = append(records, r)
		return nil
	})
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			p := rec.Process(fmt.Sprintf("s%d", g))
			for i := range 200 {
				op := p.Begin(history.Record{F: history.Put, Key: "k", Value: fmt.Sprint(g, i)})
				switch i % 3 {
				case 0:
					op.OK()
				case 1:
					op.Refused(errors.New("no"))
				default:
					op.Unknown(errors.New("timeout"))
				}
			}
		})
	}
	wg.Wait()
	for i, r := range records {
		if r.Index != int64(i) || i > 0 && r.Time <= records[i-1].Time {
			t.Fatalf("record %d is %v", i, r)
		}
	}
	n := 0
	for op, err := range history.Pair(all(records)) {
		if err != nil {
			t.Fatal(err)
		}
		if op.Invoke.Value != op.End.Value || op.Invoke.Time >= op.End.Time {
			t.Fatalf("paired %v with %v", op.Invoke, op.End)
		}
		n++
	}
	if n != 8*200 {
		t.Errorf("got %d operations, want %d", n, 8*200)
	}
}

func TestRecorderKeepsTheFirstError(t *testing.T) {
	calls := 0
	rec := history.NewRecorder(ticking(), func(history.Record) error {
		calls++
		return errDisk
	})
	p := rec.Process("s1")
	p.Begin(history.Record{F: history.Read, Key: "k"}).OK()
	if !errors.Is(rec.Err(), errDisk) || calls != 1 || !strings.Contains(rec.Err().Error(), "record 0") {
		t.Errorf("got %v after %d calls", rec.Err(), calls)
	}
}

func TestRecorderPanicsOnMistakes(t *testing.T) {
	for name, mistake := range map[string]func(p *history.Process, op *history.Op){
		"a second operation":    func(p *history.Process, _ *history.Op) { p.Begin(history.Record{F: history.Read}) },
		"an end twice":          func(_ *history.Process, op *history.Op) { op.OK(); op.Unknown(nil) },
		"delivered by no watch": func(_ *history.Process, op *history.Op) { op.Deliver(nil, 1) },
	} {
		t.Run(name, func(t *testing.T) {
			p := history.NewRecorder(ticking(), func(history.Record) error { return nil }).Process("s1")
			op := p.Begin(history.Record{F: history.Read, Key: "k"})
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			mistake(p, op)
		})
	}
}

func TestPairOrderAndRest(t *testing.T) {
	record := func(process int32, kind history.Type, f history.F, value string) history.Record {
		return history.Record{Process: process, Type: kind, F: f, Value: value}
	}
	records := []history.Record{
		record(1, history.Invoke, history.Put, "a"),
		record(2, history.Invoke, history.Put, "b"),
		record(0, history.Invoke, history.Fault, "cut"),
		record(0, history.Invoke, history.Fault, "cut"),
		record(3, history.Invoke, history.Put, "c"),
		record(2, history.OK, history.Put, "b"),
		record(0, history.Unknown, history.Fault, "cut"),
		record(3, history.Unknown, history.Put, "c"),
	}
	for i := range records {
		records[i].Index = int64(i)
	}
	var got []string
	for op, err := range history.Pair(all(records)) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s %d %s %v", op.Invoke.Value, op.Invoke.Index, op.End.Type, op.End.Time == history.MaxTime))
	}
	want := []string{"b 1 ok false", "cut 2 unknown false", "c 4 unknown false", "a 0 unknown true", "cut 3 unknown true"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestPairRefuses(t *testing.T) {
	put := func(process int32, kind history.Type) history.Record {
		return history.Record{Process: process, Type: kind, F: history.Put}
	}
	read := history.Record{Process: 1, Type: history.OK, F: history.Read}
	fault := history.Record{Type: history.Unknown, F: history.Fault, Value: "cut"}
	for name, records := range map[string][]history.Record{
		"two at a time":             {put(1, history.Invoke), put(1, history.Invoke)},
		"an end without a begin":    {put(1, history.OK)},
		"another operation's end":   {put(1, history.Invoke), read},
		"after an unknown":          {put(1, history.Invoke), put(1, history.Unknown), put(1, history.Invoke)},
		"healed and never begun":    {fault},
		"delivered without a watch": {{Process: 1, Type: history.OK, F: history.Deliver}},
	} {
		t.Run(name, func(t *testing.T) {
			var last error
			for _, err := range history.Pair(all(records)) {
				last = err
			}
			if !errors.Is(last, history.ErrUnpaired) {
				t.Errorf("got %v, want %v", last, history.ErrUnpaired)
			}
		})
	}
}

// What a cut history does not tell is unknown, and the cut is told.
func TestPairOfATruncatedHistory(t *testing.T) {
	records := func(yield func(history.Record, error) bool) {
		_ = yield(history.Record{Process: 1, Type: history.Invoke, F: history.Put}, nil) && yield(history.Record{}, history.ErrTruncated)
	}
	var errs []error
	var ends []history.Type
	for op, err := range history.Pair(records) {
		if err != nil {
			errs = append(errs, err)
		} else {
			ends = append(ends, op.End.Type)
		}
	}
	if len(errs) != 1 || !errors.Is(errs[0], history.ErrTruncated) || len(ends) != 1 || ends[0] != history.Unknown {
		t.Errorf("got %v and %v", errs, ends)
	}
	for _, err := range history.Pair(func(yield func(history.Record, error) bool) { yield(history.Record{}, errDisk) }) {
		if !errors.Is(err, errDisk) {
			t.Errorf("got %v, want %v", err, errDisk)
		}
	}
}
