package pki

import (
	"bytes"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// MaxBundleBytes bounds a bundle and each file of identity material.
const MaxBundleBytes = 64 << 10

const gossipKeyBytes = 32

// GossipKey is the key of the gossip among members (AES-256).
type GossipKey [gossipKeyBytes]byte

// NewGossipKey makes a random key.
func NewGossipKey() GossipKey { return GossipKey(randomBytes(gossipKeyBytes)) }

// String does not print the key.
func (GossipKey) String() string { return "gossip key" }

// GoString keeps the key out of %#v as well.
func (k GossipKey) GoString() string { return k.String() }

// Equal compares in constant time.
func (k GossipKey) Equal(other GossipKey) bool {
	return subtle.ConstantTimeCompare(k[:], other[:]) == 1
}

// Marshal is one line of base64.
func (k GossipKey) Marshal() []byte {
	return []byte(base64.StdEncoding.EncodeToString(k[:]) + "\n")
}

// ParseGossipKey reads what Marshal has written.
func ParseGossipKey(text []byte) (GossipKey, error) {
	b, err := base64.StdEncoding.Strict().DecodeString(strings.TrimSuffix(string(text), "\n"))
	if err != nil || len(b) != gossipKeyBytes {
		return GossipKey{}, refuse(ErrBadMaterial, "gossip key cannot be read; it must be %d bytes in base64", gossipKeyBytes)
	}
	return GossipKey(b), nil
}

// Bundle is what makes a machine a server: it is delivered to a joining server
// over the join connection, and belongs into a backup. Whoever has it has the
// cluster.
type Bundle struct {
	CA        *CA
	Trust     *Trust // all authorities that are trusted, CA among them
	SealKeys  *Keyring
	GossipKey GossipKey
}

type bundleFile struct {
	Version   int         `json:"version"`
	CACert    string      `json:"caCert"`
	CAKey     string      `json:"caKey"`
	SealKeys  keyringFile `json:"sealKeys"`
	GossipKey []byte      `json:"gossipKey"`
}

const bundleVersion = 1

// NewBundle makes the material of a new cluster.
func NewBundle(ca *CA, seal *Keyring, gossip GossipKey) *Bundle {
	return &Bundle{CA: ca, Trust: ca.Trust(), SealKeys: seal, GossipKey: gossip}
}

// Marshal encodes the bundle with its secrets.
func (b *Bundle) Marshal() ([]byte, error) {
	key, err := b.CA.KeyPEM()
	if err != nil {
		return nil, err
	}
	return marshalJSON(bundleFile{
		Version:   bundleVersion,
		CACert:    string(b.Trust.PEM()),
		CAKey:     string(key),
		SealKeys:  b.SealKeys.file(),
		GossipKey: b.GossipKey[:],
	})
}

// ParseBundle reads what Marshal has written.
func ParseBundle(text []byte) (*Bundle, error) {
	var f bundleFile
	if err := unmarshalJSON(text, &f); err != nil {
		return nil, refuse(ErrBundle, "server bundle cannot be read: %w", err)
	}
	if f.Version != bundleVersion {
		return nil, refuse(ErrBundle, "server bundle has format %d; this version of balsa knows format %d", f.Version, bundleVersion)
	}
	ca, err := ParseCA([]byte(f.CACert), []byte(f.CAKey))
	if err != nil {
		return nil, refuse(ErrBundle, "server bundle: %w", err)
	}
	trust, err := ParseTrust([]byte(f.CACert))
	if err != nil {
		return nil, refuse(ErrBundle, "server bundle: %w", err)
	}
	seal, err := f.SealKeys.keyring()
	if err != nil {
		return nil, refuse(ErrBundle, "server bundle: %w", err)
	}
	if len(f.GossipKey) != gossipKeyBytes {
		return nil, refuse(ErrBundle, "server bundle: gossip key has %d bytes, %d are needed", len(f.GossipKey), gossipKeyBytes)
	}
	return &Bundle{CA: ca, Trust: trust, SealKeys: seal, GossipKey: GossipKey(f.GossipKey)}, nil
}

// unmarshalJSON is strict: no unknown fields, nothing after the value. Errors
// name a place, never the text there, which may be secret.
func unmarshalJSON(text []byte, into any) error {
	if len(text) > MaxBundleBytes {
		return fmt.Errorf("%d bytes; at most %d are allowed", len(text), MaxBundleBytes)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	err := d.Decode(into)
	var typeErr *json.UnmarshalTypeError
	switch {
	case errors.As(err, &typeErr):
		return fmt.Errorf("field %s at byte %d has the wrong type", typeErr.Field, typeErr.Offset)
	case err != nil:
		return fmt.Errorf("not the expected JSON, at byte %d", d.InputOffset())
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("more after the end of the JSON, at byte %d", d.InputOffset())
	}
	return nil
}
