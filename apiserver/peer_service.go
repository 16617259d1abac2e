package apiserver

import (
	"context"
	"fmt"
	"io"

	"connectrpc.com/connect"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/pki"
)

// peerService is balsa.internal.v1.PeerService. It hands nothing on: what this
// server does not decide itself it refuses, so that no call runs in a circle.
type peerService struct{ *Server }

func (p peerService) Propose(ctx context.Context, req *internalv1.ProposeRequest) (*internalv1.ProposeResponse, error) {
	res, err := p.peer.ServePropose(ctx, req)
	if err != nil {
		return nil, toProposalProblem(err)
	}
	return res, nil
}

func (p peerService) ProposeMany(ctx context.Context, req *internalv1.ProposeManyRequest) (*internalv1.ProposeManyResponse, error) {
	res, err := p.peer.ServeProposeMany(ctx, req)
	if err != nil {
		return nil, toProposalProblem(err)
	}
	return res, nil
}

func (p peerService) ReadIndex(ctx context.Context, req *internalv1.ReadIndexRequest) (*internalv1.ReadIndexResponse, error) {
	return p.peer.ServeReadIndex(ctx, req)
}

func (p peerService) Confirm(ctx context.Context, req *internalv1.ConfirmRequest) (*internalv1.ConfirmResponse, error) {
	return p.peer.ServeConfirm(ctx, req)
}

// State refuses a member that was removed from the group in words of its own,
// which say more than that its certificate was.
func (p peerService) State(ctx context.Context, req *internalv1.StateRequest) (*internalv1.StateResponse, error) {
	res, err := p.peer.ServeState(ctx, req)
	if err != nil {
		return nil, err
	}
	if id, ok := pki.IdentityFrom(ctx); ok {
		if err := p.guard.Check(id); err != nil {
			return nil, err
		}
	}
	return res, nil
}

func (p peerService) Heartbeat(ctx context.Context, req *internalv1.HeartbeatRequest) (*internalv1.HeartbeatResponse, error) {
	res, err := p.localBeats.Beat(ctx, req.GetHeartbeat())
	if err != nil {
		return nil, err
	}
	return &internalv1.HeartbeatResponse{Heartbeat: res}, nil
}

func (p peerService) LeaseTime(ctx context.Context, req *internalv1.LeaseTimeRequest) (*internalv1.LeaseTimeResponse, error) {
	return p.lessor.LeaseTime(ctx, req)
}

func (p peerService) HasBlob(_ context.Context, req *internalv1.HasBlobRequest) (*internalv1.HasBlobResponse, error) {
	size, found, err := p.blobs.Stat(req.GetDigest())
	if err != nil {
		return nil, err
	}
	return &internalv1.HasBlobResponse{Found: found, Size: size}, nil
}

// PutBlob keeps a blob that another server sends; its digest is checked first.
func (p peerService) PutBlob(ctx context.Context, stream *connect.ClientStream[internalv1.PutBlobRequest]) (*internalv1.PutBlobResponse, error) {
	if !stream.Receive() {
		if err := stream.Err(); err != nil {
			return nil, err
		}
		return nil, invalid("digest", "send it in the first message", "the stream is empty")
	}
	first := stream.Msg()
	body := &chunkReader{first: first.GetData(), next: func() ([]byte, error) {
		if stream.Receive() {
			return stream.Msg().GetData(), nil
		}
		if err := stream.Err(); err != nil {
			return nil, err
		}
		return nil, io.EOF
	}}
	size, err := p.blobs.Put(ctx, first.GetDigest(), body, p.limits.ArchiveBytes)
	if err != nil {
		return nil, fmt.Errorf("keep blob %s: %w", clip(first.GetDigest()), err)
	}
	return &internalv1.PutBlobResponse{Size: size}, nil
}

func (p peerService) GetBlob(ctx context.Context, req *internalv1.GetBlobRequest, stream *connect.ServerStream[internalv1.GetBlobResponse]) error {
	return p.sendBlob(ctx, req.GetDigest(), req.GetOffset(), func(data []byte) error {
		return stream.Send(&internalv1.GetBlobResponse{Data: data})
	})
}

// chunkReader reads the parts of a blob that messages carry.
type chunkReader struct {
	first []byte
	next  func() ([]byte, error)
}

func (r *chunkReader) Read(p []byte) (int, error) {
	for len(r.first) == 0 {
		part, err := r.next()
		if err != nil {
			return 0, err
		}
		r.first = part
	}
	n := copy(p, r.first)
	r.first = r.first[n:]
	return n, nil
}
