package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"

	"connectrpc.com/connect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/gen/balsa/v1/balsav1connect"

	"github.com/balsa-run/balsa/client"
	"github.com/balsa-run/balsa/node"
	"github.com/balsa-run/balsa/node/image"
	"github.com/balsa-run/balsa/node/runtime"
)

// images is node.Images over the node's store, filled from the servers.
type images struct {
	store *image.Store
	api   balsav1connect.NodeServiceClient
}

func (i *images) Local(ctx context.Context, name string) (runtime.Image, error) {
	found, err := i.store.Resolve(ctx, name)
	return found, absent(err)
}

func (i *images) Fetch(ctx context.Context, name string) (runtime.Image, error) {
	found, err := i.store.Ensure(ctx, name, fetcher{i.api})
	return found, absent(err)
}

func (i *images) Prune(ctx context.Context, keep func(digest string) bool) ([]string, error) {
	return i.store.Prune(ctx, keep)
}

func absent(err error) error {
	if errors.Is(err, image.ErrNotFound) {
		return fmt.Errorf("%w: %w", node.ErrImageNotPresent, err)
	}
	return err
}

// fetcher is image.Fetcher over the API.
type fetcher struct {
	api balsav1connect.NodeServiceClient
}

func (f fetcher) Manifest(ctx context.Context, name string) (digest string, content []byte, err error) {
	response, err := f.api.GetImage(ctx, &balsav1.GetImageRequest{Name: name})
	if client.IsNotFound(err) {
		return "", nil, fmt.Errorf("image %s: nobody has imported it (balsa image import): %w", name, image.ErrNotFound)
	}
	return response.GetDigest(), nil, err
}

func (f fetcher) Blob(ctx context.Context, digest string) (io.ReadCloser, error) {
	stream, err := f.api.GetBlob(ctx, &balsav1.GetBlobRequest{Digest: digest})
	if err != nil {
		return nil, err
	}
	return &blobReader{stream: stream}, nil
}

// blobReader reads the blob that a stream carries.
type blobReader struct {
	stream *connect.ServerStreamForClient[balsav1.GetBlobResponse]
	rest   []byte
}

func (r *blobReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if !r.stream.Receive() {
			if err := r.stream.Err(); err != nil {
				return 0, err
			}
			return 0, io.EOF
		}
		r.rest = r.stream.Msg().GetData()
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func (r *blobReader) Close() error { return r.stream.Close() }
