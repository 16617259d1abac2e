package storage

import (
	"flag"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
	rt "github.com/balsa-run/balsa/reconciler/reconcilertest"
)

var _ = flag.Bool("update", false, "rewrite the golden files")

// A claim is "claim data class=local size=1Gi volume=pv phase=Bound", a volume
// "volume pv on=n1 size=1Gi class=local claim=data/uid phase=Bound policy=Retain
// path=/srv"; a pod uses claims by claims=a,b. The built-in classes are there
// unless "classes none" says otherwise.
func TestGolden(t *testing.T) {
	rt.Golden(t, func(t *testing.T, lines []rt.Line) string {
		v := View{Nodes: map[string]bool{}, Classes: builtIn()}
		for _, l := range lines {
			switch l.Kind {
			case "classes":
				v.Classes = nil
			case "class":
				v.Classes = append(v.Classes, &balsav1.StorageClass{
					Metadata: l.Meta(t), Parameters: map[string]string{"type": l.Words["type"]}, ReclaimPolicy: l.Words["policy"],
				})
			case "node":
				v.Nodes[l.Name] = true
			case "claim":
				v.Claims = append(v.Claims, claimOf(t, l))
			case "volume":
				v.Volumes = append(v.Volumes, volumeOf(t, l))
			default:
				v.Pods = append(v.Pods, podOf(t, l))
			}
		}
		steps := Plan(v, rt.Now())
		var b strings.Builder
		for _, s := range steps {
			b.WriteString(s.String() + "\n")
		}
		if again := Plan(after(v, steps), rt.Now()); len(again) > 0 {
			t.Errorf("the plan is not stable: then %v", again)
		}
		return b.String()
	})
}

func builtIn() []*balsav1.StorageClass {
	local := &balsav1.StorageClass{
		Metadata:   &balsav1.ObjectMeta{Name: ClassLocal, Annotations: map[string]string{object.AnnotationDefaultClass: "true"}},
		Parameters: map[string]string{object.ParameterType: object.FSTypeExt4},
	}
	directory := &balsav1.StorageClass{
		Metadata: &balsav1.ObjectMeta{Name: ClassDirectory}, Parameters: map[string]string{object.ParameterType: object.TypeDirectory},
	}
	return []*balsav1.StorageClass{local, directory}
}

func size(l rt.Line) map[string]*balsav1.Quantity {
	return map[string]*balsav1.Quantity{object.ResourceStorage: object.NewQuantity(l.Words["size"])}
}

func claimOf(t *testing.T, l rt.Line) *balsav1.PersistentVolumeClaim {
	c := &balsav1.PersistentVolumeClaim{
		Metadata: l.Meta(t), Status: &balsav1.PersistentVolumeClaimStatus{Phase: object.ClaimPending},
		Spec: &balsav1.PersistentVolumeClaimSpec{
			AccessModes: []string{object.AccessReadWriteOnce}, Resources: &balsav1.VolumeResourceRequirements{Requests: size(l)}, VolumeName: l.Words["volume"],
		},
	}
	switch class := l.Words["class"]; class {
	case "":
	case "none":
		c.Spec.StorageClassName = proto.String("")
	default:
		c.Spec.StorageClassName = proto.String(class)
	}
	if l.Has("phase") {
		c.Status.Phase = l.Words["phase"]
	}
	return c
}

func volumeOf(t *testing.T, l rt.Line) *balsav1.PersistentVolume {
	v := &balsav1.PersistentVolume{
		Metadata: l.Meta(t), Status: &balsav1.PersistentVolumeStatus{Phase: object.VolumeAvailable},
		Spec: &balsav1.PersistentVolumeSpec{
			Capacity: size(l), AccessModes: []string{object.AccessReadWriteOnce}, StorageClassName: l.Words["class"],
			PersistentVolumeReclaimPolicy: object.ReclaimDelete, NodeAffinity: object.VolumeOnNode(l.Words["on"]),
			Local: &balsav1.LocalVolumeSource{Path: l.Words["path"]},
		},
	}
	v.Metadata.Namespace = ""
	if l.Has("policy") {
		v.Spec.PersistentVolumeReclaimPolicy = l.Words["policy"]
	}
	if l.Has("phase") {
		v.Status.Phase = l.Words["phase"]
	}
	if name, uid, _ := strings.Cut(l.Words["claim"], "/"); name != "" {
		v.Spec.ClaimRef = &balsav1.ClaimReference{Namespace: "default", Name: name, Uid: uid}
	}
	return v
}

