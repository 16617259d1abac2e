package revisions

import (
	"fmt"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// Reasons of a Diagnosis that no pod gives itself; the others are those of
// container statuses, for example ImagePullBackOff.
const (
	ReasonUnschedulable = "Unschedulable"
	ReasonCrashLoop     = "CrashLoopBackOff"
	ReasonOOMKilled     = "OOMKilled"
	ReasonNeverReady    = "NeverReady"
	ReasonPodFailed     = "PodFailed"
	ReasonStarting      = "ContainerCreating"
)

// Diagnosis is why a pod is not available. Both empty: it is, or is about to be,
// or it is going.
type Diagnosis struct{ Reason, Message string }

// Diagnose finds out what keeps a pod from being ready, the first cause first:
// its place, then its containers in the order in which they start.
func Diagnose(pod *balsav1.Pod, now time.Time) Diagnosis {
	status := pod.GetStatus()
	switch {
	case pod.GetMetadata().GetDeletionTimestamp() != nil:
		return Diagnosis{}
	case status.GetPhase() == "Failed" || status.GetPhase() == "Succeeded":
		return ended(pod)
	case condition(pod, "Ready").GetStatus() == "True":
		return Diagnosis{}
	}
	if c := condition(pod, "PodScheduled"); c.GetStatus() == "False" {
		return Diagnosis{or(c.GetReason(), ReasonUnschedulable), or(c.GetMessage(), "no node takes it")}
	}
	if pod.GetSpec().GetNodeName() == "" {
		return Diagnosis{ReasonUnschedulable, "no node was chosen yet"}
	}
	all := append(append([]*balsav1.ContainerStatus{}, status.GetInitContainerStatuses()...), status.GetContainerStatuses()...)
	for _, find := range []func(*balsav1.ContainerStatus) Diagnosis{broken, waiting, unready} {
		for _, c := range all {
			if d := find(c); d.Reason != "" {
				return d
			}
		}
	}
	if len(all) == 0 {
		return Diagnosis{ReasonStarting, fmt.Sprintf("node %s has not begun it%s", pod.GetSpec().GetNodeName(), sinceText(pod, now))}
	}
	return Diagnosis{ReasonNeverReady, or(condition(pod, "Ready").GetMessage(), "is running but not ready")}
}

// Restarted is why containers of a pod ended before, also of one that is ready at
// the moment.
func Restarted(pod *balsav1.Pod) Diagnosis {
	for _, c := range pod.GetStatus().GetContainerStatuses() {
		if d := crashed(c, false); c.GetRestartCount() > 0 && d.Reason != "" {
			return d
		}
	}
	return Diagnosis{}
}

// ended: a pod that is over does not count as a replica.
func ended(pod *balsav1.Pod) Diagnosis {
	d := Diagnosis{or(pod.GetStatus().GetReason(), ReasonPodFailed), or(pod.GetStatus().GetMessage(), "ended with phase "+pod.GetStatus().GetPhase())}
	for _, c := range pod.GetStatus().GetContainerStatuses() {
		if t := c.GetState().GetTerminated(); t.GetExitCode() != 0 && pod.GetStatus().GetMessage() == "" {
			d.Message = fmt.Sprintf("container %q ended with %s", c.GetName(), terminatedText(t))
		}
	}
	return d
}

// broken: a container that ends again and again, whatever it does at the moment,
// unless it is ready.
func broken(c *balsav1.ContainerStatus) Diagnosis { return crashed(c, c.GetReady()) }

func crashed(c *balsav1.ContainerStatus, ready bool) Diagnosis {
	last := c.GetState().GetTerminated()
	if last == nil {
		last = c.GetLastState().GetTerminated()
	}
	looping := c.GetState().GetWaiting().GetReason() == ReasonCrashLoop
	if last == nil && looping {
		return Diagnosis{ReasonCrashLoop, fmt.Sprintf("container %q: %s", c.GetName(), c.GetState().GetWaiting().GetMessage())}
	}
	if ready || last == nil || last.GetExitCode() == 0 && !looping {
		return Diagnosis{}
	}
	reason := ReasonCrashLoop
	if last.GetReason() == ReasonOOMKilled {
		reason = ReasonOOMKilled
	}
	text := fmt.Sprintf("container %q ended with %s", c.GetName(), terminatedText(last))
	if n := c.GetRestartCount(); n > 0 {
		text += fmt.Sprintf(", restarted %d times", n)
	}
	return Diagnosis{reason, text}
}

func terminatedText(t *balsav1.ContainerStateTerminated) string {
	text := fmt.Sprintf("exit code %d", t.GetExitCode())
	if r := t.GetReason(); r != "" && r != "Error" && r != "Completed" {
		text += " (" + r + ")"
	}
	if t.GetMessage() != "" {
		text += ": " + t.GetMessage()
	}
	return text
}

// waiting: a container that cannot be started, and not one that only waits for
// its turn.
func waiting(c *balsav1.ContainerStatus) Diagnosis {
	w := c.GetState().GetWaiting()
	if w.GetReason() == "" || w.GetReason() == "PodInitializing" {
		return Diagnosis{}
	}
	return Diagnosis{w.GetReason(), fmt.Sprintf("container %q: %s", c.GetName(), or(w.GetMessage(), "waits"))}
}

func unready(c *balsav1.ContainerStatus) Diagnosis {
	if c.GetState().GetRunning() == nil || c.GetReady() {
		return Diagnosis{}
	}
	return Diagnosis{ReasonNeverReady, fmt.Sprintf("container %q is running but not ready", c.GetName())}
}

func condition(pod *balsav1.Pod, kind string) *balsav1.Condition {
	for _, c := range pod.GetStatus().GetConditions() {
		if c.GetType() == kind {
			return c
		}
	}
	return nil
}

func sinceText(pod *balsav1.Pod, now time.Time) string {
	created := pod.GetMetadata().GetCreationTimestamp()
	if created == nil {
		return ""
	}
	return fmt.Sprintf(" for %ds", max(0, int(now.Sub(created.AsTime()).Seconds())))
}

func or(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}
