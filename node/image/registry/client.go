package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

// Limits bound what a registry may cost. Zero values take the defaults.
type Limits struct {
	// DocumentBytes of a manifest, an index, a token or an error.
	DocumentBytes int64
	// Stall is how long a registry may take to answer, and the time in which it
	// must send at least StallBytes of a body.
	Stall      time.Duration
	StallBytes int64
	// Attempts at one request, MirrorAttempts at a mirror.
	Attempts       int
	MirrorAttempts int
	// BackoffMin doubles up to BackoffMax between attempts; a registry that asks
	// for more than RetryAfterMax is given up for now.
	BackoffMin    time.Duration
	BackoffMax    time.Duration
	RetryAfterMax time.Duration
	// Redirects of one request.
	Redirects int
}

// DefaultLimits are those of a production node.
func DefaultLimits() Limits {
	return Limits{
		DocumentBytes: 4 << 20, Stall: 30 * time.Second, StallBytes: 4 << 10, Attempts: 5, MirrorAttempts: 2,
		BackoffMin: 500 * time.Millisecond, BackoffMax: 8 * time.Second, RetryAfterMax: time.Minute, Redirects: 5,
	}
}

func (l Limits) withDefaults() Limits {
	d := DefaultLimits()
	l.DocumentBytes = cmp.Or(l.DocumentBytes, d.DocumentBytes)
	l.Stall = cmp.Or(l.Stall, d.Stall)
	l.StallBytes = cmp.Or(l.StallBytes, d.StallBytes)
	l.Attempts = cmp.Or(l.Attempts, d.Attempts)
	l.MirrorAttempts = cmp.Or(l.MirrorAttempts, d.MirrorAttempts)
	l.BackoffMin = cmp.Or(l.BackoffMin, d.BackoffMin)
	l.BackoffMax = cmp.Or(l.BackoffMax, d.BackoffMax)
	l.RetryAfterMax = cmp.Or(l.RetryAfterMax, d.RetryAfterMax)
	l.Redirects = cmp.Or(l.Redirects, d.Redirects)
	return l
}

// Options of a client.
type Options struct {
	Config Config
	Limits Limits
	Log    *slog.Logger
}

// Client opens sessions.
type Client struct {
	config Config
	limits Limits
	log    *slog.Logger
}

// New makes a client. It talks to nobody.
func New(opt Options) *Client {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	return &Client{config: opt.Config, limits: opt.Limits.withDefaults(), log: opt.Log}
}

// Open prepares to fetch one image: by the mirrors that the configuration has
// for its registry, in order, then from the registry itself. Nothing is asked
// before the session is used. Close it.
func (c *Client) Open(image string, credentials Credentials) (*Session, error) {
	ref, err := name.ParseReference(image)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", clip(image), err)
	}
	s := &Session{client: c, image: image, identifier: ref.Identifier(), cached: map[string][]byte{}}
	repository, own := ref.Context().RepositoryStr(), ref.Context().RegistryStr()
	settings, _ := c.config.of(own)
	for _, mirror := range settings.Mirrors {
		host, prefix, _ := strings.Cut(mirror, "/")
		path := repository
		if prefix != "" {
			path = strings.TrimSuffix(prefix, "/") + "/" + repository
		}
		if err := s.add(host, path, credentials, c.limits.MirrorAttempts); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	if err := s.add(own, repository, credentials, c.limits.Attempts); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// add makes an endpoint of the session. One that is blocked stays in the list
// and says so, so that an error tells why the registry was not asked.
func (s *Session) add(host, repository string, credentials Credentials, attempts int) error {
	settings, _ := s.client.config.of(host)
	e := &endpoint{session: s, host: host, attempts: attempts, blocked: settings.Blocked}
	s.endpoints = append(s.endpoints, e)
	if e.blocked {
		return nil
	}
	options := []name.Option{name.StrictValidation}
	if settings.HTTP {
		options = append(options, name.Insecure)
	}
	var err error
	if e.repository, err = name.NewRepository(host+"/"+repository, options...); err != nil {
		return fmt.Errorf("registry %s: %w", host, err)
	}
	if e.guard, err = newGuard(e.repository.RegistryStr(), s.client.config, s.client.limits); err != nil {
		return fmt.Errorf("registry %s: %w", host, err)
	}
	for _, auth := range credentials.match(host, repository) {
		e.auths = append(e.auths, authn.FromConfig(auth))
		e.secrets = append(e.secrets, materialOf(auth))
	}
	if password, err := settings.password(); err != nil {
		return fmt.Errorf("registry %s: %w", host, err)
	} else if password != "" {
		e.auths = append(e.auths, &authn.Basic{Username: settings.Username, Password: password})
	}
	if len(e.auths) == 0 {
		e.auths = []authn.Authenticator{authn.Anonymous}
	}
	return nil
}

// failed puts together what the endpoints said.
func (s *Session) failed(what string, failures []error) error {
	if len(failures) == 1 {
		return fmt.Errorf("%s of %s: %w", what, s.image, failures[0])
	}
	return fmt.Errorf("%s of %s: %w", what, s.image, errors.Join(failures...))
}

// inOrder asks the endpoint that answered before, then the others.
func (s *Session) inOrder() []*endpoint {
	s.mu.Lock()
	first := s.first
	s.mu.Unlock()
	order := []*endpoint{s.endpoints[first]}
	for i, e := range s.endpoints {
		if i != first {
			order = append(order, e)
		}
	}
	return order
}

// retry runs op until it succeeds, is refused for good, or has been tried often
// enough.
func (e *endpoint) retry(ctx context.Context, op func() error) error {
	limits := e.session.client.limits
	backoff := limits.BackoffMin
	for attempt := 1; ; attempt++ {
		err := classified(op())
		if err == nil {
			return nil
		}
		err = fmt.Errorf("registry %s: %w", e.host, err)
		if ctx.Err() != nil || attempt >= e.attempts || !temporary(err) {
			return err
		}
		pause := backoff/2 + rand.N(backoff/2+1)
		if asked := time.Duration(e.guard.retryAfter.Swap(0)); asked > limits.RetryAfterMax {
			return fmt.Errorf("%w; it asks to wait for %s, more than %s", err, asked, limits.RetryAfterMax)
		} else if asked > 0 {
			pause = asked
		}
		e.session.client.log.Debug("asking a registry again", "registry", e.host, "attempt", attempt, "pause", pause, "error", err)
		if err := wait(ctx, pause); err != nil {
			return err
		}
		backoff = min(2*backoff, limits.BackoffMax)
	}
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
