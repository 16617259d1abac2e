package pki

import (
	"errors"
	"fmt"
)

// What callers branch on. Errors of this package match one of them by
// errors.Is, and carry a message of their own that says what to try.
var (
	ErrBadName       = errors.New("pki: bad name")
	ErrBadRole       = errors.New("pki: bad role")
	ErrBadRequest    = errors.New("pki: bad certificate request")
	ErrBadMaterial   = errors.New("pki: bad certificate or key")
	ErrNoIdentity    = errors.New("pki: certificate carries no identity")
	ErrOtherCluster  = errors.New("pki: of another cluster")
	ErrWrongRole     = errors.New("pki: wrong role")
	ErrWrongPeer     = errors.New("pki: another peer than expected")
	ErrExpired       = errors.New("pki: certificate expired")
	ErrRemoved       = errors.New("pki: identity removed")
	ErrNameTaken     = errors.New("pki: name taken")
	ErrNotMember     = errors.New("pki: not a member")
	ErrProof         = errors.New("pki: proof of key refused")
	ErrTooMany       = errors.New("pki: limit reached")
	ErrTokenFormat   = errors.New("pki: malformed token")
	ErrTokenUnknown  = errors.New("pki: token unknown")
	ErrTokenExpired  = errors.New("pki: token expired")
	ErrTokenUsed     = errors.New("pki: token used up")
	ErrTokenRevoked  = errors.New("pki: token revoked")
	ErrWrongCA       = errors.New("pki: wrong certificate authority")
	ErrKeyMismatch   = errors.New("pki: key and certificate do not match")
	ErrPermissions   = errors.New("pki: wrong file permissions")
	ErrNoMaterial    = errors.New("pki: no identity here")
	ErrIncomplete    = errors.New("pki: identity files incomplete")
	ErrExists        = errors.New("pki: identity files exist")
	ErrConfig        = errors.New("pki: bad client configuration")
	ErrBundle        = errors.New("pki: bad server bundle")
	ErrSealed        = errors.New("pki: sealed value cannot be opened")
	ErrSealKey       = errors.New("pki: bad seal key")
	ErrUnknownSealer = errors.New("pki: seal key unknown")
)

// refusal is an error with a kind to branch on and a message for people; the
// kind's own text stays out of the message.
type refusal struct {
	kind error
	err  error
}

func (r *refusal) Error() string   { return r.err.Error() }
func (r *refusal) Unwrap() []error { return []error{r.kind, r.err} }

// refuse makes an error of the given kind; format may contain %w.
func refuse(kind error, format string, args ...any) error {
	return &refusal{kind: kind, err: fmt.Errorf(format, args...)}
}
