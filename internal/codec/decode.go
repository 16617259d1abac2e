package codec

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Names of messages whose text form is not an object.
const (
	quantityName    protoreflect.FullName = "balsa.v1.Quantity"
	intOrStringName protoreflect.FullName = "balsa.v1.IntOrString"
	timestampName   protoreflect.FullName = "google.protobuf.Timestamp"
)

// KnownFields tells whether Kubernetes has a field, by JSON name, in the message
// that has our shape of it. Such a field is refused as not supported yet rather
// than as unknown.
type KnownFields func(message protoreflect.FullName, jsonName string) bool

// Options say how to decode.
type Options struct {
	// Known may be nil.
	Known KnownFields
	// Lenient skips unknown fields and unknown enum values, for clients that may
	// be older than the server.
	Lenient bool
}

// Decode fills an empty message from a tree. The error is an *Error.
func (o Options) Decode(t *Tree, m proto.Message) error {
	return o.DecodeNode(t, &t.Root, "", m)
}

// DecodeNode is Decode for a part of a tree, whose path begins the paths of
// issues.
func (o Options) DecodeNode(t *Tree, n *Node, path string, m proto.Message) error {
	d := decoder{Options: o, tree: t}
	d.message(n, step{text: path}, m.ProtoReflect())
	if len(d.issues) > 0 {
		return &Error{Issues: d.issues}
	}
	return nil
}

// ReadJSON parses and decodes.
func (o Options) ReadJSON(data []byte, limit int, m proto.Message) error {
	t, err := ParseJSON(data, limit)
	if err != nil {
		return err
	}
	return o.Decode(t, m)
}

type decoder struct {
	Options
	tree   *Tree
	issues []Issue
}

// step is a path that is only spelled out when there is an issue.
type step struct {
	parent *step
	kind   stepKind
	text   string
	index  int
}

type stepKind uint8

const (
	fieldStep stepKind = iota
	keyStep
	indexStep
)

// String copies every part: steps then never outlive their call, and the
// compiler keeps them off the heap.
func (s *step) String() string { return string(s.append(nil)) }

func (s *step) append(b []byte) []byte {
	if s.parent != nil {
		b = s.parent.append(b)
	}
	switch {
	case s.kind == keyStep:
		return append(b, KeyPath("", s.text)...)
	case s.kind == indexStep:
		return append(b, IndexPath("", s.index)...)
	case len(b) > 0:
		b = append(b, '.')
	}
	return append(b, s.text...)
}

func (d *decoder) full() bool { return len(d.issues) >= maxIssues }

func (d *decoder) issue(where Pos, at *step, i Issue) {
	if d.full() {
		return
	}
	i.Path = at.String()
	i.Line, i.Column = d.tree.Position(where)
	d.issues = append(d.issues, i)
}

// wrongType never repeats the value, which may be a Secret's.
func (d *decoder) wrongType(n *Node, at *step, want, hint string) {
	d.issue(n.Pos, at, Issue{Message: "wrong type", Found: n.Kind.String(), Allowed: want, Hint: hint})
}

func (d *decoder) message(n *Node, at step, m protoreflect.Message) {
	switch name := m.Descriptor().FullName(); name {
	case quantityName:
		d.quantity(n, &at, m)
	case intOrStringName:
		d.intOrString(n, &at, m)
	case timestampName:
		d.timestamp(n, &at, m)
	default:
		if strings.HasPrefix(string(name), "google.protobuf.") {
			panic(fmt.Sprintf("codec: no rule for %s", name))
		}
		d.object(n, &at, m)
	}
}

func (d *decoder) object(n *Node, at *step, m protoreflect.Message) {
	if n.Kind != Map {
		d.wrongType(n, at, "an object", "")
		return
	}
	fields := m.Descriptor().Fields()
	for i := range n.Fields {
		f := &n.Fields[i]
		fd := fields.ByJSONName(f.Name)
		here := step{parent: at, text: f.Name}
		switch {
		case d.full():
			return
		case fd == nil:
			d.unknown(f.Key, &here, m.Descriptor())
		case f.Value.Kind != Null:
			d.oneof(f.Key, &here, m, fd)
			d.field(&f.Value, here, m, fd)
		}
	}
}

func (d *decoder) unknown(key Pos, at *step, md protoreflect.MessageDescriptor) {
	name := strings.Clone(at.text) // see step.String
	switch {
	case d.Lenient:
	case d.Known != nil && d.Known(md.FullName(), name):
		d.issue(key, at, Issue{Message: "not supported yet", Hint: "remove the field"})
	default:
		message := "unknown field"
		if near := nearestField(md, name); near != "" {
			message += ", did you mean " + near + "?"
		}
		d.issue(key, at, Issue{Message: message})
	}
}

