package check

import (
	"time"

	"github.com/balsa-run/balsa/chaos/history"
)

// Watch judges what watches delivered. A watch is of the keys from Key to End, from
// the revision Base on; Base 0 is from now on. A Deliver with keys is one batch of
// events, one without is a progress mark: all up to At has been delivered. A watch
// that ends Refused with ErrorCompacted fell out of the history.
//
// The rules, of which each watch breaks these by itself:
//
//	filter        an event of a key that is not watched
//	ordered       an event is older than one before it
//	unique        an event comes twice
//	atomic        a revision is split over two batches
//	bookmarkable  an event is not newer than a mark, or a mark goes back
//	future        an event is newer than the revision of its batch
//
// these against the truth, which is what a member holds at rest, what writes were
// acknowledged, and what any watch has delivered:
//
//	resumable     the first event is not the first from the revision that was asked for
//	reliable      an event is left out, between the first and the last one or mark
//	phantom       an event of what never happened
//	value         an event of what happened otherwise
//	prevKV        the key before the change is not what it was, or left out though the
//	              watch gets it and it is not compacted
//	isCreate      a creation is told as a change, or the reverse
//
// and these are ours:
//
//	equal         two watches tell different things of one change, or one leaves out
//	              what another has
//	compacted     a watch ended as compacted though nothing that it needed was
//
// What was not delivered when the history ended, or the watch, is not judged: a
// watch may be late. Without members, phantom, value and isCreate see only what
// writes and other watches tell, and the verdict says so.
//
// Source: the guarantees of etcd's watch API (etcd.io, "API guarantees"), and their
// checks in etcd's tests/robustness/validate/watch.go.
type Watch struct {
	findings
	pairs pairing
	compaction
	watches []*watch
	open    map[int64]*watch
	// changes are the different things that were told of each change.
	changes map[changeID][]int32
	told    []told
	writes  []deed
	events  int
	maxKept int
	late    int64 // events that were not kept
}

// MaxKeptEvents bounds the events that are kept until the truth is there; watches
// that go beyond it are judged up to there.
const MaxKeptEvents = 32 << 20

type changeID struct {
	revision int64
	key      string
}

// told is what one watch, and perhaps more, delivered.
type told struct {
	kv history.KV
	// by and batch say who was the first.
	by    *watch
	batch int32
}

// watch is one of them.
type watch struct {
	invoke history.Record
	// events are what it delivered, as indexes of told.
	events  []int32
	batches []batch
	// last is the highest revision of an event, mark the highest of a mark.
	last, mark int64
	marked     history.Record
	// start is from where on everything must have been delivered; 0: not known yet.
	start int64
	// prevs: it asked for what was before, since it got some. full: it delivered
	// more than is kept.
	prevs, full bool
	// seen is all that it delivered, once an event was not in order.
	seen map[changeID]bool
}

// batch is a Deliver record without its events.
type batch struct {
	index    int64
	time     time.Duration
	server   string
	at       int64
	from, to int   // of events
	asked    int64 // what could be forgotten then
}

// NewWatch returns a checker of watches.
func NewWatch() *Watch {
	return &Watch{open: map[int64]*watch{}, changes: map[changeID][]int32{}, maxKept: MaxKeptEvents}
}

// Add takes the next record.
func (c *Watch) Add(r history.Record) {
	c.compaction.add(r)
	if r.F != history.Watch && r.F != history.Deliver {
		if r.Type == history.OK {
			c.written(r)
		}
		return
	}
	invoke, ended := c.pairs.next(r)
	switch w := c.open[invoke.seq]; {
	case r.Type == history.Invoke:
		w = &watch{invoke: r, start: r.Base}
		c.watches = append(c.watches, w)
		c.open[invoke.seq] = w
	case w == nil: // pairing has counted it
	case ended:
		delete(c.open, invoke.seq)
		if r.Type == history.Refused && isCompacted(r) && w.start != 0 {
			c.refused(w.invoke, r, w.needed())
		}
	default:
		c.deliver(w, r)
	}
}

// needed is the oldest revision that a watch still waits for. It is not known of
// one that waits for whatever comes, and was told nothing yet.
func (w *watch) needed() int64 {
	return max(w.start, w.last+1, w.mark+1)
}

func (c *Watch) deliver(w *watch, r history.Record) {
	c.out.Checked += int64(len(r.KVs))
	if len(r.KVs) == 0 {
		c.marked(w, r)
		return
	}
	if w.full || c.events+len(r.KVs) > c.maxKept {
		w.full = true
		c.late += int64(len(r.KVs))
		return
	}
	c.events += len(r.KVs)
	if w.start == 0 {
		w.start = r.KVs[0].ModRevision
	}
	b := batch{index: r.Index, time: r.Time, server: r.Server, at: r.At, from: len(w.events), to: len(w.events) + len(r.KVs), asked: c.asked}
	w.batches = append(w.batches, b)
	before := w.last
	for i, kv := range r.KVs {
		c.event(w, r, kv)
		if i == 0 && kv.ModRevision == before && len(w.batches) > 1 {
			c.addf("atomic", append(c.previous(w, 2), r), "revision %d is in this batch and the one before", kv.ModRevision)
		}
	}
}

// marked judges a progress mark.
func (c *Watch) marked(w *watch, r history.Record) {
	if w.start == 0 {
		w.start = r.At + 1
	}
	if r.At < max(w.mark, w.last) {
		c.addf("bookmarkable", append(c.previous(w, 1), r), "the mark is of revision %d, after revision %d was delivered", r.At, max(w.mark, w.last))
	}
	if r.At > w.mark {
		w.mark, w.marked = r.At, r
	}
}

