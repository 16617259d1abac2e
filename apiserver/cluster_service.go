package apiserver

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/internal/version"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/pki"
	"github.com/balsa-run/balsa/store"
)

const prefixTokens = object.PrefixSystem + "tokens/"

// defaultTokenTTL is the life of a join token unless the caller says.
const defaultTokenTTL = time.Hour

// clusterService is balsa.v1.ClusterService.
type clusterService struct{ *Server }

// GetVersion tells what answers.
func (c clusterService) GetVersion(context.Context, *balsav1.GetVersionRequest) (*balsav1.GetVersionResponse, error) {
	return &balsav1.GetVersionResponse{Version: version.Version(), Commit: version.Commit(), GoVersion: version.Go()}, nil
}

// GetStatus tells the members, the leader and how far each is.
func (c clusterService) GetStatus(ctx context.Context, _ *balsav1.GetStatusRequest) (*balsav1.GetStatusResponse, error) {
	status, err := c.members.Status(ctx)
	if err != nil {
		return nil, err
	}
	if status.CaNotAfter == nil {
		status.CaNotAfter = timestamppb.New(c.bundle().CA.NotAfter())
	}
	return status, nil
}

// TransferLeadership hands leadership to a member.
func (c clusterService) TransferLeadership(ctx context.Context, req *balsav1.TransferLeadershipRequest) (*balsav1.TransferLeadershipResponse, error) {
	callOf(ctx).object = "Member " + clip(req.GetMemberId())
	leader, err := c.members.TransferLeadership(ctx, req.GetMemberId())
	if err != nil {
		return nil, toProposalProblem(err)
	}
	return &balsav1.TransferLeadershipResponse{LeaderId: leader}, nil
}

// RemoveMember takes a server out of the group for good, and its certificate out
// of use.
func (c clusterService) RemoveMember(ctx context.Context, req *balsav1.RemoveMemberRequest) (*balsav1.RemoveMemberResponse, error) {
	callOf(ctx).object = "Member " + clip(req.GetMemberId())
	if req.GetMemberId() == "" {
		return nil, invalid("memberId", "balsa cluster status lists the members", "it is empty")
	}
	server, gone := c.members.RemoveMember(ctx, req.GetMemberId())
	if server == "" && gone != nil {
		return nil, toProposalProblem(gone)
	}
	if server == "" {
		return &balsav1.RemoveMemberResponse{}, nil
	}
	_, err := c.write(ctx, store.SpaceObjects, false, func(view store.View, now time.Time) (*change, error) {
		// A second call finds the member gone, and ends what the first began.
		if holder, _, err := holderOf(view, pki.RoleServer, server); gone != nil && (err != nil || holder == nil) {
			return nil, errors.Join(err, toProposalProblem(gone))
		}
		return planRemove(view, pki.RoleServer, server, now)
	})
	if err != nil && gone == nil {
		err = fmt.Errorf("member %s is removed, but the certificate of server %s is not: %w", clip(req.GetMemberId()), server, err)
	}
	if err != nil {
		return nil, err
	}
	return &balsav1.RemoveMemberResponse{}, nil
}

// CreateToken makes a join token. The record holds a salted hash of its secret.
func (c clusterService) CreateToken(ctx context.Context, req *balsav1.CreateTokenRequest) (*balsav1.CreateTokenResponse, error) {
	role := pki.Role(req.GetRole())
	if !role.Member() {
		return nil, invalid("role", "use server or agent", "found %q", clip(req.GetRole()))
	}
	ttl, err := c.lifetime("ttlSeconds", "TokenTTL", req.GetTtlSeconds(), defaultTokenTTL, c.limits.TokenTTL)
	if err != nil {
		return nil, err
	}
	want := pki.TokenRequest{Role: role, TTL: ttl, MaxUses: req.GetMaxUses(), Description: req.GetDescription()}
	token, record, err := pki.NewToken(want, c.bundle().CA.Hash(), c.clock.Now())
	if err != nil {
		return nil, err
	}
	callOf(ctx).object = "Token " + record.ID
	stored := tokenToRecord(record)
	_, err = c.write(ctx, store.SpaceObjects, false, func(store.View, time.Time) (*change, error) {
		ch := &change{space: store.SpaceObjects}
		ch.expect(prefixTokens+record.ID, 0)
		return ch, ch.putRecord(prefixTokens+record.ID, stored)
	})
	if err != nil {
		return nil, err
	}
	return &balsav1.CreateTokenResponse{Token: token.Reveal(), Info: tokenInfo(stored)}, nil
}

// lifetime reads a number of seconds; 0 is the default.
func (c clusterService) lifetime(field, limit string, seconds int64, whenZero, longest time.Duration) (time.Duration, error) {
	switch {
	case seconds == 0:
		return whenZero, nil
	case seconds < 0:
		return 0, invalid(field, "leave it out", "found %d, which is negative", seconds)
	case seconds > int64(longest/time.Second):
		return 0, overLimit(limit, longest, "ask for less", "%s %d", field, seconds)
	}
	return time.Duration(seconds) * time.Second, nil
}

// ListTokens tells what tokens there are, without their secrets.
func (c clusterService) ListTokens(ctx context.Context, _ *balsav1.ListTokensRequest) (*balsav1.ListTokensResponse, error) {
	view, err := c.view(ctx, store.SpaceObjects, nil)
	if err != nil {
		return nil, err
	}
	res := &balsav1.ListTokensResponse{}
	for kv := range view.Prefix(prefixTokens) {
		r := &internalv1.TokenRecord{}
		if err := proto.Unmarshal(kv.Value, r); err != nil {
			return nil, fmt.Errorf("decode %q: %w", kv.Key, err)
		}
		res.Tokens = append(res.Tokens, tokenInfo(r))
	}
	return res, nil
}

