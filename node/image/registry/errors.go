package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// What callers branch on.
var (
	// ErrNotFound: the registry has no such image, or does not show it.
	ErrNotFound = errors.New("not found in the registry")
	// ErrUnauthorized: no credential that was tried may read it.
	ErrUnauthorized = errors.New("the registry refuses access")
	// ErrRefused: what the registry wants is not done: plain HTTP, a redirect to
	// this machine, a document that is too large.
	ErrRefused = errors.New("refused")
	// ErrBlocked: the node's configuration blocks the registry.
	ErrBlocked = errors.New("the node's registry configuration blocks it")
	// ErrStalled: the registry sent nothing, or next to nothing, for too long.
	ErrStalled = errors.New("the registry stalls")
)

// statusError is an answer that is not the one that was asked for.
type statusError struct {
	status int
	text   string
}

func (e *statusError) Error() string {
	out := fmt.Sprintf("it answers %d %s", e.status, http.StatusText(e.status))
	if e.text != "" {
		out += ": " + e.text
	}
	return out
}

func (e *statusError) Unwrap() error {
	switch e.status {
	case http.StatusNotFound:
		return ErrNotFound
	case http.StatusUnauthorized, http.StatusForbidden:
		return ErrUnauthorized
	}
	return nil
}

// classified gives go-containerregistry's errors the meaning of ours.
func classified(err error) error {
	var te *transport.Error
	if !errors.As(err, &te) {
		return err
	}
	var codes []string
	for _, d := range te.Errors {
		codes = append(codes, string(d.Code))
	}
	return &statusError{status: te.StatusCode, text: clip(strings.Join(codes, ", "))}
}

// temporary tells that trying again may help.
func temporary(err error) bool {
	var status *statusError
	var unknown x509.UnknownAuthorityError
	var verify *tls.CertificateVerificationError
	var dns *net.DNSError
	switch {
	case errors.Is(err, ErrRefused), errors.Is(err, context.Canceled):
		return false
	case errors.As(err, &status):
		return status.status == http.StatusTooManyRequests || status.status == http.StatusRequestTimeout || status.status >= 500
	case errors.As(err, &unknown), errors.As(err, &verify):
		return false
	case errors.As(err, &dns):
		return !dns.IsNotFound
	}
	return true
}

// maxErrorText bounds what of a registry's answer gets into an error: it ends up
// in events that people read.
const maxErrorText = 200

// clip makes a stranger's text fit for a message: one line, printable, short.
func clip(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == 0xfffd {
			return ' '
		}
		return r
	}, text)
	if len(text) > maxErrorText {
		return strings.ToValidUTF8(text[:maxErrorText], "") + "…"
	}
	return text
}
