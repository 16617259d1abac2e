package history_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/balsa-run/balsa/chaos/history"
	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

// sample has each operation, and what is hard to write.
func sample() []history.Record {
	const inv, ok, no, unknown = history.Invoke, history.OK, history.Refused, history.Unknown
	records := []history.Record{
		{Process: 1, Type: inv, F: history.Put, Key: "a", Value: "1", Server: "s1"},
		{Process: 1, Type: ok, F: history.Put, Key: "a", Value: "1", Revision: 2, At: 2, Server: "s1"},
		{Process: 2, Type: inv, F: history.Read, Key: "a"},
		{Process: 2, Type: ok, F: history.Read, Key: "a", Value: "1", Revision: 2, At: 3},
		{Process: 2, Type: inv, F: history.StaleRead, Key: "b"},
		{Process: 2, Type: ok, F: history.StaleRead, Key: "b", At: 1},
		{Process: 2, Type: inv, F: history.CAS, Key: "a", Value: "x y\"\\\n\x01é<&>", Base: 2},
		{Process: 2, Type: no, F: history.CAS, Key: "a", Value: "x y\"\\\n\x01é<&>", Base: 2, Error: "key \"a\" is at 3"},
		{Process: 2, Type: inv, F: history.Delete, Key: "a"},
		{Process: 2, Type: unknown, F: history.Delete, Key: "a", Error: "timeout"},
		{Type: inv, F: history.Fault, Value: "partition s1 | s2 s3"},
		{Process: 3, Type: inv, F: history.List, Key: "a", End: "c", Limit: 1},
		{Process: 3, Type: ok, F: history.List, Key: "a", End: "c", Limit: 1, Count: 2, More: true, At: 4, KVs: []history.KV{
			{Key: "a", Value: "007", CreateRevision: 2, ModRevision: 4, Version: 2, Lease: 9},
		}},
		{Process: 3, Type: inv, F: history.StaleList, Key: "x", End: "y"},
		{Process: 3, Type: ok, F: history.StaleList, Key: "x", End: "y", KVs: []history.KV{}},
		{Process: 3, Type: inv, F: history.Watch, Key: "a", End: "c", Base: 2},
		{Process: 3, Type: ok, F: history.Deliver, Key: "a", End: "c", At: 5, KVs: []history.KV{
			{Key: "a", ModRevision: 5, Deleted: true, Prev: &history.KV{Key: "a", Value: "007", ModRevision: 4}},
		}},
		{Process: 3, Type: unknown, F: history.Watch, Key: "a", End: "c", Base: 2, Error: "the server died"},
		{Process: 4, Type: inv, F: history.Grant, TTL: 10 * time.Second},
		{Process: 4, Type: ok, F: history.Grant, Lease: 77, TTL: 10 * time.Second},
		{Process: 4, Type: inv, F: history.Lock, Key: "l"},
		{Process: 4, Type: ok, F: history.Lock, Key: "l", Base: 6, Revision: 6},
		{Process: 4, Type: inv, F: history.Fenced, Key: "f", Value: "\xff\xfe", Base: 6},
		{Process: 4, Type: ok, F: history.Fenced, Key: "f", Value: "\xff\xfe", Base: 6, Revision: 7},
		{Process: 4, Type: inv, F: history.Compact, Base: 3},
		{Process: 4, Type: ok, F: history.Compact, Base: 3},
		{Type: ok, F: history.Hash, Value: "00ff", At: 7, Server: "s2"},
		{Type: unknown, F: history.Fault, Value: "partition s1 | s2 s3"},
		{Process: 5, Type: inv, F: history.Txn, Mops: []history.Mop{{F: history.MopAppend, Key: "3", Value: "1"}, {F: history.MopRead, Key: "3"}, {F: history.MopRead, Key: "list"}}},
		{Process: 5, Type: ok, F: history.Txn, Revision: 8, Mops: []history.Mop{{F: history.MopAppend, Key: "3", Value: "1"}, {F: history.MopRead, Key: "3", Values: []string{"0", "1"}}, {F: history.MopRead, Key: "list", Values: []string{}}}},
		{Process: 5, Type: inv, F: history.Txn, Mops: []history.Mop{{F: history.MopRead, Key: "3"}, {F: history.MopAppend, Key: "3", Value: "2"}}},
		{Process: 5, Type: no, F: history.Txn, Mops: []history.Mop{{F: history.MopRead, Key: "3", Values: []string{"0"}}, {F: history.MopAppend, Key: "3", Value: "2"}}, Error: "conflict"},
		{Process: 5, Type: inv, F: history.Txn, Mops: []history.Mop{{F: history.MopAppend, Key: "3", Value: "4"}}},
		{Process: 5, Type: unknown, F: history.Txn, Mops: []history.Mop{{F: history.MopAppend, Key: "3", Value: "4"}}, Error: "timeout"},
	}
	for i := range records {
		records[i].Index, records[i].Time = int64(i), time.Duration(i)*time.Millisecond
	}
	return records
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := "testdata/" + name
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(string(got), "\n")); diff != "" {
		t.Error(diff)
	}
}

