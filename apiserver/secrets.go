package apiserver

import (
	"fmt"
	"maps"
	"slices"

	"connectrpc.com/connect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
)

// annotationWithheld says in a Secret that its values were left out, so that
// nobody takes the empty ones for the real ones.
const annotationWithheld = "balsa.run/values-withheld"

// sealed is m as it may be proposed: a Secret's values sealed, so that neither
// the log nor snapshots nor backups hold them, all else as it is. A value opens
// for the object and the field it was sealed for only.
func (s *Server) sealed(m object.Message) (object.Message, error) {
	secret, ok := m.(*balsav1.Secret)
	if !ok {
		return m, nil
	}
	dup := object.Clone(secret)
	for _, field := range slices.Sorted(maps.Keys(dup.Data)) {
		value, err := s.bundle().SealKeys.Seal(object.KeyOf(dup), field, dup.Data[field])
		if err != nil {
			return nil, fmt.Errorf("seal %s: %w", object.Describe(dup), err)
		}
		dup.Data[field] = value
	}
	return dup, nil
}

// opened is a clone of what the store holds, with a Secret's values in the clear.
func (s *Server) opened(m object.Message) (object.Message, error) {
	if secret, ok := m.(*balsav1.Secret); ok {
		return s.openSecret(secret)
	}
	return object.Clone(m), nil
}

func (s *Server) openSecret(secret *balsav1.Secret) (*balsav1.Secret, error) {
	dup := object.Clone(secret)
	for field, value := range dup.Data {
		plain, err := s.bundle().SealKeys.Open(object.KeyOf(dup), field, value)
		if err != nil {
			return nil, &problem{
				code: connect.CodeFailedPrecondition, reason: "Sealed", object: keyOfMessage(secret),
				hint: "give this server the seal keys of the others, or restore them from a backup",
				err:  fmt.Errorf("open %s: %w", object.Describe(secret), err),
			}
		}
		dup.Data[field] = plain
	}
	return dup, nil
}

// withheld is a Secret without its values: the names stay.
func withheld(secret *balsav1.Secret) *balsav1.Secret {
	dup := object.Clone(secret)
	for field := range dup.Data {
		dup.Data[field] = nil
	}
	meta := object.EnsureMetadata(dup)
	if meta.Annotations == nil {
		meta.Annotations = map[string]string{}
	}
	meta.Annotations[annotationWithheld] = "only admins read the values of secrets"
	return dup
}
