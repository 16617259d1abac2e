package node

import (
	"context"
	"strconv"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/node/pod"
	"github.com/balsa-run/balsa/object"
)

// reporter tells servers what became of the pods. It keeps only the newest
// report of each pod, sends one batch at a time, and goes on until what was
// reported shows in the assignments: reports may be lost, or come twice.
type reporter struct {
	a    *Agent
	work signal // anything to tell
	news signal // more than events

	mu      sync.Mutex
	reports map[string]*report // guarded by mu; by uid; those that do not show yet
	changes int                // guarded by mu; of any report, ever
	events  []*balsav1.Event   // guarded by mu; oldest first
	volumes map[string]bool    // guarded by mu; names of those whose contents are removed
}

type report struct {
	message *balsav1.PodReport
	// taken is when a server took it; zero: it has to be sent.
	taken time.Time
	// version is the reporter's change that made it what it is, so that a report
	// which changes while it is sent is sent again. It never repeats, since a
	// report may also go and another one come while an answer is on its way.
	version int
}

func newReporter(a *Agent) *reporter {
	return &reporter{a: a, work: newSignal(), news: newSignal(), reports: map[string]*report{}, volumes: map[string]bool{}}
}

// publish says what is true of a pod now.
func (r *reporter) publish(p *balsav1.Pod, status *balsav1.PodStatus, removed bool) {
	meta := p.GetMetadata()
	r.mu.Lock()
	defer r.mu.Unlock()
	if !removed && pod.SameStatus(status, p.GetStatus()) {
		delete(r.reports, meta.GetUid())
		return
	}
	revision, err := strconv.ParseInt(meta.GetResourceVersion(), 10, 64)
	if err != nil {
		r.a.log.Error("a pod's resource version is no number", "pod", meta.GetNamespace()+"/"+meta.GetName(), "error", err)
	}
	next := &balsav1.PodReport{Namespace: meta.GetNamespace(), Name: meta.GetName(), Uid: meta.GetUid(), ObservedRevision: revision, Removed: removed}
	if !removed {
		next.Status = status
	}
	old := r.reports[meta.GetUid()]
	switch {
	case old == nil:
		r.changes++
		r.reports[meta.GetUid()] = &report{message: next, version: r.changes}
	case proto.Equal(old.message, next):
		if old.taken.IsZero() || r.a.cfg.Clock.Now().Sub(old.taken) < reportAgain {
			return
		}
		old.taken = time.Time{}
	default:
		r.changes++
		old.message, old.taken, old.version = next, time.Time{}, r.changes
	}
	r.raiseNews()
}

func (r *reporter) raiseNews() {
	r.news.raise()
	r.work.raise()
}

// deletedVolume says that a volume's contents are removed. It is said again for
// as long as the volume shows.
func (r *reporter) deletedVolume(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.volumes[name] = true
	r.raiseNews()
}

// forget drops the report of a pod that has gone.
func (r *reporter) forget(uid string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.reports, uid)
}

// event queues an event, or counts one that waits already. When too many wait
// the oldest goes: what is newest explains best.
func (r *reporter) event(about *balsav1.ObjectReference, e pod.Event, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	kind := object.EventNormal
	if e.Warning {
		kind = object.EventWarning
	}
	for _, old := range r.events {
		if old.GetReason() == e.Reason && old.GetMessage() == e.Message && proto.Equal(old.GetInvolvedObject(), about) {
			old.Count++
			old.LastTimestamp = timestamppb.New(now)
			return
		}
	}
	if len(r.events) >= maxEvents {
		r.events = r.events[1:]
		r.a.metrics.eventsDropped.Inc()
	}
	r.events = append(r.events, &balsav1.Event{
		InvolvedObject: about, Reason: e.Reason, Message: e.Message, Type: kind, Count: 1,
		Source:         &balsav1.EventSource{Component: "agent", Host: r.a.cfg.Name},
		FirstTimestamp: timestamppb.New(now), LastTimestamp: timestamppb.New(now),
	})
	r.work.raise()
}

