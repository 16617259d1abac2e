package pki

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/balsa-run/balsa/internal/clock"
)

// Pace of the renewer.
const (
	RenewRetryMin = 10 * time.Second
	RenewRetryMax = 10 * time.Minute

	// renewLookAgain bounds one sleep: timers stand still while a machine is
	// suspended, certificates do not.
	renewLookAgain = time.Hour
)

// Source gets a new certificate for the identity and key of current.
type Source interface {
	Renew(ctx context.Context, current *Credential) (certPEM []byte, err error)
}

// LocalSource is a server's: it has the authority's key and needs nobody.
type LocalSource struct {
	CA    *CA
	SANs  SANs
	Guard *Guard
	Clock clock.Clock
}

// Renew signs a certificate, unless this server was removed.
func (s LocalSource) Renew(_ context.Context, current *Credential) ([]byte, error) {
	if err := s.Guard.CheckRemoved(current.identity); err != nil {
		return nil, err
	}
	return s.CA.resign(current, s.SANs, s.Clock.Now())
}

// resign signs a new certificate for the same identity and key.
func (ca *CA) resign(current *Credential, sans SANs, now time.Time) ([]byte, error) {
	id := current.identity
	csr, err := NewCSR(id.Name, current.key)
	if err != nil {
		return nil, err
	}
	leaf, err := ca.Sign(SignRequest{CSR: csr, Role: id.Role, Name: id.Name, SANs: sans}, now)
	if err != nil {
		return nil, err
	}
	return certPEM(leaf.Raw), nil
}

// RenewClient is the two calls of a renewal by proof. Both must reach the same
// server, so make them on one connection of RenewClientTLS.
type RenewClient interface {
	Nonce(ctx context.Context) ([]byte, error)
	Renew(ctx context.Context, req RenewRequest) (certPEM []byte, err error)
}

// RemoteSource is an agent's.
type RemoteSource struct{ Client RenewClient }

// Renew proves possession of current's key to a server.
func (s RemoteSource) Renew(ctx context.Context, current *Credential) ([]byte, error) {
	nonce, err := s.Client.Nonce(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask a server for a nonce: %w", err)
	}
	req, err := NewRenewRequest(current, nonce)
	if err != nil {
		return nil, err
	}
	return s.Client.Renew(ctx, req)
}

// RenewerOptions is what a Renewer needs; all fields are required.
type RenewerOptions struct {
	Credentials *Credentials
	Source      Source
	Save        func(*Credential) error // to disk, before the certificate is used
	Clock       clock.Clock
	Jitter      func() float64 // in [0, 1)
	Log         *slog.Logger
}

// Renewer keeps one certificate fresh: at two thirds of its life, with back-off
// as long as that fails, for ever.
type Renewer struct {
	o RenewerOptions

	mu     sync.Mutex
	status RenewStatus // guarded by mu
}

// RenewStatus is for metrics and for balsa doctor.
type RenewStatus struct {
	Expires  time.Time
	RenewAt  time.Time
	Failures int   // in a row
	LastErr  error // of the last attempt; nil after a success
}

// NewRenewer does nothing until Run.
func NewRenewer(o RenewerOptions) *Renewer {
	r := &Renewer{o: o}
	r.plan()
	return r
}

// Status is how it stands.
func (r *Renewer) Status() RenewStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status
}

// plan sets when the current certificate is due, once for each certificate.
func (r *Renewer) plan() {
	current := r.o.Credentials.Current()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status = RenewStatus{Expires: current.Expires(), RenewAt: current.RenewAt(r.o.Jitter())}
}

// Run renews until ctx ends.
func (r *Renewer) Run(ctx context.Context) {
	timer := r.o.Clock.NewTimer(r.wait())
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C():
		}
		r.step(ctx)
		timer.Reset(r.wait())
	}
}

// wait is how long until there is something to do: renewWait with jitter.
func (r *Renewer) wait() time.Duration {
	return renewWait(r.Status(), r.o.Clock.Now(), r.o.Jitter())
}

// renewWait: until due; after a failure the doubled pause, less up to half of it.
func renewWait(s RenewStatus, now time.Time, jitter float64) time.Duration {
	if s.Failures > 0 {
		pause := min(RenewRetryMin<<min(s.Failures-1, 10), RenewRetryMax)
		return pause - time.Duration(jitter*float64(pause/2))
	}
	return min(max(s.RenewAt.Sub(now), 0), renewLookAgain)
}

// step renews if it is time.
func (r *Renewer) step(ctx context.Context) {
	if r.o.Clock.Now().Before(r.Status().RenewAt) {
		return
	}
	err := r.renew(ctx)
	if ctx.Err() != nil && err != nil {
		return
	}
	if err == nil {
		r.plan()
		r.o.Log.Info("renewed the certificate", "identity", r.identity(), "expires", stamp(r.Status().Expires))
		return
	}
	r.mu.Lock()
	r.status.Failures++
	r.status.LastErr = err
	s := r.status
	r.mu.Unlock()
	r.o.Log.Warn("cannot renew the certificate", "identity", r.identity(), "expires", stamp(s.Expires), "failures", s.Failures, "error", err)
}

func (r *Renewer) identity() string { return r.o.Credentials.Current().identity.String() }

func (r *Renewer) renew(ctx context.Context) error {
	current := r.o.Credentials.Current()
	text, err := r.o.Source.Renew(ctx, current)
	if err != nil {
		return err
	}
	next, err := current.Renewed(text)
	if err != nil {
		return err
	}
	if !next.Expires().After(current.Expires()) {
		return refuse(ErrBadMaterial, "the new certificate of %s ends at %s, no later than the old one; has the CA expired, or is the clock of the server wrong?", next.identity, stamp(next.Expires()))
	}
	if err := r.o.Save(next); err != nil {
		return fmt.Errorf("save the new certificate: %w", err)
	}
	return r.o.Credentials.Replace(next)
}
