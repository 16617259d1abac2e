package node

import (
	"context"
	"log/slog"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/clock"
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
	pod := func(phase string) *balsav1.Pod {
		return &balsav1.Pod{Metadata: &balsav1.ObjectMeta{Uid: "u", ResourceVersion: "7"}, Status: &balsav1.PodStatus{Phase: phase}}
	}
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