// oneof refuses a second member of a oneof.
func (d *decoder) oneof(key Pos, at *step, m protoreflect.Message, fd protoreflect.FieldDescriptor) {
	group := fd.ContainingOneof()
	if group == nil || group.IsSynthetic() {
		return
	}
	if other := m.WhichOneof(group); other != nil && other != fd {
		d.issue(key, at, Issue{Message: fmt.Sprintf("excludes %s, which is also set", other.JSONName()), Allowed: "one of the two"})
	}
}

func (d *decoder) field(n *Node, at step, m protoreflect.Message, fd protoreflect.FieldDescriptor) {
	switch {
	case fd.IsMap():
		d.mapField(n, &at, m, fd)
	case fd.IsList():
		d.listField(n, &at, m, fd)
	case fd.Message() != nil:
		d.message(n, at, m.Mutable(fd).Message())
	default:
		if v, ok := d.scalar(n, &at, fd); ok {
			m.Set(fd, v)
		}
	}
}

func (d *decoder) listField(n *Node, at *step, m protoreflect.Message, fd protoreflect.FieldDescriptor) {
	if n.Kind != List {
		d.wrongType(n, at, "a list", "")
		return
	}
	if len(n.Items) == 0 {
		return
	}
	list := m.Mutable(fd).List()
	for i := range n.Items {
		item := &n.Items[i]
		here := step{parent: at, kind: indexStep, index: i}
		switch {
		case d.full():
			return
		case item.Kind == Null:
			d.wrongType(item, &here, wanted(fd), "remove the item")
		case fd.Message() != nil:
			d.message(item, here, list.AppendMutable().Message())
		default:
			if v, ok := d.scalar(item, &here, fd); ok {
				list.Append(v)
			}
		}
	}
}

func (d *decoder) mapField(n *Node, at *step, m protoreflect.Message, fd protoreflect.FieldDescriptor) {
	if n.Kind != Map {
		d.wrongType(n, at, "an object", "")
		return
	}
	if fd.MapKey().Kind() != protoreflect.StringKind {
		panic(fmt.Sprintf("codec: no rule for the keys of %s", fd.FullName()))
	}
	if len(n.Fields) == 0 {
		return
	}
	entries := m.Mutable(fd).Map()
	for i := range n.Fields {
		if d.full() {
			return
		}
		f := &n.Fields[i]
		here := step{parent: at, kind: keyStep, text: f.Name}
		if v, ok := d.mapValue(&f.Value, here, entries, fd.MapValue()); ok {
			entries.Set(protoreflect.ValueOfString(strings.Clone(f.Name)).MapKey(), v)
		}
	}
}

func (d *decoder) mapValue(n *Node, at step, entries protoreflect.Map, fd protoreflect.FieldDescriptor) (protoreflect.Value, bool) {
	if n.Kind == Null {
		d.wrongType(n, &at, wanted(fd), `write "" for an empty value, or remove the key`)
		return protoreflect.Value{}, false
	}
	if fd.Message() == nil {
		return d.scalar(n, &at, fd)
	}
	v := entries.NewValue()
	d.message(n, at, v.Message())
	return v, true
}

// wanted says what a list's item or a map's value should be.
func wanted(fd protoreflect.FieldDescriptor) string {
	switch fd.Kind() {
	case protoreflect.StringKind, protoreflect.BytesKind, protoreflect.EnumKind:
		return "a string"
	case protoreflect.BoolKind:
		return "true or false"
	case protoreflect.MessageKind:
		switch fd.Message().FullName() {
		case quantityName, intOrStringName:
			return "a number or a string"
		case timestampName:
			return "a string"
		}
		return "an object"
	}
	return "a number"
}

func (d *decoder) quantity(n *Node, at *step, m protoreflect.Message) {
	if n.Kind != String && n.Kind != Number {
		d.wrongType(n, at, "a number or a string such as 500m or 64Mi", "")
		return
	}
	m.Set(m.Descriptor().Fields().ByName("string"), protoreflect.ValueOfString(strings.Clone(n.Text)))
}

func (d *decoder) intOrString(n *Node, at *step, m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	switch n.Kind {
	case String:
		m.Set(fields.ByName("string"), protoreflect.ValueOfString(strings.Clone(n.Text)))
	case Number:
		if v, ok := d.integer(n, at, math.MinInt32, math.MaxInt32); ok {
			m.Set(fields.ByName("int"), protoreflect.ValueOfInt32(int32(v)))
		}
	default:
		d.wrongType(n, at, "a number or a string", "")
	}
}

// enumNames lists what an enum field takes, without the unspecified value.
func enumNames(fd protoreflect.FieldDescriptor) string {
	values := fd.Enum().Values()
	names := make([]string, 0, values.Len())
	for i := range values.Len() {
		if v := values.Get(i); v.Number() != 0 {
			names = append(names, string(v.Name()))
		}
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}
