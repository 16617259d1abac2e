package bench

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const toolSays = `bench with linearizable range

Summary:
  Total:	1.2345 secs.
  Slowest:	0.0210 secs.
  Fastest:	0.0001 secs.
  Average:	0.0005 secs.
  Stddev:	0.0002 secs.
  Requests/sec:	8100.4455

Response time histogram:
  0.0001 [1]	|
  0.0022 [9999]	|∎∎∎∎

Latency distribution:
  10% in 0.0002 secs.
  50% in 0.0015 secs.
  99% in 0.0100 secs.
  99.9% in 0.0200 secs.
`

func TestToolIsRead(t *testing.T) {
	got, err := parseTool(toolSays)
	if want := (toolReport{perSecond: 8100.4455, p50MS: 1.5, p99MS: 10}); err != nil || got != want {
		t.Errorf("read %+v, %v; want %+v", got, err, want)
	}
	for name, text := range map[string]string{
		"no rate":         "Summary:\n",
		"a rate of words": "  Requests/sec:	fast\n",
		"failed requests": toolSays + "\nError distribution:\n  [3]	etcdserver: request timed out\n",
	} {
		if _, err := parseTool(text); err == nil {
			t.Errorf("%s: no error", name)
		} else if name == "failed requests" && !strings.Contains(err.Error(), "request timed out") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func storeDocument() StoreDocument {
	floor := &Floor{Ratio: 1.2}
	return StoreDocument{
		Machine: Machine{CPU: "a CPU", Cores: 2, Kernel: "6.18", Disk: "ext4"}, Version: "0.1.0", Peers: "etcd v3", Date: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Results: []Comparison{
			{Name: "good", Question: "How many?", Unit: Unit{Name: "puts/s"}, Floor: floor, Pairs: []Pair{{150, 100}, {160, 100}, {140, 100}}, Notes: []string{"a note"}},
			{Name: "bad", Question: "How few?", Unit: Unit{Name: "puts/s"}, Floor: floor, Pairs: []Pair{{100, 100}, {101, 100}, {99, 100}}},
			{Name: "unsure", Question: "Who knows?", Unit: Unit{Name: "puts/s"}, Floor: floor, Pairs: []Pair{{100, 100}, {300, 100}, {50, 100}}},
			{Name: "slow", Question: "How long?", Unit: milliseconds(), Limit: 8000, Pairs: []Pair{{7000, 100}, {8000, 100}, {6000, 100}}},
			{Name: "told", Question: "How many events?", Unit: Unit{Name: "events/s"}, Pairs: []Pair{{1, 2}, {1, 2}, {1, 2}}},
			{Name: "broken", Question: "What?", Unit: milliseconds(), Floor: floor, Err: errors.New("no luck")},
		},
	}
}

func TestStoreDocument(t *testing.T) {
	golden(t, "store.md", storeDocument().Markdown())
	err := storeDocument().Missed()
	for name, missed := range map[string]bool{"good": false, "bad is below": true, "unsure": false, "slow is below": true, "told": false, "broken was not measured: no luck": true} {
		if strings.Contains(err.Error(), name) != missed {
			t.Errorf("missed: %v; %q should be in it: %t", err, name, missed)
		}
	}
}

// The part of the store and the other parts of the document leave each other alone.
func TestStorePartKeepsItsPlace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "benchmarks.md")
	part, later := storeDocument().Markdown(), strings.Replace(storeDocument().Markdown(), "0.1.0", "0.2.0", 1)
	read := func() string {
		t.Helper()
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	if got := KeepStore(path, "one\n"); got != "one\n" {
		t.Errorf("without a document: %q", got)
	}
	if err := os.WriteFile(path, []byte("one\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, step := range []string{part, later} {
		if err := WriteStore(path, step); err != nil {
			t.Fatal(err)
		}
		if got := read(); got != "one\n"+step {
			t.Errorf("the document is %q", got)
		}
	}
	if got := KeepStore(path, "two\n"); got != "two\n"+later {
		t.Errorf("its next version is %q", got)
	}
}
