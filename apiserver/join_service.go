package apiserver

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/pki"
	"github.com/balsa-run/balsa/store"
)

// joinService is balsa.v1.JoinService, the only one for callers without a
// certificate. What it decides is in package pki; here it becomes a transaction
// that is committed before the certificate is handed out.
type joinService struct{ *Server }

// Join trades a token for a certificate.
func (j joinService) Join(ctx context.Context, req *balsav1.JoinRequest) (*balsav1.JoinResponse, error) {
	callOf(ctx).object = "Identity " + clip(req.GetRole()) + "/" + clip(req.GetName())
	token, err := pki.ParseToken(req.GetToken())
	if err != nil {
		return nil, err
	}
	if err := checkJoin(req); err != nil {
		return nil, err
	}
	sans, err := pki.ParseSANs(req.GetAddresses()...)
	if err != nil {
		return nil, err
	}
	want := pki.JoinRequest{Role: pki.Role(req.GetRole()), Name: req.GetName(), CSR: req.GetCsr(), SANs: sans}
	admission, err := j.admitJoiner(ctx, token, want)
	if err != nil {
		return nil, err
	}
	if want.Role == pki.RoleServer {
		member := NewMember{
			ID: req.GetMemberId(), Name: req.GetName(), Address: req.GetAdvertiseAddress(), Version: req.GetVersion(),
		}
		if err := j.members.AddMember(ctx, member); err != nil {
			return nil, toProposalProblem(err)
		}
	}
	return j.welcome(want.Role, admission)
}

func checkJoin(req *balsav1.JoinRequest) error {
	role := pki.Role(req.GetRole())
	switch {
	case !role.Member():
		return invalid("role", "use server or agent; balsa user create makes users", "found %q", clip(req.GetRole()))
	case role == pki.RoleServer && (req.GetMemberId() == "" || req.GetAdvertiseAddress() == ""):
		return invalid("memberId", "a server that joins gives its member id and its advertise address", "one of the two is empty")
	case role == pki.RoleAgent && len(req.GetAddresses()) > 0:
		return invalid("addresses", "leave them out", "found %d for an agent", len(req.GetAddresses()))
	}
	return nil
}

// admitJoiner decides on what is recorded and commits the decision: of two
// servers that decide at once about a token's last use, one has to decide again.
func (j joinService) admitJoiner(ctx context.Context, token pki.Token, want pki.JoinRequest) (*pki.Admission, error) {
	var admission *pki.Admission
	_, err := j.write(ctx, store.SpaceObjects, false, func(view store.View, now time.Time) (*change, error) {
		known, tokenAt, err := joinCase(view, token, want)
		if err != nil {
			return nil, err
		}
		if admission, err = j.bundle().CA.Admit(known, now); err != nil {
			return nil, err
		}
		record, err := identityRecord(admission)
		if err != nil {
			return nil, err
		}
		c, err := planIssue(view, record, now)
		if err != nil {
			return nil, err
		}
		c.expect(prefixTokens+token.ID, tokenAt)
		if admission.Record == nil {
			return c, nil
		}
		return c, c.putRecord(prefixTokens+token.ID, tokenToRecord(*admission.Record))
	})
	return admission, err
}

// joinCase is all that the decision depends on.
func joinCase(view store.View, token pki.Token, want pki.JoinRequest) (pki.JoinCase, store.Revision, error) {
	known := pki.JoinCase{Token: token, Request: want}
	stored := &internalv1.TokenRecord{}
	tokenAt, err := readRecord(view, prefixTokens+token.ID, stored)
	if err != nil {
		return known, 0, err
	}
	if tokenAt != 0 {
		known.Record = tokenFromRecord(stored)
	}
	known.Holder, known.Removal, err = holderOf(view, want.Role, want.Name)
	return known, tokenAt, err
}

// holderOf is who has a name, or when it was removed.
func holderOf(view store.View, role pki.Role, name string) (*pki.Holder, *pki.Removal, error) {
	r := &internalv1.IdentityRecord{}
	at, err := readRecord(view, identityKey(string(role), name), r)
	if err != nil || at == 0 {
		return nil, nil, err
	}
	if r.GetRemoved() {
		return nil, &pki.Removal{Role: role, Name: name, At: r.GetRemovedAt().AsTime()}, nil
	}
	holder := &pki.Holder{Role: role, Name: name, TokenID: r.GetTokenId()}
	if copy(holder.KeyHash[:], r.GetKeyHash()) != len(holder.KeyHash) {
		return nil, nil, fmt.Errorf("identity %s/%s: its key hash has %d bytes", role, name, len(r.GetKeyHash()))
	}
	return holder, nil, nil
}

