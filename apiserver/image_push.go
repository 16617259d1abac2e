package apiserver

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"connectrpc.com/connect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/internal/ociarchive"
)

// maxPushDigests bounds the blobs that one MissingBlobs asks about: those of an
// image with as many layers as the kernel stacks, and some.
const maxPushDigests = 1024

// MissingBlobs tells which blobs no server that answers keeps.
func (i imageService) MissingBlobs(ctx context.Context, req *balsav1.MissingBlobsRequest) (*balsav1.MissingBlobsResponse, error) {
	if n := len(req.GetDigests()); n > maxPushDigests {
		return nil, overLimit("maxPushDigests", maxPushDigests, "ask in several requests", "found %d digests", n)
	}
	res := &balsav1.MissingBlobsResponse{}
	for _, digest := range req.GetDigests() {
		found, err := i.anyHasBlob(ctx, digest)
		if err != nil {
			return nil, err
		}
		if !found {
			res.Digests = append(res.Digests, digest)
		}
	}
	return res, nil
}

// anyHasBlob asks this server and then the others. One that does not answer
// counts as one that does not have it: the blob is then sent once more.
func (s *Server) anyHasBlob(ctx context.Context, digest string) (bool, error) {
	_, ok, err := s.blobs.Stat(digest)
	if err != nil || ok {
		return ok, err
	}
	others, err := s.peers.Others(ctx)
	if err != nil {
		return false, fmt.Errorf("find the other servers: %w", err)
	}
	for _, peer := range others {
		has, err := peer.HasBlob(ctx, &internalv1.HasBlobRequest{Digest: digest})
		if err == nil && has.GetFound() {
			return true, nil
		}
	}
	return false, nil
}

// PushBlob keeps one blob on this server; PushImage brings it to the others.
func (i imageService) PushBlob(ctx context.Context, stream *connect.ClientStream[balsav1.PushBlobRequest]) (*balsav1.PushBlobResponse, error) {
	if !stream.Receive() {
		if err := stream.Err(); err != nil {
			return nil, err
		}
		return nil, invalid("digest", "send it in the first message", "the stream is empty")
	}
	digest, size := stream.Msg().GetDigest(), stream.Msg().GetSize()
	callOf(ctx).object = "Blob " + clip(digest)
	if size < 0 || size > i.limits.ArchiveBytes {
		return nil, overLimit("ArchiveBytes", i.limits.ArchiveBytes, "push an image with smaller layers", "size: found %d bytes", size)
	}
	body := &chunkReader{first: stream.Msg().GetData(), next: func() ([]byte, error) {
		switch more := stream.Receive(); {
		case more && (stream.Msg().GetDigest() != "" || stream.Msg().GetSize() != 0):
			return nil, invalid("digest", "send digest and size in the first message", "found one in a later message")
		case !more && stream.Err() != nil:
			return nil, stream.Err()
		case !more:
			return nil, io.EOF
		}
		return stream.Msg().GetData(), nil
	}}
	kept, err := i.blobs.Put(ctx, digest, body, size)
	if err != nil {
		return nil, fmt.Errorf("keep blob %s: %w", clip(digest), err)
	}
	if kept != size {
		return nil, invalid("size", "send the size that the blob has", "found %d; the blob has %d bytes", size, kept)
	}
	return &balsav1.PushBlobResponse{}, nil
}

// PushImage names an image whose blobs are all there. As with Import the blobs
// are on a majority of the servers before the record names them.
func (i imageService) PushImage(ctx context.Context, req *balsav1.PushImageRequest) (*balsav1.PushImageResponse, error) {
	callOf(ctx).object = "Image " + clip(req.GetName())
	record, err := i.pushedRecord(ctx, req)
	if err != nil {
		return nil, err
	}
	records := []*internalv1.ImageRecord{record}
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
	callOf(ctx).outcome = images[0].GetDigest()
	return &balsav1.PushImageResponse{Image: images[0]}, nil
}

// pushedRecord checks the image as an import does: complete, and what it says.
func (i imageService) pushedRecord(ctx context.Context, req *balsav1.PushImageRequest) (*internalv1.ImageRecord, error) {
	name, err := ociarchive.NormalizeName(req.GetName())
	if err != nil {
		return nil, invalid("name", "give the image a name, for example shop/web:7", "%w", err)
	}
	inner, err := ociarchive.ChooseManifest(req.GetManifest(), "")
	if err == nil && inner != "" {
		err = errors.New("it is an index: push the manifest for one platform")
	}
	if err != nil {
		return nil, badManifest(err)
	}
	manifest, err := ociarchive.ParseManifest(req.GetManifest())
	if err != nil {
		return nil, badManifest(err)
	}
	sum := sha256.Sum256(req.GetManifest())
	own := &internalv1.BlobRecord{Digest: "sha256:" + hex.EncodeToString(sum[:]), Size: int64(len(req.GetManifest())), MediaType: req.GetMediaType()}
	record := &internalv1.ImageRecord{Name: name, Digest: own.GetDigest(), Blobs: []*internalv1.BlobRecord{own}}
	seen := map[string]bool{own.GetDigest(): true}
	for _, d := range append(manifest.Layers, manifest.Config) {
		digest := d.Digest.String()
		if err := i.checkPushed(ctx, digest, d.Size); err != nil {
			return nil, err
		}
		if !seen[digest] {
			seen[digest] = true
			record.Blobs = append(record.Blobs, &internalv1.BlobRecord{Digest: digest, Size: d.Size, MediaType: string(d.MediaType)})
		}
	}
	config, err := i.smallBlob(manifest.Config.Digest.String(), manifest.Config.Size)
	if err != nil {
		return nil, err
	}
	if _, err := ociarchive.ParseConfig(config, manifest); err != nil {
		return nil, badManifest(err)
	}
	for _, b := range record.GetBlobs() {
		record.Size += b.GetSize()
	}
	_, err = i.blobs.Put(ctx, own.GetDigest(), bytes.NewReader(req.GetManifest()), own.GetSize())
	return record, err
}

func badManifest(err error) error {
	return invalid("manifest", "push an image with balsa image push", "%w", err)
}

// checkPushed makes a blob local and checks its size.
func (i imageService) checkPushed(ctx context.Context, digest string, size int64) error {
	if err := i.haveBlob(ctx, digest); err != nil {
		return err
	}
	have, ok, err := i.blobs.Stat(digest)
	if err == nil && (!ok || have != size) {
		err = invalid("manifest", "push an image with balsa image push", "blob %s has %d bytes, the manifest says %d", digest, have, size)
	}
	return err
}

func (i imageService) smallBlob(digest string, size int64) ([]byte, error) {
	if size > ociarchive.MaxDocumentBytes {
		return nil, overLimit("MaxDocumentBytes", ociarchive.MaxDocumentBytes, "push another image", "the configuration has %d bytes", size)
	}
	r, err := i.blobs.Open(digest, 0)
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(io.LimitReader(r, size))
	return content, errors.Join(err, r.Close())
}