// event judges an event by its watch, and keeps it.
func (c *Watch) event(w *watch, r history.Record, kv history.KV) {
	proof := func() []history.Record { return []history.Record{w.invoke, r} }
	if !inRange(kv.Key, w.invoke.Key, w.invoke.End) {
		c.addf("filter", proof(), "%s is not watched", kv.Key)
	}
	if kv.ModRevision <= w.last {
		c.old(w, r, kv)
	}
	if kv.ModRevision <= w.mark {
		c.addf("bookmarkable", proof(), "an event of revision %d, after the mark of %d", kv.ModRevision, w.mark)
	}
	if r.At != 0 && kv.ModRevision > r.At {
		c.addf("future", proof(), "an event of revision %d in a batch of %d", kv.ModRevision, r.At)
	}
	if kv.ModRevision < w.invoke.Base {
		c.addf("resumable", proof(), "an event of revision %d, and %d was asked for", kv.ModRevision, w.invoke.Base)
	}
	w.prevs = w.prevs || kv.Prev != nil
	w.last = max(w.last, kv.ModRevision)
	w.events = append(w.events, c.tell(w, kv))
	if w.seen != nil {
		w.seen[changeID{kv.ModRevision, kv.Key}] = true
	}
}

// old judges an event that is not newer than all before it.
func (c *Watch) old(w *watch, r history.Record, kv history.KV) {
	switch {
	case c.again(w, kv):
		c.addf("unique", append(c.previous(w, 2), r), "%s of revision %d comes twice", kv.Key, kv.ModRevision)
	case kv.ModRevision < w.last:
		c.addf("ordered", append(c.previous(w, 2), r), "an event of revision %d after one of %d", kv.ModRevision, w.last)
	}
}

// again says whether a watch has delivered an event before. Only a watch that has
// gone back needs to know all that it delivered.
func (c *Watch) again(w *watch, kv history.KV) bool {
	if w.seen == nil && kv.ModRevision == w.last {
		for i := len(w.events) - 1; i >= 0 && c.told[w.events[i]].kv.ModRevision == w.last; i-- {
			if c.told[w.events[i]].kv.Key == kv.Key {
				return true
			}
		}
		return false
	}
	if w.seen == nil {
		w.seen = c.delivered(w)
	}
	return w.seen[changeID{kv.ModRevision, kv.Key}]
}

func (c *Watch) delivered(w *watch) map[changeID]bool {
	out := make(map[changeID]bool, len(w.events))
	for _, e := range w.events {
		out[changeID{c.told[e].kv.ModRevision, c.told[e].kv.Key}] = true
	}
	return out
}

// tell finds what was told of a change before, or keeps what is told now.
func (c *Watch) tell(w *watch, kv history.KV) int32 {
	id := changeID{kv.ModRevision, kv.Key}
	for _, i := range c.changes[id] {
		if sameEvent(c.told[i].kv, kv) {
			return i
		}
	}
	now := int32(len(c.told))
	c.told = append(c.told, told{kv, w, int32(len(w.batches) - 1)})
	if others := c.changes[id]; len(others) > 0 {
		if first := c.told[others[0]]; differs(kv, first.kv) != "" {
			c.addf("equal", []history.Record{first.record(first.kv), c.told[now].record(kv)}, "two watches tell another %s of %s at revision %d", differs(kv, first.kv), kv.Key, kv.ModRevision)
		}
	}
	c.changes[id] = append(c.changes[id], now)
	return now
}

func sameEvent(a, b history.KV) bool {
	if (a.Prev == nil) != (b.Prev == nil) || a.Prev != nil && !sameKV(*a.Prev, *b.Prev) {
		return false
	}
	return sameKV(a, b)
}

// written keeps what an acknowledged write says that happened.
func (c *Watch) written(r history.Record) {
	if r.Revision == 0 {
		return
	}
	switch r.F {
	case history.Put, history.CAS, history.Fenced:
		c.writes = append(c.writes, deed{kv: history.KV{Key: r.Key, Value: r.Value, ModRevision: r.Revision}, record: &r})
	case history.Delete:
		c.writes = append(c.writes, deed{kv: history.KV{Key: r.Key, ModRevision: r.Revision, Deleted: true}, record: &r})
	}
}

// previous is the watch and one of its last batches, as proof.
func (c *Watch) previous(w *watch, back int) []history.Record {
	out := []history.Record{w.invoke}
	if n := len(w.batches) - back; n >= 0 {
		out = append(out, w.record(c, int32(n)))
	}
	return out
}

// record is a batch as it was delivered.
func (w *watch) record(c *Watch, n int32) history.Record {
	b := &w.batches[n]
	var kvs []history.KV
	for _, e := range w.events[b.from:min(b.to, len(w.events))] {
		kvs = append(kvs, c.told[e].kv)
	}
	return w.with(b, kvs)
}

func (w *watch) with(b *batch, kvs []history.KV) history.Record {
	return history.Record{
		Index: b.index, Time: b.time, Process: w.invoke.Process, Type: history.OK, F: history.Deliver, Server: b.server,
		Key: w.invoke.Key, End: w.invoke.End, At: b.at, KVs: kvs,
	}
}

// record is an event alone, in the batch that told it first.
func (t *told) record(kv history.KV) history.Record {
	return t.by.with(&t.by.batches[t.batch], []history.KV{kv})
}