// identityRecord is what is kept of an admission.
func identityRecord(a *pki.Admission) (*internalv1.IdentityRecord, error) {
	block, _ := pem.Decode(a.CertPEM)
	if block == nil {
		return nil, errors.New("an admission without a certificate")
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read the certificate of %s: %w", a.Identity, err)
	}
	return &internalv1.IdentityRecord{
		Name: a.Identity.Name, Role: string(a.Identity.Role), NotAfter: timestamppb.New(leaf.NotAfter),
		Serial: pki.SerialOf(leaf), KeyHash: hashBytes(a.Holder.KeyHash), TokenId: a.Holder.TokenID,
	}, nil
}

// welcome is the answer to a join.
func (j joinService) welcome(role pki.Role, a *pki.Admission) (*balsav1.JoinResponse, error) {
	bundle := j.bundle()
	api, gossip := j.members.Addresses()
	res := &balsav1.JoinResponse{
		Certificate: a.CertPEM,
		Ca:          bundle.Trust.PEM(),
		ClusterId:   bundle.CA.ClusterID(),
		Servers:     api,
		GossipPeers: gossip,
	}
	if role != pki.RoleServer {
		res.GossipKey = bytes.Clone(bundle.GossipKey[:])
		return res, nil
	}
	secret, err := bundle.Marshal()
	if err != nil {
		return nil, err
	}
	res.ServerBundle = secret
	return res, nil
}

// RenewNonce begins a renewal.
func (j joinService) RenewNonce(context.Context, *balsav1.RenewNonceRequest) (*balsav1.RenewNonceResponse, error) {
	return &balsav1.RenewNonceResponse{Nonce: j.nonces.Issue()}, nil
}

// Renew trades a certificate and a proof of its key for a new certificate. The
// new serial is recorded before the certificate is handed out.
func (j joinService) Renew(ctx context.Context, req *balsav1.RenewRequest) (*balsav1.RenewResponse, error) {
	want := pki.RenewRequest{Cert: req.GetCertificate(), CSR: req.GetCsr(), Nonce: req.GetNonce(), Signature: req.GetSignature()}
	id, err := j.bundle().CA.HolderOf(want)
	if err != nil {
		return nil, err
	}
	callOf(ctx).object = "Identity " + id.String()
	if err := j.barrier(ctx); err != nil {
		return nil, err
	}
	admission, record, err := j.renewed(want, id)
	if err != nil {
		return nil, err
	}
	_, err = j.write(ctx, store.SpaceObjects, false, func(view store.View, now time.Time) (*change, error) {
		holder, _, err := holderOf(view, id.Role, id.Name)
		if err != nil {
			return nil, err
		}
		// It may have been removed, or have joined with another key, since.
		if holder == nil || holder.KeyHash != admission.Holder.KeyHash {
			return nil, fmt.Errorf("%s was removed meanwhile; it must join again with a new token: %w", id, pki.ErrRemoved)
		}
		return planIssue(view, record, now)
	})
	if err != nil {
		return nil, err
	}
	api, _ := j.members.Addresses()
	return &balsav1.RenewResponse{Certificate: admission.CertPEM, Servers: api}, nil
}

// renewed decides once: the nonce is good for one decision only.
func (j joinService) renewed(want pki.RenewRequest, id pki.Identity) (*pki.Admission, *internalv1.IdentityRecord, error) {
	holder, removal, err := holderOf(j.store.Space(store.SpaceObjects).View(), id.Role, id.Name)
	if err != nil {
		return nil, nil, err
	}
	if removal != nil {
		return nil, nil, fmt.Errorf("%s was removed from the cluster; it must join again with a new token: %w", id, pki.ErrRemoved)
	}
	admission, err := j.bundle().CA.Renew(want, holder, j.nonces, j.guard, j.clock.Now())
	if err != nil {
		return nil, nil, err
	}
	record, err := identityRecord(admission)
	return admission, record, err
}

func tokenToRecord(r pki.TokenRecord) *internalv1.TokenRecord {
	return &internalv1.TokenRecord{
		Id: r.ID, Role: string(r.Role), SecretHash: r.SecretHash, Salt: r.Salt,
		Created: timestamppb.New(r.Created), Expires: timestamppb.New(r.Expires),
		MaxUses: r.MaxUses, Uses: r.Uses, Revoked: r.Revoked, Description: r.Description,
	}
}

func tokenFromRecord(r *internalv1.TokenRecord) *pki.TokenRecord {
	return &pki.TokenRecord{
		ID: r.GetId(), Role: pki.Role(r.GetRole()), SecretHash: r.GetSecretHash(), Salt: r.GetSalt(),
		Created: r.GetCreated().AsTime(), Expires: r.GetExpires().AsTime(),
		MaxUses: r.GetMaxUses(), Uses: r.GetUses(), Revoked: r.GetRevoked(), Description: r.GetDescription(),
	}
}
