package check

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/balsa-run/balsa/chaos/history"
)

// The bounds of what Porcupine takes.
const (
	// DefaultPorcupineWindow is how many operations of a key a sample has.
	DefaultPorcupineWindow = 300
	// MaxPorcupineSamples bounds the samples of a history.
	MaxPorcupineSamples = 1000
	// MaxPorcupineUnknown bounds the operations of a key that may take effect at any
	// time: the search is exponential in them.
	MaxPorcupineUnknown = 16
	// MaxPorcupineHTML bounds the operations of a page that people are to look at.
	MaxPorcupineHTML = 2000
)

// PorcupineOptions bound the work.
type PorcupineOptions struct {
	// Window is how many operations a sample has; 0 means DefaultPorcupineWindow.
	Window int
	// Limit bounds the time of the verdict; 0 means none. What was not judged in
	// time is Left. A verdict with a limit is not deterministic.
	Limit time.Duration
}

// Porcupine is a second opinion on single keys, by another program that knows only
// a register with revisions, and searches: whether there is an order of the
// operations that explains each answer. The search is exponential, so it takes
// samples: the first operations of each key, and then windows with twice the
// distance each time. The rule is "order".
//
// What began before a window, or ended as Unknown, may take effect in it or not.
// Lists, transactions and Stale reads are not judged.
type Porcupine struct {
	opts    PorcupineOptions
	open    map[int32]*porcupineOp
	keys    map[string]*porcupineKey
	samples []porcupineSample
	verdict Verdict
	full    bool
}

// porcupineOp is an operation on a key, and the input of the model.
type porcupineOp struct {
	invoke, end history.Record
	// maybe: it may have had no effect, at least not in the window.
	maybe bool
	seq   int64
}

// porcupineKey is the window of a key.
type porcupineKey struct {
	name string
	open []*porcupineOp
	// unknown are the writes that ended as Unknown.
	unknown []*porcupineOp
	// window is what ended in the window; nil while there is none. skip is how many
	// operations are left until the next, distance how many there are between two.
	window         []*porcupineOp
	sampling       bool
	anyStart       bool
	skip, distance int
}

// porcupineSample is what is judged.
type porcupineSample struct {
	key string
	// anyStart: the register holds anything in the beginning.
	anyStart   bool
	operations []*porcupineOp
}

// NewPorcupine returns a checker for one history of a space that was empty.
func NewPorcupine(opts PorcupineOptions) *Porcupine {
	if opts.Window == 0 {
		opts.Window = DefaultPorcupineWindow
	}
	return &Porcupine{opts: opts, open: map[int32]*porcupineOp{}, keys: map[string]*porcupineKey{}, verdict: Verdict{Checker: "porcupine"}}
}

// Add takes the next record.
func (p *Porcupine) Add(r history.Record) {
	switch r.F {
	case history.Read, history.Put, history.CAS, history.Delete, history.Fenced:
	default:
		return
	}
	if r.Type == history.Invoke {
		k := p.key(r.Key)
		o := &porcupineOp{invoke: r, seq: r.Index}
		p.open[r.Process] = o
		k.open = append(k.open, o)
		return
	}
	o := p.open[r.Process]
	if o == nil {
		return
	}
	delete(p.open, r.Process)
	o.end = r
	p.ended(p.key(o.invoke.Key), o)
}

func (p *Porcupine) key(name string) *porcupineKey {
	k := p.keys[name]
	if k == nil {
		k = &porcupineKey{name: name, sampling: true, distance: p.opts.Window}
		p.keys[name] = k
	}
	return k
}

// ended takes a completed operation into the window of its key.
func (p *Porcupine) ended(k *porcupineKey, o *porcupineOp) {
	k.open = slices.DeleteFunc(k.open, func(other *porcupineOp) bool { return other == o })
	isWrite := o.invoke.F != history.Read
	switch {
	case o.end.Type == history.Unknown && isWrite:
		o.maybe = true
		// One too many is kept, which says that there are too many.
		if len(k.unknown) <= MaxPorcupineUnknown {
			k.unknown = append(k.unknown, o)
		}
		return
	case o.end.Type != history.OK, o.maybe && !isWrite:
		return
	case k.sampling:
		k.window = append(k.window, o)
		if len(k.window) >= p.opts.Window {
			p.close(k)
		}
	default:
		p.skipped(k)
	}
}

// skipped opens the next window in time. Operations that run then may have taken
// effect before it.
func (p *Porcupine) skipped(k *porcupineKey) {
	if k.skip--; k.skip > 0 {
		return
	}
	k.sampling, k.anyStart, k.distance = true, true, 2*k.distance
	for _, o := range k.open {
		o.maybe = true
	}
}

