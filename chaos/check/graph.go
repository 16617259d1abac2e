package check

import (
	"slices"

	"github.com/balsa-run/balsa/chaos/history"
)

// The kinds of dependencies. Each says that one transaction came before another.
const (
	// ww: it appended the value before the other's.
	ww uint8 = 1 << iota
	// wr: it appended the last value that the other found.
	wr
	// rw: it read the list without the other's value.
	rw
	// rt: it ended before the other began.
	rt
	// via goes on from a node that is no transaction, and that only rw enters.
	via

	everything = ww | wr | rw | rt | via
)

type edge struct {
	from, to int32
	kind     uint8
	// list is what the edge is about.
	list int32
}

// graph has a node for each transaction, and after them auxiliary ones, through
// which many are before many others without an edge for each two.
type graph struct {
	txns, nodes int32
	edges       []edge
	// first is the index of each node's first edge, once they are sorted.
	first []int32
}

func (g *graph) node() int32 {
	g.nodes++
	return g.nodes - 1
}

func (g *graph) add(from, to int32, kind uint8, list int32) {
	if from != to {
		g.edges = append(g.edges, edge{from, to, kind, list})
	}
}

// seal sorts the edges by where they begin, and keeps the order in which they were
// added: so the same history gives the same proof.
func (g *graph) seal() {
	g.first = make([]int32, g.nodes+1)
	for _, e := range g.edges {
		g.first[e.from+1]++
	}
	for i := range g.nodes {
		g.first[i+1] += g.first[i]
	}
	next := slices.Clone(g.first)
	sorted := make([]edge, len(g.edges))
	for _, e := range g.edges {
		sorted[next[e.from]] = e
		next[e.from]++
	}
	g.edges = sorted
}

func (g *graph) from(node int32) []edge { return g.edges[g.first[node]:g.first[node+1]] }

// graph draws what must be before what.
func (c *Txn) graph() *graph {
	g := &graph{txns: int32(len(c.txns)), nodes: int32(len(c.txns))}
	for i := range c.lists {
		if l := &c.lists[i]; l.unfit == "" {
			writers := c.writers(l)
			for i := 1; i < len(writers); i++ {
				g.add(writers[i-1].txn, writers[i].txn, ww, c.keys[l.key])
			}
			c.readers(g, l, writers)
			c.unseen(g, l, writers)
		}
	}
	c.realTime(g)
	g.seal()
	return g
}

// written is a value of a list's order that is known to be from a transaction.
type written struct {
	txn int32
	// length is that of the list with it.
	length int
}

// writers are the versions of a list, without those that nobody can have made.
func (c *Txn) writers(l *list) []written {
	var out []written
	for i, v := range l.order {
		if e, ok := l.elements[v]; ok && c.txns[e.txn].committed() {
			out = append(out, written{e.txn, i + 1})
		}
	}
	return out
}

// readers: each read is after the last version that it found, and before the next.
func (c *Txn) readers(g *graph, l *list, writers []written) {
	for _, r := range l.reads {
		// next is the first version that the read did not find.
		next, _ := slices.BinarySearchFunc(writers, len(r.values)+1, func(v written, length int) int { return v.length - length })
		if next > 0 {
			g.add(writers[next-1].txn, r.txn, wr, c.keys[l.key])
		}
		if next < len(writers) {
			g.add(r.txn, writers[next].txn, rw, c.keys[l.key])
		}
	}
}

// unseen are the acknowledged appends that no read has: they are lost, or after
// every version that was read, and so after those who read the last one.
//
// A reader of the last one who has itself appended such a value is no successor of
// itself, so there are two auxiliary nodes:
//
//	other readers -rw-> all -via-> readers who appended
//	                     |  -via-> rest
//	readers who appended -rw-> rest -via-> the others that appended
func (c *Txn) unseen(g *graph, l *list, writers []written) {
	appenders := c.appenders(l)
	if len(appenders) == 0 {
		return
	}
	id := c.keys[l.key]
	if len(writers) > 0 {
		for _, a := range appenders {
			g.add(writers[len(writers)-1].txn, a, ww, id)
		}
	}
	all, rest := g.node(), g.node()
	g.add(all, rest, via, id)
	var both []int32 // in order, as the reads are
	for _, r := range l.reads {
		if len(r.values) < len(l.order) {
			continue
		}
		if _, appended := slices.BinarySearch(appenders, r.txn); appended {
			both = append(both, r.txn)
			g.add(r.txn, rest, rw, id)
		} else {
			g.add(r.txn, all, rw, id)
		}
	}
	for i, b := range both {
		g.add(all, b, via, id)
		if i > 0 { // both read the same, and each appended without the other's value
			g.add(b, both[i-1], rw, id)
			g.add(both[i-1], b, rw, id)
		}
	}
	for _, a := range appenders {
		if _, reads := slices.BinarySearch(both, a); !reads {
			g.add(rest, a, via, id)
		}
	}
}

// appenders are the transactions with an unseen append that is not lost, in order.
func (c *Txn) appenders(l *list) []int32 {
	last := int32(-1) // the read that began last
	for _, r := range l.reads {
		if last < 0 || c.txns[r.txn].begun > c.txns[last].begun {
			last = r.txn
		}
	}
	var out []int32
	for _, e := range l.elements {
		if !e.seen && c.txns[e.txn].outcome == history.OK {
			out = append(out, e.txn)
		}
	}
	slices.Sort(out)
	out = slices.Compact(out)
	kept := out[:0]
	for _, id := range out {
		if last >= 0 && c.txns[last].begun > c.txns[id].ended {
			c.addf("lost", append(c.proof(id), c.txns[last].invoke, c.txns[last].end),
				"what it appended to %s was acknowledged before the read of that list began, and neither it nor any other read has it", l.key)
			continue
		}
		kept = append(kept, id)
	}
	return kept
}

// realTime: whoever ended is before whoever began after that. Between the two
// stands a barrier, one for each run of ends without a beginning, and each barrier
// is before the next: three edges a transaction.
func (c *Txn) realTime(g *graph) {
	barrier, begun := int32(-1), true
	for _, e := range c.events {
		switch {
		case !c.txns[e.txn].committed():
		case !e.end:
			if begun = true; barrier >= 0 {
				g.add(barrier, e.txn, rt, -1)
			}
		case c.txns[e.txn].outcome == history.OK:
			if begun {
				next := g.node()
				if barrier >= 0 {
					g.add(barrier, next, rt, -1)
				}
				barrier, begun = next, false
			}
			g.add(e.txn, barrier, rt, -1)
		}
	}
}
