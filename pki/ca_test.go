package pki

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"
)

func TestCAGoesThroughPEM(t *testing.T) {
	ca := newTestCA(t)
	again := must(ParseCA(ca.CertPEM(), must(ca.KeyPEM())(t)))(t)
	if again.Hash() != ca.Hash() || again.ClusterID() != "c1" || !again.key.Equal(ca.key) {
		t.Error("the CA changed on its way through PEM")
	}
	if life := ca.NotAfter().Sub(t0); life != CALife {
		t.Errorf("the CA lives %v", life)
	}
}

// TestTwoRoots: while a cluster changes its authority over, both are trusted.
func TestTwoRoots(t *testing.T) {
	a, b := newTestCA(t), newTestCA(t)
	both := must(ParseTrust(append(a.CertPEM(), b.CertPEM()...)))(t)
	for _, ca := range []*CA{a, b} {
		cred := issue(t, ca, RoleAgent, "n1", t0)
		if _, err := both.verify(cred.leaf, x509.ExtKeyUsageClientAuth, t0); err != nil {
			t.Error(err)
		}
	}
	ca := must(ParseCA(both.PEM(), must(b.KeyPEM())(t)))(t)
	if ca.Hash() != b.Hash() {
		t.Error("the key was paired with the other root")
	}
}

func TestLeaves(t *testing.T) {
	ca := newTestCA(t)
	sans := must(ParseSANs("10.0.0.1:7070", "s1.example:7070", "[fd00::1]:7070", ":7070", "0.0.0.0:1"))(t)
	key := must(newKey())(t)
	csr := must(NewCSR("s1", key))(t)
	server := must(ca.Sign(SignRequest{CSR: csr, Role: RoleServer, Name: "s1", SANs: sans}, t0))(t)
	for _, name := range []string{ServerName, "localhost", "127.0.0.1", "::1", "10.0.0.1", "fd00::1", "s1.example", "s1"} {
		if err := server.VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{AgentName, "10.0.0.2", "0.0.0.0"} {
		if server.VerifyHostname(name) == nil {
			t.Errorf("server certificate is good for %s", name)
		}
	}
	agent := issue(t, ca, RoleAgent, "n1", t0).leaf
	if got := fmt.Sprint(agent.DNSNames, agent.IPAddresses); got != "[balsa-agent] []" {
		t.Errorf("agent certificate is good for %s", got)
	}
	admin := issue(t, ca, RoleAdmin, "alice", t0).leaf
	if slices.Contains(admin.ExtKeyUsage, x509.ExtKeyUsageServerAuth) || len(admin.DNSNames) > 0 {
		t.Error("a user's certificate can serve")
	}
}

func TestLifetimes(t *testing.T) {
	ca := newTestCA(t)
	late := ca.NotAfter().Add(-24 * time.Hour)
	tests := map[string]struct {
		role Role
		ttl  time.Duration
		now  time.Time
		want time.Time
	}{
		"server":              {RoleServer, 0, t0, t0.Add(90 * 24 * time.Hour)},
		"agent":               {RoleAgent, 0, t0, t0.Add(90 * 24 * time.Hour)},
		"user":                {RoleReader, 0, t0, t0.Add(365 * 24 * time.Hour)},
		"user for an hour":    {RoleAdmin, time.Hour, t0, t0.Add(time.Hour)},
		"never after the CA":  {RoleServer, 0, late, ca.NotAfter()},
		"user, end of the CA": {RoleAdmin, 0, late, ca.NotAfter()},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			csr := must(NewCSR("x", must(newKey())(t)))(t)
			leaf := must(ca.Sign(SignRequest{CSR: csr, Role: tt.role, Name: "x", TTL: tt.ttl}, tt.now))(t)
			if !leaf.NotAfter.Equal(tt.want) {
				t.Errorf("ends %v, want %v", leaf.NotAfter, tt.want)
			}
			if leaf.NotBefore.Before(ca.cert.NotBefore) || leaf.NotBefore.After(tt.now) {
				t.Errorf("begins %v", leaf.NotBefore)
			}
		})
	}
}

// TestBackwardsClock: the first server's clock ran ahead when it made the CA.
func TestBackwardsClock(t *testing.T) {
	ca := newTestCA(t)
	cred := issue(t, ca, RoleServer, "s1", t0.Add(-time.Hour))
	if _, err := ca.Trust().verify(cred.leaf, x509.ExtKeyUsageServerAuth, t0); err != nil {
		t.Error(err)
	}
}

func TestSerialsAreRandom(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		s := newSerial().Text(16)
		if len(s) != 32 || seen[s] {
			t.Fatalf("serial %s", s)
		}
		seen[s] = true
	}
}

func TestKindsOfKeys(t *testing.T) {
	ca := newTestCA(t)
	p224 := must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader))(t)
	p384 := must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))(t)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsa2048 := must(rsa.GenerateKey(rand.Reader, 2048))(t)
	tests := map[string]struct {
		csr          []byte
		member, user bool
	}{
		"p224":    {must(NewCSR("x", p224))(t), false, false},
		"p384":    {must(NewCSR("x", p384))(t), true, true},
		"ed25519": {must(NewCSR("x", ed))(t), false, true},
		"rsa2048": {must(NewCSR("x", rsa2048))(t), false, true},
	}
	for name, tt := range tests {
		for role, ok := range map[Role]bool{RoleAgent: tt.member, RoleReader: tt.user} {
			_, err := ca.Sign(SignRequest{CSR: tt.csr, Role: role, Name: "x"}, t0)
			if (err == nil) != ok || err != nil && !errors.Is(err, ErrBadRequest) {
				t.Errorf("%s for %s: %v", name, role, err)
			}
		}
	}
}

// csrWithName asks for the name of a server.
func csrWithName(t testing.TB, cn string, dns ...string) []byte {
	t.Helper()
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: cn}, DNSNames: dns}
	return must(x509.CreateCertificateRequest(rand.Reader, template, must(newKey())(t)))(t)
}
