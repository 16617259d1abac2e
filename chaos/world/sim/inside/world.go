package inside

import (
	"context"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/balsa-run/balsa/client"
	"github.com/balsa-run/balsa/cluster/memnet"
	"github.com/balsa-run/balsa/daemon/core"
	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/pki"
)

const (
	apiPort    = ":7443"
	clientPort = ":1"

	// What the network and the disks take when nothing is wrong with them.
	latencyMin = 150 * time.Microsecond
	latencyMax = 1500 * time.Microsecond
	writeMin   = 20 * time.Microsecond
	writeMax   = 400 * time.Microsecond
	// One write in slowWrites takes slowWrite, as flash does when it tidies up.
	slowWrites = 200
	slowWrite  = 15 * time.Millisecond
)

// World is everything there is.
type World struct {
	Trace *Trace

	seed    uint64
	net     *memnet.Network
	bundle  *pki.Bundle
	metrics *metrics

	mu        sync.Mutex
	servers   []*Server           // guarded by mu; by name
	gone      []*Server           // guarded by mu; those that were removed
	made      int                 // guarded by mu; servers, ever
	last      *Server             // guarded by mu; see Same
	reached   map[string]int      // guarded by mu
	links     map[[2]string]*link // guarded by mu; by the hosts from and to
	wrong     []string            // guarded by mu; see Wrongf
	elections []Election          // guarded by mu
	clients   []func()            // guarded by mu; each detaches one
}

// Election is a server that began to lead.
type Election struct {
	At     time.Duration
	Server string
	Term   uint64
}

// New makes a world with servers s1 to s<n>, which are switched off.
func New(seed uint64, servers int, trace *Trace) (*World, error) {
	w := &World{Trace: trace, seed: seed, net: memnet.New(), links: map[[2]string]*link{}, reached: map[string]int{}}
	w.metrics = &metrics{world: w}
	now := time.Now()
	ca, err := pki.NewCA(fmt.Sprintf("%032x", seed), now)
	if err != nil {
		return nil, fmt.Errorf("make the world's authority: %w", err)
	}
	w.bundle = pki.NewBundle(ca, pki.NewKeyring(pki.NewSealKey(now)), pki.NewGossipKey())
	for range servers {
		w.buy()
	}
	w.lay(w.Addresses())
	return w, nil
}

// buy makes a machine, which is off.
func (w *World) buy() *Server {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.made++
	s := newServer(w, fmt.Sprintf("s%d", w.made))
	w.servers = append(w.servers, s)
	return s
}

// scrap takes a machine, which is off for good, out of the world.
func (w *World) scrap(s *Server) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.servers = slices.DeleteFunc(slices.Clone(w.servers), func(other *Server) bool { return other == s })
	w.gone = append(w.gone, s)
}

// lay gives every link among hosts its ordinary delay.
func (w *World) lay(hosts []string) {
	chance := w.Chance("links")
	for _, from := range hosts {
		for _, to := range hosts {
			if from != to {
				w.setDelay(from, to, between(chance, latencyMin, latencyMax))
			}
		}
	}
}

// Chance is a source of random numbers of its own for each purpose, so that one
// who draws more does not change what another draws. It is for one goroutine.
func (w *World) Chance(purpose string) *rand.Rand {
	h := fnv.New64a()
	_, _ = h.Write([]byte(purpose))
	return rand.New(rand.NewPCG(w.seed, h.Sum64()))
}

// between draws a duration from [low, high).
func between(chance *rand.Rand, low, high time.Duration) time.Duration {
	return low + time.Duration(chance.Int64N(int64(high-low)))
}

// Servers are all servers, in the order in which they came. A schedule may add
// and remove some.
func (w *World) Servers() []*Server {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.servers)
}

// Addresses are those of all servers.
func (w *World) Addresses() []string {
	var out []string
	for _, s := range w.Servers() {
		out = append(out, s.address)
	}
	return out
}

// Server returns a server by its name, or nil.
func (w *World) Server(name string) *Server {
	for _, s := range w.Servers() {
		if s.Name == name {
			return s
		}
	}
	return nil
}

