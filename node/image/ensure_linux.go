package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/balsa-run/balsa/internal/ociarchive"
	"github.com/balsa-run/balsa/node/runtime"
)

// Fetcher brings what the node lacks; the agent implements it over the API.
type Fetcher interface {
	// Manifest says which manifest a name stands for now. It may return only
	// the digest; the content is then read with Blob if the node lacks it. An
	// error that wraps ErrNotFound says that the cluster does not know the name.
	Manifest(ctx context.Context, name string) (digest string, content []byte, err error)
	Blob(ctx context.Context, digest string) (io.ReadCloser, error)
}

// Ensure makes the image complete on this node and resolves it. The cluster's
// word on what a name means comes first; when the cluster cannot be asked, the
// image that the node knows by this name will do, so that pods restart without
// servers.
func (s *Store) Ensure(ctx context.Context, name string, f Fetcher) (runtime.Image, error) {
	return s.ensure(ctx, name, f)
}

func (s *Store) ensure(ctx context.Context, name string, f Fetcher) (runtime.Image, error) {
	normal, err := ociarchive.NormalizeName(name)
	if err != nil {
		return runtime.Image{}, err
	}
	s.use.RLock()
	defer s.use.RUnlock()
	digest, err := s.lookUp(ctx, normal, f)
	if err != nil {
		return runtime.Image{}, err
	}
	image, err := s.assemble(ctx, digest, f)
	if err != nil {
		return runtime.Image{}, fmt.Errorf("image %s: %w", normal, err)
	}
	if have, err := s.digestOfName(normal); err == nil && have == digest {
		return image, nil
	}
	if err := s.setName(normal, digest); err != nil {
		return runtime.Image{}, fmt.Errorf("image %s: %w", normal, err)
	}
	return image, nil
}

// lookUp finds the manifest's digest and keeps the manifest.
func (s *Store) lookUp(ctx context.Context, name string, f Fetcher) (string, error) {
	digest, content, err := f.Manifest(ctx, name)
	if err != nil {
		local, localErr := s.digestOfName(name)
		if localErr != nil {
			return "", err
		}
		if _, offline := f.(nothing); !offline {
			s.opt.Log.Warn("using the image that the node knows by this name", "image", name, "digest", local, "error", err)
		}
		return local, nil
	}
	if err := ociarchive.CheckDigest(digest); err != nil {
		return "", fmt.Errorf("image %s: %w", name, err)
	}
	if len(content) > 0 && !exists(s.path(blobsDir, digest)) {
		if _, err := s.put(bytes.NewReader(content), ociarchive.MaxDocumentBytes, digest); err != nil {
			return "", fmt.Errorf("manifest of image %s: %w", name, err)
		}
	}
	return digest, nil
}

// assemble makes every part of an image be there and describes it.
func (s *Store) assemble(ctx context.Context, digest string, f Fetcher) (runtime.Image, error) {
	content, err := s.document(ctx, digest, f)
	if err != nil {
		return runtime.Image{}, fmt.Errorf("manifest: %w", err)
	}
	manifest, err := ociarchive.ParseManifest(content)
	if err != nil {
		return runtime.Image{}, err
	}
	if content, err = s.document(ctx, manifest.Config.Digest.String(), f); err != nil {
		return runtime.Image{}, fmt.Errorf("configuration: %w", err)
	}
	config, err := ociarchive.ParseConfig(content, manifest)
	if err != nil {
		return runtime.Image{}, err
	}
	image := runtime.Image{
		Digest: digest, Entrypoint: config.Config.Entrypoint, Cmd: config.Config.Cmd, Env: config.Config.Env,
		WorkingDir: config.Config.WorkingDir, User: config.Config.User, StopSignal: config.Config.StopSignal,
	}
	for i, layer := range manifest.Layers {
		diffID := config.RootFS.DiffIDs[i].String()
		if err := s.ensureLayer(ctx, layer, diffID, f); err != nil {
			return runtime.Image{}, fmt.Errorf("layer %d: %w", i, err)
		}
		image.Layers = append(image.Layers, s.path(layersDir, diffID))
	}
	image.Layers = dropRepeated(image.Layers)
	return image, nil
}

// dropRepeated keeps the topmost of equal layers: an overlay refuses the same
// directory twice, and a layer applied again changes nothing below it.
func dropRepeated(layers []string) []string {
	seen := map[string]bool{}
	var kept []string
	for i := len(layers) - 1; i >= 0; i-- {
		if !seen[layers[i]] {
			seen[layers[i]] = true
			kept = append([]string{layers[i]}, kept...)
		}
	}
	return kept
}

