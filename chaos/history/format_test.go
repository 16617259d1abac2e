package history_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/balsa-run/balsa/chaos/history"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// anyRecord draws a record with any fields.
func anyRecord(t *rapid.T) history.Record {
	text := rapid.OneOf(rapid.Just(""), rapid.SampledFrom([]string{"k1", "k2", "s1"}), rapid.StringN(0, 20, -1), rapid.Just("\xff\x00"))
	number := rapid.OneOf(rapid.Just(int64(0)), rapid.Int64())
	kv := rapid.Custom(func(t *rapid.T) history.KV {
		return history.KV{
			Key: text.Draw(t, "key"), Value: text.Draw(t, "value"), CreateRevision: number.Draw(t, "create"),
			ModRevision: number.Draw(t, "mod"), Version: number.Draw(t, "version"), Lease: number.Draw(t, "lease"),
			Deleted: rapid.Bool().Draw(t, "deleted"),
		}
	})
	withPrev := rapid.Custom(func(t *rapid.T) history.KV {
		out := kv.Draw(t, "kv")
		if rapid.Bool().Draw(t, "has prev") {
			out.Prev = new(kv.Draw(t, "prev"))
		}
		return out
	})
	mop := rapid.Custom(func(t *rapid.T) history.Mop {
		return history.Mop{
			F: history.MopF(rapid.IntRange(1, 3).Draw(t, "f")), Key: text.Draw(t, "key"), Value: text.Draw(t, "value"),
			Values: rapid.OneOf(rapid.Just[[]string](nil), rapid.SliceOfN(text, 0, 4)).Draw(t, "values"),
		}
	})
	return history.Record{
		Index: number.Draw(t, "index"), Time: time.Duration(number.Draw(t, "time")), Process: rapid.Int32().Draw(t, "process"),
		Type: history.Type(rapid.IntRange(1, 4).Draw(t, "type")), F: history.F(rapid.IntRange(1, int(history.Fault)).Draw(t, "f")),
		Server: text.Draw(t, "server"), Key: text.Draw(t, "key"), End: text.Draw(t, "end"), Value: text.Draw(t, "value"),
		Base: number.Draw(t, "base"), Revision: number.Draw(t, "revision"), At: number.Draw(t, "at"), Limit: number.Draw(t, "limit"),
		Count: number.Draw(t, "count"), More: rapid.Bool().Draw(t, "more"), Lease: number.Draw(t, "lease"),
		TTL:  time.Duration(number.Draw(t, "ttl")),
		KVs:  rapid.OneOf(rapid.Just[[]history.KV](nil), rapid.SliceOfN(withPrev, 0, 3)).Draw(t, "kvs"),
		Mops: rapid.OneOf(rapid.Just[[]history.Mop](nil), rapid.SliceOfN(mop, 0, 3)).Draw(t, "mops"), Error: text.Draw(t, "error"),
	}
}

