package pki

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"strings"
	"time"
)

// JoinReply is what the cluster answers to a JoinRequest that was granted.
type JoinReply struct {
	CertPEM []byte // the joiner's certificate
	CAPEM   []byte // the authorities to trust from now on
	Bundle  []byte // servers only: Bundle.Marshal
}

// Joiner is the side of a join that has the token. Keep its key on disk before
// the request is sent (see JoinKey): if the answer is lost, the same token lets
// the same key in again.
type Joiner struct {
	token Token
	role  Role
	name  string
	sans  SANs
	key   crypto.Signer
}

// NewJoiner prepares a join under a name, with the key of JoinKey.
func NewJoiner(token Token, role Role, name string, sans SANs, key crypto.Signer) (*Joiner, error) {
	if !role.Member() {
		return nil, refuse(ErrBadRole, "role %q cannot join; only servers and agents can", role)
	}
	if err := ValidateName(role, name); err != nil {
		return nil, err
	}
	if _, err := sans.forRole(role, name); err != nil {
		return nil, err
	}
	return &Joiner{token: token, role: role, name: name, sans: sans, key: key}, nil
}

// Request is what to send.
func (j *Joiner) Request() (JoinRequest, error) {
	csr, err := NewCSR(j.name, j.key)
	if err != nil {
		return JoinRequest{}, err
	}
	return JoinRequest{Role: j.role, Name: j.name, CSR: csr, SANs: j.sans}, nil
}

// Accept checks the answer as if it came from a stranger: it must be what was
// asked for, of the cluster the token names.
func (j *Joiner) Accept(reply JoinReply) (*Credential, *Bundle, error) {
	key, err := keyPEM(j.key)
	if err != nil {
		return nil, nil, err
	}
	cred, err := NewCredential(reply.CAPEM, reply.CertPEM, key)
	if err != nil {
		return nil, nil, fmt.Errorf("answer to the join: %w", err)
	}
	if err := checkPin(j.token.CAHash, cred.trust.cas); err != nil {
		return nil, nil, fmt.Errorf("answer to the join: %w", err)
	}
	if got := cred.identity; got.Role != j.role || got.Name != j.name {
		return nil, nil, refuse(ErrWrongPeer, "answer to the join: got a certificate of %s, asked for %s/%s", got, j.role, j.name)
	}
	if j.role != RoleServer {
		return cred, nil, nil
	}
	bundle, err := ParseBundle(reply.Bundle)
	if err != nil {
		return nil, nil, fmt.Errorf("answer to the join: %w", err)
	}
	if bundle.CA.clusterID != cred.ClusterID() {
		return nil, nil, refuse(ErrOtherCluster, "answer to the join: certificate of cluster %s, bundle of cluster %s", cred.ClusterID(), bundle.CA.clusterID)
	}
	if err := checkPin(j.token.CAHash, bundle.Trust.cas); err != nil {
		return nil, nil, fmt.Errorf("bundle in the answer to the join: %w", err)
	}
	return cred, bundle, nil
}

// checkPin is nil if one of the certificates is the pinned authority.
func checkPin(pin Hash, served []*x509.Certificate) error {
	_, err := pinned(pin, served)
	return err
}

// pinned picks the authority with the pinned hash out of a served chain.
func pinned(pin Hash, served []*x509.Certificate) (*x509.Certificate, error) {
	var found []string
	for _, cert := range served {
		if CAHash(cert) == pin {
			return cert, nil
		}
		if cert.IsCA {
			found = append(found, CAHash(cert).String())
		}
	}
	if len(found) == 0 {
		return nil, refuse(ErrWrongCA, "the server showed no CA certificate, expected one with SHA-256 %s; is the address that of a balsa server?", pin)
	}
	return nil, refuse(ErrWrongCA, "the server belongs to another cluster than the join token: found a CA certificate with SHA-256 %s, expected %s; check the address, or make a token on the cluster you mean", strings.Join(found, ", "), pin)
}

// verifyPinned checks the server at the other end of a join by the token alone.
func verifyPinned(pin Hash, served []*x509.Certificate, now time.Time) error {
	if len(served) == 0 {
		return refuse(ErrWrongCA, "the server showed no certificate")
	}
	root, err := pinned(pin, served)
	if err != nil {
		return err
	}
	ca, clusterID, err := parseCACert(root.Raw)
	if err != nil {
		return err
	}
	return newTrust(clusterID, []*x509.Certificate{ca}).verifyServer(served[0], now)
}

// verifyServer is what every client does with a server's certificate.
func (t *Trust) verifyServer(leaf *x509.Certificate, now time.Time) error {
	id, err := t.verify(leaf, x509.ExtKeyUsageServerAuth, now)
	if err != nil {
		return err
	}
	if id.Role != RoleServer {
		return refuse(ErrWrongPeer, "the other end is %s, not a server", id)
	}
	return leaf.VerifyHostname(ServerName)
}

// Dialer opens connections; *net.Dialer is one.
type Dialer interface {
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// Dial connects and completes the handshake, so that a refusal of the other
// end's certificate is told here, with its reason.
func Dial(ctx context.Context, d Dialer, address string, config *tls.Config) (*tls.Conn, error) {
	raw, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", address, err)
	}
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("connect to %s: %w", address, err)
	}
	return conn, nil
}
