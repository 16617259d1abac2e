package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"

	"github.com/balsa-run/balsa/apiserver"
	"github.com/balsa-run/balsa/internal/ociarchive"
)

// archives is apiserver.Archives: it reads image archives into a server's blobs.
// scratch is a folder on the blobs' file system.
type archives struct{ scratch string }

func (a archives) Import(ctx context.Context, archive io.Reader, name string, blobs apiserver.Blobs) ([]*internalv1.ImageRecord, error) {
	images, err := ociarchive.Import(ctx, archive, staged{blobs, a.scratch}, ociarchive.Options{Name: name})
	if err != nil {
		return nil, err
	}
	now := timestamppb.New(time.Now())
	var records []*internalv1.ImageRecord
	for _, image := range images {
		for _, name := range image.Names {
			record := &internalv1.ImageRecord{Name: name, Digest: image.Manifest.Digest, Size: image.Size(), Imported: now}
			for _, blob := range image.Blobs() {
				record.Blobs = append(record.Blobs, &internalv1.BlobRecord{Digest: blob.Digest, Size: blob.Size, MediaType: blob.MediaType})
			}
			records = append(records, record)
		}
	}
	return records, nil
}

// staged is ociarchive.Blobs over blobs that must know a digest beforehand: a
// blob waits in a file until it is known.
type staged struct {
	blobs   apiserver.Blobs
	scratch string
}

func (s staged) Put(ctx context.Context, r io.Reader) (blob ociarchive.Blob, err error) {
	file, err := os.CreateTemp(s.scratch, "import-*")
	if err != nil {
		return blob, err
	}
	defer func() { err = errors.Join(err, file.Close(), os.Remove(file.Name())) }()
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(file, sum), io.LimitReader(r, ociarchive.MaxArchiveBytes))
	if err != nil {
		return blob, fmt.Errorf("keep a blob for the moment: %w", err)
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return blob, err
	}
	blob = ociarchive.Blob{Digest: "sha256:" + hex.EncodeToString(sum.Sum(nil)), Size: n}
	_, err = s.blobs.Put(ctx, blob.Digest, file, n)
	return blob, err
}

func (s staged) Open(_ context.Context, digest string) (io.ReadCloser, error) {
	return s.blobs.Open(digest, 0)
}
