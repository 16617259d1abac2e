package pki

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestTokenGoesThroughText(t *testing.T) {
	ca := newTestCA(t)
	token, record, err := NewToken(TokenRequest{Role: RoleAgent}, ca.Hash(), t0)
	if err != nil {
		t.Fatal(err)
	}
	text := token.Reveal()
	got := must(ParseToken("  " + text + "\n"))(t)
	if got != token || got.CAHash != ca.Hash() {
		t.Errorf("token changed on its way through text")
	}
	if !got.matches(&record) {
		t.Error("token does not match its record")
	}
	if record.MaxUses != 1 || !record.Expires.Equal(t0.Add(24*time.Hour)) || record.Role != RoleAgent {
		t.Errorf("record is %+v", record)
	}
}

// TestTokenKeepsItsSecret: in no way of printing, in no error.
func TestTokenKeepsItsSecret(t *testing.T) {
	token, record, err := NewToken(TokenRequest{Role: RoleAgent}, Hash{}, t0)
	if err != nil {
		t.Fatal(err)
	}
	printed := fmt.Sprintf("%v %s %+v %#v %q %v %+v", token, token, token, token, token, record, &token)
	if strings.Contains(printed, token.secret) {
		t.Errorf("printed: %s", printed)
	}
	text := token.Reveal()
	for i := range text {
		for _, damaged := range []string{text[:i], text[i:], text[:i] + "!" + text[i:], text[:i] + "." + text[i:], text[:i] + "\n" + text[i+1:]} {
			if _, err := ParseToken(damaged); err != nil && strings.Contains(err.Error(), token.secret[:8]) {
				t.Errorf("error tells the secret: %v", err)
			}
		}
	}
}

// TestEveryTypoIsTold: whatever single character is changed, lost or swapped
// with its neighbour, it is a malformed token, never a wrong one.
func TestEveryTypoIsTold(t *testing.T) {
	token, _, err := NewToken(TokenRequest{Role: RoleAgent}, Hash{1, 2, 3}, t0)
	if err != nil {
		t.Fatal(err)
	}
	text := token.Reveal()
	rapid.Check(t, func(t *rapid.T) {
		i := rapid.IntRange(0, len(text)-2).Draw(t, "at")
		var typo string
		switch rapid.IntRange(0, 2).Draw(t, "kind") {
		case 0:
			typo = text[:i] + rapid.StringMatching(`[a-zA-Z0-9.!]`).Draw(t, "char") + text[i+1:]
		case 1:
			typo = text[:i] + text[i+1:]
		case 2:
			typo = text[:i] + text[i+1:i+2] + text[i:i+1] + text[i+2:]
		}
		if _, err := ParseToken(typo); typo != text && !errors.Is(err, ErrTokenFormat) {
			t.Fatalf("%q was taken: %v", typo, err)
		}
	})
}

func TestTokenMatchesOnlyItsRecord(t *testing.T) {
	a, recordA, errA := NewToken(TokenRequest{Role: RoleAgent}, Hash{}, t0)
	b, recordB, errB := NewToken(TokenRequest{Role: RoleAgent}, Hash{}, t0)
	if err := errors.Join(errA, errB); err != nil {
		t.Fatal(err)
	}
	mixed := recordA
	mixed.SecretHash = recordB.SecretHash
	empty := recordA
	empty.SecretHash = nil
	for name, r := range map[string]*TokenRecord{"other": &recordB, "none": nil, "mixed": &mixed, "empty hash": &empty, "zero": {}} {
		if a.matches(r) {
			t.Errorf("token matches record %q", name)
		}
	}
	if !a.matches(&recordA) || !b.matches(&recordB) {
		t.Error("tokens do not match their own records")
	}
}
