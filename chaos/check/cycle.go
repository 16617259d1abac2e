package check

import (
	"fmt"
	"strings"

	"github.com/balsa-run/balsa/chaos/history"
)

// anomaly is a kind of cycle: what edges it may have, and whether exactly one of
// them is rw.
type anomaly struct {
	rule   string
	kinds  uint8
	single bool
}

// anomalies are the kinds of cycles, the worst first: a cycle has the name of the
// first that it fits.
var anomalies = [...]anomaly{
	{"G0", ww, false},
	{"G1c", ww | wr, false},
	{"G-single", ww | wr | rw | via, true},
	{"G2", ww | wr | rw | via, false},
	{"G0-realtime", ww | rt, false},
	{"G1c-realtime", ww | wr | rt, false},
	{"G-single-realtime", ww | wr | rw | via | rt, true},
	{"G2-realtime", everything, false},
}

// maxSearch bounds the edges that are looked at for the shortest cycle of a
// component: beyond it, the shortest one so far is the proof. A G-single that was
// not found by then is called G2.
const maxSearch = 20_000_000

// cycle reports the worst anomaly of a component, with a shortest cycle of it.
func (c *Txn) cycle(g *graph, component []int32) {
	sub, names := g.induce(component)
	for _, a := range anomalies {
		if found := sub.shortest(a); found != nil {
			for i := range found {
				found[i].from, found[i].to = names[found[i].from], names[found[i].to]
			}
			c.report(g, a, found)
			return
		}
	}
}

// report tells a cycle, with the transactions that are in it.
func (c *Txn) report(g *graph, a anomaly, cycle []edge) {
	var steps []string
	var proof []history.Record
	for i := 0; i < len(cycle); {
		from, first := cycle[i].from, cycle[i]
		for i++; cycle[i-1].to >= g.txns; {
			i++ // through auxiliary nodes
		}
		to := cycle[i-1].to
		proof = append(proof, c.txns[from].end)
		if first.kind == rt {
			proof = append(proof, c.txns[to].invoke)
		}
		steps = append(steps, c.step(first, from, to))
	}
	c.addf(a.rule, proof, "no order of these is possible: %s", strings.Join(steps, "; "))
}

func (c *Txn) step(e edge, from, to int32) string {
	a, b := c.txns[from].end.Index, c.txns[to].end.Index
	switch e.kind {
	case ww:
		return fmt.Sprintf("#%d appended to %s before #%d", a, c.lists[e.list].key, b)
	case wr:
		return fmt.Sprintf("#%d appended to %s what #%d found", a, c.lists[e.list].key, b)
	case rw:
		return fmt.Sprintf("#%d read %s without what #%d appended", a, c.lists[e.list].key, b)
	}
	return fmt.Sprintf("#%d ended before #%d began", a, b)
}

// induce is the graph of some nodes only, and what each is called in this one. The
// nodes are in order, so transactions stay before auxiliary nodes.
func (g *graph) induce(nodes []int32) (*graph, []int32) {
	sub := &graph{}
	local := make(map[int32]int32, len(nodes))
	for _, n := range nodes {
		local[n] = sub.node()
		if n < g.txns {
			sub.txns++
		}
	}
	for _, n := range nodes {
		for _, e := range g.from(n) {
			if to, ok := local[e.to]; ok {
				sub.add(local[n], to, e.kind, e.list)
			}
		}
	}
	sub.seal()
	return sub, nodes
}

// shortest is a cycle of the kind with the fewest transactions, or nil.
func (g *graph) shortest(a anomaly) []edge {
	s := newSearch(g)
	var best []edge
	for _, component := range g.components(a.kinds) {
		s.enter(component)
		for _, n := range component {
			if n >= g.txns || s.work > maxSearch {
				continue
			}
			if found := s.around(n, a); found != nil && (best == nil || s.length(found) < s.length(best)) {
				best = found
			}
			if best != nil && s.length(best) == 2 {
				return best
			}
		}
	}
	return best
}

// components are the strongly connected components with two transactions or more,
// by edges of some kinds only. Source: Tarjan, "Depth-first search and linear graph
// algorithms" (1972), with a stack of its own in place of recursion.
func (g *graph) components(allowed uint8) [][]int32 {
	t := &tarjan{g: g, allowed: allowed, index: make([]int32, g.nodes), low: make([]int32, g.nodes), next: make([]int32, g.nodes), on: make([]bool, g.nodes)}
	for n := range g.nodes {
		if t.index[n] == 0 {
			t.visit(n)
		}
	}
	return t.out
}

type tarjan struct {
	g       *graph
	allowed uint8
	// index is the order of discovery, from 1; low is the lowest one known to be
	// reachable; next is the edge to follow next.
	index, low, next []int32
	on               []bool
	stack, path      []int32
	count            int32
	out              [][]int32
}

func (t *tarjan) discover(n int32) {
	t.count++
	t.index[n], t.low[n], t.next[n], t.on[n] = t.count, t.count, t.g.first[n], true
	t.stack = append(t.stack, n)
	t.path = append(t.path, n)
}

func (t *tarjan) visit(root int32) {
	t.discover(root)
	for len(t.path) > 0 {
		n := t.path[len(t.path)-1]
		if t.next[n] == t.g.first[n+1] {
			t.leave(n)
			continue
		}
		e := t.g.edges[t.next[n]]
		t.next[n]++
		switch {
		case e.kind&t.allowed == 0:
		case t.index[e.to] == 0:
			t.discover(e.to)
		case t.on[e.to]:
			t.low[n] = min(t.low[n], t.index[e.to])
		}
	}
}

// leave a node all of whose edges were followed.
func (t *tarjan) leave(n int32) {
	t.path = t.path[:len(t.path)-1]
	if len(t.path) > 0 {
		parent := t.path[len(t.path)-1]
		t.low[parent] = min(t.low[parent], t.low[n])
	}
	if t.low[n] != t.index[n] {
		return
	}
	at, txns := len(t.stack), 0
	for {
		at--
		t.on[t.stack[at]] = false
		if t.stack[at] < t.g.txns {
			txns++
		}
		if t.stack[at] == n {
			break
		}
	}
	if txns > 1 {
		t.out = append(t.out, sortedCopy(t.stack[at:]))
	}
	t.stack = t.stack[:at]
}
