package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"net/url"
	"time"
)

// Lifetimes. Leaves are renewed at two thirds of their life.
const (
	CALife          = 10 * 365 * day
	ServerLeafLife  = 90 * day
	AgentLeafLife   = 90 * day
	UserLeafDefault = 365 * day
	UserLeafMax     = 5 * 365 * day
	UserLeafMin     = time.Minute

	// ClockSkew is how far a certificate's beginning lies before its signing,
	// for machines whose clocks run behind.
	ClockSkew = 5 * time.Minute

	day = 24 * time.Hour
)

// MaxCSRBytes bounds a certificate request; ours have about 250 bytes, one of a
// 4096-bit RSA key 1,600.
const MaxCSRBytes = 8 << 10

// Hash is a SHA-256: of a certificate (CAHash) or a public key (KeyHash).
type Hash [sha256.Size]byte

// String is lower-case hex.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// CAHash is what join tokens pin: the SHA-256 of the whole DER certificate.
func CAHash(ca *x509.Certificate) Hash { return sha256.Sum256(ca.Raw) }

// KeyHash is the SHA-256 of a certificate's public key (its DER
// SubjectPublicKeyInfo): the anchor of a member's identity, which keeps its key
// through all renewals.
func KeyHash(cert *x509.Certificate) Hash { return sha256.Sum256(cert.RawSubjectPublicKeyInfo) }

// CA is a cluster's certificate authority with its key. Whoever holds it can be
// anybody in the cluster; every server does. It is immutable.
type CA struct {
	cert      *x509.Certificate
	key       *ecdsa.PrivateKey
	clusterID string
}

// NewCA creates the authority of a new cluster: ECDSA P-256, which every TLS
// stack in use takes (Ed25519 is missing in older OpenSSL, LibreSSL and
// SecureTransport).
func NewCA(clusterID string, now time.Time) (*CA, error) {
	if err := ValidateClusterID(clusterID); err != nil {
		return nil, err
	}
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               pkix.Name{CommonName: "balsa cluster CA", SerialNumber: clusterID},
		URIs:                  []*url.URL{{Scheme: uriScheme, Host: clusterID}},
		NotBefore:             now.Add(-ClockSkew),
		NotAfter:              now.Add(CALife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("create the CA of cluster %s: %w", clusterID, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("create the CA of cluster %s: %w", clusterID, err)
	}
	return &CA{cert: cert, key: key, clusterID: clusterID}, nil
}

// ParseCA reads a CA certificate and its key from PEM.
func ParseCA(certPEM, keyPEM []byte) (*CA, error) {
	trust, err := ParseTrust(certPEM)
	if err != nil {
		return nil, err
	}
	signer, err := parseKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("CA key: %w", err)
	}
	key, ok := signer.(*ecdsa.PrivateKey)
	if !ok {
		return nil, refuse(ErrBadMaterial, "CA key is a %T; an ECDSA key is needed", signer)
	}
	for _, cert := range trust.cas {
		if key.PublicKey.Equal(cert.PublicKey) {
			return &CA{cert: cert, key: key, clusterID: trust.clusterID}, nil
		}
	}
	return nil, refuse(ErrKeyMismatch, "the CA key is not the key of the CA certificate of cluster %s (SHA-256 %s); restore both from the same server or backup", trust.clusterID, CAHash(trust.cas[0]))
}

// ClusterID is the id of the cluster whose authority this is.
func (ca *CA) ClusterID() string { return ca.clusterID }

// Hash is what join tokens pin.
func (ca *CA) Hash() Hash { return CAHash(ca.cert) }

// NotAfter is when the authority ends, and with it the cluster's certificates.
func (ca *CA) NotAfter() time.Time { return ca.cert.NotAfter }

// CertPEM is the authority's certificate.
func (ca *CA) CertPEM() []byte { return certPEM(ca.cert.Raw) }

// KeyPEM is the authority's private key, PKCS #8.
func (ca *CA) KeyPEM() ([]byte, error) { return keyPEM(ca.key) }

// Trust is the authority as those see it who have no key.
func (ca *CA) Trust() *Trust { return newTrust(ca.clusterID, []*x509.Certificate{ca.cert}) }

// SignRequest is what a certificate is to say.
type SignRequest struct {
	CSR  []byte // DER; only its key is taken, and its common name must be Name
	Role Role
	Name string
	SANs SANs          // servers only; the fixed names are added by Sign
	TTL  time.Duration // users only; zero is UserLeafDefault
}

