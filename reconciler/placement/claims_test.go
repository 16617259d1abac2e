package placement

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
	rt "github.com/balsa-run/balsa/reconciler/reconcilertest"
)

func claim(name, volume, reason string, modes ...string) *balsav1.PersistentVolumeClaim {
	c := &balsav1.PersistentVolumeClaim{
		Metadata: &balsav1.ObjectMeta{Name: name, Namespace: "default"},
		Spec:     &balsav1.PersistentVolumeClaimSpec{VolumeName: volume, AccessModes: modes},
		Status: &balsav1.PersistentVolumeClaimStatus{Phase: object.ClaimPending, Conditions: []*balsav1.Condition{
			{Type: conditionBound, Status: object.ConditionFalse, Reason: reason, Message: "because"},
		}},
	}
	if volume != "" {
		c.Status.Phase = object.ClaimBound
	}
	return c
}

func using(pod *balsav1.Pod, age time.Duration, names ...string) *balsav1.Pod {
	pod.Metadata.CreationTimestamp = timestamppb.New(rt.Now().Add(-age))
	for _, name := range names {
		pod.Spec.Volumes = append(pod.Spec.Volumes, &balsav1.Volume{
			Name: name, PersistentVolumeClaim: &balsav1.PersistentVolumeClaimVolumeSource{ClaimName: name},
		})
	}
	return pod
}

func TestPodsGoWhereTheirVolumesAre(t *testing.T) {
	running := using(pod("running", "1"), time.Hour, "single")
	running.Spec.NodeName = "n1"
	a := Plan(View{
		Nodes: []*balsav1.Node{node("n1", "64"), node("n2", "64"), node("n3", "64")},
		Claims: []*balsav1.PersistentVolumeClaim{
			claim("data", "pv", ""), claim("fresh", "", reasonWaits), claim("odd", "", "ClassNotFound"),
			claim("single", "pv1", "", object.AccessReadWriteOncePod), claim("free", "pv1", "", object.AccessReadWriteOncePod), claim("hole", "absent", ""),
		},
		Volumes: []*balsav1.PersistentVolume{
			{Metadata: &balsav1.ObjectMeta{Name: "pv"}, Spec: &balsav1.PersistentVolumeSpec{NodeAffinity: object.VolumeOnNode("n3")}},
			{Metadata: &balsav1.ObjectMeta{Name: "pv1"}, Spec: &balsav1.PersistentVolumeSpec{NodeAffinity: object.VolumeOnNode("n1")}},
		},
		Pods: []*balsav1.Pod{
			running, using(pod("young", "1"), time.Minute, "fresh"), using(pod("eldest", "1"), time.Hour, "fresh"),
			using(pod("there", "1"), 0, "data"), using(pod("absent", "1"), 0, "no-such-claim"), using(pod("odd", "1"), 0, "odd"),
			using(pod("second", "1"), 0, "single"), using(pod("alone", "1"), 0, "free"), using(pod("apart", "1"), 0, "data", "free"), using(pod("hole", "1"), 0, "hole"),
		},
	}, rt.Now())
	got := map[string]string{}
	for _, p := range a.Bind {
		got[p.GetMetadata().GetName()] = p.GetSpec().GetNodeName()
	}
	if got["there"] != "n3" || got["alone"] != "n1" || got["eldest"] == "" || len(got) != 3 {
		t.Errorf("bound %v", got)
	}
	for name, want := range map[string]string{
		"young":  `persistentvolumeclaim "fresh" gets its volume where pod "eldest" is placed`,
		"absent": `persistentvolumeclaim "no-such-claim" does not exist: apply it, or mend spec.volumes`,
		"odd":    `persistentvolumeclaim "odd" has no volume: because`,
		"second": `persistentvolumeclaim "single" is ReadWriteOncePod and pod "running" has it`,
		"apart":  `persistentvolumeclaim "free" is ReadWriteOncePod and pod "alone" has it`,
		"hole":   `persistentvolumeclaim "hole" is bound to persistentvolume "absent", which does not exist`,
	} {
		if why := a.Explanations["pods/default/"+name]; why.Message() != want {
			t.Errorf("%s waits because %q, want %q", name, why.Message(), want)
		}
	}
}
