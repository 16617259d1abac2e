package apiserver

import (
	"context"
	"errors"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/balsa-run/balsa/internal/clock"
)

// contact ends the streams that tell what changes once this server cannot know
// it any more: cut off from the leader, or removed, it would tell its readers for
// ever that nothing happens, and they would stay.
type contact struct {
	fresh func() bool // nil: always
	clock clock.Clock

	mu   sync.Mutex
	lost chan struct{} // guarded by mu; closed when contact is lost
}

func newContact(fresh func() bool, clk clock.Clock) *contact {
	return &contact{fresh: fresh, clock: clk, lost: make(chan struct{})}
}

// FollowContact watches over open streams until ctx ends.
func (s *Server) FollowContact(ctx context.Context) {
	timer := s.clock.NewTimer(s.limits.ContactEvery)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C():
			s.contact.look()
			timer.Reset(s.limits.ContactEvery)
		}
	}
}

func (c *contact) look() {
	if c.fresh == nil || c.fresh() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.lost)
	c.lost = make(chan struct{})
}

// loss is closed when contact is lost after now.
func (c *contact) loss() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lost
}

// whileInContact serves a stream that tells what changes. A server without contact
// first has to prove that it is up to date.
func (s *Server) whileInContact(ctx context.Context, serve func(context.Context) error) error {
	lost := s.contact.loss()
	if fresh := s.contact.fresh; fresh != nil && !fresh() {
		if err := s.barrier(ctx); err != nil {
			return err
		}
		lost = s.contact.loss()
	}
	call := callOf(ctx)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-lost:
			cancel(errOutOfContact)
			call.cut(time.Now().Add(farewell)) // also for a reader that does not read
		case <-ctx.Done():
		}
	}()
	err := serve(ctx)
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, errOutOfContact) {
		// Whatever ended first for it.
		return &problem{
			code: connect.CodeUnavailable, reason: "NoLeader", hint: "go on at another server, from the last resource version", err: errOutOfContact,
		}
	}
	return err
}

var errOutOfContact = errors.New("this server has not heard from a leader for a while and cannot tell what changes")
