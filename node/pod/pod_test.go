package pod

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/object"
)

func TestExpand(t *testing.T) {
	vars := map[string]string{"A": "1", "B": "$(A)", "EMPTY": ""}
	lookup := func(name string) (string, bool) { v, ok := vars[name]; return v, ok }
	for in, want := range map[string]string{
		"": "", "plain": "plain", "$(A)": "1", "x$(A)y$(A)z": "x1y1z", "$(B)": "$(A)", "$(EMPTY)": "", "$(NOPE)": "$(NOPE)",
		"$$(A)": "$(A)", "$$$(A)": "$1", "$": "$", "a$": "a$", "$(A": "$(A", "$A": "$A", "$()": "$()", "$$": "$", "$(A)$": "1$", "$(NO$(A))": "$(NO$(A))",
	} {
		if got := Expand(in, lookup); got != want {
			t.Errorf("Expand(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzExpand(f *testing.F) {
	f.Add("$$(A)$(B")
	f.Fuzz(func(t *testing.T, s string) {
		same := func(name string) (string, bool) { return "$(" + name + ")", true }
		none := func(string) (string, bool) { return "", false }
		if a, b := Expand(s, same), Expand(s, none); a != b {
			t.Errorf("Expand(%q): %q with variables that stand for themselves, %q with none", s, a, b)
		}
		if !strings.Contains(s, "$") && Expand(s, none) != s {
			t.Errorf("Expand(%q) changed it", s)
		}
	})
}

func TestEnvironment(t *testing.T) {
	sources := Sources{
		ConfigMaps: map[string]*balsav1.ConfigMap{"m": {Data: map[string]string{"K": "from-map", "a=b": "bad", "TWICE": "map"}}},
		Secrets:    map[string]*balsav1.Secret{"s": {Data: map[string][]byte{"TWICE": []byte("secret"), "NUL": []byte("a\x00b")}}},
	}
	c := &balsav1.Container{
		EnvFrom: []*balsav1.EnvFromSource{
			{Prefix: "P_", ConfigMapRef: &balsav1.ObjectNameSelector{Name: "m"}},
			{ConfigMapRef: &balsav1.ObjectNameSelector{Name: "m"}},
			{SecretRef: &balsav1.ObjectNameSelector{Name: "s"}},
			{SecretRef: &balsav1.ObjectNameSelector{Name: "absent", Optional: proto.Bool(true)}},
		},
		Env: []*balsav1.EnvVar{
			{Name: "K", Value: "own"}, {Name: "REF", Value: "$(K)-$(P_K)-$(LATER)"}, {Name: "LATER", Value: "x"},
			{Name: "NODE", ValueFrom: &balsav1.EnvVarSource{FieldRef: &balsav1.ObjectFieldSelector{FieldPath: "spec.nodeName"}}},
			{Name: "APP", ValueFrom: &balsav1.EnvVarSource{FieldRef: &balsav1.ObjectFieldSelector{FieldPath: "metadata.labels['app']"}}},
			{Name: "OPT", ValueFrom: &balsav1.EnvVarSource{ConfigMapKeyRef: &balsav1.KeySelector{Name: "m", Key: "absent", Optional: proto.Bool(true)}}},
		},
	}
	pod := &balsav1.Pod{Metadata: &balsav1.ObjectMeta{Namespace: "ns", Labels: map[string]string{"app": "web"}}, Spec: &balsav1.PodSpec{NodeName: "n1"}}
	got, err := environment(pod, c, sources, Node{})
	if err != nil {
		t.Fatal(err)
	}
	want := Environment{
		Vars: []runtime.EnvVar{
			{Name: "P_K", Value: "from-map"}, {Name: "P_TWICE", Value: "map"}, {Name: "K", Value: "own"}, {Name: "TWICE", Value: "secret"},
			{Name: "NUL", Value: "a\x00b"}, {Name: "REF", Value: "own-from-map-$(LATER)"}, {Name: "LATER", Value: "x"}, {Name: "NODE", Value: "n1"}, {Name: "APP", Value: "web"},
		},
		Skipped: []string{"ConfigMap m key a=b", "ConfigMap m key a=b"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for text, v := range map[string]*balsav1.Container{
		`key "k" not found in configmap "ns/m"`: {Env: []*balsav1.EnvVar{{Name: "X", ValueFrom: &balsav1.EnvVarSource{ConfigMapKeyRef: &balsav1.KeySelector{Name: "m", Key: "k"}}}}},
		`secret "ns/none" not found`:            {Env: []*balsav1.EnvVar{{Name: "X", ValueFrom: &balsav1.EnvVarSource{SecretKeyRef: &balsav1.KeySelector{Name: "none", Key: "k"}}}}},
		`configmap "ns/none" not found`:         {EnvFrom: []*balsav1.EnvFromSource{{ConfigMapRef: &balsav1.ObjectNameSelector{Name: "none"}}}},
		`holds a NUL byte`:                      {Env: []*balsav1.EnvVar{{Name: "X", ValueFrom: &balsav1.EnvVarSource{SecretKeyRef: &balsav1.KeySelector{Name: "s", Key: "NUL"}}}}},
	} {
		if _, err := environment(pod, v, sources, Node{}); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("error is %v, want one with %q", err, text)
		}
	}
}

func limits(cpuRequest, cpuLimit, memRequest, memLimit string) *balsav1.Container {
	r := &balsav1.ResourceRequirements{Requests: map[string]*balsav1.Quantity{}, Limits: map[string]*balsav1.Quantity{}}
	for _, q := range []struct {
		to         map[string]*balsav1.Quantity
		name, text string
	}{{r.Requests, "cpu", cpuRequest}, {r.Limits, "cpu", cpuLimit}, {r.Requests, "memory", memRequest}, {r.Limits, "memory", memLimit}} {
		if q.text != "" {
			q.to[q.name] = object.NewQuantity(q.text)
		}
	}
	return &balsav1.Container{Name: "c", Resources: r}
}

func TestResources(t *testing.T) {
	const node = 8 << 30
	for _, tt := range []struct {
		name string
		c    *balsav1.Container
		want runtime.Resources
	}{
		{"nothing", limits("", "", "", ""), runtime.Resources{CPUShares: 2, OOMScoreAdj: 1000}},
		{"guaranteed", limits("500m", "500m", "64Mi", "64Mi"), runtime.Resources{CPUShares: 512, CPUQuotaMicros: 50_000, CPUPeriodMicros: 100_000, MemoryLimitBytes: 64 << 20, OOMScoreAdj: -997}},
		{"limits only are requests too", limits("", "2", "", "1Gi"), runtime.Resources{CPUShares: 2048, CPUQuotaMicros: 200_000, CPUPeriodMicros: 100_000, MemoryLimitBytes: 1 << 30, OOMScoreAdj: -997}},
		{"burstable", limits("100m", "", "4Gi", ""), runtime.Resources{CPUShares: 102, OOMScoreAdj: 500}},
		{"tiny", limits("1m", "1m", "", ""), runtime.Resources{CPUShares: 2, CPUQuotaMicros: 1000, CPUPeriodMicros: 100_000, OOMScoreAdj: 999}},
		{"huge", limits("1000", "", "", ""), runtime.Resources{CPUShares: 262144, OOMScoreAdj: 999}},
	} {
		got, err := containerResources(&balsav1.PodSpec{Containers: []*balsav1.Container{tt.c}}, &container{spec: tt.c}, node)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
	}
	if _, err := containerResources(&balsav1.PodSpec{}, &container{spec: limits("x", "", "", "")}, node); err == nil || !strings.Contains(err.Error(), `cpu of container "c"`) {
		t.Errorf("a bad quantity gives %v", err)
	}
}

func TestAdmit(t *testing.T) {
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	build := func(uid string, age int, cpu, phase string) *balsav1.Pod {
		return &balsav1.Pod{Metadata: &balsav1.ObjectMeta{Uid: uid, CreationTimestamp: timestamppb.New(at.Add(-time.Duration(age) * time.Minute))},
			Spec: &balsav1.PodSpec{Containers: []*balsav1.Container{limits(cpu, "", "", "")}}, Status: &balsav1.PodStatus{Phase: phase}}
	}
	pods := []*balsav1.Pod{build("young", 1, "1", ""), build("old", 9, "2", ""), build("runs", 0, "1", "Running"), build("over", 20, "4", "Failed"), build("small", 0, "", "")}
	settled := func(uid string) bool { return uid == "runs" }
	got := Admit(pods, settled, Capacity{MilliCPU: 3000, MemoryBytes: 1 << 30, Pods: 3})
	if len(got) != 1 || got["young"].Reason != "OutOfcpu" {
		t.Errorf("refused: %v, want the young one for cpu", got)
	}
	got = Admit(pods, settled, Capacity{MilliCPU: 9000, MemoryBytes: 1 << 30, Pods: 2})
	if len(got) != 2 || got["young"].Reason != "OutOfpods" || got["small"].Reason != "OutOfpods" {
		t.Errorf("refused: %v, want the two newest for the number of pods", got)
	}
	slices.Reverse(pods)
	if again := Admit(pods, settled, Capacity{MilliCPU: 9000, MemoryBytes: 1 << 30, Pods: 2}); !cmp.Equal(got, again) {
		t.Errorf("another order gives another outcome: %v", again)
	}
	disk := build("disk", 0, "", "")
	disk.Spec.Containers[0].Resources.Requests["ephemeral-storage"] = object.NewQuantity("2Gi")
	if got := Admit([]*balsav1.Pod{disk}, settled, Capacity{MemoryBytes: 1, EphemeralBytes: 1 << 30, Pods: 9}); got["disk"].Reason != "OutOfephemeral-storage" {
		t.Errorf("refused: %v, want the one that needs more disk than there is", got)
	}
	if got := Admit([]*balsav1.Pod{build("runs", 0, "8", "Running")}, settled, Capacity{}); len(got) != 0 {
		t.Errorf("what runs was refused: %v", got)
	}
}

// files makes the resolv.conf and hosts of a pod.
func files(spec *balsav1.PodSpec, host HostFiles) *step {
	return &step{v: View{Pod: &balsav1.Pod{Metadata: &balsav1.ObjectMeta{Name: "web", Namespace: "ns"}, Spec: spec}, HostFiles: host,
		Node: Node{Name: "n1", DNS: netip.MustParseAddr("169.254.20.10"), Domain: "cluster.local."}}}
}

func TestFiles(t *testing.T) {
	ip := netip.MustParseAddr("10.1.2.3")
	if got := string(files(&balsav1.PodSpec{}, HostFiles{}).hosts(ip)); !strings.HasSuffix(got, "10.1.2.3\tweb\n") || !strings.Contains(got, "127.0.0.1\tlocalhost\n") {
		t.Errorf("hosts %q", got)
	}
	if got := string(files(&balsav1.PodSpec{}, HostFiles{}).hosts(netip.Addr{})); strings.Contains(got, "web") {
		t.Errorf("hosts without an address %q", got)
	}
	long := strings.Repeat("a", 62) + ".b"
	for want, in := range map[string][2]string{"given": {"given", "name"}, "name": {"", "name"}, strings.Repeat("a", 62): {"", long}} {
		if got := Hostname(in[0], in[1]); got != want {
			t.Errorf("Hostname%q = %q, want %q", in, got, want)
		}
	}
}

func TestRestartDelay(t *testing.T) {
	for crashes, seconds := range []int{0, 0, 10, 20, 40, 80, 160, 300, 300, 300} {
		want := time.Duration(seconds) * time.Second
		if got := restartDelay(crashes); got != want {
			t.Errorf("after %d ends the delay is %s, want %s", crashes, got, want)
		}
	}
	if got := restartDelay(1 << 40); got != restartDelayMax {
		t.Errorf("after very many ends the delay is %s", got)
	}
}

func TestProbe(t *testing.T) {
	c := &balsav1.Container{Name: "c", Ports: []*balsav1.ContainerPort{{Name: "http", ContainerPort: 8080}}, ReadinessProbe: &balsav1.Probe{
		HttpGet:             &balsav1.HTTPGetAction{Path: "/healthz?x=1", Port: object.StringValue("http"), HttpHeaders: []*balsav1.HTTPHeader{{Name: "Host", Value: "web"}, {Name: "X-A", Value: "1"}, {Name: "X-A", Value: "2"}}},
		InitialDelaySeconds: proto.Int32(3), TimeoutSeconds: proto.Int32(2), PeriodSeconds: proto.Int32(7), SuccessThreshold: proto.Int32(2), FailureThreshold: proto.Int32(3),
	}}
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	p, ok := newProbe("u", c, Readiness, runtime.ContainerState{Attempt: 4, StartedAt: start}, netip.MustParseAddr("10.0.0.9"))
	want := Probe{UID: "u", Container: "c", Attempt: 4, Kind: Readiness, Question: Question{URL: "http://10.0.0.9:8080/healthz?x=1", Host: "web", Header: map[string][]string{"X-A": {"1", "2"}}},
		InitialDelay: 3 * time.Second, Timeout: 2 * time.Second, Period: 7 * time.Second, SuccessThreshold: 2, FailureThreshold: 3, StartedAt: start}
	if diff := cmp.Diff(want, p); !ok || diff != "" {
		t.Fatal(ok, diff)
	}
	s := p.Start()
	if got := p.Next(s, start); !got.Equal(start.Add(3 * time.Second)) {
		t.Errorf("first question at %s, want after the initial delay", got)
	}
	var ready []bool
	for _, err := range []error{errors.New("x"), nil, errors.New("x"), nil, nil, errors.New("x"), errors.New("x"), nil, errors.New("x"), errors.New("x"), errors.New("x"), nil, nil} {
		s, _ = p.Observe(s, err)
		ready = append(ready, s.Ready)
	}
	if fmt.Sprint(ready) != "[false false false false true true true true true true false false true]" {
		t.Errorf("ready after each result: %v", ready)
	}
	if got := p.Next(s, start).Sub(start); got != 7*time.Second {
		t.Errorf("a ready container is asked after %s", got)
	}
	s.Ready = false
	if got := p.Next(s, start).Sub(start); got != time.Second {
		t.Errorf("one that is not ready is asked after %s", got)
	}
	p.Seed = true
	if s := p.Start(); !s.Ready || !p.Next(s, start).Equal(start) {
		t.Error("an adopted container starts with what was recorded, and is asked at once")
	}
	c.ReadinessProbe.HttpGet.Port = object.StringValue("none")
	if _, ok := newProbe("u", c, Readiness, runtime.ContainerState{}, netip.MustParseAddr("10.0.0.9")); ok {
		t.Error("a port that has no number can be asked")
	}
}

func TestRefusedPod(t *testing.T) {
	p := &balsav1.Pod{Metadata: &balsav1.ObjectMeta{Name: "p", Uid: uid}, Spec: &balsav1.PodSpec{Containers: []*balsav1.Container{{Name: "a", Image: "i"}}}}
	v := View{Now: time.Unix(0, 0), UID: uid, Pod: p, Refusal: &Refusal{Reason: "OutOfcpu", Message: "no room"}}
	plan := Step(v)
	if len(plan.Actions) != 0 || plan.Status.GetPhase() != "Failed" || plan.Status.GetReason() != "OutOfcpu" || plan.Status.GetMessage() != "no room" {
		t.Errorf("plan %+v", plan)
	}
	v.Refusal, v.Memory = nil, plan.Memory
	if plan := Step(v); len(plan.Actions) != 0 || plan.Status.GetPhase() != "Failed" {
		t.Errorf("a pod that was refused is run when there is room: %+v", plan)
	}
}

func TestStopSignalOfImage(t *testing.T) {
	m, _ := Done(Memory{}, StartContainer{Config: runtime.ContainerConfig{Name: "a", Image: runtime.Image{StopSignal: "SIGQUIT"}}}, nil, time.Unix(0, 0))
	p := &balsav1.Pod{Metadata: &balsav1.ObjectMeta{Name: "p", Uid: uid, DeletionTimestamp: timestamppb.New(time.Unix(0, 0))},
		Spec: &balsav1.PodSpec{Containers: []*balsav1.Container{{Name: "a", Image: "i"}}}}
	p.Status = &balsav1.PodStatus{Conditions: []*balsav1.Condition{{Type: object.ConditionDrained, Status: object.ConditionTrue}}}
	v := View{Now: time.Unix(100, 0), UID: uid, Pod: p, Memory: m, Runtime: &runtime.PodState{UID: uid, Containers: []runtime.ContainerState{{Name: "a", Status: runtime.ContainerRunning}}}}
	plan := Step(v)
	if len(plan.Actions) != 1 || plan.Actions[0].(Signal).Signal != runtime.SIGQUIT {
		t.Errorf("actions %v, want the image's stop signal", plan.Actions)
	}
}

func TestSameStatus(t *testing.T) {
	ours := &balsav1.PodStatus{Phase: "Running", Conditions: []*balsav1.Condition{{Type: "Initialized", Status: "True"}, {Type: "Ready", Status: "True"}}}
	recorded := proto.CloneOf(ours)
	slices.Reverse(recorded.Conditions)
	recorded.Conditions = append(recorded.Conditions, &balsav1.Condition{Type: "balsa.run/drain", Status: "True"})
	if !SameStatus(ours, recorded) {
		t.Error("a condition of another writer, or another order, makes a difference")
	}
	recorded.Phase = "Pending"
	if SameStatus(ours, recorded) || SameStatus(ours, nil) || len(recorded.Conditions) != 3 {
		t.Error("another phase makes none, or the recorded status was changed")
	}
}
