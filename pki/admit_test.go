package pki

import (
	"errors"
	"testing"
	"time"
)

// joinCase is a join that is granted, to be spoilt by the tests.
func joinCase(t testing.TB, ca *CA, role Role) JoinCase {
	t.Helper()
	token, record, err := NewToken(TokenRequest{Role: role}, ca.Hash(), t0)
	if err != nil {
		t.Fatal(err)
	}
	joiner := must(NewJoiner(token, role, "n1", SANs{}, must(newKey())(t)))(t)
	return JoinCase{Token: token, Record: &record, Request: must(joiner.Request())(t)}
}

func TestAdmitCountsOneUse(t *testing.T) {
	ca := newTestCA(t)
	c := joinCase(t, ca, RoleAgent)
	a := must(ca.Admit(c, t0))(t)
	if a.Identity.String() != "agent/n1" || a.Repeat || a.Readmits || a.Record.Uses != 1 || c.Record.Uses != 0 {
		t.Fatalf("admission is %+v", a)
	}

	second := joinCase(t, ca, RoleAgent)
	second.Token, second.Record = c.Token, a.Record
	if _, err := ca.Admit(second, t0); !errors.Is(err, ErrTokenUsed) {
		t.Errorf("the second machine with a token for one: %v", err)
	}
}

// TestLostAnswer: the same key with the same token gets in again, at no cost,
// though the token is used up.
func TestLostAnswer(t *testing.T) {
	ca := newTestCA(t)
	c := joinCase(t, ca, RoleAgent)
	first := must(ca.Admit(c, t0))(t)
	c.Record, c.Holder = first.Record, &first.Holder
	again := must(ca.Admit(c, t0.Add(time.Minute)))(t)
	if !again.Repeat || again.Record != nil || again.Holder != first.Holder || again.Identity.Serial == first.Identity.Serial {
		t.Errorf("admission is %+v", again)
	}
	if _, err := ca.Admit(c, t0.Add(25*time.Hour)); !errors.Is(err, ErrTokenExpired) {
		t.Errorf("after the token's end: %v", err)
	}
}

// TestNameInUse: a token does not take over the name of a living member.
func TestNameInUse(t *testing.T) {
	ca := newTestCA(t)
	first := joinCase(t, ca, RoleAgent)
	holder := must(ca.Admit(first, t0))(t).Holder

	thief := joinCase(t, ca, RoleAgent)
	thief.Holder = &holder
	if _, err := ca.Admit(thief, t0); !errors.Is(err, ErrNameTaken) {
		t.Errorf("another key: %v", err)
	}
	sameKey := joinCase(t, ca, RoleAgent)
	sameKey.Request, sameKey.Holder = first.Request, &holder
	if _, err := ca.Admit(sameKey, t0); !errors.Is(err, ErrNameTaken) {
		t.Errorf("the request replayed with another token: %v", err)
	}
}

func TestReadmission(t *testing.T) {
	ca := newTestCA(t)
	c := joinCase(t, ca, RoleAgent)
	c.Removal = &Removal{Role: RoleAgent, Name: "n1", At: t0}
	if _, err := ca.Admit(c, t0.Add(time.Hour)); !errors.Is(err, ErrRemoved) {
		t.Errorf("with a token as old as the removal: %v", err)
	}
	c.Removal.At = t0.Add(-time.Second)
	if a := must(ca.Admit(c, t0))(t); !a.Readmits {
		t.Error("with a newer token: not marked as readmission")
	}
}

func TestJoinerAcceptsOnlyWhatItAskedFor(t *testing.T) {
	ca, other := newTestCA(t), newTestCA(t)
	token, _, err := NewToken(TokenRequest{Role: RoleServer}, ca.Hash(), t0)
	if err != nil {
		t.Fatal(err)
	}
	key := must(newKey())(t)
	joiner := must(NewJoiner(token, RoleServer, "s1", SANs{}, key))(t)
	bundle := NewBundle(ca, NewKeyring(NewSealKey(t0)), NewGossipKey())
	sign := func(ca *CA, role Role, name string) []byte {
		leaf := must(ca.Sign(SignRequest{CSR: must(NewCSR(name, key))(t), Role: role, Name: name}, t0))(t)
		return certPEM(leaf.Raw)
	}
	good := JoinReply{CertPEM: sign(ca, RoleServer, "s1"), CAPEM: ca.CertPEM(), Bundle: must(bundle.Marshal())(t)}

	cred, got, err := joiner.Accept(good)
	if err != nil || cred.Identity().String() != "server/s1" || got.CA.Hash() != ca.Hash() {
		t.Fatalf("good answer: %v", err)
	}
	strange := NewBundle(other, NewKeyring(NewSealKey(t0)), NewGossipKey())
	c2 := must(NewCA("c2", t0))(t)
	foreign := NewBundle(c2, NewKeyring(NewSealKey(t0)), NewGossipKey())
	tests := map[string]struct {
		spoil func(*JoinReply)
		want  error
	}{
		"other name":      {func(r *JoinReply) { r.CertPEM = sign(ca, RoleServer, "s2") }, ErrWrongPeer},
		"other role":      {func(r *JoinReply) { r.CertPEM = sign(ca, RoleAgent, "s1") }, ErrWrongPeer},
		"other CA":        {func(r *JoinReply) { r.CertPEM, r.CAPEM = sign(other, RoleServer, "s1"), other.CertPEM() }, ErrWrongCA},
		"unsigned by CA":  {func(r *JoinReply) { r.CertPEM = sign(other, RoleServer, "s1") }, ErrOtherCluster},
		"other key":       {func(r *JoinReply) { r.CertPEM = issue(t, ca, RoleServer, "s1", t0).CertPEM() }, ErrKeyMismatch},
		"no bundle":       {func(r *JoinReply) { r.Bundle = nil }, ErrBundle},
		"foreign bundle":  {func(r *JoinReply) { r.Bundle = must(foreign.Marshal())(t) }, ErrOtherCluster},
		"bundle, new CA":  {func(r *JoinReply) { r.Bundle = must(strange.Marshal())(t) }, ErrWrongCA},
		"no certificates": {func(r *JoinReply) { r.CAPEM = nil }, ErrBadMaterial},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			reply := good
			tt.spoil(&reply)
			if _, _, err := joiner.Accept(reply); !errors.Is(err, tt.want) {
				t.Errorf("error is %v, want %v", err, tt.want)
			}
		})
	}
}
