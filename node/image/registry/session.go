package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Session fetches one image from the places that may have it. Its methods may be
// called at the same time.
type Session struct {
	client     *Client
	image      string
	identifier string // the tag, or the digest
	endpoints  []*endpoint

	mu     sync.Mutex
	first  int               // guarded by mu; index of the endpoint that knows the image
	cached map[string][]byte // guarded by mu; manifests that came while resolving, by digest
}

// endpoint is one host that may have the image.
type endpoint struct {
	session    *Session
	host       string
	repository name.Repository
	guard      *guard
	auths      []authn.Authenticator // those of pull secrets, then the node's
	secrets    []Material            // of the first of auths
	attempts   int
	blocked    bool

	mu        sync.Mutex
	transport http.RoundTripper // guarded by mu; authenticated, nil before the first use
	auth      int               // guarded by mu; index of the credential in use
}

// Close gives the connections back.
func (s *Session) Close() error {
	for _, e := range s.endpoints {
		if e.guard != nil {
			e.guard.close()
		}
	}
	return nil
}

// Resolve tells the digest that the image's name stands for now: of an index
// where the image is for several platforms. The first endpoint that knows the
// image is asked first from then on.
func (s *Session) Resolve(ctx context.Context) (string, error) {
	var failures []error
	for i, e := range s.endpoints {
		digest, err := e.resolve(ctx, s.identifier)
		if err == nil {
			s.mu.Lock()
			s.first = i
			s.mu.Unlock()
			if strings.HasPrefix(s.identifier, "sha256:") {
				return s.identifier, nil // whatever the registry says that it is
			}
			return digest, nil
		}
		failures = append(failures, err)
		if ctx.Err() != nil {
			break
		}
	}
	return "", s.failed("manifest", failures)
}

func (e *endpoint) resolve(ctx context.Context, identifier string) (digest string, err error) {
	if e.blocked {
		return "", e.refuseBlocked()
	}
	err = e.retry(ctx, func() error {
		digest, err = e.head(ctx, identifier)
		return err
	})
	return digest, err
}

func (e *endpoint) refuseBlocked() error { return fmt.Errorf("registry %s: %w", e.host, ErrBlocked) }

// head asks for the digest alone, and reads the manifest where a registry does
// not tell.
func (e *endpoint) head(ctx context.Context, identifier string) (string, error) {
	res, cancel, err := e.do(ctx, http.MethodHead, "manifests/"+identifier, acceptManifests(), false)
	if err == nil {
		digest := res.Header.Get("Docker-Content-Digest")
		_ = res.Body.Close()
		cancel(nil)
		if hash, err := v1.NewHash(digest); err == nil && hash.Algorithm == "sha256" {
			return digest, nil
		}
	} else if errors.Is(err, ErrNotFound) || errors.Is(err, ErrUnauthorized) || temporary(err) && !isStatus(err, http.StatusMethodNotAllowed) {
		return "", err
	}
	content, err := e.document(ctx, "manifests/"+identifier)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(content)
	digest := "sha256:" + hex.EncodeToString(sum[:])
	e.session.mu.Lock()
	defer e.session.mu.Unlock()
	e.session.cached[digest] = content
	return digest, nil
}

func isStatus(err error, status int) bool {
	var e *statusError
	return errors.As(err, &e) && e.status == status
}

// Manifest reads a manifest or an index. Whoever asked checks its digest.
func (s *Session) Manifest(ctx context.Context, digest string) ([]byte, error) {
	s.mu.Lock()
	content, ok := s.cached[digest]
	s.mu.Unlock()
	if ok {
		return content, nil
	}
	err := s.any(ctx, "manifest", func(e *endpoint) (err error) {
		content, err = e.document(ctx, "manifests/"+digest)
		return err
	})
	return content, err
}

// Blob reads a blob from an offset on. The body fails with ErrStalled where the
// registry stalls; whoever reads checks size and digest.
func (s *Session) Blob(ctx context.Context, digest string, offset int64) (body io.ReadCloser, err error) {
	err = s.any(ctx, "blob "+digest, func(e *endpoint) (err error) {
		body, err = e.blob(ctx, digest, offset)
		return err
	})
	return body, err
}

// any asks the endpoints in order until one delivers.
func (s *Session) any(ctx context.Context, what string, ask func(*endpoint) error) error {
	var failures []error
	for _, e := range s.inOrder() {
		if e.blocked {
			failures = append(failures, e.refuseBlocked())
			continue
		}
		err := e.retry(ctx, func() error { return ask(e) })
		if err == nil {
			return nil
		}
		failures = append(failures, err)
		if ctx.Err() != nil {
			break
		}
	}
	return s.failed(what, failures)
}

func acceptManifests() http.Header {
	kinds := []string{
		string(types.OCIImageIndex), string(types.DockerManifestList), string(types.OCIManifestSchema1), string(types.DockerManifestSchema2),
	}
	return http.Header{"Accept": kinds}
}

// document reads a small answer whole.
func (e *endpoint) document(ctx context.Context, path string) ([]byte, error) {
	res, cancel, err := e.do(ctx, http.MethodGet, path, acceptManifests(), false) //nolint:bodyclose // the watched body below is closed
	if err != nil {
		return nil, err
	}
	body := Watch(res.Body, cancel, e.session.client.limits)
	content, err := io.ReadAll(body)
	return content, errors.Join(err, body.Close())
}