func (r *reporter) pending() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pendingLocked()
}

func (r *reporter) pendingLocked() int {
	n := 0
	for _, report := range r.reports {
		if report.taken.IsZero() {
			n++
		}
	}
	return n
}

// waiting tells whether there is anything to tell, and whether more than events.
func (r *reporter) waiting() (work, news bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	news = r.pendingLocked()+len(r.volumes) > 0
	return news || len(r.events) > 0, news
}

// run sends until ctx ends.
func (r *reporter) run(ctx context.Context) error {
	pause := r.a.newRetry()
	var sent time.Time // when the last request went
	for {
		if err := r.await(ctx, sent); err != nil {
			return err
		}
		request, versions := r.next()
		if request == nil {
			continue
		}
		sent = r.a.cfg.Clock.Now()
		if err := r.send(ctx, request, versions); err == nil {
			pause.reset()
		} else if err := pause.pause(ctx); err != nil {
			return err
		}
	}
}

// await waits until there is something to tell and the last request is
// reportSettle ago: what comes alone goes at once, a burst goes together.
func (r *reporter) await(ctx context.Context, sent time.Time) error {
	select {
	case <-r.news: // of what was told since
	default:
	}
	work, news := r.waiting()
	for !work {
		if err := r.work.wait(ctx, r.a.cfg.Clock, 0); err != nil {
			return err
		}
		work, news = r.waiting()
	}
	if !news {
		// An event comes just before the status that it explains, and goes with it.
		if err := r.news.wait(ctx, r.a.cfg.Clock, reportSettle); err != nil {
			return err
		}
	}
	// A clock that was set back must not keep reports.
	return sleep(ctx, r.a.cfg.Clock, min(sent.Add(reportSettle).Sub(r.a.cfg.Clock.Now()), reportSettle))
}

// next takes the events out of the queue, and copies reports that wait.
func (r *reporter) next() (*balsav1.ReportStatusRequest, map[string]int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	request := &balsav1.ReportStatusRequest{NodeName: r.a.cfg.Name}
	versions := map[string]int{}
	for _, uid := range sortedKeys(r.reports) {
		if report := r.reports[uid]; report.taken.IsZero() && len(request.Pods) < reportPods {
			request.Pods = append(request.Pods, report.message)
			versions[uid] = report.version
		}
	}
	n := min(len(r.events), reportEvents)
	request.Events = r.events[:n:n]
	r.events = r.events[n:]
	for _, name := range sortedKeys(r.volumes) {
		if len(request.DeletedVolumes) < reportPods {
			request.DeletedVolumes = append(request.DeletedVolumes, name)
			delete(r.volumes, name)
		}
	}
	if len(request.Pods)+len(request.Events)+len(request.DeletedVolumes) == 0 {
		return nil, nil
	}
	return request, versions
}

func (r *reporter) send(ctx context.Context, request *balsav1.ReportStatusRequest, versions map[string]int) error {
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	response, err := r.a.cfg.API.ReportStatus(call, request)
	r.a.metrics.reported(len(request.GetPods()), err)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.a.log.Debug("reports were not taken", "pods", len(request.GetPods()), "error", err)
		for _, name := range request.GetDeletedVolumes() {
			r.volumes[name] = true
		}
		// Events that may have been recorded are at worst counted twice.
		r.events = append(request.GetEvents(), r.events...)
		if extra := len(r.events) - maxEvents; extra > 0 {
			r.events = r.events[extra:]
			r.a.metrics.eventsDropped.Add(float64(extra))
		}
		return err
	}
	for _, rejected := range response.GetRejected() {
		r.a.log.Debug("a report was not taken", "uid", rejected.GetUid(), "reason", rejected.GetReason())
	}
	now := r.a.cfg.Clock.Now()
	for uid, version := range versions {
		if report := r.reports[uid]; report != nil && report.version == version {
			report.taken = now
		}
	}
	return nil
}
