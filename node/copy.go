package node

import (
	"bufio"
	"context"
	"io"

	"connectrpc.com/connect"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/node/runtime"
)

// maxArchiveTail bounds what follows the end of an archive: padding.
const maxArchiveTail = 1 << 20

// CopyOut implements internalv1connect.AgentServiceHandler.
func (s agentService) CopyOut(ctx context.Context, req *internalv1.CopyOutRequest, stream *connect.ServerStream[internalv1.CopyOutResponse]) error {
	leave, err := s.enter(s.copies, "copies")
	if err != nil {
		return err
	}
	defer leave()
	out := bufio.NewWriterSize(writerFunc(func(p []byte) error { return stream.Send(&internalv1.CopyOutResponse{Tar: p}) }), streamChunk)
	err = s.a.cfg.Runtime.CopyOut(ctx, runtime.PodUID(req.GetPodUid()), req.GetContainer(), req.GetPath(), out)
	if err != nil {
		return s.streamFailed("copy", req.GetPodUid(), req.GetContainer(), err)
	}
	return out.Flush()
}

// CopyIn implements internalv1connect.AgentServiceHandler.
func (s agentService) CopyIn(ctx context.Context, stream *connect.ClientStream[internalv1.CopyInRequest]) (*internalv1.CopyInResponse, error) {
	leave, err := s.enter(s.copies, "copies")
	if err != nil {
		return nil, err
	}
	defer leave()
	if !stream.Receive() {
		return nil, firstOr(stream.Err(), errNoStart)
	}
	start := stream.Msg().GetStart()
	if start == nil {
		return nil, errNoStart
	}
	archive := &tarReader{next: func() ([]byte, error) {
		if stream.Receive() {
			return stream.Msg().GetTar(), nil
		}
		return nil, firstOr(stream.Err(), io.EOF)
	}}
	result, err := s.a.cfg.Runtime.CopyIn(ctx, runtime.PodUID(start.GetPodUid()), start.GetContainer(), start.GetPath(), archive)
	if err != nil {
		return nil, s.streamFailed("copy", start.GetPodUid(), start.GetContainer(), err)
	}
	if _, err := io.Copy(io.Discard, io.LimitReader(archive, maxArchiveTail)); err != nil {
		return nil, err
	}
	return &internalv1.CopyInResponse{Entries: result.Entries, Bytes: result.Bytes}, nil
}

func firstOr(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}

// tarReader reads the bytes of a stream's messages.
type tarReader struct {
	next func() ([]byte, error)
	have []byte
}

func (r *tarReader) Read(p []byte) (int, error) {
	for len(r.have) == 0 {
		var err error
		if r.have, err = r.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.have)
	r.have = r.have[n:]
	return n, nil
}
