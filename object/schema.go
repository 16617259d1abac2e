package object

import (
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/balsa-run/balsa/internal/codec"
)

// shape tells how a field is merged.
type shape int

const (
	// leaf is replaced as a whole: scalars, most lists, a few messages and maps.
	leaf shape = iota
	// node is a message whose fields are merged one by one.
	node
	// entries is a map whose keys are merged one by one.
	entries
	// keyed is a list whose items are told apart by some of their fields.
	keyed
)

// shapeOf is Kubernetes' merge strategy of a field (x-kubernetes-list-type,
// x-kubernetes-map-type and the list's map keys).
func shapeOf(fd protoreflect.FieldDescriptor) shape {
	switch {
	case fd.IsMap():
		switch fd.FullName() {
		case "balsa.v1.ServiceSpec.selector", "balsa.v1.PodSpec.node_selector", "balsa.v1.AddressPoolSpec.node_selector":
			return leaf
		}
		return entries
	case fd.IsList():
		if listKeys(fd) != nil {
			return keyed
		}
		return leaf
	case fd.Message() != nil && !isAtomic(fd.Message().FullName()):
		return node
	}
	return leaf
}

func isAtomic(message protoreflect.FullName) bool {
	switch message {
	case "balsa.v1.Quantity", "balsa.v1.IntOrString", "google.protobuf.Timestamp", "balsa.v1.LabelSelector",
		"balsa.v1.ObjectFieldSelector", "balsa.v1.KeySelector", "balsa.v1.ObjectReference", "balsa.v1.ResourceFieldSelector",
		"balsa.v1.NodeSelector":
		return true
	}
	return false
}

// listKeys are the fields that tell a list's items apart; nil for a leaf.
func listKeys(fd protoreflect.FieldDescriptor) []protoreflect.Name {
	switch fd.FullName() {
	case "balsa.v1.PodSpec.containers", "balsa.v1.PodSpec.init_containers", "balsa.v1.PodSpec.ephemeral_containers",
		"balsa.v1.PodSpec.volumes", "balsa.v1.PodSpec.image_pull_secrets", "balsa.v1.Container.env", "balsa.v1.EphemeralContainer.env":
		return []protoreflect.Name{"name"}
	case "balsa.v1.Container.volume_mounts", "balsa.v1.EphemeralContainer.volume_mounts":
		return []protoreflect.Name{"mount_path"}
	case "balsa.v1.PodSpec.host_aliases":
		return []protoreflect.Name{"ip"}
	case "balsa.v1.Container.ports":
		return []protoreflect.Name{"container_port", "protocol"}
	case "balsa.v1.ServiceSpec.ports":
		return []protoreflect.Name{"port", "protocol"}
	case "balsa.v1.ObjectMeta.owner_references":
		return []protoreflect.Name{"uid"}
	case "balsa.v1.PodSpec.topology_spread_constraints":
		return []protoreflect.Name{"topology_key", "when_unsatisfiable"}
	}
	return nil
}

// itemPath is the path of an item of a keyed list: "containers[name=web]".
func itemPath(path string, fd protoreflect.FieldDescriptor, item protoreflect.Message) string {
	var b strings.Builder
	b.WriteString(path + "[")
	for i, name := range listKeys(fd) {
		if i > 0 {
			b.WriteByte(',')
		}
		key := item.Descriptor().Fields().ByName(name)
		b.WriteString(key.JSONName() + "=" + keyText(item.Get(key).String(), name))
	}
	b.WriteByte(']')
	return b.String()
}

// keyText is a key's value; a protocol that is not given is TCP.
func keyText(value string, name protoreflect.Name) string {
	if name == "protocol" && value == "" {
		return ProtocolTCP
	}
	for i := range len(value) {
		if c := value[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`[]",=\`, c) >= 0 {
			return strconv.Quote(value)
		}
	}
	return value
}

// isMerged tells whether Apply has anything to do with a field of the message at
// path: not with what names the object, nor with what only the server writes.
func isMerged(fd protoreflect.FieldDescriptor, path string) bool {
	switch path {
	case "":
		switch fd.Name() {
		case "api_version", "kind", "status":
			return false
		}
	case "metadata":
		switch fd.Name() {
		case "name", "generate_name", "namespace", "uid", "resource_version", "generation", "creation_timestamp",
			"deletion_timestamp", "deletion_grace_period_seconds", "managed_fields":
			return false
		}
	}
	return true
}

// element is a part of a message that Apply handles as one: a field, a map's
// entry or a keyed list's item.
type element struct {
	path  string
	shape shape
	// field is the message's field that the element is or lies in.
	field protoreflect.FieldDescriptor
	value protoreflect.Value
	// key is valid for a map's entry.
	key protoreflect.MapKey
}

// isItem tells an item of a keyed list.
func (e element) isItem() bool { return e.field.IsList() && e.shape == node }

// elements lists the parts of a message that Apply may merge, in the order of
// the descriptor, maps sorted by key.
func elements(m protoreflect.Message, path string) []element {
	var out []element
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if !m.Has(fd) || !isMerged(fd, path) {
			continue
		}
		here := codec.FieldPath(path, fd.JSONName())
		switch s := shapeOf(fd); s {
		case entries:
			out = append(out, mapElements(m.Get(fd).Map(), fd, here)...)
		case keyed:
			list := m.Get(fd).List()
			for i := range list.Len() {
				item := list.Get(i)
				out = append(out, element{path: itemPath(here, fd, item.Message()), shape: node, field: fd, value: item})
			}
		default:
			out = append(out, element{path: here, shape: s, field: fd, value: m.Get(fd)})
		}
	}
	return out
}

func mapElements(m protoreflect.Map, fd protoreflect.FieldDescriptor, path string) []element {
	out := make([]element, 0, m.Len())
	m.Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
		out = append(out, element{path: codec.KeyPath(path, k.String()), shape: leaf, field: fd, value: v, key: k})
		return true
	})
	slices.SortFunc(out, func(a, b element) int { return strings.Compare(a.path, b.path) })
	return out
}

// byPath is a message's elements for looking up; a nil message has none.
func byPath(m protoreflect.Message, path string) map[string]protoreflect.Value {
	if m == nil {
		return nil
	}
	list := elements(m, path)
	out := make(map[string]protoreflect.Value, len(list))
	for _, e := range list {
		out[e.path] = e.value
	}
	return out
}

// clearElement takes an element out of the message that it is a direct part of.
func clearElement(m protoreflect.Message, e element) {
	switch {
	case e.key.IsValid():
		entries := m.Mutable(e.field).Map()
		entries.Clear(e.key)
		if entries.Len() == 0 {
			m.Clear(e.field)
		}
	case e.isItem():
		list := m.Mutable(e.field).List()
		kept := 0
		for i := range list.Len() {
			if item := list.Get(i); item.Message().Interface() != e.value.Message().Interface() {
				list.Set(kept, item)
				kept++
			}
		}
		list.Truncate(kept)
	default:
		m.Clear(e.field)
	}
}
