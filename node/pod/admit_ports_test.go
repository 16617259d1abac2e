package pod

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

func TestAdmitOnePodAPort(t *testing.T) {
	build := func(name string, age int64, host bool, port int32) *balsav1.Pod {
		return &balsav1.Pod{
			Metadata: &balsav1.ObjectMeta{Name: name, Namespace: "n", Uid: name, CreationTimestamp: timestamppb.New(time.Unix(age, 0))},
			Spec: &balsav1.PodSpec{HostNetwork: proto.Bool(host), Containers: []*balsav1.Container{
				{Name: "c", Ports: []*balsav1.ContainerPort{{ContainerPort: port, Protocol: "TCP"}}}}},
		}
	}
	pods := []*balsav1.Pod{build("second", 2, true, 80), build("first", 1, true, 80), build("other", 3, true, 81), build("inside", 0, false, 80), build("settled", 9, true, 80)}
	got := Admit(pods, func(string) bool { return false }, Capacity{Pods: 9})
	want := "the pod was refused: the node has no room for it: port 80/TCP of the node is taken by pod n/first"
	if len(got) != 2 || got["second"].Reason != ReasonNodePorts || got["second"].Message != want || got["settled"].Message != want {
		t.Errorf("got %v", got)
	}
	got = Admit(pods, func(uid string) bool { return uid == "settled" || uid == "second" }, Capacity{Pods: 9})
	if len(got) != 1 || got["first"].Reason != ReasonNodePorts {
		t.Errorf("with two that run: %v", got)
	}
}