// close makes a sample of the window. Writes that run may have taken effect.
func (p *Porcupine) close(k *porcupineKey) {
	sample := porcupineSample{key: k.name, anyStart: k.anyStart, operations: k.window}
	for _, o := range k.open {
		if o.invoke.F != history.Read {
			running := *o
			running.maybe, running.end = true, o.invoke
			running.end.Type = history.Unknown
			sample.operations = append(sample.operations, &running)
		}
	}
	sample.operations = append(sample.operations, k.unknown...)
	k.window, k.sampling, k.skip = nil, false, k.distance
	if len(p.samples) == MaxPorcupineSamples {
		p.full = true
		return
	}
	p.samples = append(p.samples, sample)
}

// Verdict searches. It does not need members.
func (p *Porcupine) Verdict([]Member) Verdict {
	names := make([]string, 0, len(p.keys))
	for name := range p.keys {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if k := p.keys[name]; len(k.window) > 0 {
			p.close(k)
		}
	}
	if p.full {
		p.left(fmt.Sprintf("samples beyond the first %d", MaxPorcupineSamples))
	}
	end := time.Now().Add(p.opts.Limit)
	for i := range p.samples {
		p.judge(&p.samples[i], end)
	}
	return p.verdict
}

func (p *Porcupine) left(what string) { p.verdict.Left = append(p.verdict.Left, what) }

// judge searches one sample.
func (p *Porcupine) judge(s *porcupineSample, end time.Time) {
	unknown := 0
	for _, o := range s.operations {
		if o.end.Type == history.Unknown {
			unknown++
		}
	}
	where := fmt.Sprintf("%d operations on %q from record %d", len(s.operations), s.key, s.operations[0].seq)
	limit := time.Until(end)
	switch {
	case unknown > MaxPorcupineUnknown:
		p.left(fmt.Sprintf("%s: %d of them or more are unknown, at most %d can be judged", where, unknown, MaxPorcupineUnknown))
		return
	case p.opts.Limit == 0:
		limit = 0
	case limit <= 0:
		p.left(where + ": the time was over")
		return
	}
	result, info := porcupine.CheckOperationsVerbose(porcupineModel(s.anyStart), porcupineOperations(s.operations), limit)
	switch result {
	case porcupine.Unknown:
		p.left(where + ": not judged in time")
		return
	case porcupine.Illegal:
		p.violate(s, &info)
	case porcupine.Ok:
	}
	p.verdict.Checked += int64(len(s.operations))
	p.verdict.Unknown += int64(unknown)
}

// violate proves it by the longest order that was found: what it ends with, and
// the operation that had to be next.
func (p *Porcupine) violate(s *porcupineSample, info *porcupine.LinearizationInfo) {
	if len(p.verdict.Violations) >= MaxViolations {
		p.verdict.Dropped++
		return
	}
	var longest []porcupine.Operation
	for _, partial := range info.PartialLinearizationsOperations()[0] {
		if len(partial) > len(longest) {
			longest = partial
		}
	}
	v := Violation{Rule: "order", Reason: fmt.Sprintf("no order of %d operations on %q explains all answers; one goes so far, and then not on", len(s.operations), s.key)}
	placed := map[*porcupineOp]bool{}
	for _, o := range longest {
		placed[o.Input.(*porcupineOp)] = true
	}
	if n := len(longest); n > 0 {
		v.Proof = append(v.Proof, longest[n-1].Input.(*porcupineOp).end)
	}
	var next *porcupineOp
	for _, o := range s.operations {
		if !placed[o] && !o.maybe && (next == nil || o.end.Index < next.end.Index) {
			next = o
		}
	}
	if next != nil {
		v.Proof = append(v.Proof, next.end)
	}
	p.verdict.Violations = append(p.verdict.Violations, v)
}

// porcupineOperations are those of a sample as the library takes them. Times are
// the positions in the history, which are never equal. What may have no effect ends
// after everything.
func porcupineOperations(operations []*porcupineOp) []porcupine.Operation {
	out := make([]porcupine.Operation, 0, len(operations))
	last := int64(0)
	for _, o := range operations {
		last = max(last, o.end.Index, o.invoke.Index)
	}
	for _, o := range operations {
		end := o.end.Index
		if o.maybe {
			end = last + 1
		}
		out = append(out, porcupine.Operation{ClientId: int(o.invoke.Process), Input: o, Output: o, Call: o.invoke.Index, Return: end})
	}
	return out
}

// register is the state of the model.
type register struct {
	// any: it holds anything, which is not known yet.
	any    bool
	exists bool
	value  string
	// rev is the revision of the last change; when atLeast, it is above that.
	rev     int64
	atLeast bool
}

