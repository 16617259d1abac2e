package codec

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// Names under which connect asks for codecs. It knows JSON by two, and one that
// is not replaced would let unknown fields in.
const (
	nameProto    = "proto"
	nameJSON     = "json"
	nameJSONUTF8 = "json; charset=utf-8"
)

// maxBinaryDepth is how deep binary messages may be nested.
const maxBinaryDepth = MaxDepth + 16

// Codec is connect.Codec with what calls by GET need. Give each to
// connect.WithCodec.
type Codec interface {
	Name() string
	Marshal(message any) ([]byte, error)
	MarshalAppend(dst []byte, message any) ([]byte, error)
	MarshalStable(message any) ([]byte, error)
	Unmarshal(data []byte, message any) error
	IsBinary() bool
}

// Strict returns the codecs for servers: they refuse unknown fields at any
// depth, in JSON by path and in binary by path and number. Give all of them to
// each handler.
func Strict(known KnownFields) []Codec {
	return []Codec{
		jsonCodec{nameJSON, Options{Known: known}, MaxRequestBytes},
		jsonCodec{nameJSONUTF8, Options{Known: known}, MaxRequestBytes},
		binaryCodec{strict: true},
	}
}

// Lenient returns the codecs for clients, which skip what a newer server has
// added. The binary one is the first: give one of them to a client.
func Lenient() []Codec {
	return []Codec{
		binaryCodec{},
		jsonCodec{nameJSON, Options{Lenient: true}, MaxResponseBytes},
		jsonCodec{nameJSONUTF8, Options{Lenient: true}, MaxResponseBytes},
	}
}

// ours tells whether a message follows this package's conventions; health and
// reflection services speak plain protobuf.
func ours(m proto.Message) bool {
	return strings.HasPrefix(string(m.ProtoReflect().Descriptor().FullName()), "balsa.")
}

func asProto(message any) (proto.Message, error) {
	m, ok := message.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("%T is not a protobuf message", message)
	}
	return m, nil
}

type jsonCodec struct {
	name    string
	options Options
	limit   int
}

func (c jsonCodec) Name() string { return c.name }

func (c jsonCodec) IsBinary() bool { return false }

func (c jsonCodec) Marshal(message any) ([]byte, error) { return c.MarshalAppend(nil, message) }

func (c jsonCodec) MarshalStable(message any) ([]byte, error) { return c.MarshalAppend(nil, message) }

func (c jsonCodec) MarshalAppend(dst []byte, message any) ([]byte, error) {
	m, err := asProto(message)
	if err != nil {
		return nil, err
	}
	if ours(m) {
		return AppendJSON(dst, m)
	}
	text, err := protojson.Marshal(m)
	if err != nil {
		return nil, err
	}
	// protojson varies its spaces on purpose.
	out := bytes.NewBuffer(dst)
	if err := json.Compact(out, text); err != nil {
		return nil, fmt.Errorf("compact JSON: %w", err)
	}
	return out.Bytes(), nil
}

func (c jsonCodec) Unmarshal(data []byte, message any) error {
	m, err := asProto(message)
	if err != nil {
		return err
	}
	if len(data) == 0 {
		return errors.New("the body is empty, allowed: a JSON object, at least {}")
	}
	if ours(m) {
		return c.options.ReadJSON(data, c.limit, m)
	}
	return protojson.UnmarshalOptions{DiscardUnknown: c.options.Lenient}.Unmarshal(data, m)
}

type binaryCodec struct{ strict bool }

func (binaryCodec) Name() string { return nameProto }

func (binaryCodec) IsBinary() bool { return true }

func (binaryCodec) Marshal(message any) ([]byte, error) {
	m, err := asProto(message)
	if err != nil {
		return nil, err
	}
	return proto.Marshal(m)
}

func (binaryCodec) MarshalAppend(dst []byte, message any) ([]byte, error) {
	m, err := asProto(message)
	if err != nil {
		return nil, err
	}
	return proto.MarshalOptions{}.MarshalAppend(dst, m)
}

func (binaryCodec) MarshalStable(message any) ([]byte, error) {
	m, err := asProto(message)
	if err != nil {
		return nil, err
	}
	return proto.MarshalOptions{Deterministic: true}.Marshal(m)
}

func (c binaryCodec) Unmarshal(data []byte, message any) error {
	m, err := asProto(message)
	if err != nil {
		return err
	}
	if err := (proto.UnmarshalOptions{RecursionLimit: maxBinaryDepth}).Unmarshal(data, m); err != nil {
		return fmt.Errorf("read %s: %w", m.ProtoReflect().Descriptor().FullName(), err)
	}
	if c.strict && ours(m) {
		return RefuseUnknown(m)
	}
	return nil
}
