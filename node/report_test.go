package node

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/node/pod"
)

// answering is an API of which only reports are asked; meanwhile happens between
// a report's effect and its answer.
type answering struct {
	API
	meanwhile func()
}

func (a answering) ReportStatus(context.Context, *balsav1.ReportStatusRequest) (*balsav1.ReportStatusResponse, error) {
	a.meanwhile()
	return &balsav1.ReportStatusResponse{}, nil
}

// While the answer to a pod's report is on its way the report shows in the
// assignments, and the pod ends. The answer must not count for the report that it
// has gone: that one would be sent again a minute later only.
func TestAnAnswerCountsForWhatWasSentOnly(t *testing.T) {
	figures, err := newMetrics(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	pod := func(phase string) *balsav1.Pod { return podIn("u", phase) }
	running := &balsav1.PodStatus{Phase: "Running"}
	api := &answering{}
	r := newReporter(&Agent{cfg: Config{API: api, Clock: clock.Real{}}, log: slog.New(slog.DiscardHandler), metrics: figures})
	api.meanwhile = func() {
		r.publish(pod("Running"), running, false)
		r.publish(pod("Running"), nil, true)
	}
	r.publish(pod("Pending"), running, false)
	request, versions := r.next()
	if err := r.send(t.Context(), request, versions); err != nil {
		t.Fatal(err)
	}
	request, _ = r.next()
	if len(request.GetPods()) != 1 || !request.GetPods()[0].GetRemoved() {
		t.Fatalf("next comes %v, not that the pod has gone", request)
	}
}

func podIn(uid, phase string) *balsav1.Pod {
	return &balsav1.Pod{Metadata: &balsav1.ObjectMeta{Uid: uid, ResourceVersion: "7"}, Status: &balsav1.PodStatus{Phase: phase}}
}

// slowTaker takes every report after a while, and notes when what came.
type slowTaker struct {
	API
	start time.Time
	takes time.Duration
	lines []string
}

func (a *slowTaker) ReportStatus(_ context.Context, r *balsav1.ReportStatusRequest) (*balsav1.ReportStatusResponse, error) {
	line := time.Since(a.start).String()
	for _, p := range r.GetPods() {
		line += " " + p.GetUid() + "=" + p.GetStatus().GetPhase()
	}
	for _, e := range r.GetEvents() {
		line += " " + e.GetReason()
	}
	a.lines = append(a.lines, line)
	time.Sleep(a.takes)
	return &balsav1.ReportStatusResponse{}, nil
}

// reported runs a reporter for a second and returns what it sent, and when.
func reported(t *testing.T, takes time.Duration, happen func(r *reporter)) (lines []string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		figures, err := newMetrics(prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		api := &slowTaker{start: time.Now(), takes: takes}
		a := &Agent{cfg: Config{API: api, Clock: clock.Real{}}, log: slog.New(slog.DiscardHandler), metrics: figures}
		r := newReporter(a)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		go func() {
			time.Sleep(100 * time.Millisecond)
			happen(r)
		}()
		if err := r.run(ctx); ctx.Err() == nil {
			t.Errorf("ended with %v", err)
		}
		lines = api.lines
	})
	return lines
}

func (r *reporter) tell(uid, phase string) {
	r.publish(podIn(uid, "Pending"), &balsav1.PodStatus{Phase: phase}, false)
}

func (r *reporter) explain(reason string) {
	r.event(&balsav1.ObjectReference{Kind: "Pod", Name: "p"}, pod.Event{Reason: reason}, time.Now())
}

func TestAStatusThatComesAloneIsReportedAtOnce(t *testing.T) {
	got := reported(t, 0, func(r *reporter) {
		r.tell("a", "Running")
		time.Sleep(reportSettle)
		r.tell("a", "Succeeded")
	})
	if diff := cmp.Diff([]string{"100ms a=Running", "110ms a=Succeeded"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestABurstOfStatusesIsReportedTogether(t *testing.T) {
	got := reported(t, 2*time.Millisecond, func(r *reporter) {
		for i := range 9 {
			r.tell(fmt.Sprint(i), "Running")
			time.Sleep(3 * time.Millisecond)
		}
	})
	want := []string{"100ms 0=Running", "110ms 1=Running 2=Running 3=Running", "120ms 4=Running 5=Running 6=Running", "130ms 7=Running 8=Running"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// The event that a container was started comes before the status that says so:
// if it went ahead, the status would have to wait for the next request.
func TestAnEventWaitsForTheStatusThatItExplains(t *testing.T) {
	got := reported(t, 0, func(r *reporter) {
		r.explain("Started")
		time.Sleep(4 * time.Millisecond)
		r.tell("a", "Running")
		time.Sleep(100 * time.Millisecond)
		r.explain("Unhealthy")
	})
	if diff := cmp.Diff([]string{"104ms a=Running Started", "214ms Unhealthy"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