func (e *endpoint) blob(ctx context.Context, digest string, offset int64) (io.ReadCloser, error) {
	header := http.Header{"Accept": {"*/*"}}
	if offset > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	res, cancel, err := e.do(ctx, http.MethodGet, "blobs/"+digest, header, true) //nolint:bodyclose // whoever reads the blob closes it
	if offset > 0 && isStatus(err, http.StatusRequestedRangeNotSatisfiable) {
		// Some refuse a range without an end.
		header.Del("Range")
		res, cancel, err = e.do(ctx, http.MethodGet, "blobs/"+digest, header, true) //nolint:bodyclose // as above
	}
	if err != nil {
		return nil, err
	}
	body := Watch(res.Body, cancel, e.session.client.limits)
	if offset == 0 {
		return body, nil
	}
	if res.StatusCode == http.StatusPartialContent {
		if got := res.Header.Get("Content-Range"); !strings.HasPrefix(got, fmt.Sprintf("bytes %d-", offset)) {
			return nil, errors.Join(fmt.Errorf("%w: it was asked for bytes from %d on and sends %q", ErrRefused, offset, clip(got)), body.Close())
		}
		return body, nil
	}
	// A registry without ranges: what is known already is read again.
	if _, err := io.CopyN(io.Discard, body, offset); errors.Is(err, io.EOF) {
		return body, nil // the blob ends early: whoever reads on finds out
	} else if err != nil {
		return nil, errors.Join(err, body.Close())
	}
	return body, nil
}

// do makes one request with the first credential that may, and follows
// redirects. The response's status is one of success. The cancel function ends
// the request and must be called.
func (e *endpoint) do(ctx context.Context, method, path string, header http.Header, blob bool) (*http.Response, context.CancelCauseFunc, error) {
	for {
		res, cancel, used, err := e.tryOnce(ctx, method, path, header, blob)
		if err == nil || !errors.Is(classified(err), ErrUnauthorized) || !e.nextAuth(used) {
			return res, cancel, err
		}
	}
}

// nextAuth moves on to the next credential, unless somebody else just did.
func (e *endpoint) nextAuth(used int) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.auth != used {
		return true
	}
	if e.auth+1 >= len(e.auths) {
		return false
	}
	e.auth++
	e.transport = nil
	return true
}

func (e *endpoint) tryOnce(ctx context.Context, method, path string, header http.Header, blob bool) (res *http.Response, cancel context.CancelCauseFunc, used int, err error) {
	ctx, stop := context.WithCancelCause(ctx)
	defer func() {
		if err != nil {
			stop(nil)
		}
	}()
	rt, used, err := e.connect(ctx)
	if err != nil {
		return nil, nil, used, err
	}
	if blob {
		ctx = context.WithValue(ctx, blobKey{}, true)
	}
	target := &url.URL{Scheme: "https", Host: e.repository.RegistryStr(), Path: "/v2/" + e.repository.RepositoryStr() + "/" + path}
	res, err = e.follow(ctx, rt, method, target, header)
	return res, stop, used, err
}

// connect finds out how the registry wants to be asked, once.
func (e *endpoint) connect(ctx context.Context) (http.RoundTripper, int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.transport != nil {
		return e.transport, e.auth, nil
	}
	// A registry that takes the connection and then says nothing is as bad as
	// one that stalls later.
	ctx, cancel := context.WithTimeoutCause(ctx, 2*e.session.client.limits.Stall, ErrStalled)
	defer cancel()
	base := transport.NewUserAgent(e.guard, "balsa")
	rt, err := transport.NewWithContext(ctx, e.repository.Registry, e.auths[e.auth], base, []string{e.repository.Scope(transport.PullScope)})
	if err != nil {
		return nil, e.auth, err
	}
	e.transport = rt
	return rt, e.auth, nil
}

// follow makes the request and those that redirects lead to. Away from the
// registry's own host nothing of the credentials goes along: the transport that
// has them is not used there.
func (e *endpoint) follow(ctx context.Context, rt http.RoundTripper, method string, target *url.URL, header http.Header) (*http.Response, error) {
	own := target.Host
	for range e.session.client.limits.Redirects + 1 {
		req, err := http.NewRequestWithContext(ctx, method, target.String(), nil)
		if err != nil {
			return nil, err
		}
		req.Header = header.Clone()
		via := rt
		if target.Host != own {
			via = e.guard
		}
		res, err := via.RoundTrip(req)
		if err != nil {
			return nil, err
		}
		if res.StatusCode == http.StatusOK || res.StatusCode == http.StatusPartialContent {
			return res, nil
		}
		location := res.Header.Get("Location")
		if res.StatusCode < 300 || res.StatusCode >= 400 || location == "" {
			return nil, answered(res)
		}
		_ = res.Body.Close()
		if target, err = target.Parse(location); err != nil {
			return nil, fmt.Errorf("%w: it redirects to %q, which is no URL", ErrRefused, clip(location))
		}
	}
	return nil, fmt.Errorf("%w: it redirects more than %d times", ErrRefused, e.session.client.limits.Redirects)
}

// answered is the error that a response stands for. Only what registries say by
// the specification is told on: other text could be a page of another service.
func answered(res *http.Response) error {
	defer func() { _ = res.Body.Close() }()
	res.Request.Method = http.MethodGet // CheckError reads no body for HEAD, and there is none
	return classified(transport.CheckError(res, http.StatusOK))
}
