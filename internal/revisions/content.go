package revisions

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

const (
	maxName  = 253 // of an object
	maxLabel = 63
)

// CopyName is the name of a copy of an object whose content has a fingerprint in
// hex. attempt 0 is what is tried first; others are for names that are taken.
func CopyName(name, fingerprint string, attempt int) string {
	hash := fingerprint
	if attempt > 0 {
		sum := sha256.Sum256(fmt.Appendf(nil, "%s/%d", fingerprint, attempt))
		hash = hex.EncodeToString(sum[:])
	}
	return cut(name, maxName-hashLength-1) + "-" + hash[:hashLength]
}

// AbsentName is the name by which a template refers to an optional object that is
// not there, so that its pods see nothing also when it comes later.
func AbsentName(name string) string {
	return cut(name, maxName-hashLength-1) + "-" + strings.Repeat("0", hashLength)
}

// LabelValue is the value of LabelPinnedFrom: the name, or its beginning and a
// hash where it is too long for a label.
func LabelValue(name string) string {
	if len(name) <= maxLabel {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return cut(name, maxLabel-hashLength-1) + "-" + hex.EncodeToString(sum[:])[:hashLength]
}

// cut shortens a name to at most n bytes that still begin one.
func cut(name string, n int) string {
	return strings.TrimRight(name[:min(len(name), n)], "-.")
}

// ConfigMapContent is what a ConfigMap's pods see of it, unambiguously.
func ConfigMapContent(m *balsav1.ConfigMap) []byte {
	out := list(nil, "data", slices.Sorted(maps.Keys(m.GetData())), func(key string) []byte { return []byte(m.GetData()[key]) })
	return list(out, "binaryData", slices.Sorted(maps.Keys(m.GetBinaryData())), func(key string) []byte { return m.GetBinaryData()[key] })
}

// SecretContent is the same of a Secret whose values are in the clear.
func SecretContent(s *balsav1.Secret) []byte {
	return list(field(nil, []byte(s.GetType())), "data", slices.Sorted(maps.Keys(s.GetData())), func(key string) []byte { return s.GetData()[key] })
}

func list(out []byte, title string, keys []string, value func(string) []byte) []byte {
	out = binary.BigEndian.AppendUint32(field(out, []byte(title)), uint32(len(keys)))
	for _, key := range keys {
		out = field(field(out, []byte(key)), value(key))
	}
	return out
}

// field is a length and that many bytes.
func field(out, value []byte) []byte {
	return append(binary.BigEndian.AppendUint32(out, uint32(len(value))), value...)
}
