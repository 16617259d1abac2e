package storage

import (
	"context"
	"errors"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/loop"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/reconciler/control"
	"github.com/balsa-run/balsa/store"
)

// settle gathers the pods of one binding round of placement.
const settle = 5 * time.Millisecond

type concern struct{ *control.Kit }

// New makes the concern, which has one key: claims compete for volumes.
func New(k *control.Kit) control.Concern {
	s := &concern{k}
	return control.Concern{
		Name: "storage", Settle: settle, Keys: keys, Step: s.step,
		List: func(store.View) []string { return []string{""} }, // the built-in classes
	}
}

// keys: claims, volumes, classes, pods with claims, and nodes that come or go.
func keys(_ store.View, ev store.Event) []string {
	kind, _, _, _ := object.ParseKey(ev.KV.Key)
	switch kind.Name {
	case "PersistentVolumeClaim", "PersistentVolume", "StorageClass":
		return []string{""}
	case "Node":
		if ev.Type == store.EventDelete || ev.KV.Version == 1 {
			return []string{""}
		}
	case "Pod":
		pod, ok := ev.KV.Object.(*balsav1.Pod)
		if !ok && ev.Prev != nil {
			pod, ok = ev.Prev.Object.(*balsav1.Pod)
		}
		if ok && len(object.ClaimNames(pod.GetSpec())) > 0 {
			return []string{""}
		}
	}
	return nil
}

func (s *concern) step(ctx context.Context, _ []string) []loop.Again {
	v, err := s.View(ctx)
	if err == nil {
		err = s.carryOut(ctx, Plan(viewOf(v), s.Clock.Now()))
	}
	if err != nil {
		return []loop.Again{{Err: err}}
	}
	return nil
}

func viewOf(v store.View) View {
	out := View{
		Claims: all[*balsav1.PersistentVolumeClaim](v, "PersistentVolumeClaim"), Volumes: all[*balsav1.PersistentVolume](v, "PersistentVolume"),
		Classes: all[*balsav1.StorageClass](v, "StorageClass"), Nodes: map[string]bool{},
	}
	for _, n := range all[*balsav1.Node](v, "Node") {
		out.Nodes[n.GetMetadata().GetName()] = true
	}
	if len(out.Claims) == 0 {
		return out
	}
	for _, pod := range all[*balsav1.Pod](v, "Pod") {
		if !object.PodFinished(pod) && len(object.ClaimNames(pod.GetSpec())) > 0 {
			out.Pods = append(out.Pods, pod)
		}
	}
	return out
}

func all[M object.Message](v store.View, kindName string) []M {
	kind, _ := object.KindByName(kindName)
	return control.Collect[M](v.Prefix(object.Prefix(kind, "")))
}

func (s *concern) carryOut(ctx context.Context, steps []Step) error {
	changes := make([]*control.Change, 0, len(steps))
	for _, step := range steps {
		c, err := s.change(step)
		if err != nil {
			return err
		}
		changes = append(changes, c)
	}
	return errors.Join(s.CommitAll(ctx, changes)...)
}

func (s *concern) change(step Step) (*control.Change, error) {
	c := control.NewChange("bind storage")
	for _, m := range step.Create {
		if err := control.Stamp(m, s.Rand, s.Clock.Now()); err != nil {
			return nil, err
		}
		if v, ok := m.(*balsav1.PersistentVolume); ok && v.GetSpec().GetClaimRef() != nil {
			v.Status = &balsav1.PersistentVolumeStatus{Phase: object.VolumeBound} // Stamp makes it Available
		}
		if err := c.Create(m); err != nil {
			return nil, err
		}
	}
	for _, m := range step.Update {
		if err := c.Update(m); err != nil {
			return nil, err
		}
	}
	for _, m := range step.Delete {
		c.Delete(m)
	}
	for _, m := range step.Expect {
		c.Expect(m)
	}
	if step.About != nil {
		kind := object.EventNormal
		if step.Warning {
			kind = object.EventWarning
		}
		c.Then(func() { s.Events.Record(step.About, kind, step.Reason, step.Message) })
	}
	return c, nil
}
