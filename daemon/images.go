package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"time"

	"connectrpc.com/connect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/gen/balsa/v1/balsav1connect"
	"github.com/balsa-run/balsa/internal/ociarchive"

	"github.com/balsa-run/balsa/client"
	"github.com/balsa-run/balsa/node"
	"github.com/balsa-run/balsa/node/image"
	"github.com/balsa-run/balsa/node/image/registry"
	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/object"
)

const (
	// lookupTimeout is how long the servers may take to tell what a name means.
	lookupTimeout = 5 * time.Second
	// maxPeersAsked of the nodes that have an image, before the servers.
	maxPeersAsked = 3
)

// images is node.Images over the node's store, filled from other nodes, the
// servers and registries.
type images struct {
	store *image.Store
	api   balsav1connect.NodeServiceClient
	// registries is what the node's registry configuration made; nil: a client
	// without configuration.
	registries *registry.Client
	// peers reaches the agents of other nodes; nil: they are not asked.
	peers peerDialer
	// log is optional.
	log *slog.Logger
}

func (i *images) Local(ctx context.Context, name string) (runtime.Image, error) {
	found, err := i.store.Resolve(ctx, name)
	return found, nodeError(err)
}

// Pull implements node.Images.
func (i *images) Pull(ctx context.Context, want node.ImagePull, progress func(node.ImageProgress)) (node.PulledImage, error) {
	log := i.log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	registries := i.registries
	if registries == nil {
		registries = registry.New(registry.Options{Log: log})
	}
	puller := image.Puller{Store: i.store, Cluster: i, Registries: registries, Log: log}
	request := image.Request{Name: want.Name, Always: want.Policy == object.PullAlways, Never: want.Policy == object.PullNever, Credentials: want.Credentials}
	pulled, err := puller.Pull(ctx, request, func(p image.Progress) { progress(node.ImageProgress(p)) })
	if err != nil {
		return node.PulledImage{}, nodeError(err)
	}
	return node.PulledImage{Image: pulled.Image, SizeBytes: pulled.SizeBytes, Transferred: pulled.Transferred}, nil
}

func (i *images) Prune(ctx context.Context, keep func(digest string) bool) ([]string, error) {
	return i.store.Prune(ctx, keep)
}

// Status is what the node's status tells of its images.
func (i *images) Status() ([]*balsav1.ContainerImage, error) {
	list, err := i.store.StatusImages()
	if err != nil {
		return nil, err
	}
	var out []*balsav1.ContainerImage
	for _, s := range list {
		out = append(out, &balsav1.ContainerImage{Names: s.Names, SizeBytes: s.SizeBytes})
	}
	return out, nil
}

// nodeError gives the store's errors the node's names.
func nodeError(err error) error {
	for is, as := range map[error]error{
		image.ErrNotFound: node.ErrImageNotPresent, image.ErrName: node.ErrImageName, image.ErrUnreachable: node.ErrImageUnreachable,
		image.ErrDenied: node.ErrImageDenied,
	} {
		if errors.Is(err, is) {
			return &imageError{as, err}
		}
	}
	return err
}

// imageError is what the store said, in its words, under the node's name.
type imageError struct{ as, err error }

func (e *imageError) Error() string   { return e.err.Error() }
func (e *imageError) Unwrap() []error { return []error{e.as, e.err} }

// Lookup implements image.Cluster.
func (i *images) Lookup(ctx context.Context, name string) (image.Kept, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	response, err := i.api.GetImage(ctx, &balsav1.GetImageRequest{Name: name})
	if client.IsNotFound(err) {
		return image.Kept{}, fmt.Errorf("image %s: nobody has imported it (balsa image import): %w", name, image.ErrNotFound)
	}
	if err != nil {
		return image.Kept{}, err
	}
	kept := image.Kept{Digest: response.GetDigest()}
	if i.peers != nil {
		addresses := response.GetPeers()
		rand.Shuffle(len(addresses), func(a, b int) { addresses[a], addresses[b] = addresses[b], addresses[a] })
		for _, address := range addresses[:min(len(addresses), maxPeersAsked)] {
			kept.Sources = append(kept.Sources, &peerSource{address: address, client: i.peers(address)})
		}
	}
	kept.Sources = append(kept.Sources, &serverSource{i.api})
	return kept, nil
}

// serverSource is image.Source over the API.
type serverSource struct {
	api balsav1connect.NodeServiceClient
}

func (s *serverSource) String() string { return "the servers" }

func (s *serverSource) Manifest(ctx context.Context, digest string) ([]byte, error) {
	return readManifest(ctx, s, digest)
}

func (s *serverSource) Blob(ctx context.Context, digest string, offset int64) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	stream, err := s.api.GetBlob(ctx, &balsav1.GetBlobRequest{Digest: digest, Offset: offset})
	if err != nil {
		cancel(nil)
		return nil, err
	}
	return watched(stream, cancel), nil
}

// readManifest reads a blob that is a manifest: the servers and nodes keep both
// alike.
func readManifest(ctx context.Context, from image.Source, digest string) ([]byte, error) {
	r, err := from.Blob(ctx, digest, 0)
	if err != nil {
		return nil, err
	}
	var content bytes.Buffer
	n, err := io.Copy(&content, io.LimitReader(r, ociarchive.MaxDocumentBytes+1))
	if err := errors.Join(err, r.Close()); err != nil {
		return nil, err
	}
	if n > ociarchive.MaxDocumentBytes {
		return nil, fmt.Errorf("manifest %s has more than %d bytes", digest, ociarchive.MaxDocumentBytes)
	}
	return content.Bytes(), nil
}

// blobMessage is a message that carries a part of a blob.
type blobMessage interface{ GetData() []byte }

// watched reads the blob that a stream carries, and ends it when it stalls.
func watched[M any](stream *connect.ServerStreamForClient[M], cancel context.CancelCauseFunc) io.ReadCloser {
	reader := &blobReader[M]{stream: stream}
	return registry.Watch(reader, cancel, registry.DefaultLimits())
}

// blobReader reads the blob that a stream carries.
type blobReader[M any] struct {
	stream *connect.ServerStreamForClient[M]
	rest   []byte
}

func (r *blobReader[M]) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if !r.stream.Receive() {
			if err := r.stream.Err(); err != nil {
				return 0, err
			}
			return 0, io.EOF
		}
		r.rest = any(r.stream.Msg()).(blobMessage).GetData()
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func (r *blobReader[M]) Close() error { return r.stream.Close() }
