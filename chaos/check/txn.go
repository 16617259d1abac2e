package check

import (
	"fmt"
	"slices"

	"github.com/balsa-run/balsa/chaos/history"
)

// Txn judges transactions of appends to lists and reads of them. The promise:
// strict serializability; they took effect one after another, each between its
// invocation and its completion.
//
// Since each appended value is unique to its key, what a read found is the order
// in which the values got there, and a longest read has all versions of the list.
// From them come the dependencies between transactions (graph.go), and every cycle
// of dependencies and real time is a proof that no order exists.
//
// The rules, found in what one read says:
//
//	internal      a transaction does not see what it read or appended before
//	duplicate     a value is in a list twice
//	phantom       a value is in a list that nobody appended
//	G1a           a value is read that a refused transaction appended (aborted read)
//	G1b           a list is read as it was in the middle of a transaction
//	incompatible  two reads, none of which begins with the other
//	lost          an acknowledged append is not there, and no later read has it
//
// and in cycles, by the kinds of edges that they need:
//
//	G0        ww only: two transactions wrote between each other's writes
//	G1c       ww and wr: each has seen what the other did
//	G-single  with one rw: one saw some of what the other did, and missed some
//	G2        with more than one rw: each missed what the other did
//
// with "-realtime" after the name when the cycle needs one that ended before
// another began: a stale read is G-single-realtime.
//
// Source: Kingsbury and Alvaro, "Elle: Inferring Isolation Anomalies from
// Experimental Observations" (VLDB 2020), with the names of Adya's thesis (MIT,
// 1999). The appends that no read has seen are put after those that some have,
// which Elle leaves out. Keys that are written like registers are not judged.
type Txn struct {
	findings
	pairs pairing
	txns  []txn
	// open is the transaction that a process runs.
	open map[int64]int32
	// events are the beginnings and ends, in order: the transaction, and whether it
	// ended.
	events []event
	keys   map[string]int32
	lists  []list
}

// NewTxn returns a checker of list-append transactions.
func NewTxn() *Txn { return &Txn{open: map[int64]int32{}, keys: map[string]int32{}} }

type txn struct {
	begun, ended int64 // positions; ended is 0 when it never did
	outcome      history.Type
	invoke       history.Record
	// end is the completion, or the invocation when there is none.
	end history.Record
	// seen: its effect was read. A transaction of an unknown outcome counts only
	// then.
	seen bool
}

func (t *txn) committed() bool {
	return t.outcome == history.OK || t.outcome == history.Unknown && t.seen
}

type event struct {
	txn int32
	end bool
}

// list is what is known of one key.
type list struct {
	key      string
	elements map[string]element
	reads    []listRead
	// unfit says why the key cannot be judged.
	unfit string
	// order is the longest read.
	order []string
	by    int32
}

type element struct {
	txn int32
	// final: it is the last that its transaction appends to the list.
	final bool
	seen  bool
}

// listRead is what a transaction found, without what it appended itself before.
type listRead struct {
	txn    int32
	values []string
}

// Add takes the next record.
func (c *Txn) Add(r history.Record) {
	if r.F != history.Txn {
		return
	}
	invoke, ended := c.pairs.next(r)
	switch {
	case ended:
		id := c.open[invoke.seq]
		delete(c.open, invoke.seq)
		t := &c.txns[id]
		t.ended, t.outcome, t.end = c.pairs.seq, r.Type, r
		c.events = append(c.events, event{id, true})
	case r.Type == history.Invoke:
		id := int32(len(c.txns))
		c.open[invoke.seq] = id
		c.txns = append(c.txns, txn{begun: invoke.seq, outcome: history.Unknown, invoke: r, end: r})
		c.events = append(c.events, event{id, false})
		c.appends(id, r.Mops)
	}
}

// appends registers who appends what.
func (c *Txn) appends(id int32, mops []history.Mop) {
	for i, m := range mops {
		l := c.list(m.Key)
		switch m.F {
		case history.MopWrite:
			l.unfit = "is written like a register"
		case history.MopAppend:
			if e, twice := l.elements[m.Value]; twice {
				l.unfit = fmt.Sprintf("got the value %q appended by two, in record %d and %d", m.Value, c.txns[e.txn].invoke.Index, c.txns[id].invoke.Index)
			}
			final := !slices.ContainsFunc(mops[i+1:], func(later history.Mop) bool {
				return later.F == history.MopAppend && later.Key == m.Key
			})
			l.elements[m.Value] = element{txn: id, final: final}
		}
	}
}

func (c *Txn) list(key string) *list {
	id, ok := c.keys[key]
	if !ok {
		id = int32(len(c.lists))
		c.keys[key] = id
		c.lists = append(c.lists, list{key: key, elements: map[string]element{}})
	}
	return &c.lists[id]
}

