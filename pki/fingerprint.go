package pki

import (
	"crypto/hmac"
	"crypto/sha256"
)

// Fingerprint tells contents apart without telling what they are: nobody without
// the keyring can try values against it, so it may stand where readers see it.
// It is keyed by the oldest key, and therefore another once that is dropped.
func (k *Keyring) Fingerprint(content []byte) []byte {
	key := sha256.Sum256(append([]byte("balsa fingerprint\x00"), k.keys[0].secret...))
	h := hmac.New(sha256.New, key[:])
	h.Write(content)
	return h.Sum(nil)
}
