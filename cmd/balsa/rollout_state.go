package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/internal/revisions"
	"github.com/balsa-run/balsa/object"
)

// Reasons of the condition Progressing that reconciler/rollout gives.
const (
	progressDeadline    = "ProgressDeadlineExceeded"
	progressRollingBack = "RollingBack"
	progressRolledBack  = "RolledBack"
	progressNotPinned   = "ContentsNotPinned"
)

// progress is how a rollout stands: what kubectl rollout status says, and more.
type progress struct {
	// done: all is as the spec says. failed: it will not be, unless a person does
	// something. text is one line.
	done, failed bool
	text         string
}

// progressOf judges a Deployment, pods not counted.
func progressOf(d *balsav1.Deployment) progress {
	name, st := d.GetMetadata().GetName(), d.GetStatus()
	reason := object.FindCondition(st.GetConditions(), object.ConditionProgressing)
	switch {
	case st.GetObservedGeneration() < d.GetMetadata().GetGeneration():
		return progress{text: "Waiting for deployment spec update to be observed..."}
	case st.GetFailedRollout() != nil && reason.GetReason() == progressRollingBack:
		return progress{text: fmt.Sprintf("Revision %d failed: %s; going back to revision %d: %d of %d replicas are available...",
			st.GetFailedRollout().GetRevision(), failureText(st.GetFailedRollout()), st.GetFailedRollout().GetRunningRevision(), st.GetAvailableReplicas(), d.GetSpec().GetReplicas())}
	case reason.GetReason() == progressRolledBack:
		return progress{failed: true, text: fmt.Sprintf("deployment %q revision %d failed: %s; revision %d runs instead",
			name, st.GetFailedRollout().GetRevision(), failureText(st.GetFailedRollout()), st.GetFailedRollout().GetRunningRevision())}
	case reason.GetReason() == progressDeadline:
		return progress{failed: true, text: fmt.Sprintf("deployment %q exceeded its progress deadline: %s", name, failureText(st.GetFailedRollout()))}
	case reason.GetReason() == progressNotPinned:
		return progress{failed: true, text: fmt.Sprintf("deployment %q: %s", name, reason.GetMessage())}
	}
	p := countsOf(d)
	if d.GetSpec().GetPaused() {
		p.done = false
		p.text = fmt.Sprintf("Deployment %q is paused: waiting for balsa rollout resume deployment/%s...", name, name)
	}
	return p
}

func failureText(f *balsav1.FailedRollout) string {
	if f == nil {
		return "no reason was given"
	}
	return f.GetReason() + ": " + f.GetMessage()
}

// countsOf has kubectl's words, in the order in which it looks.
func countsOf(d *balsav1.Deployment) progress {
	name, st, replicas := d.GetMetadata().GetName(), d.GetStatus(), d.GetSpec().GetReplicas()
	waiting := fmt.Sprintf("Waiting for deployment %q rollout to finish: ", name)
	switch {
	case st.GetUpdatedReplicas() < replicas:
		return progress{text: waiting + fmt.Sprintf("%d out of %d new replicas have been updated...", st.GetUpdatedReplicas(), replicas)}
	case st.GetReplicas() > st.GetUpdatedReplicas():
		return progress{text: waiting + fmt.Sprintf("%d old replicas are pending termination...", st.GetReplicas()-st.GetUpdatedReplicas())}
	case st.GetAvailableReplicas() < st.GetUpdatedReplicas():
		return progress{text: waiting + fmt.Sprintf("%d of %d updated replicas are available...", st.GetAvailableReplicas(), st.GetUpdatedReplicas())}
	}
	return progress{done: true, text: fmt.Sprintf("deployment %q successfully rolled out", name)}
}

// following is what a rollout status knows while it looks.
type following struct {
	rollout
	pods []*balsav1.Pod
}

// podLine is a pod in the view of a rollout.
type podLine struct{ name, revision, state, why string }

// podLines are the pods of a rollout that are new or not well; old ones that wait
// for their turn are only counted.
func (f following) podLines(now time.Time) (lines []podLine, old int) {
	current := effective(f.deployment)
	for _, rs := range slices.Backward(f.sets) {
		revision := revisions.Of(rs)
		for _, pod := range f.pods {
			if !object.IsControlledBy(pod, rs) {
				continue
			}
			state, why := podState(pod, f.deployment.GetSpec().GetMinReadySeconds(), now)
			if revision != current && state == "ready" {
				old++
				continue
			}
			lines = append(lines, podLine{pod.GetMetadata().GetName(), strconv.FormatInt(revision, 10), state, why})
		}
	}
	return lines, old
}

