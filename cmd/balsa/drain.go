package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/client"
	"github.com/balsa-run/balsa/object"
)

const (
	// drainLook is the pause between two looks at the pods of a node.
	drainLook = 500 * time.Millisecond
	// drainTell is the pause between two lines that only say what is waited for.
	drainTell = 10 * time.Second
	// drainShown bounds how many pods such a line names.
	drainShown = 5
	// drainRetry is the pause before a pod is asked again that a budget kept.
	drainRetry = 2 * time.Second
)

// draining is one run of balsa node drain.
type draining struct {
	choice
	podSelector string
	force       bool
	emptyDirs   bool
	grace       int64 // less than 0: the pod's own
	within      time.Duration
	dryRun      bool
	delete      bool // by deletions instead of evictions
}

func (a *app) nodeDrain() *cobra.Command {
	d := &draining{choice: choice{kind: nodeKind()}}
	command := &cobra.Command{
		Use: "drain NODE...", Short: "Cordon nodes and move their pods elsewhere",
		Long: `Drain cordons the nodes, evicts every pod on them that has not ended, and waits
until they are gone. In the place of a ready pod of a ReplicaSet another is made
first, and it ends only when that is available; pods with a claim, and those of a
Deployment that recreates its pods, end first. PodDisruptionBudgets are kept:
a pod waits until they allow its end. What is waited for is told.

Nothing is evicted if there is a pod on the node that no controller would make
again, or that would lose the files of an emptyDir, unless a flag says that this
is meant. With --disable-eviction pods are deleted: at once, whatever budgets
say, and before there are others.

Interrupted or failed, it leaves the node cordoned, and pods that were evicted go
on moving; the same command goes on from there. Balsa node uncordon makes the
node take pods again, and those that still wait for others stay on it.`,
		Example: "  balsa node drain n1 && balsa node remove n1\n  balsa node drain -l zone=a --delete-emptydir-data --timeout 5m\n  balsa node drain n1 --dry-run\n  balsa node drain n1 --disable-eviction --force",
		RunE: func(command *cobra.Command, args []string) error {
			d.names = args
			if d.within < 0 {
				return &usageError{fmt.Errorf("--timeout %v is negative; 0 waits for ever", d.within)}
			}
			if err := a.eachNode(command.Context(), &d.choice, func(n nodeIn) error { return a.cordon(n, true, d.dryRun) }); err != nil {
				return err
			}
			return a.drainAll(command, d)
		},
	}
	d.choice.flags(command)
	flags := command.Flags()
	flags.StringVar(&d.podSelector, "pod-selector", "", "only the pods with these labels")
	flags.BoolVar(&d.force, "force", false, "also pods that no controller makes again")
	flags.BoolVar(&d.emptyDirs, "delete-emptydir-data", false, "also pods that use an emptyDir, whose files are lost")
	flags.Int64Var(&d.grace, "grace-period", -1, "seconds that pods get to end, instead of their own; 0: do not wait for the node")
	flags.DurationVar(&d.within, "timeout", 0, "how long to wait for the pods of a node; 0: for ever")
	flags.BoolVar(&d.delete, "disable-eviction", false, "delete pods instead of evicting them: passes budgets by, and makes no others first")
	flags.BoolVar(&d.dryRun, "dry-run", false, "say what would be done")
	return command
}

// drainAll goes on with the next node when one cannot be drained.
func (a *app) drainAll(command *cobra.Command, d *draining) error {
	var failed []error
	err := a.eachNode(command.Context(), &d.choice, func(n nodeIn) error {
		err := (&drainOf{a: a, n: n, draining: d, asked: map[string]bool{}, waits: map[string]*waitingPod{}}).run()
		if n.ctx.Err() != nil {
			return err // the other nodes are cordoned, and nobody waits for more
		}
		failed = append(failed, err)
		return nil
	})
	if command.Context().Err() != nil && err != nil {
		a.explain(err)
		return &exitError{exitInterrupted}
	}
	return errors.Join(append(failed, err)...)
}

