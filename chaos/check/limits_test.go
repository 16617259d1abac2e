package check

import (
	"strings"
	"testing"

	"github.com/balsa-run/balsa/chaos/history"
)

// What is beyond a limit is not judged, and the verdict says so.
func TestLimitsAreTold(t *testing.T) {
	kvs := []history.KV{{Key: "a", ModRevision: 2}, {Key: "b", ModRevision: 3}}
	members := []Member{{Name: "s1", Revision: 3, Changes: kvs}}

	ranges := NewRanges()
	ranges.maxKVs = 3
	for range 2 {
		ranges.Add(history.Record{Type: history.Invoke, F: history.List, Key: "a", End: "z"})
		ranges.Add(history.Record{Type: history.OK, F: history.List, Key: "a", End: "z", At: 3, KVs: kvs})
	}
	expectLeft(t, ranges.Verdict(members), "the content of 1 lists beyond the 3 keys")

	watch := NewWatch()
	watch.maxKept = 3
	watch.Add(history.Record{Type: history.Invoke, F: history.Watch, Key: "a", End: "z", Base: 2})
	watch.Add(history.Record{Type: history.OK, F: history.Deliver, KVs: kvs})
	for range 2 { // these would be out of order
		watch.Add(history.Record{Type: history.OK, F: history.Deliver, KVs: kvs})
	}
	expectLeft(t, watch.Verdict(members), "4 events beyond the 3")
}

func expectLeft(t *testing.T, v Verdict, want string) {
	t.Helper()
	if len(v.Violations) > 0 || !strings.Contains(strings.Join(v.Left, "\n"), want) {
		t.Errorf("%s: %v, left %q, want %q", v.Checker, v.Violations, v.Left, want)
	}
}
