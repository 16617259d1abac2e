package pki

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"sync/atomic"
	"time"
)

// Credential is one identity with its certificate, its private key and the
// authorities of its cluster. It is immutable; a renewal makes a new one.
type Credential struct {
	identity Identity
	leaf     *x509.Certificate
	key      crypto.Signer
	trust    *Trust
}

// NewCredential reads a credential from PEM and checks that its parts belong
// together. It does not check the time: a member must be able to load an
// expired certificate, to renew it.
func NewCredential(caPEM, leafPEM, keyPEM []byte) (*Credential, error) {
	trust, err := ParseTrust(caPEM)
	if err != nil {
		return nil, err
	}
	leaf, err := parseLeaf(leafPEM)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, err
	}
	return newCredential(trust, leaf, key)
}

func newCredential(trust *Trust, leaf *x509.Certificate, key crypto.Signer) (*Credential, error) {
	id, err := trust.verify(leaf, x509.ExtKeyUsageClientAuth, leaf.NotBefore)
	if err != nil {
		return nil, err
	}
	if !samePublicKey(leaf, key) {
		return nil, refuse(ErrKeyMismatch, "the private key is not the key of the certificate of %s (serial %s); both must come from the same place", id, id.Serial)
	}
	return &Credential{identity: id, leaf: leaf, key: key, trust: trust}, nil
}

func parseLeaf(leafPEM []byte) (*x509.Certificate, error) {
	ders, err := pemBlocks(leafPEM, "CERTIFICATE", 1)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(ders[0])
	if err != nil {
		return nil, refuse(ErrBadMaterial, "certificate cannot be read: %w", err)
	}
	return leaf, nil
}

// Identity is who the credential says its holder is.
func (c *Credential) Identity() Identity { return c.identity }

// ClusterID is the id of the cluster.
func (c *Credential) ClusterID() string { return c.trust.clusterID }

// Trust is the authorities of the cluster.
func (c *Credential) Trust() *Trust { return c.trust }

// CertPEM is the certificate.
func (c *Credential) CertPEM() []byte { return certPEM(c.leaf.Raw) }

// KeyPEM is the private key, PKCS #8.
func (c *Credential) KeyPEM() ([]byte, error) { return keyPEM(c.key) }

// KeyHash is the anchor of the identity, as KeyHash has it.
func (c *Credential) KeyHash() Hash { return KeyHash(c.leaf) }

// Expires is the end of the certificate's life.
func (c *Credential) Expires() time.Time { return c.leaf.NotAfter }

// RenewAt is when the certificate should be renewed: at two thirds of its life,
// brought forward by up to a twentieth of it, so that members that joined
// together do not renew together. Jitter is in [0, 1).
func (c *Credential) RenewAt(jitter float64) time.Time {
	life := c.leaf.NotAfter.Sub(c.leaf.NotBefore)
	early := time.Duration(jitter * float64(life/renewSpread))
	return c.leaf.NotBefore.Add(life*2/3 - early)
}

const renewSpread = 20

// Renewed is the same identity and key with a new certificate.
func (c *Credential) Renewed(leafPEM []byte) (*Credential, error) {
	leaf, err := parseLeaf(leafPEM)
	if err != nil {
		return nil, err
	}
	next, err := newCredential(c.trust, leaf, c.key)
	if err != nil {
		return nil, fmt.Errorf("renewed certificate: %w", err)
	}
	if next.identity.String() != c.identity.String() {
		return nil, refuse(ErrBadMaterial, "renewed certificate is of %s, asked for %s", next.identity, c.identity)
	}
	return next, nil
}

// hasSANs reports whether the certificate is good for all of want.
func (c *Credential) hasSANs(want SANs) bool {
	for _, d := range want.DNS {
		if c.leaf.VerifyHostname(d) != nil {
			return false
		}
	}
	for _, ip := range want.IPs {
		if c.leaf.VerifyHostname(ip.String()) != nil {
			return false
		}
	}
	return true
}

func (c *Credential) tlsCertificate(extra ...[]byte) *tls.Certificate {
	return &tls.Certificate{
		Certificate: append([][]byte{c.leaf.Raw}, extra...),
		PrivateKey:  c.key,
		Leaf:        c.leaf,
	}
}

// Credentials is the credential in use. TLS configurations ask it at each
// handshake, so a renewal needs no restart.
type Credentials struct{ p atomic.Pointer[Credential] }

// NewCredentials begins with first.
func NewCredentials(first *Credential) *Credentials {
	var c Credentials
	c.p.Store(first)
	return &c
}

// Current is the credential in use.
func (c *Credentials) Current() *Credential { return c.p.Load() }

// Replace puts a renewed credential in use for all handshakes from now on. It
// must be of the same cluster, role and name.
func (c *Credentials) Replace(next *Credential) error {
	now := c.Current()
	if next.ClusterID() != now.ClusterID() || next.identity.String() != now.identity.String() {
		return refuse(ErrBadMaterial, "cannot replace the certificate of %s in cluster %s by one of %s in cluster %s", now.identity, now.ClusterID(), next.identity, next.ClusterID())
	}
	c.p.Store(next)
	return nil
}
