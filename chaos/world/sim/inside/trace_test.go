package inside

import (
	"bytes"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestTrace(t *testing.T) {
	run := func(t *testing.T, note string) (text string) {
		synctest.Test(t, func(t *testing.T) {
			var out bytes.Buffer
			trace := NewTrace(&out, slog.LevelWarn)
			log := trace.Logger("s1").With("member", 1).WithGroup("raft")
			log.Info("is noted", "a", note)
			log.Debug("is counted")
			Sleep(t.Context(), 1500*time.Millisecond)
			log.Warn("is printed", "b", time.Second)
			trace.Sayf("s2", "leads in term %d", 2)
			trace.Mark()
			if trace.Seen("is counted") != 1 || trace.Seen("is printed") != 1 || trace.Seen("is not there") != 0 {
				t.Error("miscounted what was logged")
			}
			text = out.String()
		})
		return text
	}
	want := "    1.500000 s1   WARN is printed member=1 raft.b=1s\n" +
		"    1.500000 s2   leads in term 2\n"
	first := run(t, "x")
	if diff := cmp.Diff(want, first[:min(len(first), len(want))]); diff != "" {
		t.Error(diff)
	}
	if again := run(t, "x"); again != first {
		t.Errorf("the same events give another trace:\n%s\n%s", first, again)
	}
	if other := run(t, "y"); other == first {
		t.Errorf("what is only noted does not show in the mark:\n%s", first)
	}
}