// effective is the revision that the replicas are given to.
func effective(d *balsav1.Deployment) int64 {
	if running := d.GetStatus().GetFailedRollout().GetRunningRevision(); running > 0 {
		return running
	}
	return revisions.Of(d)
}

func podState(pod *balsav1.Pod, minReadySeconds int32, now time.Time) (state, why string) {
	if object.IsTerminating(pod) {
		return "ending", ""
	}
	if d := revisions.Diagnose(pod, now); d.Reason != "" {
		return d.Reason, d.Message
	}
	if available, wait := object.PodAvailable(pod, minReadySeconds, now); !available && wait > 0 {
		return "ready", fmt.Sprintf("counts as available in %ds", int(wait.Seconds())+1)
	}
	return "ready", ""
}

// complaints are what pods that are not well say, one line each.
func (f following) complaints(now time.Time) (out []string) {
	lines, _ := f.podLines(now)
	for _, l := range lines {
		if l.why != "" && l.state != revisions.ReasonStarting && l.state != "ready" {
			out = append(out, fmt.Sprintf("  pod %s: %s: %s", l.name, l.state, oneLine(l.why)))
		}
	}
	return out
}

// available is how many pods of the revision that gets the replicas are.
func (f following) available(now time.Time) (n int) {
	for _, rs := range f.sets {
		for _, pod := range f.pods {
			if revisions.Of(rs) != effective(f.deployment) || !object.IsControlledBy(pod, rs) || !object.PodActive(pod) {
				continue
			}
			if ok, _ := object.PodAvailable(pod, f.deployment.GetSpec().GetMinReadySeconds(), now); ok {
				n++
			}
		}
	}
	return n
}

const barWidth = 20

// view is a rollout on a screen of a width.
func (f following) view(width int, now time.Time) []string {
	d, st := f.deployment, f.deployment.GetStatus()
	replicas := int(d.GetSpec().GetReplicas())
	lines := []string{
		fmt.Sprintf("deployment/%s   revision %d   %s", d.GetMetadata().GetName(), effective(d), bar(int(st.GetUpdatedReplicas()), f.available(now), replicas)),
		fmt.Sprintf("  %d wanted, %d of this revision, %d available in all, %d of earlier ones", replicas, st.GetUpdatedReplicas(), st.GetAvailableReplicas(), st.GetReplicas()-st.GetUpdatedReplicas()),
		"  " + progressOf(d).text,
	}
	pods, old := f.podLines(now)
	widths := [3]int{len("POD"), len("REVISION"), len("STATE")}
	for _, p := range pods {
		for i, cell := range []string{p.name, p.revision, p.state} {
			widths[i] = max(widths[i], len(cell))
		}
	}
	row := func(a, b, c, rest string) string {
		return strings.TrimRight(fmt.Sprintf("  %-*s   %-*s   %-*s   %s", widths[0], a, widths[1], b, widths[2], c, rest), " ")
	}
	if len(pods) > 0 {
		lines = append(lines, row("POD", "REVISION", "STATE", "WHY"))
	}
	for _, p := range pods[:min(len(pods), maxPodsShown)] {
		lines = append(lines, row(p.name, p.revision, p.state, oneLine(p.why)))
	}
	if more := len(pods) - maxPodsShown; more > 0 {
		lines = append(lines, fmt.Sprintf("  and %d more pods", more))
	}
	if old > 0 {
		lines = append(lines, fmt.Sprintf("  and %d of earlier revisions that are ready", old))
	}
	for i := range lines {
		lines[i] = cutTo(lines[i], width)
	}
	return lines
}

// maxPodsShown bounds the rows of the view.
const maxPodsShown = 12

// bar shows "#" for available, "=" for there and "." for missing ones.
func bar(updated, available, replicas int) string {
	if replicas == 0 {
		return "[" + strings.Repeat("#", barWidth) + "]"
	}
	part := func(n int) int { return min(barWidth, n*barWidth/replicas) }
	ready := part(min(updated, available))
	there := part(updated)
	return "[" + strings.Repeat("#", ready) + strings.Repeat("=", there-ready) + strings.Repeat(".", barWidth-there) + "]"
}

func cutTo(line string, width int) string {
	if runes := []rune(line); width > 1 && len(runes) > width {
		return string(runes[:width-1]) + "…"
	}
	return line
}
