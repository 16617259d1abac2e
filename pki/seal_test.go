package pki

import (
	"bytes"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestSealOpens(t *testing.T) {
	k := NewKeyring(NewSealKey(t0))
	rapid.Check(t, func(t *rapid.T) {
		value := rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(t, "value")
		object, field := rapid.String().Draw(t, "object"), rapid.String().Draw(t, "field")
		sealed, err := k.Seal(object, field, value)
		if err != nil || len(sealed) != len(value)+SealOverhead {
			t.Fatalf("%d bytes sealed to %d: %v", len(value), len(sealed), err)
		}
		got, err := k.Open(object, field, sealed)
		if err != nil || !bytes.Equal(got, value) {
			t.Fatalf("opened to %x: %v", got, err)
		}
	})
}

// TestSealedIsBound: no bit can change, and the value opens nowhere else, also
// where object and field run together to the same text.
func TestSealedIsBound(t *testing.T) {
	k := NewKeyring(NewSealKey(t0))
	sealed := must(k.Seal("secrets/default/db", "data.password", []byte("hunter2")))(t)
	for i := range sealed {
		for bit := range 8 {
			damaged := bytes.Clone(sealed)
			damaged[i] ^= 1 << bit
			if _, err := k.Open("secrets/default/db", "data.password", damaged); !errors.Is(err, ErrSealed) && !errors.Is(err, ErrUnknownSealer) {
				t.Fatalf("bit %d of byte %d changed: %v", bit, i, err)
			}
		}
	}
	for _, place := range [][2]string{
		{"secrets/default/db", "data.user"}, {"secrets/other/db", "data.password"},
		{"secrets/default/d", "bdata.password"}, {"", "secrets/default/dbdata.password"}, {"", ""},
	} {
		if _, err := k.Open(place[0], place[1], sealed); !errors.Is(err, ErrSealed) {
			t.Errorf("opened at %v: %v", place, err)
		}
	}
	again := must(k.Seal("secrets/default/db", "data.password", []byte("hunter2")))(t)
	if bytes.Equal(sealed, again) {
		t.Error("sealing twice gives the same bytes")
	}
}

func TestSealLimit(t *testing.T) {
	k := NewKeyring(NewSealKey(t0))
	sealed := must(k.Seal("o", "f", make([]byte, MaxSealBytes)))(t)
	if _, err := k.Open("o", "f", sealed); err != nil {
		t.Error(err)
	}
	if _, err := k.Seal("o", "f", make([]byte, MaxSealBytes+1)); !errors.Is(err, ErrTooMany) {
		t.Error(err)
	}
}

// TestRotation: three servers that learn of a new key one after the other can
// open each other's values at every moment.
func TestRotation(t *testing.T) {
	old, next := NewSealKey(t0), NewSealKey(t0)
	servers := []*Keyring{NewKeyring(old), NewKeyring(old), NewKeyring(old)}
	all := func(when string) {
		t.Helper()
		for i, a := range servers {
			sealed := must(a.Seal("o", "f", []byte("v")))(t)
			for j, b := range servers {
				if _, err := b.Open("o", "f", sealed); err != nil {
					t.Errorf("%s: server %d cannot open what %d sealed: %v", when, j, i, err)
				}
			}
		}
	}
	first := must(servers[0].Seal("o", "f", []byte("old value")))(t)
	for i := range servers {
		servers[i] = must(servers[i].Add(next))(t)
		all(fmt.Sprint("added on ", i))
	}
	for i := range servers {
		servers[i] = must(servers[i].Promote(next.ID))(t)
		all(fmt.Sprint("promoted on ", i))
	}
	if !servers[0].Stale(first) {
		t.Error("the old value is not stale")
	}
	value := must(servers[2].Open("o", "f", first))(t)
	anew := must(servers[1].Seal("o", "f", value))(t)
	if servers[0].Stale(anew) || string(value) != "old value" {
		t.Error("sealing anew did not help")
	}
	for i := range servers {
		servers[i] = must(servers[i].Drop(old.ID))(t)
		all(fmt.Sprint("dropped on ", i))
	}
	if _, err := servers[0].Open("o", "f", first); !errors.Is(err, ErrUnknownSealer) {
		t.Errorf("value of the dropped key: %v", err)
	}
}

func TestKeyringRefusals(t *testing.T) {
	k := NewKeyring(NewSealKey(t0))
	if _, err := k.Drop(k.Primary().ID); !errors.Is(err, ErrSealKey) {
		t.Errorf("drop the primary: %v", err)
	}
	if _, err := k.Promote(SealKeyID{}); !errors.Is(err, ErrUnknownSealer) {
		t.Errorf("promote a stranger: %v", err)
	}
	if _, err := k.Add(SealKey{}); !errors.Is(err, ErrSealKey) {
		t.Errorf("add a zero key: %v", err)
	}
	if same := must(k.Add(k.Primary()))(t); len(same.Keys()) != 1 {
		t.Error("added a key twice")
	}
	for range MaxSealKeys - 1 {
		k = must(k.Add(NewSealKey(t0)))(t)
	}
	if _, err := k.Add(NewSealKey(t0)); !errors.Is(err, ErrTooMany) {
		t.Errorf("one too many: %v", err)
	}
	got := must(ParseKeyring(must(k.Marshal())(t)))(t)
	if fmt.Sprint(got.Keys()) != fmt.Sprint(k.Keys()) || got.Primary().ID != k.Primary().ID {
		t.Error("the keyring changed on its way through JSON")
	}
}

// TestSecretsDoNotPrint: whatever holds a secret, however it is printed.
func TestSecretsDoNotPrint(t *testing.T) {
	ca, key, gossip := newTestCA(t), NewSealKey(t0), NewGossipKey()
	ring := NewKeyring(key)
	b := NewBundle(ca, ring, gossip)
	cred := issue(t, ca, RoleAdmin, "alice", t0)
	config := must(NewConfig(cred, []string{"s1:7070"}))(t)
	token, _, err := NewToken(TokenRequest{Role: RoleAgent}, ca.Hash(), t0)
	if err != nil {
		t.Fatal(err)
	}
	joiner := must(NewJoiner(token, RoleAgent, "n1", SANs{}, cred.key))(t)
	credKey, caKey := cred.key.(*ecdsa.PrivateKey), ca.key
	secrets := [][]byte{key.secret, gossip[:], []byte(token.secret), must(credKey.Bytes())(t), must(caKey.Bytes())(t), []byte(config.Key)}
	things := []any{ca, *ca, key, &key, gossip, &gossip, ring, *ring, b, *b, cred, *cred, config, *config, token, &token, joiner, *joiner, ServerFiles{Bundle: b, Credential: cred}, AgentFiles{Credential: cred, GossipKey: gossip}}
	for _, thing := range things {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
			printed := fmt.Sprintf(verb, thing)
			for _, secret := range secrets {
				number := new(big.Int).SetBytes(secret).String()
				for _, form := range []string{string(secret), fmt.Sprint(secret), fmt.Sprintf("%x", secret), fmt.Sprintf("%#v", secret), number} {
					if strings.Contains(printed, strings.Trim(form, "[]")) {
						t.Errorf("%s of a %T: %s", verb, thing, printed)
					}
				}
			}
		}
	}
}
