package pki

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/balsa-run/balsa/internal/clock"
)

// renewal is a server that can renew and an agent that wants it.
type renewal struct {
	ca     *CA
	clk    *clock.Fake
	nonces *Nonces
	guard  *Guard
	agent  *Credential
	holder *Holder
}

func newRenewal(t testing.TB) *renewal {
	ca, clk := newTestCA(t), clock.NewFake(t0)
	agent := issue(t, ca, RoleAgent, "n1", t0)
	return &renewal{
		ca: ca, clk: clk, nonces: NewNonces(clk), guard: NewGuard(clk, nil), agent: agent,
		holder: &Holder{Role: RoleAgent, Name: "n1", KeyHash: agent.KeyHash(), TokenID: "t"},
	}
}

func (r *renewal) request(t testing.TB) RenewRequest {
	t.Helper()
	return must(NewRenewRequest(r.agent, r.nonces.Issue()))(t)
}

func (r *renewal) decide(req RenewRequest) (*Admission, error) {
	return r.ca.Renew(req, r.holder, r.nonces, r.guard, r.clk.Now())
}

// TestRenewAfterMonths: the certificate may be long expired, the key counts.
func TestRenewAfterMonths(t *testing.T) {
	r := newRenewal(t)
	for _, pause := range []time.Duration{0, 60 * day, 91 * day, 400 * day, 8 * 365 * day} {
		r.clk.Set(t0.Add(pause))
		req := r.request(t)
		if id := must(r.ca.HolderOf(req))(t); id.String() != "agent/n1" {
			t.Errorf("holder is %s", id)
		}
		a := must(r.decide(req))(t)
		next := must(r.agent.Renewed(a.CertPEM))(t)
		if a.Holder != *r.holder || a.Record != nil || next.KeyHash() != r.agent.KeyHash() {
			t.Errorf("after %v: admission is %+v", pause, a)
		}
		if left := next.Expires().Sub(r.clk.Now()); left != AgentLeafLife {
			t.Errorf("after %v: the new certificate lives %v", pause, left)
		}
	}
}

func TestReplayIsRefused(t *testing.T) {
	r := newRenewal(t)
	req := r.request(t)
	must(r.decide(req))(t)
	for _, pause := range []time.Duration{0, time.Second, NonceLife - time.Second, NonceLife, 24 * time.Hour} {
		r.clk.Set(t0.Add(pause))
		if _, err := r.decide(req); !errors.Is(err, ErrProof) {
			t.Errorf("after %v: %v", pause, err)
		}
	}
	r.clk.Set(t0)
	req = r.request(t)
	r.nonces = NewNonces(r.clk)
	if _, err := r.decide(req); !errors.Is(err, ErrProof) {
		t.Errorf("at another server: %v", err)
	}
}

// TestEveryPartIsSigned: nothing in a request can be exchanged.
func TestEveryPartIsSigned(t *testing.T) {
	r := newRenewal(t)
	other := issue(t, r.ca, RoleAgent, "n2", t0)
	sameName := issue(t, r.ca, RoleAgent, "n1", t0)
	tests := map[string]func(*RenewRequest){
		"certificate of another":   func(q *RenewRequest) { q.Cert = other.leaf.Raw },
		"certificate of same name": func(q *RenewRequest) { q.Cert = sameName.leaf.Raw },
		"request with another key": func(q *RenewRequest) { q.CSR = must(NewCSR("n1", other.key))(t) },
		"fresh nonce":              func(q *RenewRequest) { q.Nonce = r.nonces.Issue() },
		"signature bit":            func(q *RenewRequest) { q.Signature[len(q.Signature)-1] ^= 1 },
		"no signature":             func(q *RenewRequest) { q.Signature = nil },
	}
	for name, spoil := range tests {
		t.Run(name, func(t *testing.T) {
			req := r.request(t)
			spoil(&req)
			if _, err := r.decide(req); !errors.Is(err, ErrProof) {
				t.Errorf("error is %v", err)
			}
		})
	}
	if _, err := r.decide(r.request(t)); err != nil {
		t.Errorf("the unspoilt request: %v", err)
	}
}

