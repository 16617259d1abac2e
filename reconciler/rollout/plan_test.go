package rollout

import (
	"flag"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/revisions"
	"github.com/balsa-run/balsa/object"
	rt "github.com/balsa-run/balsa/reconciler/reconcilertest"
)

var _ = flag.Bool("update", false, "rewrite the golden files")

// A Deployment is "deployment web image=web:2 replicas=3 surge=1 unavailable=0",
// with revision=, progress=reason:age and status=replicas/updated/ready/available;
// its ReplicaSets are "set web-1 image=web:1 replicas=3 revision=1 ready=3 unready=0".
func TestGolden(t *testing.T) {
	rt.Golden(t, func(t *testing.T, lines []rt.Line) string {
		v := View{Taken: func(string) bool { return false }}
		for _, l := range lines {
			switch l.Kind {
			case "deployment":
				v.Deployment = parseDeployment(t, l)
				v.Closing = l.Has("closing")
				if l.Has("taken") {
					v.Taken = func(name string) bool {
						return name == newReplicaSet(v.Deployment, Pinned{Template: v.Deployment.GetSpec().GetTemplate()}, 0).GetMetadata().GetName()
					}
				}
			case "set":
				v.Sets = append(v.Sets, parseSet(t, v.Deployment, l))
			}
		}
		a, err := Plan(v, rt.Now())
		if err != nil {
			t.Fatal(err)
		}
		return a.String()
	})
}

func parseDeployment(t *testing.T, l rt.Line) *balsav1.Deployment {
	d := &balsav1.Deployment{Metadata: l.Meta(t), Spec: &balsav1.DeploymentSpec{
		Replicas: proto.Int32(l.Int(t, "replicas")), Template: l.Template(), RevisionHistoryLimit: proto.Int32(l.Int(t, "history")),
		Selector: &balsav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}, MinReadySeconds: proto.Int32(l.Int(t, "minready")),
		Strategy: &balsav1.DeploymentStrategy{Type: object.StrategyRollingUpdate, RollingUpdate: &balsav1.RollingUpdateDeployment{
			MaxSurge: object.IntValue(l.Int(t, "surge")), MaxUnavailable: object.IntValue(l.Int(t, "unavailable")),
		}},
	}}
	if l.Has("recreate") {
		d.Spec.Strategy = &balsav1.DeploymentStrategy{Type: object.StrategyRecreate}
	}
	if l.Has("revision") {
		setAnnotation(d, AnnotationRevision, l.Words["revision"])
	}
	if l.Has("best") { // pods/ready/available/old
		m := mark{revision: int64(l.Int(t, "revision"))}
		if _, err := fmt.Sscanf(l.Words["best"], "%d/%d/%d/%d", &m.live, &m.ready, &m.available, &m.old); err != nil {
			t.Fatal(err)
		}
		setAnnotation(d, annotationProgress, m.String())
	}
	if l.Has("paused") {
		d.Spec.Paused = proto.Bool(true)
	}
	d.Spec.OnFailure = l.Words["onfailure"]
	d.Status = &balsav1.DeploymentStatus{}
	if l.Has("status") {
		st := d.Status
		if _, err := fmt.Sscanf(l.Words["status"], "%d/%d/%d/%d", &st.Replicas, &st.UpdatedReplicas, &st.ReadyReplicas, &st.AvailableReplicas); err != nil {
			t.Fatal(err)
		}
	}
	if l.Has("failed") { // replicaset/revision/running
		f := &balsav1.FailedRollout{Reason: "NeverReady", Message: "pod x: says why", Time: timestamppb.New(l.Ago(t, "since"))}
		parts := strings.Split(l.Words["failed"], "/")
		f.ReplicaSet = parts[0]
		if _, err := fmt.Sscanf(parts[1]+" "+parts[2], "%d %d", &f.Revision, &f.RunningRevision); err != nil {
			t.Fatal(err)
		}
		if d.Status.FailedRollout = f; l.Has("retry") {
			setAnnotation(d, revisions.AnnotationRetry, revisions.Failure(f))
		}
	}
	if l.Has("progress") {
		d.Status.Conditions = []*balsav1.Condition{{
			Type: object.ConditionProgressing, Status: progressStatus(l.Words["progress"]), Reason: l.Words["progress"], LastTransitionTime: timestamppb.New(l.Ago(t, "since")),
		}}
	}
	return d
}

func progressStatus(reason string) string {
	switch reason {
	case ReasonDeadlineExceeded, ReasonRollingBack, ReasonRolledBack:
		return object.ConditionFalse
	case ReasonPaused, ReasonResumed:
		return object.ConditionUnknown
	}
	return object.ConditionTrue
}