func TestExports(t *testing.T) {
	registers := []history.Record{
		{Index: 0, Process: 1, Type: history.Invoke, F: history.Txn, Mops: []history.Mop{{F: history.MopWrite, Key: "x", Value: "2"}, {F: history.MopRead, Key: "y"}}},
		{Index: 1, Process: 1, Type: history.OK, F: history.Txn, Mops: []history.Mop{{F: history.MopWrite, Key: "x", Value: "2"}, {F: history.MopRead, Key: "y", Values: []string{}}}},
		{Index: 2, Process: 1, Type: history.Invoke, F: history.Txn, Mops: []history.Mop{{F: history.MopRead, Key: "x"}}},
		{Index: 3, Process: 1, Type: history.OK, F: history.Txn, Mops: []history.Mop{{F: history.MopRead, Key: "x", Values: []string{"2"}}}},
	}
	for name, write := range map[string]func(io.Writer) error{
		"history.jsonl": func(w io.Writer) error { return history.WriteJSONL(w, all(sample())) },
		"history.edn":   func(w io.Writer) error { return history.WriteEDN(w, all(sample()), history.EDNOptions{}) },
		"list-append.edn": func(w io.Writer) error {
			return history.WriteEDN(w, all(sample()), history.EDNOptions{Only: []history.F{history.Txn}})
		},
		"rw-register.edn": func(w io.Writer) error {
			return history.WriteEDN(w, all(registers), history.EDNOptions{Only: []history.F{history.Txn}, Registers: true})
		},
		"history.txt": func(w io.Writer) error {
			for _, r := range sample() {
				if _, err := io.WriteString(w, r.String()+"\n"); err != nil {
					return err
				}
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			if err := write(&out); err != nil {
				t.Fatal(err)
			}
			golden(t, name, out.Bytes())
			if err := write(&failingWriter{left: 10}); !errors.Is(err, errDisk) {
				t.Errorf("a full disk: got %v, want %v", err, errDisk)
			}
		})
	}
}

// Each line of JSON is an object.
func TestJSONLinesAreJSON(t *testing.T) {
	var out bytes.Buffer
	if err := history.WriteJSONL(&out, all(sample())); err != nil {
		t.Fatal(err)
	}
	lines := 0
	for line := range bytes.Lines(out.Bytes()) {
		var object map[string]any
		if err := json.Unmarshal(line, &object); err != nil {
			t.Errorf("%s: %v", line, err)
		}
		lines++
	}
	if lines != len(sample()) {
		t.Errorf("got %d lines, want %d", lines, len(sample()))
	}
}

// A history that was cut is exported as far as it goes.
func TestExportsOfATruncatedHistory(t *testing.T) {
	cut := func(yield func(history.Record, error) bool) {
		_ = yield(sample()[0], nil) && yield(history.Record{}, history.ErrTruncated)
	}
	var lines, edn bytes.Buffer
	if err := history.WriteJSONL(&lines, cut); !errors.Is(err, history.ErrTruncated) {
		t.Errorf("JSON lines: got %v", err)
	}
	if err := history.WriteEDN(&edn, cut, history.EDNOptions{}); !errors.Is(err, history.ErrTruncated) {
		t.Errorf("EDN: got %v", err)
	}
	if bytes.Count(lines.Bytes(), []byte("\n")) != 1 || bytes.Count(edn.Bytes(), []byte("\n")) != 1 {
		t.Errorf("got %q and %q", lines.String(), edn.String())
	}
}

// A long value or list is cut in a line, and says so.
func TestStringCuts(t *testing.T) {
	r := history.Record{Type: history.OK, F: history.Txn, Value: strings.Repeat("x", 100)}
	for range 20 {
		r.KVs = append(r.KVs, history.KV{Key: "k", ModRevision: 1})
		r.Mops = append(r.Mops, history.Mop{F: history.MopRead, Key: "k", Values: make([]string, 30)})
	}
	got := r.String()
	if !strings.Contains(got, "…(100 bytes)") || strings.Count(got, "… 12 more") != 2 || !strings.Contains(got, "… 22 before") {
		t.Errorf("got %s", got)
	}
	odd := history.Record{Type: 9, F: 99, Mops: []history.Mop{{F: 9, Key: "k", Value: "v"}}}
	if got := odd.String(); got != `#0 0.000000s p0 type(9) f(99) mops=[mop(9) "k" "v"]` {
		t.Errorf("got %s", got)
	}
}
