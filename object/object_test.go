package object_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
)

func at(seconds int64) time.Time { return time.Unix(seconds, 0).UTC() }

func TestKinds(t *testing.T) {
	for _, k := range object.Kinds() {
		m := k.New()
		if got := object.KindOf(m).Name; got != k.Name {
			t.Errorf("KindOf(%T) = %s, want %s", m, got, k.Name)
		}
		for _, name := range append([]string{k.Name, k.Plural, k.Singular, strings.ToUpper(k.Name)}, k.Short...) {
			if got, ok := object.KindByName(name); !ok || got.Name != k.Name {
				t.Errorf("KindByName(%s) = %s, %v, want %s", name, got.Name, ok, k.Name)
			}
		}
		got, err := object.Unwrap(object.Wrap(m))
		if err != nil || got != m {
			t.Errorf("Unwrap(Wrap(%s)) = %v, %v", k.Name, got, err)
		}
		object.Default(m)
		if m.GetKind() != k.Name || m.GetApiVersion() != k.APIVersion {
			t.Errorf("%s is called %s %s after Default", k.Name, m.GetApiVersion(), m.GetKind())
		}
	}
	fields := (&balsav1.Object{}).ProtoReflect().Descriptor().Fields()
	if fields.Len() != len(object.Kinds()) {
		t.Errorf("the envelope has %d kinds, this package %d", fields.Len(), len(object.Kinds()))
	}
	if _, ok := object.KindByName("thing"); ok {
		t.Error("found a kind called thing")
	}
}

func TestUnwrapNothing(t *testing.T) {
	for _, o := range []*balsav1.Object{nil, {}, {Object: &balsav1.Object_Pod{}}} {
		if m, err := object.Unwrap(o); !errors.Is(err, object.ErrNoObject) {
			t.Errorf("Unwrap(%v) = %v, %v, want ErrNoObject", o, m, err)
		}
	}
}

func TestKeys(t *testing.T) {
	for key, want := range map[string]string{
		"pods/default/a": `pod "default/a"`, "nodes/n1": `node "n1"`, "namespaces/default": `namespace "default"`, "events/x/y.z": `event "x/y.z"`,
		"pods/a": "", "pods//a": "", "pods/default/": "", "pods/default/a/b": "", "nodes/": "", "nodes/a/b": "", "things/a/b": "", "pods": "", "": "", "claims/clusterip/1": "",
	} {
		kind, namespace, name, ok := object.ParseKey(key)
		if !ok {
			if want != "" {
				t.Errorf("%q was refused", key)
			}
			continue
		}
		if got := object.DescribeKey(kind, namespace, name); got != want {
			t.Errorf("%q is %s, want %s", key, got, want)
		}
		if got := object.Key(kind, namespace, name); got != key {
			t.Errorf("Key(ParseKey(%q)) = %q", key, got)
		}
		if !strings.HasPrefix(key, object.Prefix(kind, namespace)) || !strings.HasPrefix(key, object.Prefix(kind, "")) {
			t.Errorf("%q does not begin with its prefix", key)
		}
	}
}

