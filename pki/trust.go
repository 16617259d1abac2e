package pki

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"
)

// MaxRoots bounds the authorities a cluster trusts at once: one, and a second
// while it changes over.
const MaxRoots = 4

// maxPEMBytes bounds every PEM text that is read.
const maxPEMBytes = 64 << 10

// Trust is the authorities of one cluster. It is immutable.
type Trust struct {
	clusterID string
	cas       []*x509.Certificate // at least one
	pool      *x509.CertPool
}

func newTrust(clusterID string, cas []*x509.Certificate) *Trust {
	pool := x509.NewCertPool()
	for _, ca := range cas {
		pool.AddCert(ca)
	}
	return &Trust{clusterID: clusterID, cas: cas, pool: pool}
}

// ParseTrust reads the certificates of a cluster's authorities (ca.crt).
func ParseTrust(pemText []byte) (*Trust, error) {
	ders, err := pemBlocks(pemText, "CERTIFICATE", MaxRoots)
	if err != nil {
		return nil, fmt.Errorf("CA certificate: %w", err)
	}
	var clusterID string
	var cas []*x509.Certificate
	for _, der := range ders {
		ca, id, err := parseCACert(der)
		if err != nil {
			return nil, fmt.Errorf("CA certificate: %w", err)
		}
		if clusterID != "" && id != clusterID {
			return nil, refuse(ErrOtherCluster, "CA certificates of two clusters, %s and %s, in one file", clusterID, id)
		}
		clusterID, cas = id, append(cas, ca)
	}
	return newTrust(clusterID, cas), nil
}

func parseCACert(der []byte) (*x509.Certificate, string, error) {
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, "", refuse(ErrBadMaterial, "cannot be read: %w", err)
	}
	if !ca.IsCA || !ca.BasicConstraintsValid {
		return nil, "", refuse(ErrBadMaterial, "%q is not a certificate authority", clip(ca.Subject.String()))
	}
	if len(ca.URIs) != 1 || ca.URIs[0].Scheme != uriScheme || ca.URIs[0].String() != uriScheme+"://"+ca.URIs[0].Host {
		return nil, "", refuse(ErrBadMaterial, "authority %q was not made by balsa: it must carry the one URI balsa://<cluster>", clip(ca.Subject.String()))
	}
	if err := ValidateClusterID(ca.URIs[0].Host); err != nil {
		return nil, "", err
	}
	if err := ca.CheckSignatureFrom(ca); err != nil {
		return nil, "", refuse(ErrBadMaterial, "authority %q is not signed by itself: %w", clip(ca.Subject.String()), err)
	}
	return ca, ca.URIs[0].Host, nil
}

// ClusterID is the id of the cluster.
func (t *Trust) ClusterID() string { return t.clusterID }

// PEM is all the authorities, as ParseTrust reads them.
func (t *Trust) PEM() []byte {
	var b bytes.Buffer
	for _, ca := range t.cas {
		b.Write(certPEM(ca.Raw))
	}
	return b.Bytes()
}

// Hashes are the SHA-256 of the authorities' certificates.
func (t *Trust) Hashes() []Hash {
	var hashes []Hash
	for _, ca := range t.cas {
		hashes = append(hashes, CAHash(ca))
	}
	return hashes
}

// NotAfter is the end of the authority that lives longest.
func (t *Trust) NotAfter() time.Time {
	var end time.Time
	for _, ca := range t.cas {
		end = later(end, ca.NotAfter)
	}
	return end
}

// verify checks that the cluster signed leaf for the usage, as of the given
// time, and returns its identity.
func (t *Trust) verify(leaf *x509.Certificate, usage x509.ExtKeyUsage, at time.Time) (Identity, error) {
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots:       t.pool,
		CurrentTime: at,
		KeyUsages:   []x509.ExtKeyUsage{usage},
	})
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &unknown):
		return Identity{}, refuse(ErrOtherCluster, "certificate %s (%q) is not signed by the CA of cluster %s (SHA-256 %s)", SerialOf(leaf), clip(leaf.Subject.CommonName), t.clusterID, t.hashList())
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return Identity{}, refuse(ErrExpired, "certificate %s (%q) is good from %s to %s, but it is %s here; check the clock, or renew the certificate", SerialOf(leaf), clip(leaf.Subject.CommonName), stamp(leaf.NotBefore), stamp(leaf.NotAfter), stamp(at))
	case err != nil:
		return Identity{}, refuse(ErrBadMaterial, "certificate %s (%q) is refused: %w", SerialOf(leaf), clip(leaf.Subject.CommonName), err)
	}
	return FromCertificate(leaf, t.clusterID)
}

func (t *Trust) hashList() string {
	var parts []string
	for _, h := range t.Hashes() {
		parts = append(parts, h.String())
	}
	return strings.Join(parts, ", ")
}

func certPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func keyPEM(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode a private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// pemBlocks returns the contents of 1 to limit blocks of one type. Other text and
// damaged blocks are refused, where pem.Decode alone would skip them silently.
func pemBlocks(text []byte, kind string, limit int) ([][]byte, error) {
	if len(text) > maxPEMBytes {
		return nil, refuse(ErrBadMaterial, "PEM text has %d bytes; at most %d are allowed", len(text), maxPEMBytes)
	}
	var ders [][]byte
	rest := bytes.TrimSpace(text)
	for len(rest) > 0 {
		if !bytes.HasPrefix(rest, []byte("-----BEGIN ")) {
			return nil, refuse(ErrBadMaterial, "found text that is not a PEM block; expected -----BEGIN %s-----", kind)
		}
		block, after := pem.Decode(rest)
		if block == nil || bytes.Count(rest[:len(rest)-len(after)], []byte("-----BEGIN ")) != 1 {
			return nil, refuse(ErrBadMaterial, "PEM block is damaged; expected a whole %s", kind)
		}
		if block.Type != kind || len(block.Headers) > 0 {
			return nil, refuse(ErrBadMaterial, "found a PEM block %q; expected %s without headers", clip(block.Type), kind)
		}
		ders, rest = append(ders, block.Bytes), bytes.TrimSpace(after)
	}
	if len(ders) == 0 || len(ders) > limit {
		return nil, refuse(ErrBadMaterial, "found %d PEM blocks %s; 1 to %d are allowed", len(ders), kind, limit)
	}
	return ders, nil
}

// parseKey reads one PKCS #8 private key.
func parseKey(text []byte) (crypto.Signer, error) {
	ders, err := pemBlocks(text, "PRIVATE KEY", 1)
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(ders[0])
	if err != nil {
		// The parser's own error could repeat bytes of the key.
		return nil, refuse(ErrBadMaterial, "private key cannot be read; it must be PKCS #8")
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, refuse(ErrBadMaterial, "private key is a %T, which cannot sign", key)
	}
	return signer, nil
}

func samePublicKey(cert *x509.Certificate, key crypto.Signer) bool {
	public, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(key.Public())
}