func parseSet(t *testing.T, d *balsav1.Deployment, l rt.Line) Set {
	rs := l.ReplicaSet(t)
	if !l.Has("orphan") {
		rs.Metadata.OwnerReferences = []*balsav1.OwnerReference{object.NewControllerRef(d)}
	}
	if l.Has("revision") {
		setAnnotation(rs, AnnotationRevision, l.Words["revision"])
	}
	if l.Has("complete") {
		setAnnotation(rs, revisions.AnnotationComplete, "true")
	}
	if l.Has("desired") {
		setAnnotation(rs, annotationDesired, l.Words["desired"])
		setAnnotation(rs, annotationMax, l.Words["max"])
	}
	rs.Status = &balsav1.ReplicaSetStatus{ObservedGeneration: 1, Replicas: l.Int(t, "ready") + l.Int(t, "unready")}
	s := Set{ReplicaSet: rs}
	add := func(word, age string, change func(*balsav1.Pod)) {
		for i := range l.Int(t, word) {
			p := rt.Line{Kind: "pod", Name: fmt.Sprintf("%s-%s-%d", l.Name, word, i), Words: map[string]string{"node": "n1", age: "1m"}}.Pod(t)
			change(p)
			s.Pods = append(s.Pods, p)
		}
	}
	add("ready", "ready", func(*balsav1.Pod) {})
	add("unready", "unready", func(*balsav1.Pod) {})
	add("ending", "ready", func(p *balsav1.Pod) { p.Metadata.DeletionTimestamp = timestamppb.New(rt.Now()) })
	add("evicted", "ready", func(p *balsav1.Pod) {
		p.Status.Conditions, _ = object.SetCondition(p.Status.Conditions, &balsav1.Condition{Type: object.ConditionEvictionRequested, Status: object.ConditionTrue}, rt.Now())
	})
	add("stuck", "age", func(p *balsav1.Pod) {
		p.Status.ContainerStatuses = []*balsav1.ContainerStatus{{Name: "web", State: &balsav1.ContainerState{Waiting: &balsav1.ContainerStateWaiting{Reason: "ImageNotFound", Message: "web:2 was never imported"}}}}
	})
	return s
}

func TestANewTemplateMakesAReplicaSetThatSelectsOnlyItsPods(t *testing.T) {
	d := parseDeployment(t, rt.Line{Name: "web", Words: map[string]string{"image": "web:1", "replicas": "2", "surge": "1", "annotation:kubernetes.io/change-cause": "first"}})
	a, err := Plan(View{Deployment: d, Taken: func(string) bool { return false }}, rt.Now())
	if err != nil {
		t.Fatal(err)
	}
	rs := a.Create
	hash := rs.GetMetadata().GetLabels()[object.LabelTemplateHash]
	if rs.GetMetadata().GetName() != "web-"+hash || rs.GetSpec().GetSelector().GetMatchLabels()[object.LabelTemplateHash] != hash ||
		rs.GetSpec().GetTemplate().GetMetadata().GetLabels()[object.LabelTemplateHash] != hash || rs.GetMetadata().GetAnnotations()[AnnotationChangeCause] != "first" {
		t.Errorf("replicaset %v", rs)
	}
	if !object.TemplateEqual(rs.GetSpec().GetTemplate(), d.GetSpec().GetTemplate()) || d.GetSpec().GetTemplate().GetMetadata().GetLabels()[object.LabelTemplateHash] != "" {
		t.Error("the template differs, or the deployment was changed")
	}
}

func TestPercentagesRoundAsInKubernetes(t *testing.T) {
	d := parseDeployment(t, rt.Line{Name: "web", Words: map[string]string{"replicas": "10"}})
	d.Spec.Strategy.RollingUpdate = &balsav1.RollingUpdateDeployment{MaxSurge: object.StringValue("25%"), MaxUnavailable: object.StringValue("25%")}
	surge, unavailable, err := bounds(d)
	if err != nil || surge != 3 || unavailable != 2 {
		t.Errorf("surge %d, unavailable %d, %v: want 3 and 2", surge, unavailable, err)
	}
}

func TestTheDeadlineIsCountedFromTheLastProgress(t *testing.T) {
	d := parseDeployment(t, rt.Line{Name: "web", Words: map[string]string{
		"image": "web:1", "replicas": "1", "revision": "1", "progress": ReasonUpdated, "since": "9m", "status": "1/1/0/0",
	}})
	set := parseSet(t, d, rt.Line{Kind: "set", Name: "web-1", Words: map[string]string{"image": "web:1", "replicas": "1", "revision": "1", "unready": "1"}})
	v := View{Deployment: d, Sets: []Set{set}, Taken: func(string) bool { return false }}
	a, err := Plan(v, rt.Now())
	if err != nil || a.Again != time.Minute {
		t.Errorf("looks again in %v, %v: want a minute", a.Again, err)
	}
}
