package pki

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Role is what an identity is in the cluster; a certificate carries exactly one.
type Role string

// The roles. What each may do is decided in apiserver.
const (
	RoleServer Role = "server"
	RoleAgent  Role = "agent"
	RoleAdmin  Role = "admin"
	RoleReader Role = "reader"
)

// Roles lists all roles.
func Roles() []Role { return []Role{RoleServer, RoleAgent, RoleAdmin, RoleReader} }

// ParseRole returns the role of that name, or an ErrBadRole.
func ParseRole(s string) (Role, error) {
	if r := Role(s); r.Valid() {
		return r, nil
	}
	return "", refuse(ErrBadRole, "role %q is unknown; it must be one of server, agent, admin, reader", clip(s))
}

// Valid reports whether r is one of the roles.
func (r Role) Valid() bool { return slices.Contains(Roles(), r) }

// Member reports whether r is a machine of the cluster rather than a user.
func (r Role) Member() bool { return r == RoleServer || r == RoleAgent }

// Identity is who is at the other end of a connection, as its certificate says.
type Identity struct {
	Name   string
	Role   Role
	Serial string // of the certificate, lower-case hex

	// Issued is about when the certificate was signed, by the clock of the server
	// that did and cut to the second; zero if it is not known.
	Issued time.Time

	// Expires is the end of the certificate's life; zero is not checked.
	Expires time.Time
}

// String is "role/name".
func (id Identity) String() string { return string(id.Role) + "/" + id.Name }

// Limits of names, which also are the certificate's common name (at most 64
// bytes, RFC 5280 ub-common-name) and part of store keys.
const (
	MaxNameBytes      = 63
	MaxClusterIDBytes = 63
)

// ValidateName checks an identity's name: lower-case letters, digits, '-' and
// '.', for users also '@' and '_', beginning and ending with a letter or digit.
func ValidateName(role Role, name string) error {
	extra := "-."
	if !role.Member() {
		extra = "-.@_"
	}
	if len(name) == 0 || len(name) > MaxNameBytes {
		return refuse(ErrBadName, "%s name %q has %d bytes; 1 to %d are allowed", role, clip(name), len(name), MaxNameBytes)
	}
	if !wellFormed(name, extra) {
		return refuse(ErrBadName, "%s name %q: only lower-case letters, digits and %q are allowed, and a letter or digit at both ends", role, clip(name), extra)
	}
	return nil
}

// ValidateClusterID checks a cluster's id, which is the host of identity URIs.
func ValidateClusterID(id string) error {
	if len(id) == 0 || len(id) > MaxClusterIDBytes || !wellFormed(id, "-") {
		return refuse(ErrBadName, "cluster id %q: 1 to %d lower-case letters, digits and '-' are allowed, and a letter or digit at both ends", clip(id), MaxClusterIDBytes)
	}
	return nil
}

// NewClusterID returns a random cluster id of 128 bits.
func NewClusterID() string { return hex.EncodeToString(randomBytes(16)) }

func wellFormed(s, extra string) bool {
	for i := range len(s) {
		c := s[i]
		alnum := 'a' <= c && c <= 'z' || '0' <= c && c <= '9'
		inner := i > 0 && i < len(s)-1 && strings.IndexByte(extra, c) >= 0
		if !alnum && !inner {
			return false
		}
	}
	return !strings.Contains(s, "..")
}

// clip keeps outside text in messages short.
func clip(s string) string {
	const longest = 80
	if len(s) <= longest {
		return s
	}
	return s[:longest] + "..."
}

// uriScheme is that of identities in certificates:
//
//	balsa://<cluster id>/<role>/<name>     a member or user
//	balsa://<cluster id>                   the certificate authority
//
// A URI is one string under the authority's signature, so a role cannot be
// combined with another subject, and a second one is visible as such.
const uriScheme = "balsa"

func identityURI(clusterID string, role Role, name string) *url.URL {
	return &url.URL{Scheme: uriScheme, Host: clusterID, Path: "/" + string(role) + "/" + name}
}

// FromCertificate reads the identity out of a leaf certificate of the given
// cluster. It does not check signatures or times: TLS has, or the caller does.
func FromCertificate(cert *x509.Certificate, clusterID string) (Identity, error) {
	if cert.IsCA {
		return Identity{}, refuse(ErrNoIdentity, "certificate %s is a certificate authority, not an identity", SerialOf(cert))
	}
	if n := len(cert.URIs); n != 1 {
		return Identity{}, refuse(ErrNoIdentity, "certificate %s carries %d identity URIs; exactly one is allowed, balsa://<cluster>/<role>/<name>", SerialOf(cert), n)
	}
	id, cluster, err := parseIdentityURI(cert.URIs[0])
	if err != nil {
		return Identity{}, fmt.Errorf("certificate %s: %w", SerialOf(cert), err)
	}
	if cluster != clusterID {
		return Identity{}, refuse(ErrOtherCluster, "certificate of %s belongs to cluster %s, this is cluster %s; use the credentials of this cluster", id, cluster, clusterID)
	}
	if cn := cert.Subject.CommonName; cn != id.Name {
		return Identity{}, refuse(ErrNoIdentity, "certificate of %s has common name %q; it must be the identity's name", id, clip(cn))
	}
	id.Serial, id.Issued, id.Expires = SerialOf(cert), cert.NotBefore.Add(ClockSkew), cert.NotAfter
	return id, nil
}

func parseIdentityURI(u *url.URL) (Identity, string, error) {
	bad := func() (Identity, string, error) {
		return Identity{}, "", refuse(ErrNoIdentity, "identity URI %q is not balsa://<cluster>/<role>/<name>", clip(u.String()))
	}
	parts := strings.Split(u.Path, "/")
	if len(parts) != 3 || ValidateClusterID(u.Host) != nil {
		return bad()
	}
	role, err := ParseRole(parts[1])
	if err != nil {
		return Identity{}, "", fmt.Errorf("identity URI: %w", err)
	}
	if err := ValidateName(role, parts[2]); err != nil {
		return Identity{}, "", fmt.Errorf("identity URI: %w", err)
	}
	if identityURI(u.Host, role, parts[2]).String() != u.String() {
		return bad()
	}
	return Identity{Name: parts[2], Role: role}, u.Host, nil
}

// SerialOf is the serial number of a certificate as Identity.Serial has it.
func SerialOf(cert *x509.Certificate) string {
	if cert.SerialNumber == nil {
		return ""
	}
	return cert.SerialNumber.Text(16)
}

// newSerial returns 126 random bits, always 32 hex digits long.
func newSerial() *big.Int {
	b := randomBytes(16)
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b)
}

// randomBytes cannot fail: crypto/rand stops the process instead.
func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

type identityKey struct{}

// WithIdentity returns a context that carries who is calling.
func WithIdentity(ctx context.Context, id Identity) context.Context {
	return context.WithValue(ctx, identityKey{}, id)
}

// IdentityFrom returns who is calling, and whether the context says so.
func IdentityFrom(ctx context.Context) (Identity, bool) {
	id, ok := ctx.Value(identityKey{}).(Identity)
	return id, ok
}
