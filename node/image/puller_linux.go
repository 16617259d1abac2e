package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/balsa-run/balsa/internal/ociarchive"
	"github.com/balsa-run/balsa/node/image/registry"
)

// Cluster is what the servers know of images.
type Cluster interface {
	// Lookup tells what the servers keep under exactly this name. ErrNotFound:
	// nothing. Any other error: they could not be asked.
	Lookup(ctx context.Context, name string) (Kept, error)
}

// Kept is an image that the servers keep.
type Kept struct {
	Digest string
	// Sources that have it, the best first.
	Sources []Source
}

// Puller decides where an image comes from. Images that the cluster keeps under
// the exact name come first; then registries. While the cluster cannot be asked,
// no registry is either: it could give out another image under the same name.
type Puller struct {
	Store      *Store
	Cluster    Cluster
	Registries *registry.Client
	Log        *slog.Logger
}

// Request is an image that a pod wants.
type Request struct {
	// Name is as the pod's spec has it.
	Name string
	// Always asks the registry what the name means now; otherwise an image that
	// the node has will do. The cluster is asked each time: that is cheap, and an
	// image that was imported again is used from then on.
	Always bool
	// Never asks nobody.
	Never bool
	// Credentials are .dockerconfigjson values.
	Credentials [][]byte
}

// Pull has an image ready to run. An image that the node has is given to a pod only
// if that may run it, see access. Errors: ErrName, ErrNotFound when all who may have
// it were asked and have not, ErrUnreachable when nobody could be asked, ErrDenied
// when nobody may be.
func (p *Puller) Pull(ctx context.Context, want Request, progress func(Progress)) (Pulled, error) {
	name, err := ociarchive.NormalizeName(want.Name)
	if err != nil {
		return Pulled{}, fmt.Errorf("%w: %w", ErrName, err)
	}
	if want.Never {
		return p.never(name, want)
	}
	kept, err := p.Cluster.Lookup(ctx, name)
	switch {
	case err == nil:
		return p.ofCluster(ctx, name, kept, progress)
	case errors.Is(err, ErrNotFound):
		return p.ofRegistry(ctx, name, want, progress)
	case ctx.Err() != nil:
		return Pulled{}, context.Cause(ctx)
	case !want.Always || isDigestName(name):
		if have, localErr := p.local(name); localErr == nil && p.mayRun(name, have, want) {
			p.Log.Warn("using the image that the node knows by this name", "image", name, "digest", have.Image.Digest, "error", err)
			return have, nil
		}
	}
	return Pulled{}, &pullError{ErrUnreachable, fmt.Errorf("the servers cannot be asked for it: %w", err)}
}

func (p *Puller) ofCluster(ctx context.Context, name string, kept Kept, progress func(Progress)) (Pulled, error) {
	if have, err := p.local(name); err == nil && have.Image.Digest == kept.Digest {
		return have, p.Store.openToAll(name, have.Image.Digest)
	}
	pulled, err := p.Store.Transfer(ctx, Transfer{Name: name, Digest: kept.Digest, Sources: kept.Sources, Progress: progress,
		Before: func(digest string) error { return p.Store.openToAll(name, digest) }})
	if errors.Is(err, ErrNotFound) {
		// The name is known; that a part of it is missing is another matter, and must
		// not read as ErrNotFound.
		err = errors.New("parts of it are missing, import or push it again: " + err.Error())
	}
	return pulled, err
}

func (p *Puller) ofRegistry(ctx context.Context, name string, want Request, progress func(Progress)) (Pulled, error) {
	have, localErr := p.local(name)
	reuse := localErr == nil && (!want.Always || isDigestName(name))
	if reuse && p.Store.mayRun(name, have.Image.Digest, nil) {
		return have, nil
	}
	credentials, secretErr := registry.ParseCredentials(want.Credentials)
	session, err := p.Registries.Open(name, credentials)
	if err != nil {
		return Pulled{}, err
	}
	defer func() { _ = session.Close() }()
	if reuse && p.Store.mayRun(name, have.Image.Digest, session.Secrets()) {
		return have, nil
	}
	digest, err := session.Resolve(ctx)
	if err != nil {
		return Pulled{}, errors.Join(resolveError(err), secretErr)
	}
	grant := func(manifest string) error {
		used, everyone := session.Used()
		return p.Store.grant(name, manifest, used, everyone)
	}
	if localErr == nil && p.Store.targetOfName(name) == digest {
		if _, open := p.Store.accessOf(have.Image.Digest); open {
			return have, nil // everybody's before, and nothing has come since
		}
		return have, grant(have.Image.Digest)
	}
	return p.Store.Transfer(ctx, Transfer{Name: name, Digest: digest, Sources: []Source{registrySource{session}}, Progress: progress, Before: grant})
}

// never gives what the node has, to who has shown before that it may run it.
func (p *Puller) never(name string, want Request) (Pulled, error) {
	have, err := p.local(name)
	if err != nil {
		return Pulled{}, err
	}
	if !p.mayRun(name, have, want) {
		return Pulled{}, fmt.Errorf("image %s: it is on the node, but a registry gave it for credentials that this pod does not have, and the registry may not be asked: %w", name, ErrDenied)
	}
	return have, nil
}

// mayRun asks nobody.
func (p *Puller) mayRun(name string, have Pulled, want Request) bool {
	credentials, _ := registry.ParseCredentials(want.Credentials) // what can be read of them
	session, err := p.Registries.Open(name, credentials)
	if err != nil {
		return p.Store.mayRun(name, have.Image.Digest, nil)
	}
	defer func() { _ = session.Close() }()
	return p.Store.mayRun(name, have.Image.Digest, session.Secrets())
}

func (p *Puller) local(name string) (Pulled, error) {
	digest, err := p.Store.digestOfName(name)
	if err != nil {
		return Pulled{}, err
	}
	image, r, err := p.Store.local(digest)
	if err != nil {
		return Pulled{}, err
	}
	return Pulled{Image: image, SizeBytes: p.Store.sizeOf(r)}, nil
}

// pullError is a cause, told in its own words, and what callers branch on.
type pullError struct{ is, cause error }

func (e *pullError) Error() string   { return e.cause.Error() }
func (e *pullError) Unwrap() []error { return []error{e.is, e.cause} }

// resolveError says what was tried before the registry was asked.
func resolveError(err error) error {
	told := fmt.Errorf("it is not in the cluster, and no registry gave it: %w", err)
	switch {
	case errors.Is(err, registry.ErrNotFound), errors.Is(err, registry.ErrBlocked):
		return &pullError{ErrNotFound, told}
	case errors.Is(err, registry.ErrUnauthorized), errors.Is(err, registry.ErrRefused):
		return told
	}
	return &pullError{ErrUnreachable, told}
}

// registrySource is a session as a Source.
type registrySource struct{ session *registry.Session }

func (r registrySource) String() string { return "the registry" }

func (r registrySource) Manifest(ctx context.Context, digest string) ([]byte, error) {
	return r.session.Manifest(ctx, digest)
}

func (r registrySource) Blob(ctx context.Context, digest string, offset int64) (io.ReadCloser, error) {
	return r.session.Blob(ctx, digest, offset)
}