// drainOf empties one node.
type drainOf struct {
	a *app
	n nodeIn
	*draining

	asked map[string]bool         // uids of pods that were asked to end by this program
	waits map[string]*waitingPod  // by uid: those that stay for the time being
	last  map[string]*balsav1.Pod // by uid: those that were there when it looked last
	told  time.Time               // when it said last what it waits for
}

// run looks, acts and looks again until no pod is left: also pods end that were
// placed on the node just before it was cordoned.
func (d *drainOf) run() error {
	started := time.Now()
	d.told = started
	ticker := time.NewTicker(drainLook)
	defer ticker.Stop()
	for {
		pods, err := d.look()
		if err == nil {
			err = d.ask(pods)
		}
		if err != nil {
			return d.failed(err.Error(), err)
		}
		switch {
		case d.dryRun:
			fmt.Fprintf(d.a.out, "node/%s drained (dry run)\n", d.n.name)
			return nil
		case len(pods) == 0:
			fmt.Fprintf(d.a.out, "node/%s drained\n", d.n.name)
			return nil
		case d.within > 0 && time.Since(started) >= d.within:
			return d.failed(fmt.Sprintf("not all pods have ended within %v", d.within), nil)
		}
		if err := d.tellWaits(pods); err != nil {
			return d.failed(err.Error(), err)
		}
		d.tellWaiting(pods)
		select {
		case <-ticker.C:
		case <-d.n.ctx.Done():
			return d.failed("interrupted; pods that were asked to end go on ending", nil)
		}
	}
}

// look lists the pods that are still to end, and tells of those that have.
func (d *drainOf) look() ([]*balsav1.Pod, error) {
	listed, err := client.List[*balsav1.Pod](d.n.ctx, d.n.client, "", client.ListOptions{
		FieldSelector: "spec.nodeName=" + d.n.name, LabelSelector: d.podSelector,
	})
	if err != nil {
		return nil, err
	}
	pods := slices.DeleteFunc(listed.Items, func(p *balsav1.Pod) bool { return object.PodFinished(p) && !object.IsTerminating(p) })
	now := map[string]*balsav1.Pod{}
	for _, pod := range pods {
		now[pod.GetMetadata().GetUid()] = pod
	}
	for _, uid := range sortedPods(d.last) {
		if now[uid] == nil && d.asked[uid] {
			fmt.Fprintf(d.a.out, "pod %s ended\n", podName(d.last[uid]))
		}
	}
	d.last = now
	return pods, nil
}

// sortedPods are uids in the order of the pods' names.
func sortedPods(pods map[string]*balsav1.Pod) []string {
	var uids []string
	for uid := range pods {
		uids = append(uids, uid)
	}
	slices.SortFunc(uids, func(x, y string) int { return strings.Compare(podName(pods[x]), podName(pods[y])) })
	return uids
}

func podName(p *balsav1.Pod) string {
	return p.GetMetadata().GetNamespace() + "/" + p.GetMetadata().GetName()
}

// ask has every pod end that was not asked before, or none if one must stay.
func (d *drainOf) ask(pods []*balsav1.Pod) error {
	var refused []string
	for _, pod := range pods {
		if why := d.mustStay(pod); why != "" {
			refused = append(refused, fmt.Sprintf("%s %s", podName(pod), why))
		}
	}
	if len(refused) > 0 {
		return fmt.Errorf("these pods are asked to end only if a flag says so, and so none was:\n  %s", strings.Join(refused, "\n  "))
	}
	for _, pod := range pods {
		uid := pod.GetMetadata().GetUid()
		if d.asked[uid] || object.IsTerminating(pod) && d.grace < 0 {
			d.asked[uid] = true
			continue
		}
		asked, err := d.askOne(pod)
		if err != nil {
			return fmt.Errorf("pod %s: %w", podName(pod), err)
		}
		d.asked[uid] = asked
	}
	return nil
}

