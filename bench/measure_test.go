package bench

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/balsa-run/balsa/chaos/load"
)

// told is a measure that reports what it is given.
type told struct {
	name    string
	samples Samples
	err     error
	run     func()
}

func (m told) Name() string    { return m.name }
func (told) Question() string  { return "What was it told?" }
func (told) Unit() Unit        { return milliseconds() }
func (told) Targets() []Target { return nil }
func (m told) Run(context.Context) (Samples, error) {
	if m.run != nil {
		m.run()
	}
	return m.samples, m.err
}

func TestRunGoesOnAfterAFailure(t *testing.T) {
	broken := errors.New("broken")
	var progress bytes.Buffer
	results, err := Run(t.Context(), []Measure{
		told{name: "bad", samples: Samples{Values: []float64{1}}, err: broken},
		told{name: "empty"},
		told{name: "good", samples: Samples{Values: []float64{2}, Notes: []string{"a note"}}},
	}, &progress)
	if err != nil {
		t.Fatal(err)
	}
	if len(results) != 3 || !errors.Is(results[0].Err, broken) || results[1].Err == nil || results[2].Err != nil {
		t.Fatalf("results: %+v", results)
	}
	for _, want := range []string{"NOT MEASURED: broken", "NOT MEASURED: it took no value", "median 2 ms", "a note"} {
		if !strings.Contains(progress.String(), want) {
			t.Errorf("progress lacks %q:\n%s", want, progress.String())
		}
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	stopped := errors.New("ctrl-C")
	ctx, cancel := context.WithCancelCause(t.Context())
	never := func() { t.Error("a measure began after the end") }
	results, err := Run(ctx, []Measure{
		told{name: "first", samples: Samples{Values: []float64{1}}},
		told{name: "second", run: func() { cancel(stopped) }, err: context.Canceled},
		told{name: "third", run: never},
	}, &bytes.Buffer{})
	if !errors.Is(err, stopped) || len(results) != 1 {
		t.Fatalf("got %d results and %v", len(results), err)
	}
}

func TestOnly(t *testing.T) {
	all := Suite(&Ground{}, true)
	names := func(measures []Measure) (list []string) {
		for _, m := range measures {
			list = append(list, m.Name())
		}
		return list
	}
	if chosen, err := Only(all, nil); err != nil || len(chosen) != len(all) {
		t.Fatalf("without names: %v, %v", names(chosen), err)
	}
	chosen, err := Only(all, []string{"failover", "puts-64"})
	if diff := cmp.Diff([]string{"puts-64", "failover"}, names(chosen)); diff != "" || err != nil {
		t.Fatalf("%v: %s", err, diff)
	}
	if _, err := Only(all, []string{"puts-65"}); err == nil || !strings.Contains(err.Error(), "puts-64") {
		t.Fatalf("an unknown name: %v", err)
	}
	if list := names(all); len(slices.Compact(slices.Sorted(slices.Values(list)))) != len(list) {
		t.Fatalf("two measures share a name: %v", list)
	}
}

func TestOutageEndsWithTheFirstWriteBegunAfterTheKill(t *testing.T) {
	killed := time.UnixMicro(10_000)
	spans := []load.Span{
		{BeganUS: 1_000, EndedUS: 9_000},
		{BeganUS: 9_500, EndedUS: 10_500}, // was on its way: says nothing
		{BeganUS: 10_500, EndedUS: 512_000},
		{BeganUS: 512_000, EndedUS: 513_000},
	}
	got, err := outage(spans, killed)
	if err != nil || got != 502 {
		t.Fatalf("outage %v ms, %v; want 502 ms", got, err)
	}
	if _, err := outage(spans[:2], killed); err == nil {
		t.Fatal("an outage without end has a length")
	}
}

func TestLeadsAfter(t *testing.T) {
	const log = `time=2026-11-22T10:00:00.100Z level=INFO msg=leading server=s1 term=1
not of slog
time=2026-11-22T10:00:05.000Z level=INFO msg="no longer leading" server=s1
time=2026-11-22T10:00:09.250Z level=INFO msg=leading server=s1 term=3
time=2026-11-22T10:00:09.300Z level=INFO msg=leading server=s1 epoch=3
`
	killed := time.Date(2026, 11, 22, 10, 0, 1, 0, time.UTC)
	at, found := leadsAfter(log, killed)
	if want := killed.Add(8250 * time.Millisecond); !found || !at.Equal(want) {
		t.Errorf("leads at %v, %v; want %v", at, found, want)
	}
	if at, found := leadsAfter(log, killed.Add(time.Hour)); found {
		t.Errorf("leads at %v before it was asked", at)
	}
}

func TestPodSamples(t *testing.T) {
	got := podSamples(load.PodReport{Pods: []load.PodStart{
		{AcknowledgedMS: 3, BoundMS: 8, RunningMS: 90, Node: "n1"}, {AcknowledgedMS: 5, BoundMS: 9, RunningMS: 110, Node: "n2"},
	}})
	want := Samples{Values: []float64{90, 110}, Notes: []string{
		"of this, the median pod was acknowledged after 3.0 ms and was seen bound to a node after 8.0 ms", "p99 110 ms; 2 nodes ran them",
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if none := podSamples(load.PodReport{}); len(none.Values) != 0 {
		t.Errorf("samples of nothing: %v", none)
	}
}

func TestPutSamplesTellOfFailures(t *testing.T) {
	got, err := putSamples(load.PutReport{Rounds: []load.PutRound{
		{Acknowledged: 100, Seconds: 2, P50MS: 1, P99MS: 4},
		{Acknowledged: 300, Seconds: 2, P50MS: 2, P99MS: 5, Failed: 3, Errors: []string{"full"}},
	}})
	want := Samples{Values: []float64{50, 150}, Notes: []string{
		"one put took 1.0 ms (p50) and 4.0 ms (p99) in the median round", "3 puts failed, the first with: full",
	}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v: %s", err, diff)
	}
	if _, err := putSamples(load.PutReport{}); err == nil {
		t.Error("no round is taken for a result")
	}
}
