package codec

import (
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
)

func (d *decoder) scalar(n *Node, at *step, fd protoreflect.FieldDescriptor) (protoreflect.Value, bool) {
	switch fd.Kind() {
	case protoreflect.StringKind:
		return d.text(n, at)
	case protoreflect.BytesKind:
		return d.bytes(n, at)
	case protoreflect.BoolKind:
		return d.boolean(n, at)
	case protoreflect.EnumKind:
		return d.enum(n, at, fd)
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		if v, is := fileMode(n, fd); is {
			return protoreflect.ValueOfInt32(v), true
		}
		v, ok := d.integer(n, at, math.MinInt32, math.MaxInt32)
		return protoreflect.ValueOfInt32(int32(v)), ok
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		v, ok := d.integer(number(n), at, math.MinInt64, math.MaxInt64)
		return protoreflect.ValueOfInt64(v), ok
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		v, ok := d.natural(n, at, math.MaxUint32)
		return protoreflect.ValueOfUint32(uint32(v)), ok
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		v, ok := d.natural(number(n), at, math.MaxUint64)
		return protoreflect.ValueOfUint64(v), ok
	}
	panic(fmt.Sprintf("codec: no rule for %s", fd.FullName()))
}

// fileMode reads 0644 and 0o644 as modes of files are written, which is no
// ambiguity there: nobody writes them in decimal with a 0 in front. JSON has no
// such numbers.
func fileMode(n *Node, fd protoreflect.FieldDescriptor) (int32, bool) {
	const octal, bits = 8, 31
	if name := fd.Name(); n.Kind != Number || name != "mode" && name != "default_mode" || len(n.Text) < 2 || n.Text[0] != '0' {
		return 0, false
	}
	v, err := strconv.ParseInt(strings.TrimPrefix(n.Text[1:], "o"), octal, bits+1)
	return int32(v), err == nil && v >= 0
}

// number reads a quoted 64-bit number as one: protojson writes them so.
func number(n *Node) *Node {
	if n.Kind != String || n.Plain || !isDecimal(n.Text) {
		return n
	}
	dup := *n
	dup.Kind = Number
	return &dup
}

func (d *decoder) text(n *Node, at *step) (protoreflect.Value, bool) {
	switch n.Kind {
	case String:
		return protoreflect.ValueOfString(strings.Clone(n.Text)), true
	case Number, Bool:
		d.wrongType(n, at, "a string", "write the value in quotes")
	default:
		d.wrongType(n, at, "a string", "")
	}
	return protoreflect.Value{}, false
}

// bytes reads base64 as RFC 4648, section 4, with its padding. Line breaks, as
// YAML's block style and the tool base64 make them, are skipped.
func (d *decoder) bytes(n *Node, at *step) (protoreflect.Value, bool) {
	if n.Kind != String {
		d.wrongType(n, at, "a string in base64", "")
		return protoreflect.Value{}, false
	}
	b, err := base64.StdEncoding.Strict().DecodeString(n.Text)
	if err == nil {
		return protoreflect.ValueOfBytes(b), true
	}
	message := "not base64"
	var corrupt base64.CorruptInputError
	if errors.As(err, &corrupt) {
		message += fmt.Sprintf(", see character %d of %d", int(corrupt)+1, len(n.Text))
	}
	hint := "encode the value, or write it in stringData if this is a Secret"
	if len(strings.TrimRight(n.Text, "=\r\n"))%4 != 0 && len(strings.NewReplacer("\r", "", "\n", "").Replace(n.Text))%4 != 0 {
		hint = "the length with its padding (=) must be a multiple of 4; " + hint
	}
	d.issue(n.Pos, at, Issue{Message: message, Allowed: "base64 with padding (RFC 4648, section 4)", Hint: hint})
	return protoreflect.Value{}, false
}

