package object

import (
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// Encode is an object's value in the store: deterministic binary protobuf
// without metadata.resourceVersion, which is the revision of the key. The
// message itself is not changed.
func Encode(m Message) ([]byte, error) {
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(withoutResourceVersion(m))
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", Describe(m), err)
	}
	return value, nil
}

// withoutResourceVersion returns m, or a shallow copy of it whose metadata is a
// shallow copy without resourceVersion: m may be frozen and shared, and a deep
// copy of a large object only to leave out one field would be a waste.
func withoutResourceVersion(m Message) Message {
	if m.GetMetadata().GetResourceVersion() == "" {
		return m
	}
	meta := shallowCopy(m.GetMetadata().ProtoReflect()).Interface().(*balsav1.ObjectMeta)
	meta.ResourceVersion = ""
	dup := shallowCopy(m.ProtoReflect())
	dup.Set(metadataField(dup), protoreflect.ValueOfMessage(meta.ProtoReflect()))
	return dup.Interface().(Message)
}

func shallowCopy(m protoreflect.Message) protoreflect.Message {
	dup := m.New()
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		dup.Set(fd, v)
		return true
	})
	dup.SetUnknown(m.GetUnknown())
	return dup
}

func metadataField(m protoreflect.Message) protoreflect.FieldDescriptor {
	return m.Descriptor().Fields().ByName("metadata")
}

// Decode reads a value of the store into the message that its readers share;
// metadata.resourceVersion becomes modRevision. Keys that hold no object (claims
// and system records) give nil. A value whose metadata does not fit its key is
// an error.
func Decode(key string, value []byte, modRevision int64) (proto.Message, error) {
	if IsReservedKey(key) {
		return nil, nil
	}
	kind, namespace, name, ok := ParseKey(key)
	if !ok {
		return nil, fmt.Errorf("decode %q: not the key of an object: want <kind>/<namespace>/<name>", key)
	}
	m := kind.New()
	if err := proto.Unmarshal(value, m); err != nil {
		return nil, fmt.Errorf("decode %q: %w", key, err)
	}
	meta := m.GetMetadata()
	if meta.GetName() != name || meta.GetNamespace() != namespace {
		return nil, fmt.Errorf("decode %q: the value is that of %s", key, Describe(m))
	}
	meta.ResourceVersion = strconv.FormatInt(modRevision, 10)
	return m, nil
}

// IsReservedKey tells keys that hold no object: "claims/…" and "system/…".
func IsReservedKey(key string) bool {
	return strings.HasPrefix(key, PrefixClaims) || strings.HasPrefix(key, PrefixSystem)
}

// Prefixes of keys in the space "objects" that hold no object.
const (
	PrefixClaims = "claims/"
	PrefixSystem = "system/"
)
