package pki

import (
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"

	"golang.org/x/crypto/chacha20poly1305"
)

// A sealed value:
//
//	0       3   4            12            36
//	+-------+---+------------+-------------+--------------------------+
//	| "bsl" | 1 | key id     | nonce       | ciphertext, 16 bytes tag |
//	+-------+---+------------+-------------+--------------------------+
//	  magic version 8 bytes    24 random
//
// XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha): its nonce is long enough to be
// random for as many values as ever get sealed, where AES-GCM's would limit a
// key to 2^32. The first 12 bytes, the object key and the field, each with its
// length, are authenticated with the value: a sealed value that is moved to
// another object or field does not open. The length of the value is not hidden.
const (
	sealMagic   = "bsl"
	sealVersion = 1

	sealHeaderBytes = len(sealMagic) + 1 + len(SealKeyID{})
	sealNonceBytes  = chacha20poly1305.NonceSizeX

	// SealOverhead is how much longer a sealed value is than the plain one.
	SealOverhead = sealHeaderBytes + sealNonceBytes + chacha20poly1305.Overhead

	// MaxSealBytes bounds the plain value.
	MaxSealBytes = 1 << 20
)

// SealKeyID names a seal key: the beginning of a hash of the key, so that an id
// cannot belong to two keys.
type SealKeyID [8]byte

// String is lower-case hex.
func (id SealKeyID) String() string { return hex.EncodeToString(id[:]) }

func sealKeyID(secret []byte) SealKeyID {
	sum := sha256.Sum256(append([]byte("balsa seal key id\x00"), secret...))
	return SealKeyID(sum[:8])
}

// Seal encrypts the value of one field of one object with the primary key.
func (k *Keyring) Seal(objectKey, field string, value []byte) ([]byte, error) {
	if len(value) > MaxSealBytes {
		return nil, refuse(ErrTooMany, "%s field %s has %d bytes; at most %d can be sealed", clip(objectKey), clip(field), len(value), MaxSealBytes)
	}
	primary := k.keys[k.primary]
	sealed := make([]byte, 0, len(value)+SealOverhead)
	sealed = append(append(sealed, sealMagic...), sealVersion)
	sealed = append(sealed, primary.ID[:]...)
	aad := sealAAD(sealed, objectKey, field)
	nonce := randomBytes(sealNonceBytes)
	return primary.aead().Seal(append(sealed, nonce...), nonce, value, aad), nil
}

// Open is the reverse of Seal, with whichever key sealed the value. Errors are
// ErrSealed, or ErrUnknownSealer for a key that this keyring has not.
func (k *Keyring) Open(objectKey, field string, sealed []byte) ([]byte, error) {
	id, err := SealedBy(sealed)
	if err != nil {
		return nil, refuse(ErrSealed, "%s field %s: %w", clip(objectKey), clip(field), err)
	}
	key, ok := k.find(id)
	if !ok {
		return nil, refuse(ErrUnknownSealer, "%s field %s is sealed with key %s, which this server does not have (it has %s); get it from another server or from a backup", clip(objectKey), clip(field), id, k.idList())
	}
	nonce := sealed[sealHeaderBytes : sealHeaderBytes+sealNonceBytes]
	value, err := key.aead().Open(nil, nonce, sealed[sealHeaderBytes+sealNonceBytes:], sealAAD(sealed[:sealHeaderBytes], objectKey, field))
	if err != nil {
		return nil, refuse(ErrSealed, "%s field %s does not open with key %s: it was damaged, or moved here from another object or field", clip(objectKey), clip(field), id)
	}
	return value, nil
}

// SealedBy reads which key sealed a value, or says why it is not a sealed value.
func SealedBy(sealed []byte) (SealKeyID, error) {
	if len(sealed) < len(sealMagic)+1 || string(sealed[:len(sealMagic)]) != sealMagic {
		return SealKeyID{}, refuse(ErrSealed, "the value is not sealed")
	}
	if v := sealed[len(sealMagic)]; v != sealVersion {
		return SealKeyID{}, refuse(ErrSealed, "the value is sealed in format %d; this version of balsa knows format %d", v, sealVersion)
	}
	if len(sealed) < SealOverhead || len(sealed) > MaxSealBytes+SealOverhead {
		return SealKeyID{}, refuse(ErrSealed, "the sealed value has %d bytes; %d to %d are possible", len(sealed), SealOverhead, MaxSealBytes+SealOverhead)
	}
	return SealKeyID(sealed[len(sealMagic)+1 : sealHeaderBytes]), nil
}

// sealAAD is header, object key and field, unambiguously.
func sealAAD(header []byte, objectKey, field string) []byte {
	aad := append([]byte{}, header...)
	for _, s := range []string{objectKey, field} {
		aad = binary.BigEndian.AppendUint32(aad, uint32(len(s)))
		aad = append(aad, s...)
	}
	return aad
}

func (k SealKey) aead() cipher.AEAD {
	aead, err := chacha20poly1305.NewX(k.secret)
	if err != nil {
		panic("pki: a seal key of wrong length got past its check: " + err.Error())
	}
	return aead
}
