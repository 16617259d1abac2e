package pki

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/chacha20poly1305"
)

// MaxSealKeys bounds a keyring: the primary, and old ones until everything
// sealed with them has been sealed anew.
const MaxSealKeys = 16

// SealKey is one key of a keyring.
type SealKey struct {
	ID      SealKeyID
	Created time.Time
	secret  []byte
}

// NewSealKey makes a random key.
func NewSealKey(now time.Time) SealKey {
	secret := randomBytes(chacha20poly1305.KeySize)
	return SealKey{ID: sealKeyID(secret), Created: now.UTC().Truncate(time.Second), secret: secret}
}

// String identifies the key without its secret.
func (k SealKey) String() string { return "seal key " + k.ID.String() }

// GoString keeps the secret out of %#v as well.
func (k SealKey) GoString() string { return k.String() }

// Keyring is the cluster's seal keys. One is primary: it seals; all open. It is
// immutable and never empty.
//
// A rotation has two steps: Add the new key on every server, then Promote it.
// In one step, a server that has the key already would seal values that the
// others cannot open. After that, seal everything anew (Stale tells what), then
// Drop the old key.
type Keyring struct {
	keys    []SealKey // in the order they were added
	primary int
}

// NewKeyring has one key.
func NewKeyring(first SealKey) *Keyring { return &Keyring{keys: []SealKey{first}} }

// Add returns a keyring that can open with key too. Adding twice does no harm.
func (k *Keyring) Add(key SealKey) (*Keyring, error) {
	if len(key.secret) != chacha20poly1305.KeySize || key.ID != sealKeyID(key.secret) {
		return nil, refuse(ErrSealKey, "seal key %s is damaged: it is not the key of that id", key.ID)
	}
	if _, ok := k.find(key.ID); ok {
		return k, nil
	}
	if len(k.keys) >= MaxSealKeys {
		return nil, refuse(ErrTooMany, "the keyring has %d seal keys, at most %d are allowed; seal everything anew and drop old ones", len(k.keys), MaxSealKeys)
	}
	return &Keyring{keys: append(slices.Clone(k.keys), key), primary: k.primary}, nil
}

// Promote returns a keyring that seals with the key of that id.
func (k *Keyring) Promote(id SealKeyID) (*Keyring, error) {
	i := slices.IndexFunc(k.keys, func(key SealKey) bool { return key.ID == id })
	if i < 0 {
		return nil, refuse(ErrUnknownSealer, "seal key %s cannot become primary: this server does not have it (it has %s)", id, k.idList())
	}
	return &Keyring{keys: k.keys, primary: i}, nil
}

// Drop returns a keyring without the key of that id, which must not be primary.
// What is still sealed with it is lost.
func (k *Keyring) Drop(id SealKeyID) (*Keyring, error) {
	primary := k.Primary()
	if id == primary.ID {
		return nil, refuse(ErrSealKey, "seal key %s is the primary one and cannot be dropped; promote another first", id)
	}
	keys := slices.DeleteFunc(slices.Clone(k.keys), func(key SealKey) bool { return key.ID == id })
	return (&Keyring{keys: keys}).Promote(primary.ID)
}

// Primary is the key that seals.
func (k *Keyring) Primary() SealKey { return k.keys[k.primary] }

// Keys is all keys, in the order they were added.
func (k *Keyring) Keys() []SealKey { return slices.Clone(k.keys) }

// Stale reports whether a sealed value should be sealed anew with the primary.
func (k *Keyring) Stale(sealed []byte) bool {
	id, err := SealedBy(sealed)
	return err == nil && id != k.Primary().ID
}

func (k *Keyring) find(id SealKeyID) (SealKey, bool) {
	for _, key := range k.keys {
		if key.ID == id {
			return key, true
		}
	}
	return SealKey{}, false
}

func (k *Keyring) idList() string {
	var ids []string
	for _, key := range k.keys {
		ids = append(ids, key.ID.String())
	}
	return strings.Join(ids, ", ")
}

// keyringFile is seal.key, and part of a bundle.
type keyringFile struct {
	Version int           `json:"version"`
	Primary string        `json:"primary"`
	Keys    []sealKeyFile `json:"keys"`
}

type sealKeyFile struct {
	ID      string    `json:"id"`
	Created time.Time `json:"created"`
	Secret  []byte    `json:"secret"` // base64 in JSON
}

const keyringVersion = 1

func (k *Keyring) file() keyringFile {
	f := keyringFile{Version: keyringVersion, Primary: k.Primary().ID.String()}
	for _, key := range k.keys {
		f.Keys = append(f.Keys, sealKeyFile{ID: key.ID.String(), Created: key.Created, Secret: key.secret})
	}
	return f
}

// Marshal encodes the keyring with its secrets.
func (k *Keyring) Marshal() ([]byte, error) { return marshalJSON(k.file()) }

// ParseKeyring reads what Marshal has written.
func ParseKeyring(text []byte) (*Keyring, error) {
	var f keyringFile
	if err := unmarshalJSON(text, &f); err != nil {
		return nil, refuse(ErrSealKey, "seal keys cannot be read: %w", err)
	}
	return f.keyring()
}

func (f keyringFile) keyring() (*Keyring, error) {
	if f.Version != keyringVersion {
		return nil, refuse(ErrSealKey, "seal keys have format %d; this version of balsa knows format %d", f.Version, keyringVersion)
	}
	if len(f.Keys) == 0 || len(f.Keys) > MaxSealKeys {
		return nil, refuse(ErrSealKey, "%d seal keys; 1 to %d are allowed", len(f.Keys), MaxSealKeys)
	}
	k := &Keyring{primary: -1}
	for _, one := range f.Keys {
		key := SealKey{ID: sealKeyID(one.Secret), Created: one.Created, secret: one.Secret}
		if len(one.Secret) != chacha20poly1305.KeySize || key.ID.String() != one.ID {
			return nil, refuse(ErrSealKey, "seal key %q is damaged: it is not the key of that id; restore it from another server or a backup", clip(one.ID))
		}
		if _, ok := k.find(key.ID); ok {
			return nil, refuse(ErrSealKey, "seal key %s is listed twice", key.ID)
		}
		if one.ID == f.Primary {
			k.primary = len(k.keys)
		}
		k.keys = append(k.keys, key)
	}
	if k.primary < 0 {
		return nil, refuse(ErrSealKey, "the primary seal key %q is not among the keys (%s)", clip(f.Primary), k.idList())
	}
	return k, nil
}

func marshalJSON(v any) ([]byte, error) {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, err
	}
	return append(text, '\n'), nil
}
