package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"

	"github.com/balsa-run/balsa/internal/ociarchive"
	"github.com/balsa-run/balsa/node/image/registry"
)

// RegistryImage is an image of a registry, for one platform: what the command
// line pushes on to the cluster.
type RegistryImage struct {
	// Manifest as it is in the registry; its digest was checked.
	Manifest []byte
	session  *registry.Session
}

// OpenRegistryImage finds an image in its registry. dockerConfig is what docker
// login keeps, empty for none; config is a node's registry configuration file,
// empty for none. Close the image.
func OpenRegistryImage(ctx context.Context, name, architecture, config string, dockerConfig []byte) (*RegistryImage, error) {
	settings, err := registry.LoadConfig(config)
	if err != nil {
		return nil, err
	}
	var secrets [][]byte
	if len(dockerConfig) > 0 {
		secrets = append(secrets, dockerConfig)
	}
	credentials, err := registry.ParseCredentials(secrets)
	if err != nil {
		return nil, err
	}
	session, err := registry.New(registry.Options{Config: settings}).Open(name, credentials)
	if err != nil {
		return nil, err
	}
	image := &RegistryImage{session: session}
	digest, err := session.Resolve(ctx)
	if err == nil {
		image.Manifest, err = image.manifest(ctx, digest, architecture)
	}
	if err != nil {
		_ = session.Close()
		return nil, err
	}
	return image, nil
}

// manifest goes through indexes to the manifest for the architecture.
func (r *RegistryImage) manifest(ctx context.Context, digest, architecture string) ([]byte, error) {
	for range ociarchive.MaxIndexDepth {
		content, err := r.session.Manifest(ctx, digest)
		if err != nil {
			return nil, err
		}
		if sum := sha256.Sum256(content); "sha256:"+hex.EncodeToString(sum[:]) != digest {
			return nil, fmt.Errorf("manifest %s: what the registry sends has another digest", digest)
		}
		next, err := ociarchive.ChooseManifest(content, architecture)
		if err != nil || next == "" {
			return content, err
		}
		digest = next
	}
	return nil, fmt.Errorf("indexes are nested more than %d deep", ociarchive.MaxIndexDepth)
}

// Open reads a blob of the image from its start.
func (r *RegistryImage) Open(ctx context.Context, digest string) (io.ReadCloser, error) {
	return r.session.Blob(ctx, digest, 0)
}

// Close gives the connections back.
func (r *RegistryImage) Close() error { return r.session.Close() }
