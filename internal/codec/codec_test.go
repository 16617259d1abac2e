package codec_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/internal/codec"
)

// Whatever a message holds, its text gives it back.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := random(t, &balsav1.ErrorDetail{})
		if rapid.Bool().Draw(t, "object") {
			checkRoundTrip(t, random(t, &balsav1.ListResponse{}), &balsav1.ListResponse{})
			return
		}
		checkRoundTrip(t, m, &balsav1.ErrorDetail{})
	})
}

func TestRoundTripInternal(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		checkRoundTrip(t, random(t, &internalv1.Batch{}), &internalv1.Batch{})
		checkRoundTrip(t, random(t, &internalv1.StateResponse{}), &internalv1.StateResponse{})
	})
}

func checkRoundTrip(t *rapid.T, m, empty proto.Message) {
	text, err := codec.AppendJSON(nil, m)
	if err != nil {
		t.Fatal(err)
	}
	if !json.Valid(text) {
		t.Fatalf("not JSON: %s", text)
	}
	checkDecode(t, text, m, empty)
	indented, err := codec.IndentedJSON(m)
	if err != nil {
		t.Fatal(err)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, indented); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(text), strings.TrimSpace(compact.String())); diff != "" {
		t.Fatalf("indented JSON says something else (-compact +indented):\n%s", diff)
	}
	yamlText, err := codec.MarshalYAML(m)
	if err != nil {
		t.Fatal(err)
	}
	trees, err := codec.ParseYAML(yamlText, 1<<20)
	if err != nil {
		t.Fatalf("%v in\n%s", err, yamlText)
	}
	got := empty.ProtoReflect().New().Interface()
	if err := (codec.Options{}).Decode(trees[0], got); err != nil {
		t.Fatalf("%v in\n%s", err, yamlText)
	}
	if diff := cmp.Diff(m, got, protocmp.Transform()); diff != "" {
		t.Fatalf("YAML gave something else (-want +got):\n%s\n%s", diff, yamlText)
	}
}

func checkDecode(t *rapid.T, text []byte, want, empty proto.Message) {
	got := empty.ProtoReflect().New().Interface()
	if err := (codec.Options{}).ReadJSON(text, 1<<20, got); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Fatalf("JSON gave something else (-want +got):\n%s\n%s", diff, text)
	}
}

// Every message of ours consists of what the codec has rules for.
func TestEveryFieldHasARule(t *testing.T) {
	seen := map[protoreflect.FullName]bool{}
	files := []protoreflect.FileDescriptor{
		balsav1.File_balsa_v1_object_proto, balsav1.File_balsa_v1_object_service_proto, balsav1.File_balsa_v1_cluster_service_proto,
		balsav1.File_balsa_v1_node_service_proto, balsav1.File_balsa_v1_pod_service_proto, balsav1.File_balsa_v1_image_service_proto,
		internalv1.File_balsa_internal_v1_store_proto, internalv1.File_balsa_internal_v1_peer_proto,
		internalv1.File_balsa_internal_v1_records_proto, internalv1.File_balsa_internal_v1_agent_proto,
	}
	for _, f := range files {
		for i := range f.Messages().Len() {
			checkMessage(t, f.Messages().Get(i), seen)
		}
	}
	if len(seen) < 100 {
		t.Errorf("looked at %d messages only", len(seen))
	}
}

func checkMessage(t *testing.T, md protoreflect.MessageDescriptor, seen map[protoreflect.FullName]bool) {
	if seen[md.FullName()] {
		return
	}
	seen[md.FullName()] = true
	if strings.HasPrefix(string(md.FullName()), "google.") && md.FullName() != "google.protobuf.Timestamp" {
		t.Errorf("%s has no rule", md.FullName())
	}
	fields := md.Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if fd.IsMap() && fd.MapKey().Kind() != protoreflect.StringKind {
			t.Errorf("%s: map keys of kind %s have no rule", fd.FullName(), fd.MapKey().Kind())
		}
		switch fd.Kind() {
		case protoreflect.GroupKind, protoreflect.FloatKind, protoreflect.DoubleKind:
			t.Errorf("%s: kind %s has no rule", fd.FullName(), fd.Kind())
		}
		if fd.Message() != nil && !fd.IsMap() {
			checkMessage(t, fd.Message(), seen)
		}
	}
}

func TestKubernetesConventions(t *testing.T) {
	pod := &balsav1.Pod{
		ApiVersion: "v1", Kind: "Pod",
		Metadata: &balsav1.ObjectMeta{Name: "a", Generation: 9007199254740993, CreationTimestamp: &timestamppb.Timestamp{Seconds: 1}},
		Spec: &balsav1.PodSpec{Containers: []*balsav1.Container{{
			Name:           "web",
			Resources:      &balsav1.ResourceRequirements{Limits: map[string]*balsav1.Quantity{"memory": {String_: "64Mi"}, "cpu": {String_: "0.5"}}},
			ReadinessProbe: &balsav1.Probe{HttpGet: &balsav1.HTTPGetAction{Port: &balsav1.IntOrString{Value: &balsav1.IntOrString_Int{Int: 80}}}},
		}}, TerminationGracePeriodSeconds: proto.Int64(0)},
		Status: &balsav1.PodStatus{PodIp: "10.0.0.1", PodIps: []*balsav1.PodIP{{Ip: "10.0.0.1"}}},
	}
	const want = `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","generation":9007199254740993,"creationTimestamp":"1970-01-01T00:00:01Z"},` +
		`"spec":{"containers":[{"name":"web","resources":{"limits":{"cpu":"0.5","memory":"64Mi"}},"readinessProbe":{"httpGet":{"port":80}}}],` +
		`"terminationGracePeriodSeconds":0},"status":{"podIP":"10.0.0.1","podIPs":[{"ip":"10.0.0.1"}]}}`
	got, err := codec.AppendJSON(nil, pod)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("JSON (-want +got):\n%s", diff)
	}
}

