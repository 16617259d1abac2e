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
	servers []*Server

	mu        sync.Mutex
	links     map[[2]string]*link // guarded by mu; by the hosts from and to
	wrong     []string            // guarded by mu; see Wrongf
	elections []Election          // guarded by mu
	clients   []func()            // guarded by mu; each detaches one
}

// link is one direction between two hosts.
type link struct {
	cuts  int // faults that hold it
	delay time.Duration
	slow  []time.Duration // what faults add
}

// Election is a server that began to lead.
type Election struct {
	At     time.Duration
	Server string
	Term   uint64
}

// New makes a world with servers s1 to s<n>, which are switched off.
func New(seed uint64, servers int, trace *Trace) (*World, error) {
	w := &World{Trace: trace, seed: seed, net: memnet.New(), links: map[[2]string]*link{}}
	now := time.Now()
	ca, err := pki.NewCA(fmt.Sprintf("%032x", seed), now)
	if err != nil {
		return nil, fmt.Errorf("make the world's authority: %w", err)
	}
	w.bundle = pki.NewBundle(ca, pki.NewKeyring(pki.NewSealKey(now)), pki.NewGossipKey())
	for i := range servers {
		w.servers = append(w.servers, newServer(w, fmt.Sprintf("s%d", i+1)))
	}
	w.lay(w.Addresses())
	return w, nil
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

// Servers are all servers, by name.
func (w *World) Servers() []*Server { return w.servers }

// Addresses are those of all servers.
func (w *World) Addresses() []string {
	var out []string
	for _, s := range w.servers {
		out = append(out, s.address)
	}
	return out
}

// Server returns a server by its name.
func (w *World) Server(name string) *Server {
	i := slices.IndexFunc(w.servers, func(s *Server) bool { return s.Name == name })
	return w.servers[i]
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
	for _, s := range w.servers {
		if err := s.Start(); err != nil { //nolint:contextcheck // a process outlives whoever started it
			return err
		}
	}
	first := w.servers[0].Core()
	if err := first.Initialise(ctx, core.Settings{}); err != nil {
		return err
	}
	for _, s := range w.servers[1:] {
		if err := first.Cluster().AddNonvoter(ctx, s.Name, s.address); err != nil {
			return err
		}
		if err := s.Core().Join(ctx); err != nil {
			return err
		}
	}
	return Await(ctx, func() (bool, string) {
		voters := 0
		for _, s := range w.servers {
			if s.Core().Cluster().Status().Voter {
				voters++
			}
		}
		return voters == len(w.servers), fmt.Sprintf("%d of %d servers vote", voters, len(w.servers))
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
	for _, s := range w.servers {
		if s.Core() != nil {
			if _, err := s.Crash(true); err != nil {
				return err
			}
		}
	}
	for _, s := range w.servers {
		if err := s.gone(ctx); err != nil {
			return err
		}
	}
	return nil
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
	for _, s := range w.servers {
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

func (w *World) linkLocked(from, to string) *link {
	key := [2]string{from, to}
	if w.links[key] == nil {
		w.links[key] = &link{}
	}
	return w.links[key]
}

func (w *World) setDelay(from, to string, d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.linkLocked(from, to).delay = d
	w.net.Delay(from, to, d)
}

// cut holds back what goes from one host to another until the result is called:
// then it arrives. Several cuts of one link all have to end.
func (w *World) cut(from, to string) (heal func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.linkLocked(from, to)
	if l.cuts++; l.cuts == 1 {
		w.net.Cut(from, to)
	}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if l.cuts--; l.cuts == 0 {
			w.net.Heal(from, to)
		}
	}
}

// slow adds to the delay of a link; of several the longest counts.
func (w *World) slow(from, to string, by time.Duration) (heal func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.linkLocked(from, to)
	l.slow = append(l.slow, by)
	w.net.Delay(from, to, l.delay+slices.Max(l.slow))
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		i := slices.Index(l.slow, by)
		l.slow = slices.Delete(l.slow, i, i+1)
		longest := time.Duration(0)
		for _, d := range l.slow {
			longest = max(longest, d)
		}
		w.net.Delay(from, to, l.delay+longest)
	}
}
