package object

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// LeafValues is every leaf that Apply may merge, by path.
func LeafValues(m Message) map[string]string {
	out := map[string]string{}
	var walk func(protoreflect.Message, string)
	walk = func(m protoreflect.Message, path string) {
		for _, e := range elements(m, path) {
			if e.shape == node {
				walk(e.value.Message(), e.path)
				continue
			}
			out[e.path] = valueText(e.value)
		}
	}
	walk(m.ProtoReflect(), "")
	return out
}

func valueText(v protoreflect.Value) string {
	var out string
	switch x := v.Interface().(type) {
	case protoreflect.List:
		for i := range x.Len() {
			out += valueText(x.Get(i)) + ","
		}
	case protoreflect.Map:
		entries := map[string]string{}
		x.Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
			entries[k.String()] = valueText(v)
			return true
		})
		out = fmt.Sprint(entries)
	case protoreflect.Message:
		out = fmt.Sprint(x.Interface())
	default:
		out = v.String()
	}
	return out
}

// UnsupportedFields lists what KnownField knows of a message.
func UnsupportedFields(message protoreflect.FullName) []string {
	return strings.Fields(unsupportedFields(message))
}
