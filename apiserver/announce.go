package apiserver

import (
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/balsa-run/balsa/internal/announce"
	"github.com/balsa-run/balsa/internal/clock"
)

// announceEvery is how old an announcement may be: finding out who leads costs
// some locks, and a caller that follows an old one is forwarded.
const announceEvery = 250 * time.Millisecond

// announcer puts into every answer who leads and where the servers are.
type announcer struct {
	leader  func() (address string) // nil: not told
	members Members
	clock   clock.Clock

	mu    sync.Mutex
	told  announce.Announcement // guarded by mu
	until time.Time             // guarded by mu
}

func (a *announcer) wrap(next http.Handler) http.Handler {
	if a.leader == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.put(w.Header())
		next.ServeHTTP(w, r)
	})
}

func (a *announcer) put(h http.Header) {
	if a.leader != nil {
		a.now().Put(h)
	}
}

func (a *announcer) now() announce.Announcement {
	a.mu.Lock()
	defer a.mu.Unlock()
	if now := a.clock.Now(); !now.Before(a.until) {
		servers, _ := a.members.Addresses()
		servers = slices.Clone(servers)
		slices.Sort(servers) // the same from every server
		a.told = announce.Announcement{Leader: a.leader(), Servers: servers}
		a.until = now.Add(announceEvery)
	}
	return a.told
}
