package rollout

import (
	"slices"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/revisions"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/reconciler/control"
	"github.com/balsa-run/balsa/store"
)

// keys: the Deployment itself, that of a ReplicaSet, that of a pod's ReplicaSet,
// and those that refer to a ConfigMap or Secret. An orphan may be adopted by any
// Deployment of its namespace.
func keys(v store.View, ev store.Event) (out []string) {
	if m, ok := config(ev); ok {
		return keysOfConfig(v, m, ev.Type == store.EventDelete)
	}
	kvs := []store.KV{ev.KV}
	if ev.Prev != nil {
		kvs = append(kvs, *ev.Prev)
	}
	for _, kv := range kvs {
		switch m := kv.Object.(type) {
		case *balsav1.Deployment:
			out = append(out, kv.Key)
		case *balsav1.ReplicaSet:
			out = append(out, keysOfSet(v, m)...)
		case *balsav1.Pod:
			if key, ok := control.ControllerKey(m, "ReplicaSet"); ok {
				if rs, ok := control.Get[*balsav1.ReplicaSet](v, key); ok {
					out = append(out, keysOfSet(v, rs)...)
				}
			}
		}
	}
	return out
}

func keysOfSet(v store.View, rs *balsav1.ReplicaSet) []string {
	if key, ok := control.ControllerKey(rs, "Deployment"); ok {
		return []string{key}
	}
	if object.ControllerOf(rs) != nil {
		return nil
	}
	var out []string
	kind, _ := object.KindByName("Deployment")
	for kv := range v.Prefix(object.Prefix(kind, rs.GetMetadata().GetNamespace())) {
		out = append(out, kv.Key)
	}
	return out
}

// config is the ConfigMap or Secret that an event is about: as it is now, or as it
// was before it was deleted.
func config(ev store.Event) (object.Message, bool) {
	m := control.Object(ev.KV)
	if m == nil && ev.Prev != nil {
		m = control.Object(*ev.Prev)
	}
	switch m.(type) {
	case *balsav1.ConfigMap, *balsav1.Secret:
		return m, true
	}
	return nil, false
}

// keysOfConfig: every Deployment of the namespace whose template refers to it. Of
// a copy only its end matters, to those whose ReplicaSets own it.
func keysOfConfig(v store.View, m object.Message, deleted bool) (out []string) {
	meta := m.GetMetadata()
	if deleted {
		for _, ref := range meta.GetOwnerReferences() {
			kind, ok := object.KindByName(ref.GetKind())
			if !ok {
				continue
			}
			if rs, ok := control.Get[*balsav1.ReplicaSet](v, object.Key(kind, meta.GetNamespace(), ref.GetName())); ok {
				out = append(out, keysOfSet(v, rs)...)
			}
		}
	}
	if meta.GetLabels()[revisions.LabelPinnedFrom] != "" && !deleted {
		return out
	}
	ref := revisions.Ref{Kind: object.KindOf(m).Name, Name: meta.GetName()}
	kind, _ := object.KindByName("Deployment")
	for kv := range v.Prefix(object.Prefix(kind, meta.GetNamespace())) {
		d, ok := kv.Object.(*balsav1.Deployment)
		if ok && slices.ContainsFunc(revisions.Uses(d.GetSpec().GetTemplate()), func(u revisions.Use) bool { return u.Ref == ref }) {
			out = append(out, kv.Key)
		}
	}
	return out
}
