package pki

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/balsa-run/balsa/internal/clock"
)

// Limits of the guard.
const (
	// MaxRemovals bounds the set of removed identities that is in force.
	MaxRemovals = 100_000

	// MaxWatched bounds the open connections and streams of one process.
	MaxWatched = 65_536

	// ExpirySweep is how long after the end of a certificate the streams that
	// were opened with it may live on.
	ExpirySweep = time.Minute
)

// Removal is one entry of the removed set: either everything under a role and
// name, or one certificate by its serial.
type Removal struct {
	Role   Role
	Name   string
	Serial string
	At     time.Time

	// UpTo refuses, of a role and name, only what was issued up to At. It is for
	// those who do not know the serials: a name may have joined again since.
	UpTo bool
}

type subject struct {
	role Role
	name string
}

func subjectOf(id Identity) subject { return subject{id.Role, id.Name} }

// Removed is an immutable set of removals; nil is the empty set.
type Removed struct {
	subjects map[subject]time.Time
	upTo     map[subject]time.Time
	serials  map[string]time.Time
}

// NewRemoved makes the set. The caller may leave out serials whose certificates
// have expired.
func NewRemoved(removals []Removal) (*Removed, error) {
	if len(removals) > MaxRemovals {
		return nil, refuse(ErrTooMany, "%d removed identities; at most %d are allowed, drop those whose certificates have expired", len(removals), MaxRemovals)
	}
	r := &Removed{subjects: map[subject]time.Time{}, upTo: map[subject]time.Time{}, serials: map[string]time.Time{}}
	for _, one := range removals {
		switch {
		case one.Serial != "" && one.Name == "" && one.Role == "" && !one.UpTo:
			r.serials[one.Serial] = one.At
		case one.Serial == "" && one.Name != "" && one.Role.Valid() && one.UpTo:
			if s := (subject{one.Role, one.Name}); one.At.After(r.upTo[s]) {
				r.upTo[s] = one.At
			}
		case one.Serial == "" && one.Name != "" && one.Role.Valid():
			r.subjects[subject{one.Role, one.Name}] = one.At
		default:
			return nil, refuse(ErrBadRequest, "removal of role %q, name %q, serial %q: either role and name, or a serial is needed", one.Role, one.Name, one.Serial)
		}
	}
	return r, nil
}

// Check is nil or an ErrRemoved.
func (r *Removed) Check(id Identity) error {
	if r == nil {
		return nil
	}
	if at, ok := r.subjects[subjectOf(id)]; ok {
		return refuse(ErrRemoved, "%s was removed from the cluster at %s; it must join again with a new token", id, stamp(at))
	}
	if at, ok := r.upTo[subjectOf(id)]; ok && !id.Issued.After(at) {
		return refuse(ErrRemoved, "%s was removed from the cluster at %s, and this certificate is older; it must join again with a new token", id, stamp(at))
	}
	if at, ok := r.serials[id.Serial]; ok && id.Serial != "" {
		return refuse(ErrRemoved, "the certificate of %s with serial %s was revoked at %s", id, id.Serial, stamp(at))
	}
	return nil
}

// Guard refuses identities that were removed or whose certificate has expired:
// at the handshake, at each request, and on streams that are already open. The
// owner of the removals feeds it by Update; it is level-triggered, so a missed
// or repeated Update does no harm.
type Guard struct {
	clock clock.Clock

	mu      sync.Mutex
	removed *Removed            // guarded by mu
	watched map[*watch]struct{} // guarded by mu
}

type watch struct {
	id     Identity
	cancel context.CancelCauseFunc
}

// NewGuard begins with the set that is known at start, so that there is no
// moment at which a removed identity is let in.
func NewGuard(clk clock.Clock, removed *Removed) *Guard {
	return &Guard{clock: clk, removed: removed, watched: map[*watch]struct{}{}}
}

// Check is nil, ErrRemoved or ErrExpired.
func (g *Guard) Check(id Identity) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.checkLocked(id, g.clock.Now())
}

// CheckRemoved is Check without the end of the certificate, for renewals.
func (g *Guard) CheckRemoved(id Identity) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.removed.Check(id)
}

func (g *Guard) checkLocked(id Identity, now time.Time) error {
	if err := g.removed.Check(id); err != nil {
		return err
	}
	if !id.Expires.IsZero() && now.After(id.Expires) {
		return refuse(ErrExpired, "the certificate of %s expired at %s; renew it and connect again", id, stamp(id.Expires))
	}
	return nil
}

// Update puts a new set in force and ends the streams of those it removes,
// before it returns.
func (g *Guard) Update(removed *Removed) {
	g.mu.Lock()
	g.removed = removed
	g.mu.Unlock()
	g.Sweep()
}

// Sweep ends the streams of all who may no longer be here. Run calls it.
func (g *Guard) Sweep() {
	type refused struct {
		w   *watch
		err error
	}
	var ended []refused
	g.mu.Lock()
	now := g.clock.Now()
	for w := range g.watched {
		if err := g.checkLocked(w.id, now); err != nil {
			ended = append(ended, refused{w, err})
			delete(g.watched, w)
		}
	}
	g.mu.Unlock()
	for _, e := range ended {
		e.w.cancel(e.err)
	}
}

// Run sweeps until ctx ends, for the certificates that expire.
func (g *Guard) Run(ctx context.Context) {
	timer := g.clock.NewTimer(ExpirySweep)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C():
			g.Sweep()
			timer.Reset(ExpirySweep)
		}
	}
}

// Watch returns a context for a stream or connection of id. It ends with the
// reason as its cause when the identity is removed or its certificate expires,
// at once if that is already so. Call cancel when the stream ends.
func (g *Guard) Watch(ctx context.Context, id Identity) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watch{id: id, cancel: cancel}
	if err := g.add(w); err != nil {
		cancel(err)
	}
	return ctx, func() {
		g.mu.Lock()
		delete(g.watched, w)
		g.mu.Unlock()
		cancel(context.Canceled)
	}
}

func (g *Guard) add(w *watch) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.checkLocked(w.id, g.clock.Now()); err != nil {
		return err
	}
	if len(g.watched) >= MaxWatched {
		return refuse(ErrTooMany, "%d streams are open on this server; at most %d are allowed", len(g.watched), MaxWatched)
	}
	g.watched[w] = struct{}{}
	return nil
}

// Attach closes c when the identity is removed, for connections that know no
// context (raft's). Call release when the connection is closed otherwise.
func (g *Guard) Attach(id Identity, c io.Closer) (release func(), err error) {
	ctx, cancel := g.Watch(context.Background(), id)
	if ctx.Err() != nil {
		defer cancel()
		return nil, context.Cause(ctx)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	return func() { stop(); cancel() }, nil
}

// Watched is how many streams are open, for metrics.
func (g *Guard) Watched() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.watched)
}
