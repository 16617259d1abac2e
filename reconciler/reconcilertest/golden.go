package reconcilertest

import (
	"flag"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
)

// Now is the time at which golden plans are made.
func Now() time.Time { return time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC) }

// Golden checks testdata/*.txtar: the part view is given to plan, its answer is
// the part plan. With -update it writes the answer.
func Golden(t *testing.T, plan func(t *testing.T, view []Line) string) {
	t.Helper()
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	update := flag.Lookup("update") != nil && flag.Lookup("update").Value.String() == "true"
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if len(a.Files) != 2 || a.Files[0].Name != "view" || a.Files[1].Name != "plan" {
				t.Fatalf("%s: want the parts view and plan", file)
			}
			got := plan(t, parseLines(string(a.Files[0].Data)))
			if update {
				a.Files[1].Data = []byte(got)
				if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if diff := cmp.Diff(string(a.Files[1].Data), got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", file, diff)
			}
		})
	}
}

// Line is a line of a view: "pod web-1 node=n1 ready=60s". A word without = has
// the value "true". Durations are ages: how long ago something was.
type Line struct {
	Kind, Name string
	Words      map[string]string
}

func parseLines(text string) (lines []Line) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		l := Line{Kind: fields[0], Name: fields[1], Words: map[string]string{}}
		for _, f := range fields[2:] {
			k, v, ok := strings.Cut(f, "=")
			if !ok {
				v = "true"
			}
			l.Words[k] = v
		}
		lines = append(lines, l)
	}
	return lines
}

// Has tells whether a word is there.
func (l Line) Has(word string) bool { return l.Words[word] != "" }

// Int is a word as a number, 0 when it is not there.
func (l Line) Int(t *testing.T, word string) int32 {
	t.Helper()
	if !l.Has(word) {
		return 0
	}
	n, err := strconv.ParseInt(l.Words[word], 10, 32)
	if err != nil {
		t.Fatalf("%s %s: %v", l.Kind, l.Name, err)
	}
	return int32(n)
}

// Ago is the time that a word says to be so long ago.
func (l Line) Ago(t *testing.T, word string) time.Time {
	t.Helper()
	d, err := time.ParseDuration(l.Words[word])
	if err != nil {
		t.Fatalf("%s %s: %v", l.Kind, l.Name, err)
	}
	return Now().Add(-d)
}

// Meta makes the metadata of a line: uid=, labels as label:key=value, owner=kind/uid,
// age=, terminating=.
func (l Line) Meta(t *testing.T) *balsav1.ObjectMeta {
	t.Helper()
	meta := &balsav1.ObjectMeta{
		Name: l.Name, Namespace: "default", Uid: l.Name, ResourceVersion: "7", Generation: 1,
		Labels: map[string]string{}, Annotations: map[string]string{}, CreationTimestamp: timestamppb.New(Now().Add(-time.Hour)),
	}
	for k, v := range l.Words {
		switch key, name, _ := strings.Cut(k, ":"); key {
		case "label":
			meta.Labels[name] = v
		case "annotation":
			meta.Annotations[name] = v
		case "owner":
			kind, name, _ := strings.Cut(v, "/")
			meta.OwnerReferences = []*balsav1.OwnerReference{{Kind: kind, Name: name, Uid: name, Controller: proto.Bool(true)}}
		case "age":
			meta.CreationTimestamp = timestamppb.New(l.Ago(t, "age"))
		case "terminating":
			meta.DeletionTimestamp = timestamppb.New(Now())
		}
	}
	return meta
}

// Pod makes a pod: node=, ip=, phase=, reason=, restarts=, ready=<age>, unready=<age>,
// port:name=number.
func (l Line) Pod(t *testing.T) *balsav1.Pod {
	t.Helper()
	p := &balsav1.Pod{
		Metadata: l.Meta(t), Spec: &balsav1.PodSpec{NodeName: l.Words["node"], Containers: []*balsav1.Container{{Name: "c"}}},
		Status: &balsav1.PodStatus{Phase: object.PodPending, PodIp: l.Words["ip"], HostIp: l.Words["hostip"], Reason: l.Words["reason"]},
	}
	for k := range l.Words {
		if key, name, _ := strings.Cut(k, ":"); key == "port" {
			p.Spec.Containers[0].Ports = append(p.Spec.Containers[0].Ports, &balsav1.ContainerPort{Name: name, ContainerPort: l.Int(t, k)})
		}
	}
	for word, status := range map[string]string{"ready": object.ConditionTrue, "unready": object.ConditionFalse} {
		if l.Has(word) {
			p.Status.Phase = object.PodRunning
			p.Status.Conditions, _ = object.SetCondition(p.Status.Conditions, &balsav1.Condition{Type: object.ConditionReady, Status: status}, l.Ago(t, word))
		}
	}
	if l.Has("phase") {
		p.Status.Phase = l.Words["phase"]
	}
	if l.Has("restarts") {
		p.Status.ContainerStatuses = []*balsav1.ContainerStatus{{Name: "c", RestartCount: proto.Int32(l.Int(t, "restarts"))}}
	}
	return p
}

// Template makes a pod template with the label app=web: image=.
func (l Line) Template() *balsav1.PodTemplateSpec {
	return &balsav1.PodTemplateSpec{
		Metadata: &balsav1.ObjectMeta{Labels: map[string]string{"app": "web"}},
		Spec:     &balsav1.PodSpec{Containers: []*balsav1.Container{{Name: "web", Image: l.Words["image"]}}},
	}
}

// ReplicaSet makes a ReplicaSet of pods with the label app=web: replicas=,
// image=, minready=.
func (l Line) ReplicaSet(t *testing.T) *balsav1.ReplicaSet {
	t.Helper()
	return &balsav1.ReplicaSet{Metadata: l.Meta(t), Spec: &balsav1.ReplicaSetSpec{
		Replicas: proto.Int32(l.Int(t, "replicas")), Template: l.Template(), MinReadySeconds: proto.Int32(l.Int(t, "minready")),
		Selector: &balsav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
	}}
}
