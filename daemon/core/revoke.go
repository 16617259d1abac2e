package core

import (
	"context"
	"log/slog"
	"time"

	"github.com/balsa-run/balsa/internal/clock"
)

// A server that the group did without on its own account, since it was dead or
// had left, gets what `balsa cluster remove` gives: its certificate is refused.
// It could not have come back as it was, for a removed member's id is used up; it
// joins again, also under its name, with a new token. The leader compares names
// rather than being told of each removal: that it dies in between is made good by
// the next one.
const (
	revokeEvery = time.Second
	// revokeAfter is how long a name that was a member's must be nobody's: a server
	// whose disk was lost is replaced by removing it and adding it anew.
	revokeAfter = 10 * time.Second
	// revokeUnseen is the same for a name that this server never saw as a member's:
	// it may be just about to become one.
	revokeUnseen = 10 * time.Minute
)

// absences remembers since when servers with a good certificate are no members.
type absences struct {
	clock clock.Clock
	seen  map[string]bool
	since map[string]time.Time
}

func newAbsences(c clock.Clock) *absences {
	return &absences{clock: c, seen: map[string]bool{}, since: map[string]time.Time{}}
}

// judge returns the names whose certificates have to go.
func (a *absences) judge(good []string, members map[string]bool) (revoke []string) {
	now, absent := a.clock.Now(), map[string]time.Time{}
	for _, name := range good {
		if members[name] {
			a.seen[name] = true
			continue
		}
		since, known := a.since[name]
		if !known {
			since = now
		}
		absent[name] = since
		limit := revokeUnseen
		if a.seen[name] {
			limit = revokeAfter
		}
		if now.Sub(since) >= limit {
			revoke = append(revoke, name)
		}
	}
	a.since = absent
	return revoke
}

// revokeAbsent runs until ctx ends, and acts while this server leads.
func (s *Server) revokeAbsent(ctx context.Context) {
	absent := newAbsences(s.cfg.Clock)
	for {
		timer := s.cfg.Clock.NewTimer(revokeEvery)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C():
		}
		good, err := s.api.ServerNames()
		if err != nil {
			s.logger.Error("the servers' certificates cannot be listed", "error", err)
			continue
		}
		for _, name := range absent.judge(good, s.members.present()) {
			// What only a leader knows for certain is who the members are.
			if s.cluster.Status().Leading != 0 {
				revoke(ctx, s.logger, name, s.api.RemoveServer)
			}
		}
	}
}

// revoke is tried again a second later if it fails.
func revoke(ctx context.Context, logger *slog.Logger, name string, remove func(context.Context, string) error) {
	switch err := remove(ctx, name); {
	case ctx.Err() != nil:
	case err != nil:
		logger.Warn("the certificate of a server that is no member any more cannot be revoked; trying again", "server", name, "error", err)
	default:
		logger.Info("revoked the certificate of a server that is no member any more", "server", name)
	}
}

// present are the names of all members: as gossip has them, and as their ids
// begin, for a member that gossip does not know yet.
func (m *members) present() map[string]bool {
	names, out := m.names(), map[string]bool{}
	for _, member := range m.cluster.Members() {
		out[nameOf(names, member.ID)], out[nameOf(nil, member.ID)] = true, true
	}
	return out
}
