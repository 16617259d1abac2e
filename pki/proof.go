package pki

import (
	"bytes"
	"container/list"
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"github.com/balsa-run/balsa/internal/clock"
)

// Renewal by proof of the key: how an agent gets a new certificate, also when
// its own has expired because the cluster was switched off for months. It runs
// on the join listener, which asks for no client certificate:
//
//	agent                                   server
//	  |-- nonce, please ----------------------->|
//	  |<------------------------------- nonce --|   of this server, for NonceLife
//	  |-- certificate, CSR, nonce, signature -->|   signed with the certificate's key
//	  |<-------------------- new certificate ---|
//
// The time of the agent plays no part: it may have none after months without
// power. A recorded request is worthless: its nonce is used or too old, and the
// certificate it would bring is for a key that the thief does not have.
const (
	NonceLife = 2 * time.Minute

	// maxNoncesUsed bounds what a server remembers of used nonces. Only a
	// valid signature of a member gets one in.
	maxNoncesUsed = 4096

	nonceBytes   = 8 + 16 + sha256.Size
	maxLeafBytes = 16 << 10
	maxSigBytes  = 1 << 10
)

// RenewRequest is what an agent sends.
type RenewRequest struct {
	Cert      []byte // DER, the certificate to renew; may have expired
	CSR       []byte // DER, of the same key
	Nonce     []byte
	Signature []byte // ECDSA with SHA-256, ASN.1, over renewPayload
}

// NewRenewRequest asks for a new certificate for c, with a nonce that the
// server has just given.
func NewRenewRequest(c *Credential, nonce []byte) (RenewRequest, error) {
	return newRenewRequest(c, c.key, nonce)
}

// NewRemovalQuestion is a renewal that cannot be granted, since it asks for a key
// that nobody has. The cluster refuses it with ErrRemoved if c was removed, and
// with another error if it was not. So a member learns of its removal although no
// connection of its own is taken any more, and gets nothing that it did not want.
func NewRemovalQuestion(c *Credential, nonce []byte) (RenewRequest, error) {
	nobodys, err := newKey()
	if err != nil {
		return RenewRequest{}, err
	}
	return newRenewRequest(c, nobodys, nonce)
}

func newRenewRequest(c *Credential, wanted crypto.Signer, nonce []byte) (RenewRequest, error) {
	csr, err := NewCSR(c.identity.Name, wanted)
	if err != nil {
		return RenewRequest{}, err
	}
	req := RenewRequest{Cert: c.leaf.Raw, CSR: csr, Nonce: nonce}
	digest := sha256.Sum256(renewPayload(c.ClusterID(), req))
	req.Signature, err = c.key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		return RenewRequest{}, fmt.Errorf("sign the renewal of %s: %w", c.identity, err)
	}
	return req, nil
}

// renewPayload joins the parts with their lengths, so that no two requests
// have the same payload, and begins with its purpose, so that no signature of
// the key for anything else fits.
func renewPayload(clusterID string, req RenewRequest) []byte {
	p := []byte("balsa renew 1\x00")
	for _, part := range [][]byte{[]byte(clusterID), req.Nonce, req.Cert, req.CSR} {
		p = binary.BigEndian.AppendUint32(p, uint32(len(part)))
		p = append(p, part...)
	}
	return p
}

// HolderOf reads who sent a renewal, so that the caller can look up its Holder
// for Renew. The certificate is checked to be the cluster's, nothing else yet.
func (ca *CA) HolderOf(req RenewRequest) (Identity, error) {
	_, id, err := ca.renewLeaf(req)
	return id, err
}

func (ca *CA) renewLeaf(req RenewRequest) (*x509.Certificate, Identity, error) {
	if len(req.Cert) > maxLeafBytes || len(req.CSR) > MaxCSRBytes || len(req.Signature) > maxSigBytes || len(req.Nonce) != nonceBytes {
		return nil, Identity{}, refuse(ErrProof, "renewal request is malformed: certificate of %d, request of %d, signature of %d, nonce of %d bytes", len(req.Cert), len(req.CSR), len(req.Signature), len(req.Nonce))
	}
	leaf, err := x509.ParseCertificate(req.Cert)
	if err != nil {
		return nil, Identity{}, refuse(ErrProof, "the certificate to renew cannot be read: %w", err)
	}
	id, err := ca.Trust().verify(leaf, x509.ExtKeyUsageClientAuth, leaf.NotBefore)
	if err != nil {
		return nil, Identity{}, err
	}
	if id.Role != RoleAgent {
		return nil, Identity{}, refuse(ErrWrongRole, "%s cannot renew its certificate by proof of its key, only agents can; servers renew locally, users get a new one: balsa user create", id)
	}
	return leaf, id, nil
}

