package apiserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/gen/balsainternal/v1/internalv1connect"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/pki"
	"github.com/balsa-run/balsa/store"
)

const prefixImages = object.PrefixSystem + "images/"

// maxImageName bounds the name of an image, which is part of a key.
const maxImageName = 512

// imageService is balsa.v1.ImageService.
type imageService struct{ *Server }

// Import keeps the images of an archive. The blobs come first, on a majority of
// the servers, then the records that name them: an image that is listed can be
// fetched while a majority lives.
func (i imageService) Import(ctx context.Context, stream *connect.ClientStream[balsav1.ImportRequest]) (*balsav1.ImportResponse, error) {
	select {
	case i.imports <- struct{}{}:
		defer func() { <-i.imports }()
	default:
		return nil, overLimit("Imports", i.limits.Imports, "try again when the others are done", "other archives are being imported")
	}
	name, archive, err := i.archive(stream)
	if err != nil {
		return nil, err
	}
	callOf(ctx).object = "Image " + clip(name)
	records, err := i.archives.Import(ctx, archive, name, i.blobs)
	if err != nil {
		return nil, importProblem(err)
	}
	if err := checkRecords(records); err != nil {
		return nil, err
	}
	if err := i.replicate(ctx, records); err != nil {
		return nil, err
	}
	images, err := i.record(ctx, records)
	if err != nil {
		return nil, err
	}
	callOf(ctx).outcome = fmt.Sprintf("%d images", len(images))
	return &balsav1.ImportResponse{Images: images}, nil
}

// archive is the name in a stream's first message and a reader of all its data.
func (i imageService) archive(stream *connect.ClientStream[balsav1.ImportRequest]) (string, io.Reader, error) {
	if !stream.Receive() {
		if err := stream.Err(); err != nil {
			return "", nil, err
		}
		return "", nil, invalid("data", "send an OCI or Docker archive", "the stream is empty")
	}
	name := stream.Msg().GetName()
	body := &chunkReader{first: stream.Msg().GetData(), next: func() ([]byte, error) {
		switch more := stream.Receive(); {
		case more && stream.Msg().GetName() != "":
			return nil, invalid("name", "send it in the first message", "found in a later message")
		case !more && stream.Err() != nil:
			return nil, stream.Err()
		case !more:
			return nil, io.EOF
		}
		return stream.Msg().GetData(), nil
	}}
	return name, &boundedReader{r: body, left: i.limits.ArchiveBytes, limit: i.limits.ArchiveBytes}, nil
}

// boundedReader fails, rather than ends, at its limit.
type boundedReader struct {
	r           io.Reader
	left, limit int64
}

func (b *boundedReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, overLimit("ArchiveBytes", b.limit, "import smaller images, one at a time", "the archive is too large")
	}
	return n, err
}

// importProblem: what is wrong with an archive is the caller's business.
func importProblem(err error) error {
	p := toProblem(err)
	if p.code != connect.CodeInternal {
		return p
	}
	return &problem{
		code: connect.CodeInvalidArgument, reason: "BadArchive", applied: notApplied,
		hint: "import an OCI or Docker archive, tar or tar.gz",
		err:  fmt.Errorf("the archive cannot be imported: %w", err),
	}
}

func checkRecords(records []*internalv1.ImageRecord) error {
	if len(records) == 0 {
		return importProblem(errors.New("it holds no image"))
	}
	for _, r := range records {
		if r.GetName() == "" {
			return invalid("name", "give the image a name, for example app:1", "the archive names none")
		}
		if len(r.GetName()) > maxImageName {
			return overLimit("maxImageName", maxImageName, "give the image a shorter name", "the image's name has %d bytes", len(r.GetName()))
		}
	}
	return nil
}