func porcupineModel(anyStart bool) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return register{any: anyStart} },
		Step: func(state, input, _ any) (bool, any) {
			before, o := state.(register), input.(*porcupineOp)
			after, legal := before.step(o)
			if !legal && o.maybe {
				// It was refused, or was done before the window.
				return true, before
			}
			return legal, after
		},
		DescribeOperation: func(input, _ any) string { return describe(input.(*porcupineOp)) },
		DescribeState: func(state any) string {
			switch r := state.(register); {
			case r.any:
				return "anything"
			case !r.exists:
				return "nothing"
			default:
				return fmt.Sprintf("%.64q@%d", r.value, r.rev)
			}
		},
	}
}

// describe is an operation without its time and process, which the page shows.
func describe(o *porcupineOp) string {
	r := o.end
	text := fmt.Sprintf("%v %.64q", r.F, r.Value)
	if r.Base != 0 {
		text += fmt.Sprintf(" base %d", r.Base)
	}
	if r.Type != history.OK {
		return text + " " + r.Type.String()
	}
	return text + fmt.Sprintf(" @%d", r.Revision)
}

// step is what o does to r, and whether it may.
func (r register) step(o *porcupineOp) (register, bool) {
	base := o.invoke.Base
	switch o.invoke.F {
	case history.Read:
		return r.read(&o.end)
	case history.CAS:
		return r.write(o, r.holds(base), true)
	case history.Delete:
		if o.end.Type == history.OK && o.end.Revision == 0 {
			return register{rev: r.rev, atLeast: r.atLeast}, r.any || !r.exists
		}
		return r.write(o, r.any || r.exists && (base == 0 || r.holds(base)), false)
	default:
		return r.write(o, true, true)
	}
}

// holds says whether the register may be at revision base; 0: hold nothing.
func (r register) holds(base int64) bool {
	switch {
	case r.any:
		return true
	case base == 0 || !r.exists:
		return base == 0 && !r.exists
	case r.atLeast:
		return base > r.rev
	}
	return base == r.rev
}

func (r register) read(answer *history.Record) (register, bool) {
	if answer.Revision == 0 {
		return register{rev: r.rev, atLeast: r.atLeast}, r.any || !r.exists
	}
	after := register{exists: true, value: answer.Value, rev: answer.Revision}
	return after, r.any || r.value == answer.Value && r.holds(answer.Revision)
}

func (r register) write(o *porcupineOp, may, exists bool) (register, bool) {
	after := register{exists: exists, rev: o.end.Revision}
	if exists {
		after.value = o.invoke.Value
	}
	if o.end.Type != history.OK || o.end.Revision == 0 {
		after.rev, after.atLeast = r.rev, true
		return after, may
	}
	return after, may && (r.any || o.end.Revision > r.rev)
}

// ErrTooManyOperations says that a page would be too large.
var ErrTooManyOperations = errors.New("too many operations for a page")

// WritePorcupineHTML writes a page that shows the operations on key as bars in
// time, with the orders that explain them, as far as they were found within limit
// (0: without one).
func WritePorcupineHTML(w io.Writer, operations iter.Seq2[history.Operation, error], key string, limit time.Duration) error {
	sample, err := operationsOn(operations, key)
	if err != nil {
		return err
	}
	model := porcupineModel(false)
	ops := porcupineOperations(sample)
	// The page is smaller when clients are numbered from 0.
	clients := map[int]int{}
	for i := range ops {
		if _, there := clients[ops[i].ClientId]; !there {
			clients[ops[i].ClientId] = len(clients)
		}
		ops[i].ClientId = clients[ops[i].ClientId]
	}
	_, info := porcupine.CheckOperationsVerbose(model, ops, limit)
	if err := porcupine.Visualize(model, info, w); err != nil {
		return fmt.Errorf("write the page of %q: %w", key, err)
	}
	return nil
}

// operationsOn are those that the model knows, on key.
func operationsOn(operations iter.Seq2[history.Operation, error], key string) ([]*porcupineOp, error) {
	var sample []*porcupineOp
	for op, err := range operations {
		if errors.Is(err, history.ErrTruncated) {
			continue
		}
		if err != nil {
			return nil, err
		}
		isRead := op.Invoke.F == history.Read
		switch op.Invoke.F {
		case history.Read, history.Put, history.CAS, history.Delete, history.Fenced:
		default:
			continue
		}
		unknown := op.End.Type == history.Unknown
		if op.Invoke.Key != key || op.End.Type == history.Refused || unknown && isRead {
			continue
		}
		if sample = append(sample, &porcupineOp{invoke: op.Invoke, end: op.End, maybe: unknown, seq: op.Invoke.Index}); len(sample) > MaxPorcupineHTML {
			return nil, fmt.Errorf("%w: %q has more than %d; choose another key, or a part of the history", ErrTooManyOperations, key, MaxPorcupineHTML)
		}
	}
	slices.SortFunc(sample, func(a, b *porcupineOp) int { return cmp.Compare(a.seq, b.seq) })
	return sample, nil
}