// Verdict judges all transactions.
func (c *Txn) Verdict([]Member) Verdict {
	for id := range c.txns {
		if c.txns[id].outcome == history.OK {
			c.reads(int32(id))
		}
	}
	for i := range c.lists {
		l := &c.lists[i]
		if l.unfit != "" {
			c.leftf("the list %s, which %s", l.key, l.unfit)
			continue
		}
		c.longest(l)
		c.compatible(l)
	}
	g := c.graph()
	c.count()
	for _, component := range g.components(everything) {
		c.cycle(g, component)
	}
	return c.verdict("txn", c.pairs.odd)
}

func (c *Txn) count() {
	for i := range c.txns {
		c.out.Checked++
		if t := &c.txns[i]; t.outcome == history.Unknown && !t.seen {
			c.out.Unknown++
		}
	}
}

// own is what a transaction knows of a key so far: what it found, and what it
// appended since.
type own struct {
	key      string
	found    []string
	known    bool
	appended []string
}

// reads judges a transaction by itself, and registers what it found.
func (c *Txn) reads(id int32) {
	t := &c.txns[id]
	var state []own
	for _, m := range t.end.Mops {
		i := slices.IndexFunc(state, func(o own) bool { return o.key == m.Key })
		if i < 0 {
			i = len(state)
			state = append(state, own{key: m.Key})
		}
		o := &state[i]
		switch m.F {
		case history.MopAppend:
			o.appended = append(o.appended, m.Value)
		case history.MopRead:
			c.read(id, o, m)
		}
	}
}

func (c *Txn) read(id int32, o *own, m history.Mop) {
	l := c.list(m.Key)
	split := len(m.Values) - len(o.appended)
	fits := l.unfit != "" || split >= 0 && slices.Equal(m.Values[split:], o.appended) &&
		(!o.known || slices.Equal(m.Values[:split], o.found))
	if !fits {
		c.addf("internal", c.proof(id), "it reads %v from %s, after it found %v there and appended %v", m.Values, m.Key, o.found, o.appended)
		return
	}
	if !o.known && l.unfit == "" {
		o.known, o.found = true, m.Values[:split]
		l.reads = append(l.reads, listRead{id, o.found})
	}
}

// longest takes a longest read as the order of versions, and judges it value by
// value.
func (c *Txn) longest(l *list) {
	for _, r := range l.reads {
		if len(r.values) > len(l.order) {
			l.order, l.by = r.values, r.txn
		}
	}
	c.values(l, listRead{l.by, l.order})
}

// values judges each value of a read, and marks it as seen.
func (c *Txn) values(l *list, r listRead) {
	found := make(map[string]bool, len(r.values))
	for _, v := range r.values {
		e, ok := l.elements[v]
		if found[v] {
			c.addf("duplicate", c.proof(r.txn), "it reads %q twice in %s", v, l.key)
			l.unfit = "has a value twice"
		}
		found[v] = true
		if !ok {
			c.addf("phantom", c.proof(r.txn), "it reads %q in %s, which nobody appended", v, l.key)
			continue
		}
		if c.txns[e.txn].outcome == history.Refused {
			c.addf("G1a", c.proof(e.txn, r.txn), "%q in %s is of a transaction that was refused", v, l.key)
		}
		e.seen = true
		l.elements[v] = e
		c.txns[e.txn].seen = true
	}
}

// compatible: every read is a beginning of the longest, and none ends within a
// transaction.
func (c *Txn) compatible(l *list) {
	fitting := l.reads[:0]
	for _, r := range l.reads {
		if !slices.Equal(r.values, l.order[:len(r.values)]) {
			c.addf("incompatible", c.proof(r.txn, l.by), "of %s one reads %v, the other %v, and none of the two can become the other", l.key, brief(r.values), brief(l.order))
			c.values(l, r)
			continue
		}
		fitting = append(fitting, r)
		if len(r.values) == 0 {
			continue
		}
		last := r.values[len(r.values)-1]
		if e, ok := l.elements[last]; ok && !e.final && e.txn != r.txn {
			c.addf("G1b", c.proof(e.txn, r.txn), "%s is read up to %q, after which the same transaction appends more", l.key, last)
		}
	}
	l.reads = fitting
}

// brief is the end of a long list.
func brief(values []string) []string {
	const most = 8
	if len(values) <= most {
		return values
	}
	return append([]string{"…"}, values[len(values)-most:]...)
}

// proof is how transactions ended.
func (c *Txn) proof(ids ...int32) []history.Record {
	var out []history.Record
	for _, id := range ids {
		out = append(out, c.txns[id].end)
	}
	return out
}