func encode(t testing.TB, records []history.Record) []byte {
	var out bytes.Buffer
	w := history.NewWriter(&out)
	for _, r := range records {
		if err := w.Write(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// decode reads until the error.
func decode(r io.Reader) (records []history.Record, err error) {
	for r, err := range history.Records(r) {
		if err != nil {
			return records, err
		}
		records = append(records, r)
	}
	return records, nil
}

func TestRecordsComeBackAsTheyWere(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		records := rapid.SliceOfN(rapid.Custom(anyRecord), 0, 30).Draw(rt, "records")
		got, err := decode(iotest.OneByteReader(bytes.NewReader(encode(t, records))))
		if err != nil {
			rt.Fatal(err)
		}
		if len(records) == 0 {
			records = nil
		}
		if diff := cmp.Diff(records, got); diff != "" {
			rt.Fatal(diff)
		}
	})
}

// manyRecords are more than two blocks, with more names than a block interns.
func manyRecords() []history.Record {
	var records []history.Record
	for i := range int64(20_000) {
		records = append(records, history.Record{
			Index: i, Time: time.Duration(i * 1000), Process: int32(i % 16), Type: history.OK, F: history.Put, Server: "s1",
			Key: fmt.Sprintf("key-%05d", i%9000), Value: strings.Repeat("v", int(i%40)), Revision: i + 2,
		})
	}
	return records
}

func TestManyBlocks(t *testing.T) {
	records := manyRecords()
	b := encode(t, records)
	got, err := decode(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.EqualFunc(records, got, func(a, b history.Record) bool { return a.String() == b.String() }) {
		t.Error("the records differ")
	}
	if size := len(b) / len(records); size > 64 {
		t.Errorf("%d bytes a record, want 64 at most", size)
	}
}

// Wherever a history is cut, what comes before is whole, and the cut is told.
func TestTruncatedTailIsTold(t *testing.T) {
	records := manyRecords()[:40]
	var out bytes.Buffer
	w := history.NewWriter(&out)
	flushed := []int{0}
	for i, r := range records {
		if err := w.Write(r); err != nil {
			t.Fatal(err)
		}
		if i%10 == 9 {
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
			flushed = append(flushed, out.Len())
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for cut := range out.Len() {
		got, err := decode(bytes.NewReader(out.Bytes()[:cut]))
		if !errors.Is(err, history.ErrTruncated) {
			t.Fatalf("cut at %d: got %v, want %v", cut, err, history.ErrTruncated)
		}
		blocks := 0
		for blocks+1 < len(flushed) && flushed[blocks+1] <= cut {
			blocks++
		}
		if diff := cmp.Diff(records[:10*blocks], got, cmp.Transformer("empty", func(r []history.Record) []history.Record { return append([]history.Record{}, r...) })); diff != "" {
			t.Fatalf("cut at %d: %s", cut, diff)
		}
	}
}

// A changed bit is never taken for another record.
func TestDamageIsFound(t *testing.T) {
	records := manyRecords()[:20]
	whole := encode(t, records)
	for at := range whole {
		for bit := range 8 {
			damaged := bytes.Clone(whole)
			damaged[at] ^= 1 << bit
			got, err := decode(bytes.NewReader(damaged))
			if !errors.Is(err, history.ErrCorrupt) && !errors.Is(err, history.ErrTruncated) {
				t.Fatalf("bit %d of byte %d: got %v, want an error", bit, at, err)
			}
			for i := range got {
				if diff := cmp.Diff(records[i], got[i]); diff != "" {
					t.Fatalf("bit %d of byte %d: %s", bit, at, diff)
				}
			}
		}
	}
	if _, err := decode(bytes.NewReader(append(whole, 0))); !errors.Is(err, history.ErrCorrupt) {
		t.Errorf("more after the end: got %v, want %v", err, history.ErrCorrupt)
	}
	if _, err := decode(strings.NewReader("another file")); !errors.Is(err, history.ErrCorrupt) {
		t.Errorf("another file: got %v, want %v", err, history.ErrCorrupt)
	}
	bad := errors.New("bad disk")
	if _, err := decode(io.MultiReader(bytes.NewReader(whole[:30]), iotest.ErrReader(bad))); !errors.Is(err, bad) {
		t.Errorf("bad disk: got %v", err)
	}
}

// FuzzRecords: no bytes stop the process, or take memory that they do not have.
func FuzzRecords(f *testing.F) {
	whole := encode(f, manyRecords()[:5])
	f.Add(whole)
	f.Add(whole[:20])
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := decode(bytes.NewReader(b))
		if err != nil {
			return
		}
		again, err := decode(bytes.NewReader(encode(t, got)))
		if diff := cmp.Diff(got, again); diff != "" || err != nil {
			t.Errorf("%v %s", err, diff)
		}
	})
}

type failingWriter struct{ left int }

var errDisk = errors.New("disk is full")

func (w *failingWriter) Write(b []byte) (int, error) {
	if w.left -= len(b); w.left < 0 {
		return 0, errDisk
	}
	return len(b), nil
}

func TestWriterRefuses(t *testing.T) {
	good := history.Record{Index: 0, Type: history.OK, F: history.Read, Key: "good"}
	for name, bad := range map[string]history.Record{
		"no type":              {F: history.Read},
		"no operation":         {Type: history.OK},
		"an unknown type":      {Type: 5, F: history.Read},
		"an unknown operation": {Type: history.OK, F: history.Fault + 1},
		"an unknown step":      {Type: history.OK, F: history.Txn, Key: "first", Mops: []history.Mop{{Key: "k"}}},
		"a chain of changes":   {Type: history.OK, F: history.Deliver, KVs: []history.KV{{Prev: &history.KV{Prev: &history.KV{}}}}},
		"too large":            {Type: history.OK, F: history.Put, Value: strings.Repeat("x", history.MaxRecord+1)},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			w := history.NewWriter(&out)
			if err := errors.Join(w.Write(good), nil); err != nil {
				t.Fatal(err)
			}
			if err := w.Write(bad); !errors.Is(err, history.ErrRecord) {
				t.Fatalf("got %v, want %v", err, history.ErrRecord)
			}
			next := good
			next.Index, next.Key, next.Server = 1, "first", "first"
			if err := errors.Join(w.Write(next), w.Close()); err != nil {
				t.Fatal(err)
			}
			got, err := decode(&out)
			if diff := cmp.Diff([]history.Record{good, next}, got); err != nil || diff != "" {
				t.Errorf("after a refused record: %v %s", err, diff)
			}
		})
	}
}

func TestWriterKeepsTheFirstError(t *testing.T) {
	w := history.NewWriter(&failingWriter{left: 20})
	r := history.Record{Type: history.OK, F: history.Put, Value: strings.Repeat("x", 100)}
	if err := w.Write(r); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{w.Flush(), w.Write(r), w.Close()} {
		if !errors.Is(err, errDisk) {
			t.Errorf("got %v, want %v", err, errDisk)
		}
	}
	w = history.NewWriter(io.Discard)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.Write(r); !errors.Is(err, history.ErrClosed) {
		t.Errorf("after close: got %v, want %v", err, history.ErrClosed)
	}
}

func BenchmarkWriter(b *testing.B) {
	records := manyRecords()
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		w := history.NewWriter(io.Discard)
		for i := range records {
			if err := w.Write(records[i]); err != nil {
				b.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
		n += len(records)
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "records/s")
}

func BenchmarkRecords(b *testing.B) {
	encoded := encode(b, manyRecords())
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		for _, err := range history.Records(bytes.NewReader(encoded)) {
			if err != nil {
				b.Fatal(err)
			}
			n++
		}
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "records/s")
}
