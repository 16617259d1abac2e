package check

import "slices"

// search finds cycles with few transactions: breadth first, where auxiliary nodes
// cost nothing (so with a queue of two ends).
type search struct {
	g *graph
	// part says which component a node is in, so that none is left.
	part    []int32
	current int32
	// seen is the round in which a node was reached, by the edge by.
	seen  []int32
	by    []int32
	round int32
	// work counts the edges that were looked at.
	work int
	// now are the nodes of this distance, later those of the next.
	now, later []int32
}

func newSearch(g *graph) *search {
	return &search{g: g, part: make([]int32, g.nodes), seen: make([]int32, g.nodes), by: make([]int32, g.nodes)}
}

func (s *search) enter(component []int32) {
	s.current++
	for _, n := range component {
		s.part[n] = s.current
	}
}

// around is a shortest cycle through a node. With single, it begins with an edge of
// rw, and has no other.
func (s *search) around(n int32, a anomaly) []edge {
	if !a.single {
		return s.path(n, n, a.kinds)
	}
	var best []edge
	for _, e := range s.g.from(n) {
		if e.kind != rw || s.part[e.to] != s.current {
			continue
		}
		back := s.path(e.to, n, a.kinds&^rw)
		if back == nil {
			continue
		}
		if cycle := append([]edge{e}, back...); best == nil || s.length(cycle) < s.length(best) {
			best = cycle
		}
	}
	return best
}

// path is a shortest way of at least one edge, or nil.
func (s *search) path(from, to int32, allowed uint8) []edge {
	s.round++
	s.now, s.later = append(s.now[:0], from), s.later[:0]
	for len(s.now) > 0 {
		// now grows by the auxiliary nodes that are reached from it.
		for next := 0; next < len(s.now); {
			n := s.now[next]
			if next++; s.expand(n, to, allowed) {
				return s.trace(from, to)
			}
		}
		s.now, s.later = s.later, s.now[:0]
	}
	return nil
}

// expand follows the edges of a node, and says whether the goal was reached.
func (s *search) expand(n, goal int32, allowed uint8) bool {
	for i := s.g.first[n]; i < s.g.first[n+1]; i++ {
		e := s.g.edges[i]
		s.work++
		if e.kind&allowed == 0 || s.part[e.to] != s.current || s.seen[e.to] == s.round {
			continue
		}
		s.seen[e.to], s.by[e.to] = s.round, i
		switch {
		case e.to == goal:
			return true
		case e.to >= s.g.txns:
			s.now = append(s.now, e.to)
		default:
			s.later = append(s.later, e.to)
		}
	}
	return false
}

// trace goes back from the goal along the edges that reached each node.
func (s *search) trace(from, to int32) []edge {
	var out []edge
	for n := to; len(out) == 0 || n != from; {
		e := s.g.edges[s.by[n]]
		out = append(out, e)
		n = e.from
	}
	slices.Reverse(out)
	return out
}

// length counts the transactions of a cycle.
func (s *search) length(cycle []edge) int {
	n := 0
	for _, e := range cycle {
		if e.from < s.g.txns {
			n++
		}
	}
	return n
}

func sortedCopy(nodes []int32) []int32 {
	out := slices.Clone(nodes)
	slices.Sort(out)
	return out
}