func TestYAMLStyle(t *testing.T) {
	m := &balsav1.ConfigMap{ApiVersion: "v1", Kind: "ConfigMap",
		Metadata: &balsav1.ObjectMeta{Name: "a", OwnerReferences: []*balsav1.OwnerReference{{Kind: "Pod"}}},
		Data:     map[string]string{"answer": "yes", "port": "080", "script": "one\ntwo\n", "time": "1:30", "word": "plain text"}}
	const want = `apiVersion: v1
kind: ConfigMap
metadata:
  name: a
  ownerReferences:
  - kind: Pod
data:
  answer: "yes"
  port: "080"
  script: |
    one
    two
  time: "1:30"
  word: plain text
`
	got, err := codec.MarshalYAML(m)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("YAML (-want +got):\n%s", diff)
	}
}

func TestLenientSkipsWhatIsNew(t *testing.T) {
	const text = `{"reason":"x","new":{"a":[1]},"applied":"APPLIED_LATER","hint":"y"}`
	var m balsav1.ErrorDetail
	if err := (codec.Options{Lenient: true}).ReadJSON([]byte(text), 1<<10, &m); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&balsav1.ErrorDetail{Reason: "x", Hint: "y"}, &m, protocmp.Transform()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestRefuseUnknownNamesPathAndNumber(t *testing.T) {
	unknown := protowire.AppendVarint(protowire.AppendTag(nil, 77, protowire.VarintType), 1)
	container := &balsav1.Container{Name: "web"}
	container.ProtoReflect().SetUnknown(unknown)
	limit := &balsav1.Quantity{}
	limit.ProtoReflect().SetUnknown(unknown)
	container.Resources = &balsav1.ResourceRequirements{Limits: map[string]*balsav1.Quantity{"cpu": limit}}
	data, err := proto.Marshal(&balsav1.CreateRequest{Object: &balsav1.Object{Object: &balsav1.Object_Pod{Pod: &balsav1.Pod{
		Spec: &balsav1.PodSpec{Containers: []*balsav1.Container{{}, container}},
	}}}})
	if err != nil {
		t.Fatal(err)
	}
	const want = `object.pod.spec.containers[1].resources.limits[cpu]: unknown field number 77; try: use a client of this server's version, or an older one
object.pod.spec.containers[1]: unknown field number 77; try: use a client of this server's version, or an older one`
	for _, c := range codec.Strict(nil) {
		if !c.IsBinary() {
			continue
		}
		err := c.Unmarshal(data, &balsav1.CreateRequest{})
		if err == nil || err.Error() != sortedLines(want) {
			t.Errorf("strict: got %v, want %s", err, sortedLines(want))
		}
	}
	for _, c := range codec.Lenient() {
		if c.IsBinary() {
			if err := c.Unmarshal(data, &balsav1.CreateRequest{}); err != nil {
				t.Errorf("lenient: %v", err)
			}
		}
	}
}

// sortedLines puts the container's line first, as sorting by path does.
func sortedLines(s string) string {
	a, b, _ := strings.Cut(s, "\n")
	return b + "\n" + a
}

func TestMarshalRefuses(t *testing.T) {
	for name, m := range map[string]proto.Message{
		"not UTF-8":        &balsav1.ObjectMeta{Name: "\xff"},
		"year 10000":       &balsav1.ObjectMeta{CreationTimestamp: &timestamppb.Timestamp{Seconds: 253402300800}},
		"negative nanos":   &balsav1.ObjectMeta{CreationTimestamp: &timestamppb.Timestamp{Nanos: -1}},
		"year 0":           &balsav1.ObjectMeta{CreationTimestamp: &timestamppb.Timestamp{Seconds: -62135596801}},
		"not UTF-8 inside": &balsav1.ObjectMeta{Labels: map[string]string{"a": "\xff"}},
	} {
		if text, err := codec.AppendJSON(nil, m); err == nil {
			t.Errorf("%s: got %s, want an error", name, text)
		}
		if text, err := codec.MarshalYAML(m); err == nil {
			t.Errorf("%s: got %s, want an error", name, text)
		}
	}
}

func TestNearest(t *testing.T) {
	fields := []string{"replicas", "nodeName", "containers", "podCIDR"}
	for word, want := range map[string]string{
		"replica": "replicas", "relpicas": "replicas", "node_name": "nodeName", "NODENAME": "nodeName", "conatiners": "containers", //nolint:misspell // what people mistype is the test
		"podCidr": "podCIDR", "volumes": "", "x": "", "": "", strings.Repeat("replicas", 20): "",
	} {
		if got := codec.Nearest(word, fields); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", word, got, want)
		}
	}
}

func TestLocate(t *testing.T) {
	const text = "kind: Pod\nmetadata:\n  labels:\n    a.b/c: x\n    \"q[r]\": y\nspec:\n  containers:\n  - name: one\n  - name: two\n    image: i\n"
	trees, err := codec.ParseYAML([]byte(text), 1<<10)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string][2]int{
		"":                          {1, 1},
		"kind":                      {1, 1},
		"metadata.labels[a.b/c]":    {4, 5},
		`metadata.labels["q[r]"]`:   {5, 5},
		"spec.containers[1].image":  {10, 5},
		"spec.containers[1].absent": {9, 5},
		"spec.containers[9].image":  {7, 3},
		"absent.absent":             {1, 1},
	} {
		if line, column := trees[0].Locate(path); [2]int{line, column} != want {
			t.Errorf("Locate(%q) = %d:%d, want %d:%d", path, line, column, want[0], want[1])
		}
	}
}