func (d *decoder) boolean(n *Node, at *step) (protoreflect.Value, bool) {
	if n.Kind == Bool {
		return protoreflect.ValueOfBool(n.Text == "true"), true
	}
	hint := ""
	if n.Kind == String {
		switch strings.ToLower(n.Text) {
		case "yes", "y", "on", "true":
			hint = "true, without quotes: only YAML 1.1 reads yes, y and on as a boolean"
		case "no", "n", "off", "false":
			hint = "false, without quotes: only YAML 1.1 reads no, n and off as a boolean"
		}
	}
	d.wrongType(n, at, "true or false", hint)
	return protoreflect.Value{}, false
}

func (d *decoder) enum(n *Node, at *step, fd protoreflect.FieldDescriptor) (protoreflect.Value, bool) {
	if n.Kind != String {
		if !d.Lenient || n.Kind != Number {
			d.wrongType(n, at, "one of "+enumNames(fd), "")
		}
		return protoreflect.Value{}, false
	}
	if v := fd.Enum().Values().ByName(protoreflect.Name(n.Text)); v != nil {
		return protoreflect.ValueOfEnum(v.Number()), true
	}
	if !d.Lenient {
		d.issue(n.Pos, at, Issue{Message: "not one of the allowed values", Found: strconv.Quote(n.Text), Allowed: enumNames(fd)})
	}
	return protoreflect.Value{}, false
}

func (d *decoder) integer(n *Node, at *step, lowest, highest int64) (int64, bool) {
	if !d.checkDecimal(n, at) {
		return 0, false
	}
	v, err := strconv.ParseInt(n.Text, 10, 64)
	if err != nil || v < lowest || v > highest {
		d.issue(n.Pos, at, Issue{Message: "out of range", Found: shorten(n.Text), Allowed: fmt.Sprintf("%d to %d", lowest, highest)})
		return 0, false
	}
	return v, true
}

func (d *decoder) natural(n *Node, at *step, highest uint64) (uint64, bool) {
	if !d.checkDecimal(n, at) {
		return 0, false
	}
	v, err := strconv.ParseUint(strings.Replace(n.Text, "-0", "0", 1), 10, 64)
	if err != nil || v > highest {
		d.issue(n.Pos, at, Issue{Message: "out of range", Found: shorten(n.Text), Allowed: fmt.Sprintf("0 to %d", highest)})
		return 0, false
	}
	return v, true
}

func (d *decoder) checkDecimal(n *Node, at *step) bool {
	if n.Kind != Number {
		hint := ""
		if n.Kind == String && isDecimal(n.Text) {
			hint = "write the number without quotes"
		}
		d.wrongType(n, at, "a whole number", hint)
		return false
	}
	if !isDecimal(n.Text) {
		hint := "write plain decimal digits: 0 in front, 0x, _ and the like mean different things in YAML 1.1 and 1.2"
		if isJSONNumber(n.Text) {
			hint = "write digits without a point or an exponent"
		}
		d.issue(n.Pos, at, Issue{Message: "not a whole number", Found: shorten(n.Text), Allowed: "decimal digits", Hint: hint})
		return false
	}
	return true
}

func shorten(s string) string {
	const longest = 40
	if len(s) > longest {
		return s[:longest] + "…"
	}
	return s
}

// isDecimal tells whether s is a JSON number without point and exponent.
func isDecimal(s string) bool {
	return isJSONNumber(s) && !strings.ContainsAny(s, ".eE")
}

// timestamp reads RFC 3339, as Kubernetes writes times.
func (d *decoder) timestamp(n *Node, at *step, m protoreflect.Message) {
	if n.Kind != String {
		d.wrongType(n, at, "a time such as 2026-01-02T15:04:05Z", "")
		return
	}
	t, err := time.Parse(time.RFC3339Nano, n.Text)
	if err != nil || t.UTC().Year() < 1 || t.UTC().Year() > 9999 {
		d.issue(n.Pos, at, Issue{Message: "not a time", Allowed: "RFC 3339, for example 2026-01-02T15:04:05Z"})
		return
	}
	fields := m.Descriptor().Fields()
	if s := t.Unix(); s != 0 {
		m.Set(fields.ByName("seconds"), protoreflect.ValueOfInt64(s))
	}
	if ns := t.Nanosecond(); ns != 0 {
		m.Set(fields.ByName("nanos"), protoreflect.ValueOfInt32(int32(ns)))
	}
}
