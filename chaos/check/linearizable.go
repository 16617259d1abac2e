package check

import (
	"fmt"

	"github.com/balsa-run/balsa/chaos/history"
)

// The bounds of what Linearizable holds.
const (
	// maxMade bounds the writes that it holds whole, for proofs: the latest.
	maxMade = 1 << 15
	// maxVersions bounds the versions of a key that an open operation may hold. What
	// reads older ones is judged by their checksums.
	maxVersions = 1 << 10
	// horizonEvery is after how many records the oldest open operation is looked for.
	horizonEvery = 1 << 10
	// maxRefused bounds the refused writes that are remembered. What shows an older
	// one is called phantom, not refused-applied.
	maxRefused = 1 << 20
	// pageSize is how many revisions a page of facts has.
	pageSize = 1 << 12
)

// LinearizableOptions say what a history is of.
type LinearizableOptions struct {
	// Start is the revision of the space when the history began; 0 means 1, the
	// empty space. What was written up to it is not judged, but for being told
	// equally each time.
	Start int64
	// Foreign says that others share the space. Then revisions may be theirs, and so
	// are keys that the history does not write, or in transactions only: of those it
	// may not say which keys they write until they end. The others are its own.
	Foreign bool
}

// Linearizable judges whether each operation took effect once, at one moment
// between its invocation and its end, in the order of the revisions: that the
// store is linearizable, and that its revisions are that order. The rules:
//
//	lost             an acknowledged write is not there, or another has its revision
//	phantom          something was shown, or is there at rest, that nobody wrote
//	refused-applied  a refused write was shown, or is there
//	twice            one write has two revisions
//	basis            a conditional write was made upon something else than its Base
//	stale            an operation shows less than what was known before it began, or
//	                 than the revision that it says it shows
//	future           something was shown before its write began
//	gap              revisions that no write can have made
//	value            a revision was shown with another value than it was written with
//
// Revisions make this cheap where the general problem is NP-complete: the order is
// told, so it is only to be checked, in one pass. It holds 24 bytes for each
// revision, one version of each key and those that an open operation may still
// show, each write that ended as Unknown, and the last maxMade writes for proofs.
// Values are to be unique for each key: of what several writes may have made it is
// not asked which, and then less is found. A history is of one space.
//
// Reads named Stale, and what watches delivered, are judged by phantom, value,
// refused-applied, future and twice, and at the revision At that they say they
// show. What transactions read is judged by Txn; here they are writes of several keys at
// one revision, of which one that is shown tells the others.
type Linearizable struct {
	opts LinearizableOptions

	// known is the highest revision that an ended operation has shown: what begins
	// from now on must show it.
	known int64
	// assigned counts the revisions after Start that have a write. The others up to
	// known must have been made by operations that are open or ended as Unknown, and
	// were not shown to have a revision yet: free counts those.
	assigned, free int64
	// forgiven are gaps that were told already.
	forgiven int64

	open    map[int32]*linOp
	unused  []*linOp
	keys    map[string]*linKey
	sorted  []*linKey
	unknown map[content][]*linOp
	// taken are the revisions of those that ended as Unknown and were shown.
	taken map[content]int64
	// vague are those that several writes with the same content may have made: which
	// of them did is not known. With values that are unique there are deletions only.
	vague map[content]struct{}
	facts map[int64]*linPage
	// lastPage is the page of the revision that was looked for last.
	lastPage   *linPage
	lastNumber int64
	made       linRing
	// shown are those that raised known, by the revision that they raised it to.
	shown linRing

	refused      map[uint64]struct{}
	refusedOrder []uint64

	records int64
	// horizon is the lowest floor of an open operation, a while ago.
	horizon  int64
	verdict  Verdict
	phantoms []linPhantom
	left     map[string]struct{}
}

// linOp is one that is open, or ended as Unknown.
type linOp struct {
	f history.F
	// floor is what was known when it began, and index is where.
	floor, index int64
	// key and value are what it writes; key is nil when it does not write a key.
	key     *linKey
	value   string
	deletes bool
	// base is what it depends on; see F.
	base int64
	// ended: as Unknown.
	ended bool
	// reads is the key that it reads.
	reads *linKey
	// makes are what a transaction writes: all of it at one revision.
	makes []linMake
	// asked is the revision that a list asks for.
	asked int64
	// claimed is the revision at which its write was shown.
	claimed int64
	// writes: it may make a revision.
	writes bool
}