// TestForgedNonce: a nonce made by a stranger, or one whose time was changed.
func TestForgedNonce(t *testing.T) {
	r := newRenewal(t)
	later := r.nonces.Issue()
	binary.BigEndian.PutUint64(later, uint64(t0.Add(time.Hour).UnixMilli()))
	for name, nonce := range map[string][]byte{"zeros": make([]byte, nonceBytes), "time changed": later} {
		req := must(NewRenewRequest(r.agent, nonce))(t)
		if _, err := r.decide(req); !errors.Is(err, ErrProof) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, n := range []int{0, 1, nonceBytes - 1, nonceBytes + 1} {
		req := must(NewRenewRequest(r.agent, make([]byte, n)))(t)
		if _, err := r.decide(req); !errors.Is(err, ErrProof) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

func TestRenewalRefusals(t *testing.T) {
	t.Run("removed name", func(t *testing.T) {
		r := newRenewal(t)
		r.guard.Update(must(NewRemoved([]Removal{{Role: RoleAgent, Name: "n1", At: t0}}))(t))
		if _, err := r.decide(r.request(t)); !errors.Is(err, ErrRemoved) {
			t.Error(err)
		}
	})
	t.Run("removed serial, expired", func(t *testing.T) {
		r := newRenewal(t)
		r.guard.Update(must(NewRemoved([]Removal{{Serial: r.agent.identity.Serial, At: t0}}))(t))
		r.clk.Set(t0.Add(100 * day))
		if _, err := r.decide(r.request(t)); !errors.Is(err, ErrRemoved) {
			t.Error(err)
		}
	})
	t.Run("nobody on record", func(t *testing.T) {
		r := newRenewal(t)
		r.holder = nil
		if _, err := r.decide(r.request(t)); !errors.Is(err, ErrNotMember) {
			t.Error(err)
		}
	})
	t.Run("joined again with a new key", func(t *testing.T) {
		r := newRenewal(t)
		r.holder.KeyHash = Hash{1}
		if _, err := r.decide(r.request(t)); !errors.Is(err, ErrProof) {
			t.Error(err)
		}
	})
	for _, role := range []Role{RoleServer, RoleAdmin, RoleReader} {
		t.Run(string(role), func(t *testing.T) {
			r := newRenewal(t)
			r.agent = issue(t, r.ca, role, "n1", t0)
			if _, err := r.decide(r.request(t)); !errors.Is(err, ErrWrongRole) {
				t.Error(err)
			}
		})
	}
	t.Run("other cluster", func(t *testing.T) {
		r := newRenewal(t)
		r.agent = issue(t, newTestCA(t), RoleAgent, "n1", t0)
		if _, err := r.decide(r.request(t)); !errors.Is(err, ErrOtherCluster) {
			t.Error(err)
		}
	})
	t.Run("CA expired", func(t *testing.T) {
		r := newRenewal(t)
		r.clk.Set(r.ca.NotAfter())
		if _, err := r.decide(r.request(t)); !errors.Is(err, ErrExpired) {
			t.Error(err)
		}
	})
}

// TestNoncesAreBounded: at the limit further ones wait, and time frees it.
func TestNoncesAreBounded(t *testing.T) {
	clk := clock.NewFake(t0)
	n := NewNonces(clk)
	for range maxNoncesUsed {
		if err := n.use(n.Issue()); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.use(n.Issue()); !errors.Is(err, ErrTooMany) {
		t.Fatalf("one more: %v", err)
	}
	clk.Advance(NonceLife)
	if err := n.use(n.Issue()); err != nil || len(n.used) != 1 || n.order.Len() != 1 {
		t.Errorf("later: %v, %d remembered", err, len(n.used))
	}
}

func TestPayloadsDiffer(t *testing.T) {
	a := renewPayload("c", RenewRequest{Nonce: []byte("ab"), Cert: []byte("c")})
	b := renewPayload("c", RenewRequest{Nonce: []byte("a"), Cert: []byte("bc")})
	if bytes.Equal(a, b) || sha256.Sum256(a) == sha256.Sum256(b) {
		t.Error("two requests have one payload")
	}
}
