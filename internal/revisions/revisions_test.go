package revisions_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/revisions"
)

// everywhere refers to a ConfigMap and a Secret in each way there is, each under
// a name of its own.
func everywhere() *balsav1.PodTemplateSpec {
	container := func(name, restart string) *balsav1.Container {
		return &balsav1.Container{Name: name, RestartPolicy: restart,
			EnvFrom: []*balsav1.EnvFromSource{
				{ConfigMapRef: &balsav1.ObjectNameSelector{Name: name + "-from"}}, {SecretRef: &balsav1.ObjectNameSelector{Name: name + "-from", Optional: proto.Bool(true)}},
			},
			Env: []*balsav1.EnvVar{
				{Name: "PLAIN", Value: "x"},
				{Name: "A", ValueFrom: &balsav1.EnvVarSource{ConfigMapKeyRef: &balsav1.KeySelector{Name: name + "-key"}}},
				{Name: "B", ValueFrom: &balsav1.EnvVarSource{SecretKeyRef: &balsav1.KeySelector{Name: name + "-key"}}},
			},
		}
	}
	return &balsav1.PodTemplateSpec{Spec: &balsav1.PodSpec{
		Containers:       []*balsav1.Container{container("app", "")},
		InitContainers:   []*balsav1.Container{container("init", ""), container("sidecar", "Always")},
		ImagePullSecrets: []*balsav1.LocalObjectReference{{Name: "pull"}},
		Volumes: []*balsav1.Volume{
			{Name: "none", EmptyDir: &balsav1.EmptyDirVolumeSource{}},
			{Name: "m", ConfigMap: &balsav1.ConfigMapVolumeSource{Name: "volume"}},
			{Name: "s", Secret: &balsav1.SecretVolumeSource{SecretName: "volume"}},
			{Name: "p", Projected: &balsav1.ProjectedVolumeSource{Sources: []*balsav1.VolumeProjection{
				{ConfigMap: &balsav1.ConfigMapProjection{Name: "projected"}}, {Secret: &balsav1.SecretProjection{Name: "projected"}},
				{DownwardApi: &balsav1.DownwardAPIProjection{}},
			}}},
		},
	}}
}

