package pki

import (
	"bytes"
	"errors"
	"net/url"
	"strings"
	"testing"

	"github.com/balsa-run/balsa/internal/clock"
)

// Every decoder of outside bytes: none panics, and what is accepted goes
// through encoding unchanged.

func FuzzParseToken(f *testing.F) {
	token, _, err := NewToken(TokenRequest{Role: RoleAgent}, Hash{1}, t0)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(token.Reveal())
	f.Add("balsa1....")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := ParseToken(text)
		if err != nil {
			if !errors.Is(err, ErrTokenFormat) {
				t.Fatalf("error is %v", err)
			}
			return
		}
		if again := must(ParseToken(got.Reveal()))(t); again != got {
			t.Fatal("token changed")
		}
	})
}

func FuzzOpenSealed(f *testing.F) {
	k := NewKeyring(NewSealKey(t0))
	f.Add([]byte("bsl\x01"))
	f.Add(must(k.Seal("o", "f", []byte("value")))(f))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, sealed []byte) {
		_, err := k.Open("another", "place", sealed)
		if !errors.Is(err, ErrSealed) && !errors.Is(err, ErrUnknownSealer) {
			t.Fatalf("error is %v", err)
		}
	})
}

func FuzzParseBundle(f *testing.F) {
	b := NewBundle(newTestCA(f), NewKeyring(NewSealKey(t0)), NewGossipKey())
	f.Add(must(b.Marshal())(f))
	f.Add([]byte(`{"version":1,"sealKeys":{"version":1}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := ParseBundle(text)
		if err != nil {
			if !errors.Is(err, ErrBundle) {
				t.Fatalf("error is %v", err)
			}
			return
		}
		once := must(got.Marshal())(t)
		twice := must(must(ParseBundle(once))(t).Marshal())(t)
		if !bytes.Equal(once, twice) {
			t.Fatal("bundle changed")
		}
	})
}

func FuzzParseKeyring(f *testing.F) {
	f.Add(must(NewKeyring(NewSealKey(t0)).Marshal())(f))
	f.Add([]byte(`{"version":1,"primary":"","keys":[{"id":""}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		k, err := ParseKeyring(text)
		if err != nil {
			if !errors.Is(err, ErrSealKey) {
				t.Fatalf("error is %v", err)
			}
			return
		}
		sealed := must(k.Seal("o", "f", text))(t)
		if value := must(k.Open("o", "f", sealed))(t); !bytes.Equal(value, text) {
			t.Fatal("value changed")
		}
	})
}

func FuzzParseConfig(f *testing.F) {
	config := must(NewConfig(issue(f, newTestCA(f), RoleAdmin, "alice", t0), []string{"s1:7070"}))(f)
	f.Add(must(config.Marshal())(f))
	f.Add([]byte("servers: &a [*a]\n"))
	f.Add([]byte("a: &a [x,x]\nb: &b [*a,*a]\nservers: [*b,*b]\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := ParseConfig(text)
		if err != nil {
			if !errors.Is(err, ErrConfig) {
				t.Fatalf("error is %v", err)
			}
			return
		}
		must(ParseConfig(must(got.Marshal())(t)))(t)
	})
}

func FuzzParseTrust(f *testing.F) {
	ca := newTestCA(f)
	f.Add(ca.CertPEM())
	f.Add(issue(f, ca, RoleAgent, "n1", t0).CertPEM())
	f.Fuzz(func(t *testing.T, text []byte) {
		if trust, err := ParseTrust(text); err == nil {
			must(ParseTrust(trust.PEM()))(t)
		}
	})
}

func FuzzCSR(f *testing.F) {
	ca := newTestCA(f)
	f.Add(must(NewCSR("n1", must(newKey())(f)))(f))
	f.Add(csrWithName(f, "n1", ServerName))
	f.Fuzz(func(t *testing.T, csr []byte) {
		leaf, err := ca.Sign(SignRequest{CSR: csr, Role: RoleAgent, Name: "n1"}, t0)
		if err != nil {
			return
		}
		id := must(FromCertificate(leaf, "c1"))(t)
		if id.String() != "agent/n1" || len(leaf.DNSNames) != 1 || leaf.IsCA {
			t.Fatalf("signed %+v", leaf)
		}
	})
}

func FuzzRenew(f *testing.F) {
	r := newRenewal(f)
	req := r.request(f)
	f.Add(req.Cert, req.CSR, req.Nonce, req.Signature)
	other := NewNonces(clock.NewFake(t0)) // none of what the fuzzer finds is of this server
	f.Fuzz(func(t *testing.T, cert, csr, nonce, signature []byte) {
		q := RenewRequest{Cert: cert, CSR: csr, Nonce: nonce, Signature: signature}
		if _, err := r.ca.Renew(q, r.holder, other, r.guard, t0); err == nil {
			t.Fatal("renewed without a nonce of this server")
		}
	})
}

func FuzzIdentityURI(f *testing.F) {
	f.Add("balsa://c1/agent/n1")
	f.Add("balsa://c1/agent/%6e1")
	f.Fuzz(func(t *testing.T, text string) {
		u, err := url.Parse(text)
		if err != nil {
			return
		}
		id, cluster, err := parseIdentityURI(u)
		if err == nil && identityURI(cluster, id.Role, id.Name).String() != u.String() {
			t.Fatalf("%q was taken as %s of %s", text, id, cluster)
		}
	})
}

func FuzzParseSANs(f *testing.F) {
	for _, s := range []string{"10.0.0.1:70", "[fd00::1%eth0]:7", "s1.example", ":70", "::"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, address string) {
		sans, err := ParseSANs(address)
		if err != nil {
			return
		}
		if _, err := sans.forRole(RoleServer, "s1"); err != nil && !strings.EqualFold(hostOf(address), AgentName) {
			t.Fatalf("%q was taken, and refused for a certificate: %v", address, err)
		}
	})
}