// replicate puts every blob on a majority of the servers, this one among them.
func (i imageService) replicate(ctx context.Context, records []*internalv1.ImageRecord) error {
	others, err := i.peers.Others(ctx)
	if err != nil {
		return fmt.Errorf("find the other servers: %w", err)
	}
	have := 1
	var mu sync.Mutex
	var failures []string // guarded by mu, as is have
	var wg sync.WaitGroup
	for _, id := range slices.Sorted(maps.Keys(others)) {
		wg.Go(func() {
			err := i.pushAll(ctx, others[id], records)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failures = append(failures, fmt.Sprintf("%s: %v", id, err))
				return
			}
			have++
		})
	}
	wg.Wait()
	need := (len(others)+1)/2 + 1
	if have >= need {
		return nil
	}
	slices.Sort(failures)
	return &problem{
		code: connect.CodeUnavailable, reason: "NoMajority", applied: notApplied,
		hint: "import again when more servers answer: what they have is not sent twice",
		err:  fmt.Errorf("%d of %d servers keep the image's blobs, %d are needed: %s", have, len(others)+1, need, strings.Join(failures, "; ")),
	}
}

func (i imageService) pushAll(ctx context.Context, peer internalv1connect.PeerServiceClient, records []*internalv1.ImageRecord) error {
	done := map[string]bool{}
	for _, r := range records {
		for _, b := range r.GetBlobs() {
			if done[b.GetDigest()] {
				continue
			}
			done[b.GetDigest()] = true
			if err := i.push(ctx, peer, b.GetDigest()); err != nil {
				return err
			}
		}
	}
	return nil
}

// push sends a blob unless the other server has it.
func (i imageService) push(ctx context.Context, peer internalv1connect.PeerServiceClient, digest string) error {
	has, err := peer.HasBlob(ctx, &internalv1.HasBlobRequest{Digest: digest})
	if err != nil || has.GetFound() {
		return err
	}
	stream, err := peer.PutBlob(ctx)
	if err != nil {
		return err
	}
	first := true
	sendErr := i.readBlob(ctx, digest, 0, func(data []byte) error {
		req := &internalv1.PutBlobRequest{Data: data}
		if first {
			req.Digest, first = digest, false
		}
		return stream.Send(req)
	})
	if sendErr == nil && first { // an empty blob
		sendErr = stream.Send(&internalv1.PutBlobRequest{Digest: digest})
	}
	_, err = stream.CloseAndReceive()
	if err == nil || errors.Is(sendErr, io.EOF) {
		return cmp.Or(err, ignoreEOF(sendErr))
	}
	return errors.Join(sendErr, err)
}

// ignoreEOF: connect's Send says only io.EOF where the answer says more.
func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// record writes what the images are called. An image of the same name gives way.
func (i imageService) record(ctx context.Context, records []*internalv1.ImageRecord) ([]*balsav1.Image, error) {
	var images []*balsav1.Image
	_, err := i.write(ctx, store.SpaceObjects, false, func(_ store.View, now time.Time) (*change, error) {
		c := &change{space: store.SpaceObjects}
		images = nil
		for _, r := range records {
			r = proto.CloneOf(r)
			r.Imported = timestamppb.New(now)
			if err := c.putRecord(prefixImages+r.GetName(), r); err != nil {
				return nil, err
			}
			images = append(images, imageOf(r))
		}
		return c, nil
	})
	return images, err
}

// GetImage tells a node what an image is made of.
func (n nodeService) GetImage(ctx context.Context, req *balsav1.GetImageRequest) (*balsav1.GetImageResponse, error) {
	callOf(ctx).object = "Image " + clip(req.GetName())
	view, err := n.view(ctx, store.SpaceObjects, nil)
	if err != nil {
		return nil, err
	}
	r := &internalv1.ImageRecord{}
	found, err := readRecord(view, prefixImages+req.GetName(), r)
	if err != nil {
		return nil, err
	}
	if found == 0 {
		return nil, &problem{
			code: connect.CodeNotFound, reason: "ImageNotFound",
			hint: "balsa image import brings it into the cluster",
			err:  fmt.Errorf("image %q was not imported", clip(req.GetName())),
		}
	}
	res := &balsav1.GetImageResponse{Name: r.GetName(), Digest: r.GetDigest(), Size: r.GetSize()}
	id, _ := pki.IdentityFrom(ctx)
	res.Peers = imagePeers(view, r.GetDigest(), id.Name)
	for _, b := range r.GetBlobs() {
		res.Blobs = append(res.Blobs, &balsav1.ImageBlob{Digest: b.GetDigest(), Size: b.GetSize(), MediaType: b.GetMediaType()})
	}
	return res, nil
}