// Client attaches a client of the API that may do anything. It talks to the
// servers in the given order and holds to the first that answers.
func (w *World) Client(name string, servers []string, retryFor time.Duration) (*client.Client, error) {
	p, err := newPort(w.net, name+clientPort, pki.Identity{Role: pki.RoleAdmin, Name: name})
	if err != nil {
		return nil, err
	}
	chance := w.Chance("links of " + name)
	for _, server := range w.Addresses() {
		w.setDelay(name+clientPort, server, between(chance, latencyMin, latencyMax))
		w.setDelay(server, name+clientPort, between(chance, latencyMin, latencyMax))
	}
	c, err := client.New(client.Config{
		Servers: servers, Dial: p.DialServer, Plain: true, RetryFor: retryFor, Clock: clock.Real{}, Logger: w.Trace.Logger(name),
	})
	if err != nil {
		p.die()
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.clients = append(w.clients, func() { p.die(); p.bury(); c.Close() })
	return c, nil
}

// Form makes a cluster of the servers, which are off and have empty disks: the
// first begins it, the others join. It returns when all of them have a vote.
func (w *World) Form(ctx context.Context) error {
	servers := w.Servers()
	for _, s := range servers {
		if err := s.Start(); err != nil { //nolint:contextcheck // a process outlives whoever started it
			return err
		}
	}
	first := servers[0].Core()
	if err := first.Initialise(ctx, core.Settings{}); err != nil {
		return err
	}
	for _, s := range servers[1:] {
		if err := first.Cluster().AddNonvoter(ctx, s.ID(), s.address); err != nil {
			return err
		}
		if err := s.Core().Join(ctx); err != nil {
			return err
		}
	}
	return Await(ctx, func() (bool, string) {
		voters := 0
		for _, s := range servers {
			if s.Core().Cluster().Status().Voter {
				voters++
			}
		}
		return voters == len(servers), fmt.Sprintf("%d of %d servers vote", voters, len(servers))
	})
}

// Close switches everything off and waits until no process that ever ran does
// anything any more.
func (w *World) Close(ctx context.Context) error {
	w.mu.Lock()
	clients := w.clients
	w.clients = nil
	w.mu.Unlock()
	for _, detach := range clients {
		detach()
	}
	for _, s := range w.Servers() {
		if s.Core() != nil {
			if _, err := s.Crash(true); err != nil {
				return err
			}
		}
	}
	for _, s := range w.everyone() {
		if err := s.gone(ctx); err != nil {
			return err
		}
	}
	return nil
}

// everyone is also those that were removed.
func (w *World) everyone() []*Server {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Concat(w.servers, w.gone)
}

// Wrongf notes that something happened that must not.
func (w *World) Wrongf(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	w.Trace.Sayf("", "WRONG: %s", text)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wrong = append(w.wrong, text)
}

// Wrongs are what was noted.
func (w *World) Wrongs() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.wrong)
}

// Elections are the leaderships that were announced, in order.
func (w *World) Elections() []Election {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.elections)
}

// elected notes a leader, and that a term has two.
func (w *World) elected(server string, term uint64) {
	w.Trace.Sayf(server, "leads in term %d", term)
	w.mu.Lock()
	var other string
	for _, e := range w.elections {
		if e.Term == term && e.Server != server {
			other = e.Server
		}
	}
	w.elections = append(w.elections, Election{At: w.Trace.Now(), Server: server, Term: term})
	w.mu.Unlock()
	if other != "" {
		w.Wrongf("%s leads in term %d, and so did %s", server, term, other)
	}
}

// Leader is the server that may act as leader now, or nil.
func (w *World) Leader() *Server {
	for _, s := range w.Servers() {
		if running := s.Core(); running != nil && running.Cluster().Status().Leading != 0 {
			return s
		}
	}
	return nil
}

// Await looks again and again, until the condition holds or ctx ends; then it
// tells what is missing.
func Await(ctx context.Context, holds func() (bool, string)) error {
	for {
		done, missing := holds()
		if done {
			return nil
		}
		if !Sleep(ctx, awaitPause) {
			return fmt.Errorf("%s: %w", missing, context.Cause(ctx))
		}
	}
}

const awaitPause = 20 * time.Millisecond

// Sleep is false when ctx ended first.
func Sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
