package reconcilertest

import (
	"bytes"
	"crypto/sha256"
	"fmt"
)

// Secrets seals values so that a test can see where they are: a sealed one begins
// with the object and the field that it is bound to, and opens for nothing else.
type Secrets struct{}

func bound(objectKey, field string) []byte {
	return fmt.Appendf(nil, "sealed %s %s: ", objectKey, field)
}

// Seal binds a value to its object and field.
func (Secrets) Seal(objectKey, field string, value []byte) ([]byte, error) {
	return append(bound(objectKey, field), value...), nil
}

// Open is the reverse.
func (Secrets) Open(objectKey, field string, sealed []byte) ([]byte, error) {
	value, ok := bytes.CutPrefix(sealed, bound(objectKey, field))
	if !ok {
		return nil, fmt.Errorf("%s field %s: %q was not sealed for it", objectKey, field, sealed)
	}
	return value, nil
}

// Fingerprint is a hash of the content.
func (Secrets) Fingerprint(content []byte) []byte {
	sum := sha256.Sum256(append([]byte("test key "), content...))
	return sum[:]
}