// document returns a small blob and fetches it if need be.
func (s *Store) document(ctx context.Context, digest string, f Fetcher) ([]byte, error) {
	if err := s.fetch(ctx, digest, ociarchive.MaxDocumentBytes, f); err != nil {
		return nil, err
	}
	r, err := s.Open(ctx, digest)
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(io.LimitReader(r, ociarchive.MaxDocumentBytes+1))
	if err := errors.Join(err, r.Close()); err != nil {
		return nil, fmt.Errorf("read blob %s: %w", digest, err)
	}
	if len(content) > ociarchive.MaxDocumentBytes {
		return nil, fmt.Errorf("blob %s is too big for a document, at most %d bytes are allowed: %w", digest, ociarchive.MaxDocumentBytes, ociarchive.ErrInvalid)
	}
	return content, nil
}

// fetch brings a blob that is not there.
func (s *Store) fetch(ctx context.Context, digest string, maxBytes int64, f Fetcher) error {
	there := func() bool { return exists(s.path(blobsDir, digest)) }
	return s.once(ctx, digest, there, func() error {
		r, err := f.Blob(ctx, digest)
		if err != nil {
			return fmt.Errorf("fetch blob %s: %w", digest, err)
		}
		_, err = s.put(r, maxBytes, digest)
		if err := errors.Join(err, r.Close()); err != nil {
			return fmt.Errorf("fetch blob %s: %w", digest, err)
		}
		return nil
	})
}

// ensureLayer unpacks a layer that is not there. Its blob is then not needed
// any more: the directory is.
func (s *Store) ensureLayer(ctx context.Context, layer v1.Descriptor, diffID string, f Fetcher) error {
	dir := s.path(layersDir, diffID)
	there := func() bool { return exists(dir) }
	return s.once(ctx, "layer "+diffID, there, func() error {
		blob := layer.Digest.String()
		if err := s.fetch(ctx, blob, min(layer.Size, s.opt.Limits.MaxBlobBytes), f); err != nil {
			return err
		}
		if err := s.unpack(ctx, blob, diffID, dir); err != nil {
			// Do not keep what might be damaged: the next try fetches it again.
			return errors.Join(err, ignoreGone(os.Remove(s.path(blobsDir, blob))))
		}
		return ignoreGone(os.Remove(s.path(blobsDir, blob)))
	})
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Prune removes every image whose manifest keep does not want, and then the
// blobs and layers that no image refers to. It returns the names it removed.
func (s *Store) Prune(ctx context.Context, keep func(manifestDigest string) bool) ([]string, error) {
	s.use.Lock()
	defer s.use.Unlock()
	removed, wanted, err := s.pruneNames(ctx, keep)
	if err != nil {
		return removed, fmt.Errorf("prune images: %w", err)
	}
	for _, kind := range []string{blobsDir, layersDir} {
		entries, err := os.ReadDir(filepath.Join(s.opt.Dir, kind))
		if err != nil {
			return removed, fmt.Errorf("prune images: %w", err)
		}
		for _, e := range entries {
			if wanted[kind+"/"+e.Name()] {
				continue
			}
			if err := os.RemoveAll(filepath.Join(s.opt.Dir, kind, e.Name())); err != nil {
				return removed, fmt.Errorf("prune images: %w", err)
			}
		}
	}
	return removed, nil
}

// pruneNames also collects the paths that the remaining images refer to.
func (s *Store) pruneNames(ctx context.Context, keep func(string) bool) (removed []string, wanted map[string]bool, err error) {
	wanted = map[string]bool{}
	entries, err := os.ReadDir(filepath.Join(s.opt.Dir, namesDir))
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		path := filepath.Join(s.opt.Dir, namesDir, e.Name())
		content, err := os.ReadFile(path)
		if err != nil {
			return removed, nil, err
		}
		if digest := string(content); keep(digest) {
			if err := s.collect(ctx, digest, wanted); err != nil {
				return removed, nil, err
			}
			continue
		}
		if err := os.Remove(path); err != nil {
			return removed, nil, err
		}
		removed = append(removed, nameOf(e.Name()))
	}
	return removed, wanted, nil
}

func (s *Store) collect(ctx context.Context, digest string, wanted map[string]bool) error {
	content, err := s.document(ctx, digest, nothing{})
	if err != nil {
		return err
	}
	manifest, err := ociarchive.ParseManifest(content)
	if err != nil {
		return err
	}
	if content, err = s.document(ctx, manifest.Config.Digest.String(), nothing{}); err != nil {
		return err
	}
	config, err := ociarchive.ParseConfig(content, manifest)
	if err != nil {
		return err
	}
	for _, digest := range []string{digest, manifest.Config.Digest.String()} {
		wanted[blobsDir+"/"+filepath.Base(s.path(blobsDir, digest))] = true
	}
	for i, layer := range manifest.Layers {
		diffID := config.RootFS.DiffIDs[i]
		wanted[layersDir+"/"+diffID.Hex] = true
		if !exists(s.path(layersDir, diffID.String())) {
			wanted[blobsDir+"/"+layer.Digest.Hex] = true
		}
	}
	return nil
}