// RevokeToken ends a token. Who has joined with it stays.
func (c clusterService) RevokeToken(ctx context.Context, req *balsav1.RevokeTokenRequest) (*balsav1.RevokeTokenResponse, error) {
	callOf(ctx).object = "Token " + clip(req.GetId())
	_, err := c.write(ctx, store.SpaceObjects, false, func(view store.View, _ time.Time) (*change, error) {
		ch, r := &change{space: store.SpaceObjects}, &internalv1.TokenRecord{}
		at, err := readRecord(view, prefixTokens+req.GetId(), r)
		if err != nil {
			return nil, err
		}
		if at == 0 || req.GetId() == "" {
			return nil, &problem{code: connect.CodeNotFound, reason: "NotFound", applied: notApplied,
				hint: "balsa token list tells which there are", err: fmt.Errorf("join token %q does not exist", clip(req.GetId()))}
		}
		if r.GetRevoked() {
			return ch, nil
		}
		r.Revoked = true
		ch.expect(prefixTokens+req.GetId(), at)
		return ch, ch.putRecord(prefixTokens+req.GetId(), r)
	})
	if err != nil {
		return nil, err
	}
	return &balsav1.RevokeTokenResponse{}, nil
}

// CreateIdentity signs a certificate for a user. A user that has one gets
// another; both are good until they expire or the user is removed.
func (c clusterService) CreateIdentity(ctx context.Context, req *balsav1.CreateIdentityRequest) (*balsav1.CreateIdentityResponse, error) {
	role := pki.Role(req.GetRole())
	callOf(ctx).object = "Identity " + clip(req.GetRole()) + "/" + clip(req.GetName())
	if role != pki.RoleAdmin && role != pki.RoleReader {
		return nil, invalid("role", "use admin or reader; servers and agents join with a token", "found %q", clip(req.GetRole()))
	}
	ttl, err := c.lifetime("ttlSeconds", "IdentityTTL", req.GetTtlSeconds(), 0, c.limits.IdentityTTL)
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(req.GetCsr())
	if block == nil || len(rest) > 0 {
		return nil, invalid("csr", "balsa user create makes one", "it is not one PKCS #10 request in PEM")
	}
	bundle := c.bundle()
	leaf, err := bundle.CA.Sign(pki.SignRequest{CSR: block.Bytes, Role: role, Name: req.GetName(), TTL: ttl}, c.clock.Now())
	if err != nil {
		return nil, err
	}
	record := &internalv1.IdentityRecord{
		Name: req.GetName(), Role: string(role), NotAfter: timestamppb.New(leaf.NotAfter),
		Serial: pki.SerialOf(leaf), KeyHash: hashBytes(pki.KeyHash(leaf)),
	}
	if _, err := c.write(ctx, store.SpaceObjects, false, func(view store.View, now time.Time) (*change, error) {
		return planIssue(view, record, now)
	}); err != nil {
		return nil, err
	}
	api, _ := c.members.Addresses()
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw})
	return &balsav1.CreateIdentityResponse{
		Certificate: certificate, Ca: bundle.Trust.PEM(), Servers: api, ClusterId: bundle.CA.ClusterID(),
	}, nil
}

// ListIdentities tells who was given a certificate.
func (c clusterService) ListIdentities(ctx context.Context, _ *balsav1.ListIdentitiesRequest) (*balsav1.ListIdentitiesResponse, error) {
	view, err := c.view(ctx, store.SpaceObjects, nil)
	if err != nil {
		return nil, err
	}
	res := &balsav1.ListIdentitiesResponse{}
	err = eachIdentity(view, prefixIdentities, func(_ store.KV, r *internalv1.IdentityRecord) {
		res.Identities = append(res.Identities, &balsav1.Identity{
			Name: r.GetName(), Role: r.GetRole(), Created: r.GetCreated(), NotAfter: r.GetNotAfter(), Removed: r.GetRemoved(),
		})
	})
	return res, err
}

// RemoveIdentity refuses every certificate of a name. An admin cannot remove the
// identity it calls with: nobody might be left.
func (c clusterService) RemoveIdentity(ctx context.Context, req *balsav1.RemoveIdentityRequest) (*balsav1.RemoveIdentityResponse, error) {
	callOf(ctx).object = "Identity " + clip(req.GetRole()) + "/" + clip(req.GetName())
	role, err := pki.ParseRole(req.GetRole())
	if err != nil {
		return nil, err
	}
	if err := pki.ValidateName(role, req.GetName()); err != nil {
		return nil, err
	}
	if id, _ := pki.IdentityFrom(ctx); id.Role == role && id.Name == req.GetName() {
		return nil, &problem{
			code: connect.CodeFailedPrecondition, reason: "Self", applied: notApplied,
			hint: "let another admin do it", err: errors.New("an identity cannot remove itself"),
		}
	}
	_, err = c.write(ctx, store.SpaceObjects, false, func(view store.View, now time.Time) (*change, error) {
		return planRemove(view, role, req.GetName(), now)
	})
	if err != nil {
		return nil, err
	}
	return &balsav1.RemoveIdentityResponse{}, nil
}

func tokenInfo(r *internalv1.TokenRecord) *balsav1.Token {
	return &balsav1.Token{
		Id: r.GetId(), Role: r.GetRole(), Created: r.GetCreated(), Expires: r.GetExpires(),
		MaxUses: r.GetMaxUses(), Uses: r.GetUses(), Revoked: r.GetRevoked(), Description: r.GetDescription(),
	}
}
