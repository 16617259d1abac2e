package inside

import (
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// hold holds what a server receives from the other servers, what it sends to
// them, and both for clients.
func (w *World) hold(s *Server, in, out, clients bool) (undo func()) {
	var heals []func()
	for _, other := range w.hosts() {
		isClient := strings.HasSuffix(other, clientPort)
		if other == s.address || isClient && !clients {
			continue
		}
		if in {
			heals = append(heals, w.cut(other, s.address))
		}
		if out {
			heals = append(heals, w.cut(s.address, other))
		}
	}
	return func() {
		for _, heal := range heals {
			heal()
		}
	}
}

// others are the addresses of all servers but one.
func (w *World) others(s *Server) []string {
	return slices.DeleteFunc(w.Addresses(), func(address string) bool { return address == s.address })
}

func healAll(heals []func()) func() {
	return func() {
		for _, heal := range heals {
			heal()
		}
	}
}

func (w *World) late(s *Server, by time.Duration, chance *rand.Rand) (undo func()) {
	var heals []func()
	for _, other := range w.others(s) {
		heals = append(heals, w.slow(other, s.address, by/2+time.Duration(chance.Int64N(int64(by/2)+1))))
	}
	return healAll(heals)
}

func (w *World) lossy(s *Server, resend time.Duration, chance *rand.Rand) (undo func()) {
	var heals []func()
	for _, other := range w.others(s) {
		heals = append(heals, w.lose(other, s.address, resend, chance), w.lose(s.address, other, resend, chance))
	}
	return healAll(heals)
}

// split cuts a minority off from the rest.
func (w *World) split(s *Server, chance *rand.Rand) (undo func()) {
	rest := w.others(s)
	chance.Shuffle(len(rest), func(i, j int) { rest[i], rest[j] = rest[j], rest[i] })
	with := chance.IntN(max(len(rest)/2, 1)) // s and these are less than half
	var heals []func()
	for _, inner := range append(rest[:with:with], s.address) {
		for _, outer := range rest[with:] {
			heals = append(heals, w.cut(inner, outer), w.cut(outer, inner))
		}
	}
	return healAll(heals)
}

func (w *World) flap(s *Server, by time.Duration) (undo func()) {
	return w.pulse(by, func() (undo func()) { return w.hold(s, true, true, false) })
}

// swizzle cuts all links one after the other in the first half of the time, and
// heals them in another order in the second.
func (w *World) swizzle(lasts time.Duration, chance *rand.Rand) (undo func()) {
	type way struct{ from, to string }
	var ways []way
	for _, from := range w.Addresses() {
		for _, to := range w.Addresses() {
			if from != to {
				ways = append(ways, way{from, to})
			}
		}
	}
	chance.Shuffle(len(ways), func(i, j int) { ways[i], ways[j] = ways[j], ways[i] })
	back := chance.Perm(len(ways))
	between := lasts / time.Duration(2*len(ways)+1)
	return background(func(undone <-chan struct{}) {
		heals := make([]func(), len(ways))
		for i, way := range ways {
			if !pause(undone, between) {
				break
			}
			heals[i] = w.cut(way.from, way.to)
		}
		for _, i := range back {
			if heals[i] != nil {
				pause(undone, between)
				heals[i]()
			}
		}
	})
}

// reset breaks all connections that a server has.
func (s *Server) reset() {
	s.mu.Lock()
	l := s.life
	s.mu.Unlock()
	if l != nil && l.port.reset() > 0 {
		s.world.Reach(ReachedReset)
	}
}