func TestUsesFindsEveryReferenceButPullSecrets(t *testing.T) {
	var got []string
	for _, use := range revisions.Uses(everywhere()) {
		text := use.String()
		if use.Optional {
			text += " optional"
		}
		got = append(got, text)
	}
	want := []string{
		"ConfigMap/app-from", "ConfigMap/app-key", "ConfigMap/init-from", "ConfigMap/init-key", "ConfigMap/projected", "ConfigMap/sidecar-from", "ConfigMap/sidecar-key", "ConfigMap/volume",
		"Secret/app-from optional", "Secret/app-key", "Secret/init-from optional", "Secret/init-key", "Secret/projected", "Secret/sidecar-from optional", "Secret/sidecar-key", "Secret/volume",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestOneRequiredReferenceMakesAnObjectRequired, whatever the order.
func TestOneRequiredReferenceMakesAnObjectRequired(t *testing.T) {
	for _, first := range []bool{true, false} {
		template := &balsav1.PodTemplateSpec{Spec: &balsav1.PodSpec{Containers: []*balsav1.Container{{EnvFrom: []*balsav1.EnvFromSource{
			{ConfigMapRef: &balsav1.ObjectNameSelector{Name: "a", Optional: proto.Bool(first)}},
			{ConfigMapRef: &balsav1.ObjectNameSelector{Name: "a", Optional: proto.Bool(!first)}},
		}}}}}
		if uses := revisions.Uses(template); len(uses) != 1 || uses[0].Optional {
			t.Errorf("uses %v", uses)
		}
	}
}

func TestOriginalIsTheReverseOfRenamed(t *testing.T) {
	names := map[revisions.Ref]string{}
	for _, use := range revisions.Uses(everywhere()) {
		names[use.Ref] = use.Name + "-0123456789"
	}
	renamed := revisions.Renamed(everywhere(), names)
	for _, use := range revisions.Uses(renamed) {
		if !strings.HasSuffix(use.Name, "-0123456789") {
			t.Errorf("%s was not renamed", use.Ref)
		}
	}
	if diff := cmp.Diff(everywhere(), revisions.Original(renamed, names), protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

func TestAnnotationsAreReadAsWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pins, pinned := map[revisions.Ref]string{}, map[revisions.Ref]revisions.Override{}
		for range rapid.IntRange(0, 4).Draw(t, "n") {
			ref := revisions.Ref{Kind: rapid.SampledFrom([]string{"ConfigMap", "Secret"}).Draw(t, "kind"), Name: rapid.StringMatching(`[a-z.]{1,8}`).Draw(t, "name")}
			pins[ref] = rapid.String().Draw(t, "copy")
			pinned[ref] = revisions.Override{Use: rapid.StringMatching(`[a-z]*`).Draw(t, "use"), InsteadOf: revisions.AtVersion("7")}
		}
		got, err := revisions.ParsePins(revisions.FormatPins(pins))
		if err != nil || len(got) != len(pins) {
			t.Fatalf("%v, %v", got, err)
		}
		overrides, err := revisions.ParsePinned(revisions.FormatPinned(pinned))
		if err != nil || len(pinned) > 0 && !cmp.Equal(overrides, pinned) {
			t.Fatalf("%v, %v", overrides, err)
		}
	})
}

func TestSpoiltAnnotationsAreRefusedByName(t *testing.T) {
	for _, text := range []string{"{", `{"web": "x"}`, `{"Pod/web": "x"}`, `{"ConfigMap/": "x"}`, "[]"} {
		if _, err := revisions.ParsePins(text); err == nil || !strings.Contains(err.Error(), revisions.AnnotationPins) {
			t.Errorf("%s: %v", text, err)
		}
	}
	if _, err := revisions.ParsePinned(`{"ConfigMap/web": "x"}`); err == nil || !strings.Contains(err.Error(), revisions.AnnotationPinned) {
		t.Errorf("%v", err)
	}
}

func TestNamesKeepToTheirLimits(t *testing.T) {
	long := strings.Repeat("a", 241) + "." + strings.Repeat("b", 11)
	hash := strings.Repeat("0123456789abcdef", 4)
	for _, name := range []string{revisions.CopyName(long, hash, 0), revisions.CopyName(long, hash, 3), revisions.AbsentName(long)} {
		if len(name) > 253 || strings.Contains(name, ".-") {
			t.Errorf("%d letters: %s", len(name), name)
		}
	}
	if revisions.CopyName("web", hash, 0) != "web-0123456789" || revisions.CopyName("web", hash, 1) == revisions.CopyName("web", hash, 2) {
		t.Error("names of copies")
	}
	label := revisions.LabelValue(long)
	if len(label) > 63 || label == revisions.LabelValue(long+"c") || revisions.LabelValue("web") != "web" {
		t.Errorf("label %q", label)
	}
}

// TestContentsAreUnambiguous: no two contents have the same bytes.
func TestContentsAreUnambiguous(t *testing.T) {
	seen := map[string]string{}
	for name, m := range map[string]*balsav1.ConfigMap{
		"none": {}, "a=b": {Data: map[string]string{"a": "b"}}, "ab=": {Data: map[string]string{"ab": ""}}, "a=,b=": {Data: map[string]string{"a": "", "b": ""}},
		"binary": {BinaryData: map[string][]byte{"a": []byte("b")}}, "both": {Data: map[string]string{"a": "b"}, BinaryData: map[string][]byte{"c": nil}},
	} {
		content := string(revisions.ConfigMapContent(m))
		if other, twice := seen[content]; twice {
			t.Errorf("%s and %s are the same", name, other)
		}
		seen[content] = name
	}
	a := &balsav1.Secret{Type: "Opaque", Data: map[string][]byte{"k": []byte("v")}}
	b := &balsav1.Secret{Type: "kubernetes.io/tls", Data: a.GetData()}
	if string(revisions.SecretContent(a)) == string(revisions.SecretContent(b)) {
		t.Error("a secret's type does not count")
	}
}

func TestDiagnose(t *testing.T) {
	now := time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)
	terminated := func(code int32, reason, message string) *balsav1.ContainerState {
		return &balsav1.ContainerState{Terminated: &balsav1.ContainerStateTerminated{ExitCode: proto.Int32(code), Reason: reason, Message: message}}
	}
	waits := func(reason, message string) *balsav1.ContainerState {
		return &balsav1.ContainerState{Waiting: &balsav1.ContainerStateWaiting{Reason: reason, Message: message}}
	}
	runs := &balsav1.ContainerState{Running: &balsav1.ContainerStateRunning{}}
	condition := func(kind, status, reason, message string) []*balsav1.Condition {
		return []*balsav1.Condition{{Type: kind, Status: status, Reason: reason, Message: message}}
	}
	for name, test := range map[string]struct {
		node   string
		status *balsav1.PodStatus
		want   revisions.Diagnosis
	}{
		"ready":           {"n1", &balsav1.PodStatus{Conditions: condition("Ready", "True", "", "")}, revisions.Diagnosis{}},
		"not placed":      {"", &balsav1.PodStatus{}, revisions.Diagnosis{Reason: "Unschedulable", Message: "no node was chosen yet"}},
		"no node fits":    {"", &balsav1.PodStatus{Conditions: condition("PodScheduled", "False", "Unschedulable", "0 of 3 nodes fit")}, revisions.Diagnosis{Reason: "Unschedulable", Message: "0 of 3 nodes fit"}},
		"node is silent":  {"n1", &balsav1.PodStatus{}, revisions.Diagnosis{Reason: "ContainerCreating", Message: "node n1 has not begun it for 60s"}},
		"image":           {"n1", one(&balsav1.ContainerStatus{Name: "web", State: waits("ErrImagePull", "not found")}), revisions.Diagnosis{Reason: "ErrImagePull", Message: `container "web": not found`}},
		"config":          {"n1", one(&balsav1.ContainerStatus{Name: "web", State: waits("CreateContainerConfigError", `configmap "x" not found`)}), revisions.Diagnosis{Reason: "CreateContainerConfigError", Message: `container "web": configmap "x" not found`}},
		"crash loop":      {"n1", one(&balsav1.ContainerStatus{Name: "web", RestartCount: proto.Int32(5), State: waits("CrashLoopBackOff", "back-off 40s"), LastState: terminated(3, "Error", "no database")}), revisions.Diagnosis{Reason: "CrashLoopBackOff", Message: `container "web" ended with exit code 3: no database, restarted 5 times`}},
		"between crashes": {"n1", one(&balsav1.ContainerStatus{Name: "web", RestartCount: proto.Int32(1), State: runs, LastState: terminated(3, "Error", "")}), revisions.Diagnosis{Reason: "CrashLoopBackOff", Message: `container "web" ended with exit code 3, restarted 1 times`}},
		"memory":          {"n1", one(&balsav1.ContainerStatus{Name: "web", RestartCount: proto.Int32(2), State: waits("CrashLoopBackOff", "back-off"), LastState: terminated(137, "OOMKilled", "")}), revisions.Diagnosis{Reason: "OOMKilled", Message: `container "web" ended with exit code 137 (OOMKilled), restarted 2 times`}},
		"ends at once":    {"n1", one(&balsav1.ContainerStatus{Name: "web", RestartCount: proto.Int32(2), State: waits("CrashLoopBackOff", "back-off"), LastState: terminated(0, "Completed", "")}), revisions.Diagnosis{Reason: "CrashLoopBackOff", Message: `container "web" ended with exit code 0, restarted 2 times`}},
		"never ready":     {"n1", one(&balsav1.ContainerStatus{Name: "web", State: runs}), revisions.Diagnosis{Reason: "NeverReady", Message: `container "web" is running but not ready`}},
		"evicted":         {"n1", &balsav1.PodStatus{Phase: "Failed", Reason: "Evicted", Message: "memory"}, revisions.Diagnosis{Reason: "Evicted", Message: "memory"}},
		"failed":          {"n1", &balsav1.PodStatus{Phase: "Failed", ContainerStatuses: []*balsav1.ContainerStatus{{Name: "web", State: terminated(2, "Error", "")}}}, revisions.Diagnosis{Reason: "PodFailed", Message: `container "web" ended with exit code 2`}},
		"init first": {"n1", &balsav1.PodStatus{
			InitContainerStatuses: []*balsav1.ContainerStatus{{Name: "init", RestartCount: proto.Int32(3), State: terminated(1, "Error", "")}},
			ContainerStatuses:     []*balsav1.ContainerStatus{{Name: "web", State: waits("PodInitializing", "")}},
		}, revisions.Diagnosis{Reason: "CrashLoopBackOff", Message: `container "init" ended with exit code 1, restarted 3 times`}},
	} {
		pod := &balsav1.Pod{Metadata: &balsav1.ObjectMeta{Name: "web", CreationTimestamp: timestamppb.New(now.Add(-time.Minute))}, Spec: &balsav1.PodSpec{NodeName: test.node}, Status: test.status}
		if got := revisions.Diagnose(pod, now); got != test.want {
			t.Errorf("%s: got %q, want %q", name, got, test.want)
		}
	}
	flapping := &balsav1.Pod{Spec: &balsav1.PodSpec{NodeName: "n1"}, Status: one(&balsav1.ContainerStatus{Name: "web", Ready: proto.Bool(true), RestartCount: proto.Int32(9), State: runs, LastState: terminated(1, "Error", "")})}
	if got := revisions.Restarted(flapping); got.Reason != revisions.ReasonCrashLoop {
		t.Errorf("ready between crashes: %q", got)
	}
}

