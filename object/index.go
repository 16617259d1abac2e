package object

import (
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// Names of the store's indexes.
const (
	// IndexNode finds pods by spec.nodeName.
	IndexNode = "node"
	// IndexOwner finds objects by the uid of each of their owners.
	IndexOwner = "owner"
	// IndexNamespace finds the objects of every kind in a namespace.
	IndexNamespace = "namespace"
	// IndexLabel finds objects of one kind in one namespace by a label; make its
	// values with LabelIndex.
	IndexLabel = "label"
)

// IndexEntry says that an object is found in Index under Value.
type IndexEntry struct {
	Index, Value string
}

// LabelIndex is where objects of a kind with a label are found. For kinds of the
// cluster namespace is empty.
func LabelIndex(kind Kind, namespace, key, value string) IndexEntry {
	return IndexEntry{IndexLabel, Prefix(kind, namespace) + key + "=" + value}
}

// Index lists where an object is found, in an order that depends on nothing but
// the object. It is injected into the store; nil for a nil message.
func Index(_ string, msg proto.Message) []IndexEntry {
	m, ok := msg.(Message)
	if !ok {
		return nil
	}
	meta := m.GetMetadata()
	kind := kinds[kindIndex(m)]
	entries := make([]IndexEntry, 0, 3+len(meta.GetLabels()))
	if pod, ok := m.(*balsav1.Pod); ok && pod.GetSpec().GetNodeName() != "" {
		entries = append(entries, IndexEntry{IndexNode, pod.GetSpec().GetNodeName()})
	}
	if kind.Namespaced {
		entries = append(entries, IndexEntry{IndexNamespace, meta.GetNamespace()})
	}
	for _, owner := range meta.GetOwnerReferences() {
		if e := (IndexEntry{IndexOwner, owner.GetUid()}); !slices.Contains(entries, e) {
			entries = append(entries, e)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(meta.GetLabels())) {
		entries = append(entries, LabelIndex(kind, meta.GetNamespace(), key, meta.GetLabels()[key]))
	}
	return entries
}
