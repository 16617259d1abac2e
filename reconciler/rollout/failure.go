package rollout

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/revisions"
	"github.com/balsa-run/balsa/object"
)

// onFailurePause is spec.onFailure of a Deployment that is left as it is when its
// rollout fails; anything else is rollback.
const onFailurePause = "pause"

// resume takes up a rollout that failed before: whether it still counts, and what
// runs in its place.
//
//	       deadline                        the template, or what it
//	rolling --------> failed ------------> refers to, changes; retry ---> rolling
//	                    | rollback, and a revision was once complete
//	                    v
//	                 that revision gets the replicas
func (p *planner) resume() {
	f := p.Deployment.GetStatus().GetFailedRollout()
	if f == nil {
		return
	}
	switch {
	case p.problem != "": // nobody can tell
	case p.wantedName() != f.GetReplicaSet():
		return
	case p.Deployment.GetMetadata().GetAnnotations()[revisions.AnnotationRetry] == revisions.Failure(f):
		p.started = ReasonRetried
		return
	case f.GetRunningRevision() == 0 && p.complete():
		return // what was given up has come about
	}
	p.failure = proto.CloneOf(f)
	running := p.running()
	p.failure.RunningRevision = 0
	if running != nil {
		p.failure.RunningRevision = running.revision()
		p.choose(running)
	}
	p.halted = running == nil
}

// wantedName is the name that the current template's ReplicaSet has, or would
// have.
func (p *planner) wantedName() string {
	if p.wanted != nil {
		return p.wanted.name()
	}
	return newReplicaSet(p.Deployment, p.pinned, p.collisions).GetMetadata().GetName()
}

// running is the ReplicaSet that runs in the place of the failed one: as was
// decided, unless that is gone.
func (p *planner) running() *counts {
	for _, c := range p.sets {
		if n := p.failure.GetRunningRevision(); n > 0 && c.revision() == n && c.name() != p.failure.GetReplicaSet() {
			return c
		}
	}
	if p.failure.GetRunningRevision() == 0 && p.Deployment.GetSpec().GetOnFailure() == onFailurePause {
		return nil
	}
	return p.lastComplete(p.failure.GetReplicaSet())
}

// lastComplete is the newest revision that was once complete, but for the one of
// a name.
func (p *planner) lastComplete(but string) *counts {
	for i := len(p.sets) - 1; i >= 0; i-- {
		if c := p.sets[i]; c.name() != but && c.rs.GetMetadata().GetAnnotations()[revisions.AnnotationComplete] != "" {
			return c
		}
	}
	return nil
}

// fail gives a rollout up that has made no progress for too long. What is to be
// done about it begins with the next plan.
func (p *planner) fail(s *balsav1.DeploymentStatus) {
	reason, message := p.diagnose()
	f := &balsav1.FailedRollout{
		ReplicaSet: p.fresh.name(), Revision: p.revisionNow(), Reason: reason, Message: message, Time: timestamppb.New(p.now),
	}
	if p.Deployment.GetSpec().GetOnFailure() != onFailurePause {
		if to := p.lastComplete(f.ReplicaSet); to != nil {
			f.RunningRevision, s.UpdatedReplicas = to.revision(), to.live
		}
	}
	p.failure = f
	p.tellFailure(s)
	p.soon(time.Nanosecond)
}

// tellFailure sets what the status says of a failed rollout, never more than is
// so.
func (p *planner) tellFailure(s *balsav1.DeploymentStatus) {
	f := p.failure
	s.FailedRollout = f
	old := object.FindCondition(p.Deployment.GetStatus().GetConditions(), object.ConditionProgressing).GetReason()
	was := p.Deployment.GetStatus().GetFailedRollout()
	var then string
	reason := ReasonDeadlineExceeded
	switch {
	case f.GetRunningRevision() > 0 && (old == ReasonRolledBack && was.GetRunningRevision() == f.GetRunningRevision() || p.back()):
		reason, then = ReasonRolledBack, fmt.Sprintf("revision %d runs instead", f.GetRunningRevision())
	case f.GetRunningRevision() > 0:
		reason, then = ReasonRollingBack, fmt.Sprintf("going back to revision %d", f.GetRunningRevision())
	case p.Deployment.GetSpec().GetOnFailure() == onFailurePause:
		then = "onFailure is pause, so everything stays as it is"
	default:
		then = "no other revision was ever complete, so there is nothing to go back to"
	}
	message := fmt.Sprintf("replicaset %q (revision %d) made no progress for %d seconds: %s: %s; %s",
		f.GetReplicaSet(), f.GetRevision(), p.deadline(), f.GetReason(), f.GetMessage(), then)
	p.setProgressing(s, object.ConditionFalse, reason, message)
}

// back tells whether the revision that runs instead has all the replicas.
func (p *planner) back() bool { return p.fresh != nil && p.fresh != p.wanted && p.complete() }

// deadline is in seconds.
func (p *planner) deadline() int32 {
	if given := p.Deployment.GetSpec().ProgressDeadlineSeconds; given != nil {
		return *given
	}
	return object.DefaultProgressDeadline
}

// diagnose is what the pods of the rollout that has failed say of themselves: the
// reason that most of them have, in the words of the first that has it.
func (p *planner) diagnose() (reason, message string) {
	found := map[string][]string{}
	var order []string
	for _, pod := range p.podsOf(p.fresh) {
		d := revisions.Diagnose(pod, p.now)
		if d.Reason == "" {
			continue
		}
		if d.Reason == revisions.ReasonNeverReady && p.Said != nil {
			if said := p.Said(pod); said != "" {
				d.Message += ": " + said
			}
		}
		if found[d.Reason] == nil {
			order = append(order, d.Reason)
		}
		found[d.Reason] = append(found[d.Reason], object.Describe(pod)+": "+d.Message)
	}
	for _, r := range order {
		if len(found[r]) > len(found[reason]) {
			reason = r
		}
	}
	if reason == "" {
		return p.diagnoseNone()
	}
	message = clip(found[reason][0])
	if more := len(found[reason]) - 1; more > 0 {
		message += fmt.Sprintf(" (and %d more)", more)
	}
	return reason, message
}

// diagnoseNone explains a rollout of which no pod complains.
func (p *planner) diagnoseNone() (reason, message string) {
	for _, pod := range p.podsOf(p.fresh) {
		if d := revisions.Restarted(pod); d.Reason != "" && isReplica(pod) {
			return d.Reason, clip(object.Describe(pod) + ": " + d.Message)
		}
	}
	if p.fresh.live < p.replicas {
		return "NoRoom", fmt.Sprintf("%d of %d pods were made: the others wait until pods of earlier revisions may go (maxUnavailable %d) or for room to surge (maxSurge %d)",
			p.fresh.live, p.replicas, p.unavailable, p.surge)
	}
	return "OldPodsRemain", fmt.Sprintf("%d pods of earlier revisions have not gone", sum(p.old, (*counts).total))
}

// maxReasonBytes bounds what is repeated of a pod's own words.
const maxReasonBytes = 1024

func clip(text string) string {
	if len(text) <= maxReasonBytes {
		return text
	}
	return strings.ToValidUTF8(text[:maxReasonBytes], "") + "…"
}