func one(c *balsav1.ContainerStatus) *balsav1.PodStatus {
	return &balsav1.PodStatus{Phase: "Running", ContainerStatuses: []*balsav1.ContainerStatus{c}}
}

// TestUndoRefusesWhatIsLost, and tells what cannot be as it was.
func TestUndoRefusesWhatIsLost(t *testing.T) {
	app := revisions.Ref{Kind: "ConfigMap", Name: "app"}
	d := &balsav1.Deployment{Metadata: &balsav1.ObjectMeta{Name: "web"}, Spec: &balsav1.DeploymentSpec{Template: everywhere()}}
	rs := func(pin string) *balsav1.ReplicaSet {
		return &balsav1.ReplicaSet{
			Metadata: &balsav1.ObjectMeta{Name: "web-1", Annotations: map[string]string{revisions.AnnotationPins: revisions.FormatPins(map[revisions.Ref]string{app: pin})}},
			Spec:     &balsav1.ReplicaSetSpec{Template: everywhere()},
		}
	}
	if _, err := revisions.Undo(d, rs("app-1"), map[revisions.Ref]revisions.Live{app: {Version: "7", Lost: true}}); err == nil || !strings.Contains(err.Error(), "app-1") {
		t.Errorf("lost: %v", err)
	}
	u, err := revisions.Undo(d, rs(""), map[revisions.Ref]revisions.Live{app: {Version: "7"}})
	if err != nil || len(u.Missing) != 1 || u.Deployment.GetMetadata().GetAnnotations()[revisions.AnnotationPinned] != "" {
		t.Errorf("missing then: %+v, %v", u, err)
	}
	u, err = revisions.Undo(d, rs(revisions.AbsentName("app")), map[revisions.Ref]revisions.Live{app: {Version: "7"}})
	if want := `{"ConfigMap/app":{"use":"","insteadOf":"@7"}}`; err != nil || u.Deployment.GetMetadata().GetAnnotations()[revisions.AnnotationPinned] != want {
		t.Errorf("absent then: %v, %v", u.Deployment.GetMetadata(), err)
	}
	if _, err := revisions.Undo(d, &balsav1.ReplicaSet{Metadata: &balsav1.ObjectMeta{Name: "web-1", Annotations: map[string]string{revisions.AnnotationPins: "{"}}}, nil); err == nil {
		t.Error("a spoilt annotation is taken")
	}
}
