package pki

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"net/url"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestIdentityThroughACertificate(t *testing.T) {
	ca := newTestCA(t)
	for _, role := range Roles() {
		cred := issue(t, ca, role, "n1.example", t0)
		got := cred.Identity()
		if got.Name != "n1.example" || got.Role != role || len(got.Serial) != 32 || !got.Expires.Equal(cred.Expires()) {
			t.Errorf("identity of %s is %+v", role, got)
		}
	}
}

func TestIdentityInContext(t *testing.T) {
	if _, ok := IdentityFrom(context.Background()); ok {
		t.Error("found an identity in an empty context")
	}
	want := Identity{Name: "alice", Role: RoleAdmin, Serial: "1"}
	got, ok := IdentityFrom(WithIdentity(context.Background(), want))
	if !ok || got != want {
		t.Errorf("got %+v, %v", got, ok)
	}
}

func TestNames(t *testing.T) {
	tests := map[string]struct{ member, user bool }{
		"n1":                    {true, true},
		"a":                     {true, true},
		"n1.rack-2.example":     {true, true},
		strings.Repeat("a", 63): {true, true},
		strings.Repeat("a", 64): {false, false},
		"alice@example.org":     {false, true},
		"ci_bot":                {false, true},
		"":                      {false, false},
		"Alice":                 {false, false},
		"-a":                    {false, false},
		"a.":                    {false, false},
		"a..b":                  {false, false},
		"a/b":                   {false, false},
		"a b":                   {false, false},
		"a\x00b":                {false, false},
		"ä":                     {false, false},
		"../x":                  {false, false},
		"a%2fb":                 {false, false},
	}
	for name, want := range tests {
		for _, role := range Roles() {
			err := ValidateName(role, name)
			ok := want.user
			if role.Member() {
				ok = want.member
			}
			if (err == nil) != ok || err != nil && !errors.Is(err, ErrBadName) {
				t.Errorf("ValidateName(%s, %q) = %v", role, name, err)
			}
		}
	}
}

// certWith is an unsigned certificate, as FromCertificate sees one.
func certWith(cn string, uris ...string) *x509.Certificate {
	c := &x509.Certificate{Subject: pkix.Name{CommonName: cn}, SerialNumber: newSerial()}
	for _, s := range uris {
		u, err := url.Parse(s)
		if err != nil {
			panic(err)
		}
		c.URIs = append(c.URIs, u)
	}
	return c
}

func TestFromCertificateTakesOnlyTheOneForm(t *testing.T) {
	good := "balsa://c1/agent/n1"
	if _, err := FromCertificate(certWith("n1", good), "c1"); err != nil {
		t.Fatal(err)
	}
	for _, uri := range []string{
		"balsa://c1/agent/n1/", "balsa://c1//agent/n1", "balsa://c1/agent/n1?x=1", "balsa://c1/agent/n1#x",
		"balsa://u@c1/agent/n1", "balsa://c1:80/agent/n1", "https://c1/agent/n1", "balsa:c1/agent/n1",
		"balsa://c1/agent/%6e1", "balsa://c1/agent", "balsa://c1", "balsa://C1/agent/n1", "balsa://c1/Agent/n1",
		"balsa://c1/agent/n1/admin", "balsa://c1/root/n1", "balsa:///agent/n1",
	} {
		if id, err := FromCertificate(certWith("n1", uri), "c1"); err == nil {
			t.Errorf("%s was taken as %+v", uri, id)
		}
	}
	two := certWith("n1", good, "balsa://c1/admin/n1")
	if _, err := FromCertificate(two, "c1"); !errors.Is(err, ErrNoIdentity) {
		t.Errorf("two roles: %v", err)
	}
	twice := certWith("n1", good, good)
	if _, err := FromCertificate(twice, "c1"); !errors.Is(err, ErrNoIdentity) {
		t.Errorf("the same role twice: %v", err)
	}
}

// TestIdentityURIIsInjective: no two identities have one URI, and each comes
// back as it went in.
func TestIdentityURIIsInjective(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		role := rapid.SampledFrom(Roles()).Draw(t, "role")
		name := rapid.StringMatching(`[a-z0-9]([a-z0-9.@_-]{0,20}[a-z0-9])?`).
			Filter(func(s string) bool { return ValidateName(role, s) == nil }).Draw(t, "name")
		u, err := url.Parse(identityURI("c1", role, name).String())
		if err != nil {
			t.Fatal(err)
		}
		id, cluster, err := parseIdentityURI(u)
		if err != nil || id.Role != role || id.Name != name || cluster != "c1" {
			t.Fatalf("%s came back as %+v, %s, %v", u, id, cluster, err)
		}
	})
}
