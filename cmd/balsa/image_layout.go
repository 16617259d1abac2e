package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/balsa-run/balsa/internal/ociarchive"
)

// openLayout reads a directory in OCI layout: index.json and blobs/sha256/.
func openLayout(dir, name, arch string) ([]pushImage, error) {
	index, err := readSmallFile(filepath.Join(dir, "index.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s has no index.json: push a directory in OCI layout, or an archive", dir)
	}
	if err != nil {
		return nil, err
	}
	entries, err := ociarchive.LayoutImages(index)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	if name != "" && len(entries) != 1 {
		return nil, fmt.Errorf("%s has %d images and one name was given: push it without a name", dir, len(entries))
	}
	blobs := blobDir(filepath.Join(dir, "blobs", "sha256"))
	var images []pushImage
	for _, e := range entries {
		manifest, err := blobs.manifest(e.Digest, arch)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", dir, err)
		}
		image := pushImage{names: e.Names, manifest: manifest, open: blobs.Open}
		if name != "" {
			image.names = []string{name}
		}
		if len(image.names) == 0 {
			return nil, fmt.Errorf("%s: image %s has no name: give one", dir, e.Digest)
		}
		images = append(images, image)
	}
	return images, nil
}

func readSmallFile(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, ociarchive.MaxDocumentBytes+1))
	if err == nil && len(content) > ociarchive.MaxDocumentBytes {
		err = fmt.Errorf("%s has more than %d bytes", path, ociarchive.MaxDocumentBytes)
	}
	return content, err
}

// blobDir is a directory of blobs by the hexadecimal digits of their digests. It
// is ociarchive.Blobs.
type blobDir string

func (d blobDir) path(digest string) string {
	return filepath.Join(string(d), strings.TrimPrefix(digest, "sha256:"))
}

func (d blobDir) Put(_ context.Context, r io.Reader) (ociarchive.Blob, error) {
	file, err := os.CreateTemp(string(d), "new-")
	if err != nil {
		return ociarchive.Blob{}, err
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(file, sum), r)
	if err := errors.Join(err, file.Close()); err != nil {
		return ociarchive.Blob{}, errors.Join(err, os.Remove(file.Name()))
	}
	blob := ociarchive.Blob{Digest: "sha256:" + hex.EncodeToString(sum.Sum(nil)), Size: n}
	return blob, os.Rename(file.Name(), d.path(blob.Digest))
}

func (d blobDir) Open(_ context.Context, digest string) (io.ReadCloser, error) {
	if err := ociarchive.CheckDigest(digest); err != nil {
		return nil, err
	}
	return os.Open(d.path(digest))
}

func (d blobDir) document(digest string) ([]byte, error) {
	if err := ociarchive.CheckDigest(digest); err != nil {
		return nil, err
	}
	return readSmallFile(d.path(digest))
}

// manifest goes through indexes to the manifest for the architecture.
func (d blobDir) manifest(digest, arch string) ([]byte, error) {
	for range ociarchive.MaxIndexDepth {
		content, err := d.document(digest)
		if err != nil {
			return nil, err
		}
		next, err := ociarchive.ChooseManifest(content, arch)
		if err != nil || next == "" {
			return content, err
		}
		digest = next
	}
	return nil, fmt.Errorf("indexes are nested more than %d deep", ociarchive.MaxIndexDepth)
}