// content is what a write makes of a key.
type content struct {
	key     *linKey
	value   string
	deletes bool
}

// linMake is what a transaction makes of one key. It is opaque when it appends: of
// what, is not known.
type linMake struct {
	content
	opaque bool
}

// linPhantom is a violation of which it may yet be seen that its write began later.
type linPhantom struct {
	violation int
	content   content
}

// NewLinearizable returns a checker for one history.
func NewLinearizable(opts LinearizableOptions) *Linearizable {
	if opts.Start == 0 {
		opts.Start = 1
	}
	return &Linearizable{
		opts: opts, known: opts.Start, horizon: opts.Start, lastNumber: -1,
		open: map[int32]*linOp{}, keys: map[string]*linKey{}, unknown: map[content][]*linOp{}, taken: map[content]int64{}, vague: map[content]struct{}{},
		facts: map[int64]*linPage{}, refused: map[uint64]struct{}{}, left: map[string]struct{}{},
		verdict: Verdict{Checker: "linearizable"},
	}
}

// Add takes the next record.
func (c *Linearizable) Add(r history.Record) {
	if c.records++; c.records%horizonEvery == 0 {
		c.lookForHorizon()
	}
	switch r.F {
	case history.Deliver:
		c.delivered(&r)
	case history.Read, history.StaleRead, history.Put, history.CAS, history.Delete, history.List, history.StaleList,
		history.Txn, history.Fenced:
		if r.Type == history.Invoke {
			c.begin(&r)
		} else {
			c.end(&r)
		}
	case history.Lock, history.Unlock, history.Revoke:
		c.leave("gap: the history has " + r.F.String() + " operations, and does not say how many revisions they made")
	case history.Watch, history.Compact, history.Grant, history.KeepAlive, history.Hash, history.Fault:
		// They make no revision and show no key.
	}
}

// leave says that a rule is not judged, once.
func (c *Linearizable) leave(what string) {
	if _, there := c.left[what]; !there {
		c.left[what] = struct{}{}
		c.verdict.Left = append(c.verdict.Left, what)
	}
}

func (c *Linearizable) lookForHorizon() {
	horizon := c.known
	for _, o := range c.open {
		horizon = min(horizon, o.floor)
	}
	c.horizon = horizon
}

func (c *Linearizable) begin(r *history.Record) {
	o := c.newOperation()
	*o = linOp{f: r.F, floor: c.known, index: r.Index, asked: r.At, base: r.Base, makes: o.makes[:0]}
	c.open[r.Process] = o
	switch r.F {
	case history.Put, history.CAS, history.Fenced, history.Delete:
		o.key, o.value, o.deletes, o.writes = c.key(r.Key), r.Value, r.F == history.Delete, true
		if o.deletes {
			o.value = ""
		}
		o.key.begin(o)
		if r.Lease != 0 {
			o.key.leased = true
			c.leave("gap: keys have leases, and the history does not tell when they expire")
		}
		c.explain(o, r)
	case history.Read, history.StaleRead:
		o.reads = c.key(r.Key)
	case history.Txn:
		c.beginTxn(o, r)
	}
	if o.writes {
		c.free++
	}
}

func (c *Linearizable) newOperation() *linOp {
	if n := len(c.unused); n > 0 {
		o := c.unused[n-1]
		c.unused = c.unused[:n-1]
		return o
	}
	return &linOp{}
}

func (c *Linearizable) end(r *history.Record) {
	o, ok := c.open[r.Process]
	if !ok || o.f != r.F {
		c.leave(fmt.Sprintf("operations that ended without having begun, such as record %d", r.Index))
		return
	}
	delete(c.open, r.Process)
	c.verdict.Checked++
	switch {
	case r.Type == history.Unknown:
		c.verdict.Unknown++
		c.keep(o)
		return
	case r.Type == history.Refused:
		c.refuse(o, r)
	case o.writes && r.Revision != 0:
		c.acknowledge(o, r)
	case r.F == history.Delete:
		// It found nothing: a read that shows so.
		c.release(o, r, "phantom")
		c.absent(o.key, c.seen(o, r))
		c.raise(r, r.At)
	case o.writes:
		c.leave(fmt.Sprintf("writes that were acknowledged without a revision, such as record %d", r.Index))
		c.keep(o)
		return
	default:
		c.show(o, r)
	}
	c.unused = append(c.unused, o)
}