func TestEncodeDecode(t *testing.T) {
	pod := &balsav1.Pod{ApiVersion: "v1", Kind: "Pod", Metadata: &balsav1.ObjectMeta{Name: "a", Namespace: "b", ResourceVersion: "5", Labels: map[string]string{"x": "1", "y": "2", "z": "3"}}}
	frozen := object.Clone(pod)
	value, err := object.Encode(pod)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(frozen, pod, protocmp.Transform()); diff != "" {
		t.Errorf("Encode changed its argument:\n%s", diff)
	}
	for range 20 {
		if again, _ := object.Encode(object.Clone(pod)); !bytes.Equal(value, again) {
			t.Fatal("Encode is not deterministic")
		}
	}
	got, err := object.Decode("pods/b/a", value, 7)
	if err != nil {
		t.Fatal(err)
	}
	frozen.Metadata.ResourceVersion = "7"
	if diff := cmp.Diff(frozen, got, protocmp.Transform()); diff != "" {
		t.Errorf("Decode (-want +got):\n%s", diff)
	}
	for _, key := range []string{"pods/b/c", "pods/c/a", "nodes/a", "things/a", "pods"} {
		if m, err := object.Decode(key, value, 7); err == nil {
			t.Errorf("Decode(%q) = %v, want an error", key, m)
		}
	}
	if _, err := object.Decode("pods/b/a", []byte{0xff}, 7); err == nil {
		t.Error("decoded rubbish")
	}
	for _, key := range []string{"claims/clusterip/10.0.0.1", "system/cluster"} {
		if m, err := object.Decode(key, []byte("anything"), 7); m != nil || err != nil {
			t.Errorf("Decode(%q) = %v, %v, want nothing", key, m, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	value, err := object.Encode(&balsav1.Pod{Metadata: &balsav1.ObjectMeta{Name: "a", Namespace: "b"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("pods/b/a", value)
	f.Add("claims/x/y", value)
	f.Add("nodes/a", []byte{})
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		m, err := object.Decode(key, value, 1)
		if err != nil || m == nil {
			return
		}
		if got := object.KeyOf(m.(object.Message)); got != key {
			t.Fatalf("decoded %q from the key %q", got, key)
		}
		object.Index(key, m)
		if _, err := object.Encode(m.(object.Message)); err != nil {
			t.Fatal(err)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	value, err := object.Encode(examplePod())
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(value)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := object.Decode("pods/default/hello", value, 7); err != nil {
			b.Fatal(err)
		}
	}
}

func examplePod() *balsav1.Pod {
	pod := &balsav1.Pod{
		Metadata: &balsav1.ObjectMeta{Name: "hello", Labels: map[string]string{"app": "hello"}},
		Spec: &balsav1.PodSpec{Containers: []*balsav1.Container{{
			Name: "web", Image: "balsa/echo:1", Ports: []*balsav1.ContainerPort{{Name: "http", ContainerPort: 8080}},
			Resources:      &balsav1.ResourceRequirements{Limits: map[string]*balsav1.Quantity{"cpu": object.NewQuantity("500m"), "memory": object.NewQuantity("64Mi")}},
			ReadinessProbe: &balsav1.Probe{HttpGet: &balsav1.HTTPGetAction{Port: object.StringValue("http")}},
		}}},
	}
	object.Default(pod)
	object.Stamp(pod, "uid-1", at(1))
	return pod
}

func TestIndex(t *testing.T) {
	pod := examplePod()
	pod.Spec.NodeName = "n1"
	pod.Metadata.Labels["tier"] = "web"
	pod.Metadata.OwnerReferences = []*balsav1.OwnerReference{{Uid: "u1"}, {Uid: "u1"}, {Uid: "u2"}}
	want := []object.IndexEntry{
		{Index: "node", Value: "n1"}, {Index: "namespace", Value: "default"}, {Index: "owner", Value: "u1"}, {Index: "owner", Value: "u2"},
		{Index: "label", Value: "pods/default/app=hello"}, {Index: "label", Value: "pods/default/tier=web"},
	}
	if diff := cmp.Diff(want, object.Index("", pod)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := object.Index("claims/x", nil); got != nil {
		t.Errorf("a claim is indexed under %v", got)
	}
}

func TestDefaultTwiceChangesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		once := randomDeployment(t)
		object.Default(once)
		twice := object.Clone(once)
		object.Default(twice)
		if diff := cmp.Diff(once, twice, protocmp.Transform()); diff != "" {
			t.Fatalf("(-once +twice):\n%s", diff)
		}
	})
}

func TestStampAndGeneration(t *testing.T) {
	pod := examplePod()
	pod.Status.Phase = object.PodRunning
	pod.Metadata.ResourceVersion, pod.Metadata.Generation = "9", 9
	object.Stamp(pod, "uid-2", at(2))
	meta := pod.Metadata
	if meta.Uid != "uid-2" || meta.Generation != 1 || meta.ResourceVersion != "" || pod.Status.Phase != object.PodPending || !meta.CreationTimestamp.AsTime().Equal(at(2)) {
		t.Errorf("stamped: %v, %v", meta, pod.Status)
	}
	next := object.Clone(pod)
	next.Status.Phase, next.Metadata.Labels["a"] = object.PodRunning, "b"
	object.BumpGeneration(pod, next)
	if next.Metadata.Generation != 1 {
		t.Error("a status and a label changed the generation")
	}
	next.Spec.NodeName = "n1"
	object.BumpGeneration(pod, next)
	if next.Metadata.Generation != 2 {
		t.Error("spec did not change the generation")
	}
}

func TestCarryOver(t *testing.T) {
	old := examplePod()
	old.Metadata.ResourceVersion, old.Metadata.DeletionTimestamp = "5", timestamppb.New(at(9))
	old.Status.Phase = object.PodRunning
	next := &balsav1.Pod{Metadata: &balsav1.ObjectMeta{Name: "hello", Namespace: "default", Generation: 77}, Status: &balsav1.PodStatus{Phase: "Forged"}}
	object.CarryOver(old, next)
	want := object.Clone(old)
	want.Metadata.Labels, want.Spec, want.ApiVersion, want.Kind = nil, nil, "", ""
	if diff := cmp.Diff(want, next, protocmp.Transform()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestNames(t *testing.T) {
	random := bytes.NewReader(bytes.Repeat([]byte{0, 255, 26, 100, 250, 7}, 20))
	uid, err := object.NewUID(random)
	if err != nil || uid != "00ff1a64-fa07-40ff-9a64-fa0700ff1a64" {
		t.Errorf("uid %s, %v", uid, err)
	}
	pod := &balsav1.Pod{Metadata: &balsav1.ObjectMeta{GenerateName: strings.Repeat("a", 80) + "-"}}
	if err := object.GenerateName(pod, random); err != nil || len(pod.Metadata.Name) != 63 {
		t.Errorf("name %q, %v", pod.Metadata.Name, err)
	}
	if suffix, err := object.NameSuffix(strings.NewReader("abc")); err == nil {
		t.Errorf("a name %q from too little chance", suffix)
	}
}

func TestSetCondition(t *testing.T) {
	ready := &balsav1.Condition{Type: "Ready", Status: "False", Reason: "A"}
	list, changed := object.SetCondition(nil, ready, at(1))
	if !changed || len(list) != 1 || ready.LastTransitionTime != nil {
		t.Fatalf("first: %v, %v, argument %v", list, changed, ready)
	}
	same, changed := object.SetCondition(list, ready, at(2))
	if changed || !same[0].LastTransitionTime.AsTime().Equal(at(1)) {
		t.Errorf("again: %v, %v", same, changed)
	}
	reason, changed := object.SetCondition(list, &balsav1.Condition{Type: "Ready", Status: "False", Reason: "B"}, at(3))
	if !changed || !reason[0].LastTransitionTime.AsTime().Equal(at(1)) || list[0].Reason != "A" {
		t.Errorf("another reason: %v, %v, before %v", reason, changed, list)
	}
	status, changed := object.SetCondition(append(list, &balsav1.Condition{Type: "Other"}), &balsav1.Condition{Type: "Ready", Status: "True"}, at(4))
	if !changed || !status[0].LastTransitionTime.AsTime().Equal(at(4)) || len(status) != 2 {
		t.Errorf("another status: %v, %v", status, changed)
	}
}

func TestPodAvailable(t *testing.T) {
	pod := examplePod()
	if object.PodReady(pod) || !object.PodActive(pod) || object.PodFinished(pod) {
		t.Error("a new pod is not ready, active, not finished")
	}
	pod.Status.Conditions, _ = object.SetCondition(nil, &balsav1.Condition{Type: "Ready", Status: "True"}, at(10))
	if ok, _ := object.PodAvailable(pod, 0, at(9)); !ok {
		t.Error("ready is available without minReadySeconds, whatever the clock")
	}
	if ok, wait := object.PodAvailable(pod, 5, at(12)); ok || wait != 3*time.Second {
		t.Errorf("available %v, wait %v", ok, wait)
	}
	if ok, _ := object.PodAvailable(pod, 5, at(15)); !ok {
		t.Error("not available after its time")
	}
}

func TestTemplateHash(t *testing.T) {
	template := &balsav1.PodTemplateSpec{Metadata: &balsav1.ObjectMeta{Labels: map[string]string{"app": "a", "b": "c", "d": "e"}}, Spec: examplePod().Spec}
	// A template has none of what a pod got since the first version.
	template.Spec.DnsPolicy = ""
	template.Spec.Containers[0].TerminationMessagePath, template.Spec.Containers[0].TerminationMessagePolicy = "", ""
	hash := object.TemplateHash(template, 0)
	if problem := object.NameProblem(object.KindOf(examplePod()), hash); len(hash) != 10 || problem != "" {
		t.Errorf("hash %q: %s", hash, problem)
	}
	labelled := proto.CloneOf(template)
	labelled.Metadata.Labels[object.LabelTemplateHash] = "x"
	if object.TemplateHash(labelled, 0) != hash || !object.TemplateEqual(template, labelled) {
		t.Error("the hash's own label counts")
	}
	if object.TemplateHash(template, 1) == hash {
		t.Error("a collision does not change the hash")
	}
	other := proto.CloneOf(template)
	other.Spec.Containers[0].Image = "balsa/echo:2"
	if object.TemplateHash(other, 0) == hash || object.TemplateEqual(template, other) {
		t.Error("another image does not change the hash")
	}
	const pinned = "7xwlbqn9gj" // a new hash rolls every Deployment out anew
	if hash != pinned {
		t.Errorf("hash %s, was %s", hash, pinned)
	}
}

func TestResolveIntOrPercent(t *testing.T) {
	for _, c := range []struct {
		v        *balsav1.IntOrString
		total    int32
		up, down int32
	}{
		{nil, 10, 0, 0}, {object.IntValue(3), 10, 3, 3}, {object.StringValue("25%"), 10, 3, 2}, {object.StringValue("0%"), 10, 0, 0},
		{object.StringValue("100%"), 7, 7, 7}, {object.StringValue("1%"), 1, 1, 0}, {object.StringValue("10000%"), 2147483647, 2147483647, 2147483647},
	} {
		up, err1 := object.ResolveIntOrPercent(c.v, c.total, true)
		down, err2 := object.ResolveIntOrPercent(c.v, c.total, false)
		if up != c.up || down != c.down || err1 != nil || err2 != nil {
			t.Errorf("%v of %d: %d and %d, %v, %v, want %d and %d", c.v, c.total, up, down, err1, err2, c.up, c.down)
		}
	}
	for _, s := range []string{"", "%", "25", "-1%", "1.5%", "999999%", "25%%", " 25%"} {
		if n, err := object.ResolveIntOrPercent(object.StringValue(s), 10, true); err == nil {
			t.Errorf("%q is %d", s, n)
		}
	}
}

func TestRolloutBounds(t *testing.T) {
	for _, c := range []struct {
		replicas                   int32
		surge, unavailable         *balsav1.IntOrString
		wantSurge, wantUnavailable int32
	}{
		{3, object.StringValue("25%"), object.StringValue("25%"), 1, 0},
		{4, object.StringValue("25%"), object.StringValue("25%"), 1, 1},
		{3, object.StringValue("0%"), object.StringValue("25%"), 0, 1},
		{2, object.IntValue(0), object.IntValue(5), 0, 2},
		{0, object.StringValue("25%"), object.StringValue("25%"), 0, 0},
	} {
		d := &balsav1.Deployment{Spec: &balsav1.DeploymentSpec{Replicas: &c.replicas, Strategy: &balsav1.DeploymentStrategy{
			RollingUpdate: &balsav1.RollingUpdateDeployment{MaxSurge: c.surge, MaxUnavailable: c.unavailable}}}}
		surge, unavailable, err := object.RolloutBounds(d)
		if err != nil || surge != c.wantSurge || unavailable != c.wantUnavailable {
			t.Errorf("%v: %d, %d, %v, want %d, %d", c, surge, unavailable, err, c.wantSurge, c.wantUnavailable)
		}
	}
}

// What is listed as unsupported must not be supported.
func TestKnownFields(t *testing.T) {
	for _, name := range []protoreflect.FullName{"balsa.v1.PodSpec", "balsa.v1.Container", "balsa.v1.ObjectMeta", "balsa.v1.ServiceSpec", "balsa.v1.Probe"} {
		if object.KnownField(name, "nonsense") {
			t.Errorf("%s has a field nonsense", name)
		}
	}
	if !object.KnownField("balsa.v1.PodSpec", "affinity") || !object.KnownField("balsa.v1.Volume", "nfs") || !object.KnownField("balsa.v1.ObjectMeta", "finalizers") {
		t.Error("the table lacks what users write most")
	}
	seen := map[protoreflect.FullName]bool{}
	var walk func(protoreflect.MessageDescriptor)
	walk = func(md protoreflect.MessageDescriptor) {
		if seen[md.FullName()] {
			return
		}
		seen[md.FullName()] = true
		for i := range md.Fields().Len() {
			fd := md.Fields().Get(i)
			if object.KnownField(md.FullName(), fd.JSONName()) {
				t.Errorf("%s.%s is supported, and listed as not", md.FullName(), fd.JSONName())
			}
			if fd.Message() != nil {
				walk(fd.Message())
			}
		}
	}
	walk((&balsav1.Object{}).ProtoReflect().Descriptor())
	for _, k := range object.Kinds() {
		if object.KnownKind(k.Name) {
			t.Errorf("%s is supported, and listed as not", k.Name)
		}
	}
}

func TestSelectors(t *testing.T) {
	labels := map[string]string{"app": "hello", "tier": "web", "empty": ""}
	for text, want := range map[string]bool{
		"": true, "app=hello": true, "app==hello": true, "app = hello": true, "app=other": false, "app!=hello": false, "app!=other": true, "no!=x": true,
		"app in (hello, other)": true, "app in (other)": false, "app notin (hello)": false, "no notin (hello)": true, "app": true, "no": false, "!no": true, "! app": false,
		"app=hello,tier in (web,api),!old": true, "app=hello,tier=api": false, "empty=": true, "empty": true, "in=x": false, "in in (x)": false, "notin notin (x)": true,
		"app in (hello),tier": true, "a.b/c=d": false, "empty in ()": true,
	} {
		s, err := object.ParseSelector(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if got := s.Matches(labels); got != want {
			t.Errorf("%q matches: %v, want %v", text, got, want)
		}
		again, err := object.ParseSelector(s.String())
		if diff := cmp.Diff(s.Requirements(), again.Requirements()); err != nil || diff != "" {
			t.Errorf("%q, written as %q, reads differently: %v\n%s", text, s, err, diff)
		}
	}
	for _, text := range []string{",", "a,", ",a", "a=b c", "a in b", "a in (b", "=x", "!", "a b", "a=(x)", "-a=b", "a=-b", "a in (-b)", "a!", "a,,b", strings.Repeat("a,", 70) + "a", "a=" + strings.Repeat("b", 64)} {
		if s, err := object.ParseSelector(text); err == nil {
			t.Errorf("%q was read as %v", text, s)
		}
	}
}

func TestSelectorFrom(t *testing.T) {
	if s, err := object.SelectorFrom(nil); err != nil || s.Matches(nil) || s.Empty() {
		t.Error("no selector matches something")
	}
	if s, err := object.SelectorFrom(&balsav1.LabelSelector{}); err != nil || !s.Matches(nil) || !s.Empty() {
		t.Error("the empty selector does not match everything")
	}
	s, err := object.SelectorFrom(&balsav1.LabelSelector{
		MatchLabels:      map[string]string{"b": "1", "a": "2"},
		MatchExpressions: []*balsav1.LabelSelectorRequirement{{Key: "c", Operator: "NotIn", Values: []string{"y", "x"}}, {Key: "d", Operator: "Exists"}},
	})
	if err != nil || s.String() != "a=2,b=1,c notin (x,y),d" {
		t.Errorf("got %s, %v", s, err)
	}
	if key, value, ok := s.Exact(); !ok || key != "a" || value != "2" {
		t.Errorf("exact: %s=%s, %v", key, value, ok)
	}
	for _, e := range []*balsav1.LabelSelectorRequirement{
		{Key: "a", Operator: "in", Values: []string{"x"}}, {Key: "a", Operator: "In"}, {Key: "a", Operator: "Exists", Values: []string{"x"}}, {Operator: "Exists"},
	} {
		if s, err := object.SelectorFrom(&balsav1.LabelSelector{MatchExpressions: []*balsav1.LabelSelectorRequirement{e}}); err == nil {
			t.Errorf("%v was read as %v", e, s)
		}
	}
	if object.ServiceSelector(&balsav1.Service{}).Matches(map[string]string{"a": "b"}) {
		t.Error("a Service without a selector selects pods")
	}
}

func FuzzSelector(f *testing.F) {
	for _, s := range []string{"a=b", "a in (b,c),!d", "a notin (x)", "a!=b", "in in (in)"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := object.ParseSelector(text)
		if err != nil {
			return
		}
		again, err := object.ParseSelector(s.String())
		if err != nil || cmp.Diff(s.Requirements(), again.Requirements()) != "" {
			t.Fatalf("%q, written as %q, reads differently: %v", text, s, err)
		}
	})
}

func TestFieldSelectors(t *testing.T) {
	pod := examplePod()
	pod.Spec.NodeName = "n1"
	kind := object.KindOf(pod)
	for text, want := range map[string]bool{
		"": true, "metadata.name=hello": true, "metadata.namespace!=default": false, "spec.nodeName=n1,status.phase=Pending": true,
		"spec.nodeName == n2": false, "status.phase!=Running": true, "spec.nodeName=": false,
	} {
		s, err := object.ParseFieldSelector(kind, text)
		if err != nil || s.Matches(pod) != want {
			t.Errorf("%q: %v, %v, want %v", text, s.Matches(pod), err, want)
		}
	}
	if s, _ := object.ParseFieldSelector(kind, "spec.nodeName=n1"); true {
		if value, ok := s.Exact("spec.nodeName"); !ok || value != "n1" {
			t.Errorf("exact: %q, %v", value, ok)
		}
	}
	for _, text := range []string{"spec.replicas=1", "metadata.name", "metadata.name!", "involvedObject.name=a", ",", "metadata.name~a"} {
		if _, err := object.ParseFieldSelector(kind, text); err == nil {
			t.Errorf("%q was read", text)
		}
	}
	for _, k := range object.Kinds() {
		for _, f := range object.SelectableFields(k) {
			if _, err := object.ParseFieldSelector(k, f+"=x"); err != nil {
				t.Errorf("%s: %v", k.Name, err)
			}
		}
	}
}
