package bench

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

func TestATrialIsTakenOnceForAllItsMeasures(t *testing.T) {
	taken := 0
	trial := newTrial(func(_ context.Context, t *takings) error {
		taken++
		t.add("ours", 30, 10, 20)
		t.add("theirs", 40)
		t.compare("ours", "theirs")
		t.failed["absent"] = errors.New("it is not installed")
		t.compare("theirs", "absent")
		return nil
	})
	measures := []Measure{part{trial: trial, name: "ours", unit: milliseconds()}, part{trial: trial, name: "theirs", unit: milliseconds()}, part{trial: trial, name: "absent", unit: milliseconds()}}
	results, err := Run(t.Context(), measures, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if taken != 1 {
		t.Errorf("it was taken %d times, want once", taken)
	}
	if got := results[0]; got.Err != nil || len(got.Samples.Values) != 3 || strings.Join(got.Samples.Notes, ";") != "median of ours / median of theirs = 0.50" {
		t.Errorf("the first measure: %+v", got)
	}
	if got := results[1]; got.Err != nil || !strings.Contains(strings.Join(got.Samples.Notes, ";"), "absent was not measured") {
		t.Errorf("a measure whose peer is missing: %+v", got)
	}
	if got := results[2]; got.Err == nil || !strings.Contains(got.Err.Error(), "not installed") {
		t.Errorf("a measure that came to nothing: %+v", got)
	}
}

func TestATrialThatFailsLeavesNoMeasure(t *testing.T) {
	trial := newTrial(func(_ context.Context, t *takings) error {
		t.add("a", 1)
		return errors.New("the cluster ended")
	})
	for _, name := range []string{"a", "b"} {
		if _, err := trial.take(t.Context(), name); err == nil || !strings.Contains(err.Error(), "the cluster ended") {
			t.Errorf("measure %s of a trial that failed: %v", name, err)
		}
	}
}

func TestInTurnLetsEachBegin(t *testing.T) {
	var order strings.Builder
	say := func(s string) func() error { return func() error { order.WriteString(s); return nil } }
	for round := range 3 {
		if err := inTurn(round, say("a"), say("b"), say("c")); err != nil {
			t.Fatal(err)
		}
	}
	if order.String() != "abcbcacab" {
		t.Errorf("turns %s, want abc, bca, cab", order.String())
	}
}

// CPU time is counted from one reading to the next, so it must grow with work and
// never be that of another process.
func TestCPUOfThisProcess(t *testing.T) {
	before, err := cpuOfOne(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	const work = 50 * time.Millisecond
	for began := time.Now(); ; {
		after, err := cpuOfOne(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if after-before >= work {
			break
		}
		if time.Since(began) > 30*time.Second {
			t.Fatalf("30s of work used %v of CPU", after-before)
		}
	}
	if _, err := cpuOfOne(1 << 30); err == nil {
		t.Error("a process that is not there has used CPU")
	}
}

func TestLayersOfOneSeedAreEqual(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a", "b"} {
		if err := writeLayer(dir+"/"+name, 7); err != nil {
			t.Fatal(err)
		}
	}
	a, errA := os.ReadFile(dir + "/a")
	b, errB := os.ReadFile(dir + "/b")
	if errA != nil || errB != nil {
		t.Fatal(errA, errB)
	}
	if string(a) != string(b) || len(a) < pullLayerBytes || len(a) > pullLayerBytes*11/10 {
		t.Errorf("layers of %d and %d bytes, want equal ones of a good %d", len(a), len(b), pullLayerBytes)
	}
}