// show judges reads and lists.
func (c *Linearizable) show(o *linOp, r *history.Record) {
	switch s := c.seen(o, r); {
	case r.F == history.List || r.F == history.StaleList:
		c.list(o, r, s)
	case r.F == history.Txn:
		c.raise(r, r.At)
	case r.Revision == 0:
		c.atLeast(s)
		c.absent(o.reads, s)
		c.raise(r, r.At)
	default:
		c.atLeast(s)
		if k := o.reads; k.written || !c.opts.Foreign {
			c.shows(k, r.Revision, content{value: r.Value}, s)
		}
		c.raise(r, max(r.At, r.Revision))
	}
}

// atLeast judges the revision of the whole space that an answer says it shows.
func (c *Linearizable) atLeast(s linSight) {
	if s.r.At == 0 || s.r.At >= s.floor {
		return
	}
	c.violate("stale", fmt.Sprintf("it shows revision %d, and revision %d was known before it began", s.r.At, s.floor),
		append(c.witness(s.floor), *s.r)...)
}

// raise notes that a revision was shown, and that all up to it have been made.
func (c *Linearizable) raise(r *history.Record, revision int64) {
	if revision <= c.known {
		return
	}
	before := c.known
	c.known = revision
	c.shown.put(revision, linSlipOf(r))
	if c.opts.Foreign {
		return
	}
	missing := revision - c.opts.Start - c.assigned - c.forgiven
	if missing <= c.free || c.gapsLeft() {
		return
	}
	c.forgiven += missing - c.free
	c.violate("gap", fmt.Sprintf("revision %d was shown, %d revisions up to it are no acknowledged write, and only %d operations that may have made them are open or unknown",
		revision, missing, c.free), append(c.witness(before), *r)...)
}

// gapsLeft says that the rule gap cannot be judged.
func (c *Linearizable) gapsLeft() bool {
	for _, what := range c.verdict.Left {
		if len(what) > 4 && what[:4] == "gap:" {
			return true
		}
	}
	return false
}

// delivered takes what a watch showed: committed, but late.
func (c *Linearizable) delivered(r *history.Record) {
	highest := r.At
	for i := range r.KVs {
		kv := &r.KVs[i]
		highest = max(highest, kv.ModRevision)
		k, ours := c.ours(kv.Key)
		if !ours {
			continue
		}
		s := linSight{r: r, late: true}
		c.shows(k, kv.ModRevision, content{value: kv.Value, deletes: kv.Deleted}, s)
	}
	c.raise(r, highest)
}

// ours is the state of a key, unless it is a stranger's.
func (c *Linearizable) ours(key string) (*linKey, bool) {
	if !c.opts.Foreign {
		return c.key(key), true
	}
	k, there := c.keys[key]
	return k, there && k.written
}

// violate notes a violation.
func (c *Linearizable) violate(rule, reason string, proof ...history.Record) {
	if len(c.verdict.Violations) >= MaxViolations {
		c.verdict.Dropped++
		return
	}
	c.verdict.Violations = append(c.verdict.Violations, Violation{Rule: rule, Reason: reason, Proof: proof})
}

// witness is the record that first showed revision, when it is still held.
func (c *Linearizable) witness(revision int64) []history.Record { return c.shown.get(revision) }

// explain looks whether what was taken for a phantom is a write that begins now.
func (c *Linearizable) explain(o *linOp, r *history.Record) {
	for _, p := range c.phantoms {
		v := &c.verdict.Violations[p.violation]
		if v.Rule == "phantom" && o.mayMake(p.content) {
			v.Rule, v.Reason = "future", "it was shown before its write began"
			v.Proof = append(v.Proof, *r)
		}
	}
}

func (o *linOp) content() content {
	return content{key: o.key, value: o.value, deletes: o.deletes}
}