// mustStay is why a pod is not ended without a flag that says so.
func (d *drainOf) mustStay(pod *balsav1.Pod) string {
	if object.IsTerminating(pod) {
		return ""
	}
	var why []string
	if object.ControllerOf(pod) == nil && !d.force {
		why = append(why, "has no controller that would make it again (--force ends it nevertheless)")
	}
	if names := emptyDirsOf(pod); len(names) > 0 && !d.emptyDirs {
		why = append(why, fmt.Sprintf("would lose the files of its emptyDir %s (--delete-emptydir-data allows that)", strings.Join(names, ", ")))
	}
	return strings.Join(why, ", and ")
}

func emptyDirsOf(pod *balsav1.Pod) []string {
	var names []string
	for _, volume := range pod.GetSpec().GetVolumes() {
		if volume.GetEmptyDir() != nil {
			names = append(names, volume.GetName())
		}
	}
	return names
}

// askOne evicts the very pod that was looked at, and not one that has its name now.
// It tells whether that has begun: a budget may not allow it yet.
func (d *drainOf) askOne(pod *balsav1.Pod) (asked bool, err error) {
	if !d.delete {
		return d.evictOne(pod)
	}
	return true, d.deleteOne(pod)
}

func (d *drainOf) deleteOne(pod *balsav1.Pod) error {
	meta := pod.GetMetadata()
	request := &balsav1.DeleteRequest{Kind: "Pod", Namespace: meta.GetNamespace(), Name: meta.GetName(), Uid: meta.GetUid(), DryRun: d.dryRun}
	within := pod.GetSpec().GetTerminationGracePeriodSeconds()
	if d.grace >= 0 {
		request.GracePeriodSeconds, within = proto.Int64(d.grace), d.grace
	}
	_, err := d.n.client.Objects.Delete(d.n.ctx, request)
	if err != nil && !client.IsNotFound(err) && !client.IsConflict(err) {
		return err
	}
	fmt.Fprintf(d.a.out, "pod %s asked to end within %ds%s\n", podName(pod), within, dryRunMark(d.dryRun))
	return nil
}

// waitingPod is a pod that stays for the time being.
type waitingPod struct {
	// again is when it is asked again; zero: it need not be.
	again time.Time
	// why it stays, and when that was told last.
	why  string
	told time.Time
}

func (d *drainOf) evictOne(pod *balsav1.Pod) (asked bool, err error) {
	meta := pod.GetMetadata()
	if w := d.waits[meta.GetUid()]; w != nil && time.Now().Before(w.again) {
		return false, nil
	}
	request := &balsav1.EvictRequest{Namespace: meta.GetNamespace(), Name: meta.GetName(), Uid: meta.GetUid(), Reason: "drain of node " + d.n.name, DryRun: d.dryRun}
	if d.grace >= 0 {
		request.GracePeriodSeconds = proto.Int64(d.grace)
	}
	response, err := d.n.client.Objects.Evict(d.n.ctx, request)
	detail := client.Detail(err)
	switch {
	case client.IsNotFound(err) || client.IsConflict(err):
		return true, nil // it is another one's turn
	case detail.GetReason() == "DisruptionBudget":
		d.stays(pod, refusalText(err), time.Now().Add(drainRetry))
		return d.dryRun, nil
	case err != nil:
		return false, err
	case response.GetReplacing():
		fmt.Fprintf(d.a.out, "pod %s stays until another is available in its place%s\n", podName(pod), dryRunMark(d.dryRun))
		d.waits[meta.GetUid()] = &waitingPod{told: time.Now()}
		return true, nil
	}
	delete(d.waits, meta.GetUid())
	within := response.GetPod().GetMetadata().GetDeletionGracePeriodSeconds()
	if !object.IsTerminating(response.GetPod()) {
		within = 0
	}
	fmt.Fprintf(d.a.out, "pod %s asked to end within %ds%s\n", podName(pod), within, dryRunMark(d.dryRun))
	return true, nil
}