// Sign issues a certificate. Its end is never after the authority's own.
func (ca *CA) Sign(req SignRequest, now time.Time) (*x509.Certificate, error) {
	template, err := ca.template(req, now)
	if err != nil {
		return nil, err
	}
	csr, err := parseCSR(req.CSR, req.Role, req.Name)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, csr.PublicKey, ca.key)
	if err != nil {
		return nil, fmt.Errorf("sign a certificate for %s/%s: %w", req.Role, req.Name, err)
	}
	return x509.ParseCertificate(der)
}

func (ca *CA) template(req SignRequest, now time.Time) (*x509.Certificate, error) {
	if !req.Role.Valid() {
		_, err := ParseRole(string(req.Role))
		return nil, err
	}
	if err := ValidateName(req.Role, req.Name); err != nil {
		return nil, err
	}
	life, err := leafLife(req.Role, req.TTL)
	if err != nil {
		return nil, err
	}
	sans, err := req.SANs.forRole(req.Role, req.Name)
	if err != nil {
		return nil, err
	}
	if !now.Before(ca.cert.NotAfter) {
		return nil, refuse(ErrExpired, "the CA of cluster %s expired at %s; no certificate can be signed with it", ca.clusterID, stamp(ca.cert.NotAfter))
	}
	return &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               pkix.Name{CommonName: req.Name},
		URIs:                  []*url.URL{identityURI(ca.clusterID, req.Role, req.Name)},
		DNSNames:              sans.DNS,
		IPAddresses:           sans.netIPs(),
		NotBefore:             later(now.Add(-ClockSkew), ca.cert.NotBefore),
		NotAfter:              earlier(now.Add(life), ca.cert.NotAfter),
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           extKeyUsage(req.Role),
	}, nil
}

func leafLife(role Role, ttl time.Duration) (time.Duration, error) {
	switch {
	case role == RoleServer && ttl == 0:
		return ServerLeafLife, nil
	case role == RoleAgent && ttl == 0:
		return AgentLeafLife, nil
	case role.Member():
		return 0, refuse(ErrBadRequest, "ttl %v for role %s: certificates of members always live %v; leave it out", ttl, role, ServerLeafLife)
	case ttl == 0:
		return UserLeafDefault, nil
	case ttl < UserLeafMin || ttl > UserLeafMax:
		return 0, refuse(ErrBadRequest, "ttl %v for role %s: %v to %v are allowed", ttl, role, UserLeafMin, UserLeafMax)
	}
	return ttl, nil
}

// extKeyUsage: members both dial and listen, users only dial.
func extKeyUsage(role Role) []x509.ExtKeyUsage {
	if role.Member() {
		return []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	return []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
}

// NewCSR makes a certificate request for name.
func NewCSR(name string, key crypto.Signer) ([]byte, error) {
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return nil, fmt.Errorf("create a certificate request for %s: %w", name, err)
	}
	return der, nil
}

// parseCSR checks everything about a request that comes from outside.
func parseCSR(der []byte, role Role, name string) (*x509.CertificateRequest, error) {
	if len(der) > MaxCSRBytes {
		return nil, refuse(ErrBadRequest, "certificate request has %d bytes; at most %d are allowed", len(der), MaxCSRBytes)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, refuse(ErrBadRequest, "certificate request cannot be read: %w", err)
	}
	if err := checkPublicKey(role, csr.PublicKey); err != nil {
		return nil, err
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, refuse(ErrBadRequest, "certificate request is not signed by its own key: %w", err)
	}
	if cn := csr.Subject.CommonName; cn != name {
		return nil, refuse(ErrBadRequest, "certificate request has common name %q, but %q asks; they must be the same", clip(cn), clip(name))
	}
	if n := len(csr.Extensions); n > 0 {
		return nil, refuse(ErrBadRequest, "certificate request asks for %d extensions (such as subject alternative names); none is allowed, the cluster decides them", n)
	}
	return csr, nil
}

// checkPublicKey lets users bring keys of other tools; members have the keys
// that this package generates, with which they also sign proofs.
func checkPublicKey(role Role, key any) error {
	if k, ok := key.(*ecdsa.PublicKey); ok && (k.Curve == elliptic.P256() || k.Curve == elliptic.P384()) {
		return nil
	}
	if role.Member() {
		return refuse(ErrBadRequest, "the key of the certificate request is of a kind that is not allowed for role %s; use ECDSA P-256 or P-384", role)
	}
	if _, ok := key.(ed25519.PublicKey); ok {
		return nil
	}
	if k, ok := key.(*rsa.PublicKey); ok && k.N.BitLen() >= 2048 && k.N.BitLen() <= 4096 {
		return nil
	}
	return refuse(ErrBadRequest, "the key of the certificate request is of a kind that is not allowed; use ECDSA P-256 or P-384, Ed25519, or RSA of 2048 to 4096 bits")
}

func newKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate a key: %w", err)
	}
	return key, nil
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// stamp is how messages show a time.
func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
