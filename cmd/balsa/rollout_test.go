package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/revisions"
	"github.com/balsa-run/balsa/object"
)

// rolloutNow is when the views are drawn.
func rolloutNow() time.Time { return time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC) }

// aRollout is a Deployment of four in the middle of an update: one new pod is
// ready, one cannot be started, three old ones run and one ends.
func aRollout() *following {
	d := &balsav1.Deployment{
		Metadata: &balsav1.ObjectMeta{Name: "web", Uid: "d", Generation: 2, Annotations: map[string]string{revisions.AnnotationRevision: "2"}},
		Spec:     &balsav1.DeploymentSpec{Replicas: proto.Int32(4), MinReadySeconds: proto.Int32(10)},
		Status:   &balsav1.DeploymentStatus{ObservedGeneration: 2, Replicas: 5, UpdatedReplicas: 2, ReadyReplicas: 4, AvailableReplicas: 3},
	}
	f := &following{rollout: rollout{deployment: d}}
	for i := int64(1); i <= 2; i++ {
		rs := &balsav1.ReplicaSet{Metadata: &balsav1.ObjectMeta{
			Name: fmt.Sprintf("web-%d", i), Uid: fmt.Sprintf("rs%d", i), Annotations: map[string]string{revisions.AnnotationRevision: fmt.Sprint(i)},
			OwnerReferences: []*balsav1.OwnerReference{object.NewControllerRef(d)},
		}}
		f.sets = append(f.sets, rs)
	}
	pod := func(set int, name string, change func(*balsav1.Pod)) {
		p := &balsav1.Pod{
			Metadata: &balsav1.ObjectMeta{Name: name, OwnerReferences: []*balsav1.OwnerReference{object.NewControllerRef(f.sets[set-1])}},
			Spec:     &balsav1.PodSpec{NodeName: "n1"},
			Status:   &balsav1.PodStatus{Phase: object.PodRunning},
		}
		change(p)
		f.pods = append(f.pods, p)
	}
	readySince := func(ago time.Duration) func(*balsav1.Pod) {
		return func(p *balsav1.Pod) {
			p.Status.Conditions = []*balsav1.Condition{{Type: object.ConditionReady, Status: object.ConditionTrue, LastTransitionTime: timestamppb.New(rolloutNow().Add(-ago))}}
		}
	}
	for i := range 3 {
		pod(1, fmt.Sprintf("web-1-%d", i), readySince(time.Hour))
	}
	pod(1, "web-1-9", func(p *balsav1.Pod) { p.Metadata.DeletionTimestamp = timestamppb.New(rolloutNow()) })
	pod(2, "web-2-a", readySince(4*time.Second))
	pod(2, "web-2-b", func(p *balsav1.Pod) {
		p.Status.Phase = object.PodPending
		p.Status.ContainerStatuses = []*balsav1.ContainerStatus{{Name: "web", State: &balsav1.ContainerState{
			Waiting: &balsav1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: `Back-off pulling image "web:2": registry.example says 404`},
		}}}
	})
	return f
}

func failedRollout(d *balsav1.Deployment, reason string, running int64) {
	d.Status.FailedRollout = &balsav1.FailedRollout{ReplicaSet: "web-2", Revision: 2, RunningRevision: running, Reason: "CrashLoopBackOff", Message: `pod "default/web-2-b": container "web" ended with exit code 3, restarted 5 times`}
	d.Status.Conditions = []*balsav1.Condition{{Type: object.ConditionProgressing, Status: object.ConditionFalse, Reason: reason}}
}

// TestRolloutViews compares what status shows with testdata/rollout/views.golden.
func TestRolloutViews(t *testing.T) {
	var b strings.Builder
	show := func(title string, width int, change func(*balsav1.Deployment)) {
		f := aRollout()
		change(f.deployment)
		p := progressOf(f.deployment)
		fmt.Fprintf(&b, "== %s\ndone=%v failed=%v\n%s\n%s\n-- %d columns\n%s\n\n", title, p.done, p.failed, p.text,
			strings.Join(f.complaints(rolloutNow()), "\n"), width, strings.Join(f.view(width, rolloutNow()), "\n"))
	}
	show("in the middle", 120, func(*balsav1.Deployment) {})
	show("on a narrow terminal", 50, func(*balsav1.Deployment) {})
	show("not seen yet", 120, func(d *balsav1.Deployment) { d.Metadata.Generation = 3 })
	show("old pods end", 120, func(d *balsav1.Deployment) { d.Status.UpdatedReplicas = 4 })
	show("not yet available", 120, func(d *balsav1.Deployment) { d.Status.UpdatedReplicas, d.Status.Replicas = 4, 4 })
	show("complete", 120, func(d *balsav1.Deployment) {
		d.Status.UpdatedReplicas, d.Status.Replicas, d.Status.AvailableReplicas = 4, 4, 4
	})
	show("paused", 120, func(d *balsav1.Deployment) { d.Spec.Paused = proto.Bool(true) })
	show("goes back", 120, func(d *balsav1.Deployment) { failedRollout(d, progressRollingBack, 1) })
	show("went back", 120, func(d *balsav1.Deployment) { failedRollout(d, progressRolledBack, 1) })
	show("stands still", 120, func(d *balsav1.Deployment) { failedRollout(d, progressDeadline, 0) })
	goldenFile(t, filepath.Join("testdata", "rollout", "views.golden"), b.String())
}

func goldenFile(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		must(t, os.WriteFile(path, []byte(got), 0o644))
		return
	}
	want, err := os.ReadFile(path)
	must(t, err)
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs (-want +got), go test -update rewrites it:\n%s", path, diff)
	}
}

// TestScreenDrawsOverWhatItDrew: a shorter view leaves nothing of a longer one.
func TestScreenDrawsOverWhatItDrew(t *testing.T) {
	var out strings.Builder
	s := &screen{out: &out}
	s.draw([]string{"one", "two"})
	s.draw([]string{"three"})
	if want := "\rone\x1b[K\n\rtwo\x1b[K\n\x1b[J\x1b[2A\rthree\x1b[K\n\x1b[J"; out.String() != want {
		t.Errorf("drew %q", out.String())
	}
}

func TestDiffLines(t *testing.T) {
	got := diffLines(strings.Split("a b c d", " "), strings.Split("a c e d f", " "))
	if want := []string{"- b", "+ e", "+ f"}; !cmp.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := diffLines([]string{"a"}, []string{"a"}); len(got) != 0 {
		t.Errorf("equal texts differ in %q", got)
	}
}

// TestRolloutScripts runs testdata/rollout/*.txtar against a server with one node,
// on which pods of images that begin with "bad" never become ready.
func TestRolloutScripts(t *testing.T) {
	dir, err := os.MkdirTemp("", "balsa-cli-test-")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := startServer(t, dir, "s1", "--init", "--log-level", "error")
	t.Cleanup(func() { s.stop() }) // after the node's
	waitUntilServing(t, s)
	startNode(t, s, "n1", nil)
	runScripts(t, s, filepath.Join("testdata", "rollout"), 2)
}