// Renew decides about a renewal and signs the new certificate. The holder is
// what is on record of the identity (see HolderOf), nil if nothing is. The
// nonce is used up by any request with a valid signature.
func (ca *CA) Renew(req RenewRequest, holder *Holder, nonces *Nonces, guard *Guard, now time.Time) (*Admission, error) {
	leaf, id, err := ca.renewLeaf(req)
	if err != nil {
		return nil, err
	}
	if err := leaf.CheckSignature(x509.ECDSAWithSHA256, renewPayload(ca.clusterID, req), req.Signature); err != nil {
		return nil, refuse(ErrProof, "renewal of %s is not signed with the key of its certificate", id)
	}
	if err := nonces.use(req.Nonce); err != nil {
		return nil, fmt.Errorf("renewal of %s: %w", id, err)
	}
	if err := guard.CheckRemoved(id); err != nil {
		return nil, err
	}
	if holder == nil {
		return nil, refuse(ErrNotMember, "%s is not a member of cluster %s; join again with a new token", id, ca.clusterID)
	}
	if holder.KeyHash != KeyHash(leaf) {
		return nil, refuse(ErrProof, "%s has joined again with another key since; this certificate and its key are no longer good", id)
	}
	return ca.renew(req, leaf, id, *holder, now)
}

func (ca *CA) renew(req RenewRequest, leaf *x509.Certificate, id Identity, holder Holder, now time.Time) (*Admission, error) {
	csr, err := parseCSR(req.CSR, id.Role, id.Name)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(csr.RawSubjectPublicKeyInfo, leaf.RawSubjectPublicKeyInfo) {
		return nil, refuse(ErrProof, "renewal of %s asks for another key; a member keeps its key, or joins again", id)
	}
	next, err := ca.Sign(SignRequest{CSR: req.CSR, Role: id.Role, Name: id.Name}, now)
	if err != nil {
		return nil, err
	}
	return ca.admission(next, holder.TokenID)
}

// Nonces issues the nonces of one server process and accepts each once, within
// NonceLife by this server's clock. Issuing stores nothing, so that strangers
// who ask for nonces cannot push out anybody else's.
//
//	8 bytes unix ms | 16 bytes random | 32 bytes HMAC-SHA-256 of both
type Nonces struct {
	clock clock.Clock
	key   []byte

	mu    sync.Mutex
	used  map[string]struct{} // guarded by mu
	order *list.List          // guarded by mu; of usedNonce, oldest first
}

type usedNonce struct {
	nonce string
	until time.Time
}

// NewNonces has a fresh key: nonces do not outlive the process.
func NewNonces(clk clock.Clock) *Nonces {
	return &Nonces{clock: clk, key: randomBytes(32), used: map[string]struct{}{}, order: list.New()}
}

// Issue returns a new nonce.
func (n *Nonces) Issue() []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(n.clock.Now().UnixMilli()))
	b = append(b, randomBytes(16)...)
	return append(b, n.mac(b)...)
}

func (n *Nonces) mac(b []byte) []byte {
	h := hmac.New(sha256.New, n.key)
	h.Write(b)
	return h.Sum(nil)
}

func (n *Nonces) use(nonce []byte) error {
	body := nonce[:nonceBytes-sha256.Size]
	if !hmac.Equal(n.mac(body), nonce[len(body):]) {
		return refuse(ErrProof, "the nonce is not of this server, or of the time before its restart; ask for a new one")
	}
	now := n.clock.Now()
	issued := time.UnixMilli(int64(binary.BigEndian.Uint64(body)))
	if age := now.Sub(issued); age >= NonceLife || age < -NonceLife {
		return refuse(ErrProof, "the nonce is %v old, %v are allowed; ask for a new one", age.Round(time.Second), NonceLife)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.forgetLocked(now)
	if _, ok := n.used[string(nonce)]; ok {
		return refuse(ErrProof, "the nonce was used before; ask for a new one")
	}
	if len(n.used) >= maxNoncesUsed {
		return refuse(ErrTooMany, "%d renewals in %v; try again later", len(n.used), NonceLife)
	}
	n.used[string(nonce)] = struct{}{}
	n.order.PushBack(usedNonce{string(nonce), issued.Add(NonceLife)})
	return nil
}

// forgetLocked drops nonces that are too old to be accepted anyway. They stand
// in order of use, not of age: one that still lives keeps later ones a little
// longer than needed.
func (n *Nonces) forgetLocked(now time.Time) {
	for e := n.order.Front(); e != nil; e = n.order.Front() {
		u := e.Value.(usedNonce)
		if now.Before(u.until) {
			return
		}
		n.order.Remove(e)
		delete(n.used, u.nonce)
	}
}
