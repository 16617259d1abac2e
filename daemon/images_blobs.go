package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/gen/balsainternal/v1/internalv1connect"
	"github.com/balsa-run/balsa/internal/clock"

	"github.com/balsa-run/balsa/node/image"
	"github.com/balsa-run/balsa/pki"
)

// Limits of what a node gives to other nodes.
const (
	// maxBlobStreams at once; whoever comes then asks another node or the servers.
	maxBlobStreams = 8
	blobChunk      = 256 << 10
	// blobSendStall is how long one chunk may wait for its reader.
	blobSendStall = 30 * time.Second
	peerDial      = 3 * time.Second
)

// peerDialer makes a client for the agent at an address.
type peerDialer func(address string) internalv1connect.BlobServiceClient

// dialPeers reaches agents with this agent's own certificate; the other end must
// be an agent of the cluster, whichever.
func dialPeers(credentials *pki.Credentials, guard *pki.Guard) peerDialer {
	transport := &http.Transport{
		ForceAttemptHTTP2: true,
		IdleConnTimeout:   blobSendStall,
		DialTLSContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			raw, err := (&net.Dialer{Timeout: peerDial}).DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			// The configuration is made anew: it has the authorities of now.
			conn := tls.Client(raw, pki.AgentClientTLS(pki.TLSOptions{Credentials: credentials, Guard: guard, Clock: clock.Real{}}, ""))
			ctx, cancel := context.WithTimeout(ctx, peerDial)
			defer cancel()
			if err := conn.HandshakeContext(ctx); err != nil {
				return nil, errors.Join(err, raw.Close())
			}
			return conn, nil
		},
	}
	return func(address string) internalv1connect.BlobServiceClient {
		return internalv1connect.NewBlobServiceClient(&http.Client{Transport: transport}, "https://"+address, connect.WithGRPC())
	}
}

// peerSource is image.Source over another node.
type peerSource struct {
	address string
	client  internalv1connect.BlobServiceClient
}

func (p *peerSource) String() string { return "the node at " + p.address }

func (p *peerSource) Manifest(ctx context.Context, digest string) ([]byte, error) {
	return readManifest(ctx, p, digest)
}

func (p *peerSource) Blob(ctx context.Context, digest string, offset int64) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	stream, err := p.client.FetchBlob(ctx, &internalv1.FetchBlobRequest{Digest: digest, Offset: offset})
	if err != nil {
		cancel(nil)
		return nil, err
	}
	return watched(stream, cancel), nil
}

// withBlobs serves BlobService to servers and agents. Other agents get nothing
// else from an agent.
func withBlobs(next http.Handler, store *image.Store) http.Handler {
	path, service := internalv1connect.NewBlobServiceHandler(&blobService{store: store, places: make(chan struct{}, maxBlobStreams)})
	blobs := withWriteDeadlines(service)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, ok := pki.IdentityFrom(r.Context())
		switch {
		case !ok:
			http.Error(w, "this takes a client certificate of the cluster", http.StatusUnauthorized)
		case strings.HasPrefix(r.URL.Path, path) && (id.Role == pki.RoleAgent || id.Role == pki.RoleServer):
			blobs.ServeHTTP(w, r)
		case strings.HasPrefix(r.URL.Path, path) || id.Role == pki.RoleAgent:
			http.Error(w, id.String()+" may not ask this of an agent", http.StatusForbidden)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// blobService is balsa.internal.v1.BlobService.
type blobService struct {
	store  *image.Store
	places chan struct{}
}

// FetchBlob streams a blob that this node has.
func (b *blobService) FetchBlob(ctx context.Context, req *internalv1.FetchBlobRequest, stream *connect.ServerStream[internalv1.FetchBlobResponse]) error {
	select {
	case b.places <- struct{}{}:
		defer func() { <-b.places }()
	default:
		return connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("%d blobs are being read from this node already: ask another one", maxBlobStreams))
	}
	if req.GetOffset() < 0 {
		return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("offset: found %d, want 0 or more", req.GetOffset()))
	}
	blob, err := b.store.OpenBlob(req.GetDigest(), req.GetOffset())
	if errors.Is(err, image.ErrNotFound) {
		return connect.NewError(connect.CodeNotFound, errors.New("this node does not have the blob, or no longer"))
	}
	if err != nil {
		return connect.NewError(connect.CodeInvalidArgument, errors.New("the blob cannot be opened: want sha256: and 64 hexadecimal digits"))
	}
	defer func() { _ = blob.Close() }()
	buffer := make([]byte, blobChunk)
	for ctx.Err() == nil {
		n, err := blob.Read(buffer)
		if n > 0 {
			deadlineOf(ctx)()
			if err := stream.Send(&internalv1.FetchBlobResponse{Data: buffer[:n]}); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return connect.NewError(connect.CodeUnavailable, errors.New("the blob cannot be read"))
		}
	}
	return context.Cause(ctx)
}

type deadlineKey struct{}

// withWriteDeadlines lets a handler give each message a time to be taken in.
func withWriteDeadlines(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		controller := http.NewResponseController(w)
		push := func() { _ = controller.SetWriteDeadline(time.Now().Add(blobSendStall)) }
		h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), deadlineKey{}, push)))
	})
}

// deadlineOf pushes the write deadline of a call on.
func deadlineOf(ctx context.Context) func() {
	if push, ok := ctx.Value(deadlineKey{}).(func()); ok {
		return push
	}
	return func() {}
}
