package codec_test

import (
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"pgregory.net/rapid"
)

// awkward is text that some reader takes for something else.
func awkward() *rapid.Generator[string] {
	return rapid.OneOf(
		rapid.SampledFrom([]string{
			"yes", "No", "on", "y", "~", "null", "true", "0", "007", "0x1f", "0b1", "1_000", "1e3", ".5", "-.5", "+1", "1:30", "12:30:45",
			"2026-01-01", "2026-01-02T03:04:05Z", ".inf", "-.Inf", ".NaN", "<<", "=", "-", "- a", "? a", ": a", "a: b", "a #b", "#a", "*a", "&a",
			"!a", "%a", "@a", "`a", "{a}", "[a]", "'a'", "\"a\"", "a\nb\n", "a\n\n", "\n", " a", "a ", "\ta", "a\t\nb", "a\r\nb", "\u0085", "\u2028",
			"\ufeff", "\u00e9\U0001f600", "---", "...", "--- a", "|", ">", "a\n  b\n c", "\x7f", "\x00", "\ufffe", "a\nb", "  \n", "\n\n a",
		}),
		rapid.String(),
	)
}

// fill gives a message random content that its text form can carry.
func fill(t *rapid.T, m protoreflect.Message, depth int) {
	switch m.Descriptor().FullName() {
	case "google.protobuf.Timestamp":
		m.Set(m.Descriptor().Fields().ByName("seconds"), protoreflect.ValueOfInt64(rapid.Int64Range(-62135596800, 253402300799).Draw(t, "seconds")))
		m.Set(m.Descriptor().Fields().ByName("nanos"), protoreflect.ValueOfInt32(rapid.Int32Range(0, 999_999_999).Draw(t, "nanos")))
		return
	case "balsa.v1.Quantity":
		m.Set(m.Descriptor().Fields().ByName("string"), protoreflect.ValueOfString(awkward().Draw(t, "quantity")))
		return
	case "balsa.v1.IntOrString":
		fields := m.Descriptor().Fields()
		if rapid.Bool().Draw(t, "int") {
			m.Set(fields.ByName("int"), protoreflect.ValueOfInt32(rapid.Int32().Draw(t, "value")))
		} else {
			m.Set(fields.ByName("string"), protoreflect.ValueOfString(awkward().Draw(t, "value")))
		}
		return
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if !rapid.Bool().Draw(t, "set") || fd.Message() != nil && depth <= 0 {
			continue
		}
		fillField(t, m, fd, depth-1)
	}
}

func fillField(t *rapid.T, m protoreflect.Message, fd protoreflect.FieldDescriptor, depth int) {
	n := rapid.IntRange(0, 2).Draw(t, "n")
	switch {
	case fd.IsMap() && n > 0:
		entries := m.Mutable(fd).Map()
		for range n {
			key := protoreflect.ValueOfString(awkward().Draw(t, "key")).MapKey()
			v := entries.NewValue()
			if fd.MapValue().Message() != nil {
				fill(t, v.Message(), depth)
			} else {
				v = scalarValue(t, fd.MapValue())
			}
			entries.Set(key, v)
		}
	case fd.IsMap():
	case fd.IsList() && n > 0:
		list := m.Mutable(fd).List()
		for range n {
			if fd.Message() != nil {
				fill(t, list.AppendMutable().Message(), depth)
			} else {
				list.Append(scalarValue(t, fd))
			}
		}
	case fd.IsList():
	case fd.Message() != nil:
		fill(t, m.Mutable(fd).Message(), depth)
	default:
		m.Set(fd, scalarValue(t, fd))
	}
}

func scalarValue(t *rapid.T, fd protoreflect.FieldDescriptor) protoreflect.Value {
	switch fd.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(awkward().Draw(t, "string"))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes(rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "bytes"))
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(rapid.Bool().Draw(t, "bool"))
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(rapid.Int32().Draw(t, "int32"))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(rapid.Int64().Draw(t, "int64"))
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(rapid.Uint32().Draw(t, "uint32"))
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return protoreflect.ValueOfUint64(rapid.Uint64().Draw(t, "uint64"))
	case protoreflect.EnumKind:
		values := fd.Enum().Values()
		return protoreflect.ValueOfEnum(values.Get(rapid.IntRange(0, values.Len()-1).Draw(t, "enum")).Number())
	}
	panic(fmt.Sprintf("no generator for %s", fd.Kind()))
}

func random[M proto.Message](t *rapid.T, m M) M {
	fill(t, m.ProtoReflect(), 6)
	return m
}
