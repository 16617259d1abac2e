package codec

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// AppendJSON appends a message as JSON on one line: fields in the order of the
// .proto file, maps sorted by key, nothing that is not set. The same message
// always gives the same bytes.
func AppendJSON(dst []byte, m proto.Message) ([]byte, error) {
	e := encoder{buf: dst}
	e.message(m.ProtoReflect())
	return e.buf, e.err
}

// IndentedJSON is a message as JSON for people, indented by two spaces, with a
// line feed at the end.
func IndentedJSON(m proto.Message) ([]byte, error) {
	e := encoder{indented: true}
	e.message(m.ProtoReflect())
	return append(e.buf, '\n'), e.err
}

// encoder keeps the first error.
type encoder struct {
	buf      []byte
	indented bool
	depth    int
	err      error
}

func (e *encoder) fail(format string, args ...any) {
	if e.err == nil {
		e.err = fmt.Errorf("marshal JSON: "+format, args...)
	}
}

func (e *encoder) open(c byte) {
	e.buf = append(e.buf, c)
	e.depth++
	if e.depth > MaxDepth {
		e.fail("nested deeper than %d", MaxDepth)
	}
}

// next begins an item or a field; first tells whether it is the first.
func (e *encoder) next(first bool) {
	if !first {
		e.buf = append(e.buf, ',')
	}
	e.line()
}

func (e *encoder) line() {
	if !e.indented {
		return
	}
	e.buf = append(e.buf, '\n')
	for range e.depth {
		e.buf = append(e.buf, "  "...)
	}
}

func (e *encoder) close(c byte, empty bool) {
	e.depth--
	if !empty {
		e.line()
	}
	e.buf = append(e.buf, c)
}

func (e *encoder) name(s string) {
	e.string(s)
	e.buf = append(e.buf, ':')
	if e.indented {
		e.buf = append(e.buf, ' ')
	}
}

func (e *encoder) message(m protoreflect.Message) {
	switch m.Descriptor().FullName() {
	case quantityName:
		e.string(m.Get(m.Descriptor().Fields().ByName("string")).String())
	case intOrStringName:
		e.intOrString(m)
	case timestampName:
		e.timestamp(m)
	default:
		e.object(m)
	}
}

func (e *encoder) object(m protoreflect.Message) {
	if e.err != nil {
		return
	}
	e.open('{')
	empty := true
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if !m.Has(fd) {
			continue
		}
		e.next(empty)
		empty = false
		e.name(fd.JSONName())
		e.field(m.Get(fd), fd)
	}
	e.close('}', empty)
}

func (e *encoder) field(v protoreflect.Value, fd protoreflect.FieldDescriptor) {
	switch {
	case fd.IsMap():
		e.mapField(v.Map(), fd)
	case fd.IsList():
		e.open('[')
		list := v.List()
		for i := range list.Len() {
			e.next(i == 0)
			e.value(list.Get(i), fd)
		}
		e.close(']', list.Len() == 0)
	default:
		e.value(v, fd)
	}
}

func (e *encoder) mapField(entries protoreflect.Map, fd protoreflect.FieldDescriptor) {
	if fd.MapKey().Kind() != protoreflect.StringKind {
		panic(fmt.Sprintf("codec: no rule for the keys of %s", fd.FullName()))
	}
	keys := make([]string, 0, entries.Len())
	entries.Range(func(k protoreflect.MapKey, _ protoreflect.Value) bool {
		keys = append(keys, k.String())
		return true
	})
	slices.Sort(keys)
	e.open('{')
	for i, key := range keys {
		e.next(i == 0)
		e.name(key)
		e.value(entries.Get(protoreflect.ValueOfString(key).MapKey()), fd.MapValue())
	}
	e.close('}', len(keys) == 0)
}

func (e *encoder) value(v protoreflect.Value, fd protoreflect.FieldDescriptor) {
	switch fd.Kind() {
	case protoreflect.StringKind:
		e.string(v.String())
	case protoreflect.BytesKind:
		e.bytes(v.Bytes())
	case protoreflect.BoolKind:
		e.buf = strconv.AppendBool(e.buf, v.Bool())
	case protoreflect.EnumKind:
		e.enum(v.Enum(), fd)
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind,
		protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		e.buf = strconv.AppendInt(e.buf, v.Int(), 10)
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind, protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		e.buf = strconv.AppendUint(e.buf, v.Uint(), 10)
	case protoreflect.MessageKind:
		e.message(v.Message())
	default:
		panic(fmt.Sprintf("codec: no rule for %s", fd.FullName()))
	}
}

func (e *encoder) enum(n protoreflect.EnumNumber, fd protoreflect.FieldDescriptor) {
	v := fd.Enum().Values().ByNumber(n)
	if v == nil {
		e.buf = strconv.AppendInt(e.buf, int64(n), 10)
		return
	}
	e.string(string(v.Name()))
}

func (e *encoder) bytes(b []byte) {
	e.buf = append(e.buf, '"')
	e.buf = base64.StdEncoding.AppendEncode(e.buf, b)
	e.buf = append(e.buf, '"')
}

// string escapes what RFC 8259, section 7, wants escaped and nothing else.
func (e *encoder) string(s string) {
	const hex = "0123456789abcdef"
	if !utf8.ValidString(s) {
		e.fail("a string is not UTF-8")
		return
	}
	e.buf = append(e.buf, '"')
	start := 0
	for i := range len(s) {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		e.buf = append(e.buf, s[start:i]...)
		start = i + 1
		switch c {
		case '"', '\\':
			e.buf = append(e.buf, '\\', c)
		case '\n':
			e.buf = append(e.buf, '\\', 'n')
		case '\r':
			e.buf = append(e.buf, '\\', 'r')
		case '\t':
			e.buf = append(e.buf, '\\', 't')
		default:
			e.buf = append(e.buf, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
	}
	e.buf = append(e.buf, s[start:]...)
	e.buf = append(e.buf, '"')
}

func (e *encoder) intOrString(m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	if fd := fields.ByName("string"); m.Has(fd) {
		e.string(m.Get(fd).String())
		return
	}
	e.buf = strconv.AppendInt(e.buf, m.Get(fields.ByName("int")).Int(), 10)
}

// Bounds of google.protobuf.Timestamp: years 1 to 9999.
const (
	minTimestamp = -62135596800
	maxTimestamp = 253402300799
)

func (e *encoder) timestamp(m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	seconds := m.Get(fields.ByName("seconds")).Int()
	nanos := m.Get(fields.ByName("nanos")).Int()
	if seconds < minTimestamp || seconds > maxTimestamp || nanos < 0 || nanos >= 1e9 {
		e.fail("a time is out of range: %d s, %d ns", seconds, nanos)
		return
	}
	e.buf = append(e.buf, '"')
	e.buf = time.Unix(seconds, nanos).UTC().AppendFormat(e.buf, time.RFC3339Nano)
	e.buf = append(e.buf, '"')
}