// refusalText is what a server says of a refusal, without the code.
func refusalText(err error) string {
	var refused *connect.Error
	if errors.As(err, &refused) {
		return refused.Message()
	}
	return err.Error()
}

// stays tells why a pod stays: when that changes, and now and then.
func (d *drainOf) stays(pod *balsav1.Pod, why string, again time.Time) {
	w := d.waits[pod.GetMetadata().GetUid()]
	if w == nil {
		w = &waitingPod{}
		d.waits[pod.GetMetadata().GetUid()] = w
	}
	w.again = again
	if w.why != why || time.Since(w.told) >= drainTell {
		w.why, w.told = why, time.Now()
		fmt.Fprintf(d.a.errOut, "pod %s waits: %s\n", podName(pod), why)
	}
}

// tellWaits says of the pods that others replace what they wait for. Somebody may
// have made the node take pods again: then they stay for good.
func (d *drainOf) tellWaits(pods []*balsav1.Pod) error {
	for _, pod := range pods {
		c := object.FindCondition(pod.GetStatus().GetConditions(), object.ConditionEvictionRequested)
		if w := d.waits[pod.GetMetadata().GetUid()]; w == nil || object.IsTerminating(pod) || c == nil || !w.again.IsZero() {
			continue
		}
		if c.GetReason() == object.EvictionWithdrawn {
			return fmt.Errorf("pod %s stays, since the node was uncordoned meanwhile", podName(pod))
		}
		if _, why, waits := strings.Cut(c.GetMessage(), "; waits: "); waits {
			d.stays(pod, why, time.Time{})
		}
	}
	return nil
}

// tellWaiting says now and then what is waited for.
func (d *drainOf) tellWaiting(pods []*balsav1.Pod) {
	if time.Since(d.told) < drainTell {
		return
	}
	d.told = time.Now()
	var names []string
	for _, pod := range pods[:min(len(pods), drainShown)] {
		names = append(names, podName(pod))
	}
	if more := len(pods) - len(names); more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	fmt.Fprintf(d.a.errOut, "node/%s: waiting for %s\n", d.n.name, strings.Join(names, ", "))
}

// failed tells what has become of the node: whoever goes on must know.
func (d *drainOf) failed(why string, cause error) error {
	state := "is cordoned and not drained"
	if d.dryRun {
		state = "would not be drained"
	}
	text := fmt.Sprintf("node/%s %s: ", d.n.name, state)
	if cause != nil && d.n.ctx.Err() == nil {
		return fmt.Errorf("%s%w", text, cause)
	}
	for _, uid := range sortedPods(d.last) {
		text := remains(d.last[uid], time.Now())
		if w := d.waits[uid]; w != nil && w.why != "" && !object.IsTerminating(d.last[uid]) {
			text = "stays: " + w.why
		}
		why += fmt.Sprintf("\n  %s %s", podName(d.last[uid]), text)
	}
	return errors.New(text + why)
}

// remains is what a pod is still there for.
func remains(pod *balsav1.Pod, now time.Time) string {
	meta := pod.GetMetadata()
	if !object.IsTerminating(pod) {
		return "was not asked to end"
	}
	text := fmt.Sprintf("was asked to end %s ago and has %ds for that", age(meta.GetDeletionTimestamp(), now), meta.GetDeletionGracePeriodSeconds())
	var running []string
	for _, status := range pod.GetStatus().GetContainerStatuses() {
		if status.GetState().GetRunning() != nil {
			running = append(running, status.GetName())
		}
	}
	if len(running) > 0 {
		return fmt.Sprintf("%s; running: %s", text, strings.Join(running, ", "))
	}
	return text + "; its node has not said yet that it is gone: balsa get nodes tells whether that answers"
}