func podOf(t *testing.T, l rt.Line) *balsav1.Pod {
	p := l.Pod(t)
	for name := range strings.SplitSeq(l.Words["claims"], ",") {
		p.Spec.Volumes = append(p.Spec.Volumes, &balsav1.Volume{
			Name: name, PersistentVolumeClaim: &balsav1.PersistentVolumeClaimVolumeSource{ClaimName: name},
		})
	}
	return p
}

// after is the view once the steps are carried out.
func after(v View, steps []Step) View {
	objects := map[string]object.Message{}
	for _, c := range v.Claims {
		objects[object.KeyOf(c)] = c
	}
	for _, x := range v.Volumes {
		objects[object.KeyOf(x)] = x
	}
	for _, c := range v.Classes {
		objects[object.KeyOf(c)] = c
	}
	for _, s := range steps {
		for _, m := range append(s.Create, s.Update...) {
			objects[object.KeyOf(m)] = m
		}
		for _, m := range s.Delete {
			delete(objects, object.KeyOf(m))
		}
	}
	next := View{Pods: v.Pods, Nodes: v.Nodes}
	for _, m := range objects {
		switch m := m.(type) {
		case *balsav1.PersistentVolumeClaim:
			next.Claims = append(next.Claims, m)
		case *balsav1.PersistentVolume:
			next.Volumes = append(next.Volumes, m)
		case *balsav1.StorageClass:
			next.Classes = append(next.Classes, m)
		}
	}
	return next
}

func TestTheStoreTakesWhatIsPlanned(t *testing.T) {
	w := rt.New(t)
	c := New(w.Kit())
	w.Settle(c)
	if class := rt.Get[*balsav1.StorageClass](w, "storageclasses/local"); class.GetMetadata().GetUid() == "" {
		t.Errorf("the class was not stamped: %v", class)
	}
	claim := &balsav1.PersistentVolumeClaim{
		Metadata: &balsav1.ObjectMeta{Name: "data", Namespace: "default", Uid: "u1"},
		Spec: &balsav1.PersistentVolumeClaimSpec{
			AccessModes: []string{object.AccessReadWriteOnce},
			Resources:   &balsav1.VolumeResourceRequirements{Requests: map[string]*balsav1.Quantity{object.ResourceStorage: object.NewQuantity("1Gi")}},
		},
	}
	w.Put(claim)
	w.Put(&balsav1.Node{Metadata: &balsav1.ObjectMeta{Name: "n1"}})
	w.Settle(c)
	got := func() *balsav1.PersistentVolumeClaim {
		return rt.Get[*balsav1.PersistentVolumeClaim](w, "persistentvolumeclaims/default/data")
	}
	if why := object.FindCondition(got().GetStatus().GetConditions(), ConditionBound); why.GetReason() != ReasonWaitForFirstConsumer {
		t.Errorf("condition %v", why)
	}
	w.Put(&balsav1.Pod{Metadata: &balsav1.ObjectMeta{Name: "p", Namespace: "default"}, Spec: &balsav1.PodSpec{
		NodeName: "n1", Volumes: []*balsav1.Volume{{Name: "v", PersistentVolumeClaim: &balsav1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}},
	}})
	w.Settle(c)
	name := "persistentvolumes/pvc-" + got().GetMetadata().GetUid()
	volume := rt.Get[*balsav1.PersistentVolume](w, name)
	if got().GetStatus().GetPhase() != object.ClaimBound || volume.GetStatus().GetPhase() != object.VolumeBound || object.VolumeNode(volume.GetSpec()) != "n1" {
		t.Errorf("claim %v, volume %v", got(), volume)
	}
	rt.Edit(w, "persistentvolumeclaims/default/data", func(m *balsav1.PersistentVolumeClaim) { m.Metadata.DeletionTimestamp = timestamppb.Now() })
	w.Settle(c)
	got() // is kept while the pod runs
	rt.Edit(w, "pods/default/p", func(m *balsav1.Pod) { m.Status = &balsav1.PodStatus{Phase: object.PodSucceeded} })
	w.Settle(c)
	if _, there := w.View().Get("persistentvolumeclaims/default/data"); there {
		t.Error("the claim is there although nothing uses it")
	}
	if volume = rt.Get[*balsav1.PersistentVolume](w, name); volume.GetStatus().GetPhase() != object.VolumeReleased {
		t.Errorf("volume %v", volume)
	}
}