// GetBlob reads an image blob. A server that was not among the majority, or is
// new, fetches it from another one first.
func (n nodeService) GetBlob(ctx context.Context, req *balsav1.GetBlobRequest, stream *connect.ServerStream[balsav1.GetBlobResponse]) error {
	callOf(ctx).object = "Blob " + clip(req.GetDigest())
	if err := n.haveBlob(ctx, req.GetDigest()); err != nil {
		return err
	}
	return n.sendBlob(ctx, req.GetDigest(), req.GetOffset(), func(data []byte) error {
		return stream.Send(&balsav1.GetBlobResponse{Data: data})
	})
}

// haveBlob makes a blob local.
func (s *Server) haveBlob(ctx context.Context, digest string) error {
	if _, ok, err := s.blobs.Stat(digest); err != nil || ok {
		return err
	}
	others, err := s.peers.Others(ctx)
	if err != nil {
		return fmt.Errorf("find the other servers: %w", err)
	}
	var failures []error
	for _, id := range slices.Sorted(maps.Keys(others)) {
		has, err := others[id].HasBlob(ctx, &internalv1.HasBlobRequest{Digest: digest})
		if err == nil && has.GetFound() {
			err = s.pull(ctx, others[id], digest)
			if err == nil {
				return nil
			}
		}
		if err != nil {
			failures = append(failures, fmt.Errorf("%s: %w", id, err))
		}
	}
	if len(failures) > 0 {
		return &problem{code: connect.CodeUnavailable, reason: "BlobUnavailable", hint: "try again when more servers answer",
			err: fmt.Errorf("no server that answers keeps blob %s: %w", clip(digest), errors.Join(failures...))}
	}
	return blobNotFound(digest)
}

func blobNotFound(digest string) error {
	return &problem{code: connect.CodeNotFound, reason: "BlobNotFound", hint: "import the image again",
		err: fmt.Errorf("no server keeps blob %s", clip(digest))}
}

func (s *Server) pull(ctx context.Context, peer internalv1connect.PeerServiceClient, digest string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := peer.GetBlob(ctx, &internalv1.GetBlobRequest{Digest: digest})
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	body := &chunkReader{next: func() ([]byte, error) {
		if stream.Receive() {
			return stream.Msg().GetData(), nil
		}
		return nil, cmp.Or(stream.Err(), io.EOF)
	}}
	_, err = s.blobs.Put(ctx, digest, body, s.limits.ArchiveBytes)
	return err
}

// sendBlob streams a local blob at its reader's pace.
func (s *Server) sendBlob(ctx context.Context, digest string, offset int64, send func([]byte) error) error {
	pace := newPace(ctx, s.limits.SendStall)
	defer pace.stop()
	return s.readBlob(ctx, digest, offset, func(data []byte) error {
		return pace.send(func() error { return send(data) })
	})
}

func (s *Server) readBlob(ctx context.Context, digest string, offset int64, take func([]byte) error) error {
	size, ok, err := s.blobs.Stat(digest)
	if err != nil {
		return err
	}
	if !ok {
		return blobNotFound(digest)
	}
	if offset < 0 || offset > size {
		return invalid("offset", "begin at 0", "found %d; the blob has %d bytes", offset, size)
	}
	r, err := s.blobs.Open(digest, offset)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	buf := make([]byte, s.limits.ChunkBytes)
	for ctx.Err() == nil {
		n, err := io.ReadFull(r, buf)
		if n > 0 {
			if sendErr := take(buf[:n]); sendErr != nil {
				return sendErr
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read blob %s: %w", digest, err)
		}
	}
	return context.Cause(ctx)
}
