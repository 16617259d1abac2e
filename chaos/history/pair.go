package history

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"slices"
)

// ErrUnpaired says that the records cannot be a history: a process began a second
// operation before the first ended, ended one that it had not begun, or did
// something after it was never to be heard of again.
var ErrUnpaired = errors.New("the records are no history")

// Pair makes operations of records, in the order in which they completed. Those
// that never completed come last, in the order of their invocations, as Unknown at
// MaxTime. What a watch delivered comes as an operation of its own whose invocation
// is the watch's; a Hash that was noted without an invocation is its own. A fault
// is an operation from its begin to its healing. An error of records is handed on,
// and pairing goes on after ErrTruncated only to tell what never completed.
//
// It holds what is open, and four bytes for each process that ended as Unknown.
func Pair(records iter.Seq2[Record, error]) iter.Seq2[Operation, error] {
	return func(yield func(Operation, error) bool) {
		p := pairing{open: map[int32]Record{}, faults: map[string][]Record{}, gone: map[int32]struct{}{}}
		for r, err := range records {
			switch {
			case errors.Is(err, ErrTruncated):
				if !yield(Operation{}, err) {
					return
				}
			case err != nil:
				yield(Operation{}, err)
				return
			default:
				if op, done, err := p.add(r); err != nil {
					yield(Operation{}, err)
					return
				} else if done && !yield(op, nil) {
					return
				}
			}
		}
		p.rest(yield)
	}
}

// pairing is what Pair knows between two records.
type pairing struct {
	open   map[int32]Record
	faults map[string][]Record
	gone   map[int32]struct{}
}

// add takes a record, and tells the operation that it completes, if it does.
func (p *pairing) add(r Record) (Operation, bool, error) {
	if r.F == Fault {
		return p.fault(r)
	}
	invoke, open := p.open[r.Process]
	switch {
	case r.Type == Invoke:
		return Operation{}, false, p.begin(r, invoke, open)
	case r.F == Deliver && open && invoke.F == Watch:
		return Operation{Invoke: invoke, End: r}, true, nil
	case r.F == Hash && !open:
		return Operation{Invoke: r, End: r}, true, nil
	case !open || invoke.F != r.F:
		return Operation{}, false, fmt.Errorf("%w: process %d ended what it had not begun: %v", ErrUnpaired, r.Process, r)
	}
	delete(p.open, r.Process)
	if r.Type == Unknown {
		p.gone[r.Process] = struct{}{}
	}
	return Operation{Invoke: invoke, End: r}, true, nil
}

func (p *pairing) begin(r, last Record, open bool) error {
	if open {
		return fmt.Errorf("%w: process %d began a second operation before the first ended: %v, then %v", ErrUnpaired, r.Process, last, r)
	}
	if _, gone := p.gone[r.Process]; gone {
		return fmt.Errorf("%w: process %d began an operation after one that ended as unknown: %v", ErrUnpaired, r.Process, r)
	}
	p.open[r.Process] = r
	return nil
}

// fault pairs by the words, since many faults are at work at the same time; of two
// with the same words the one that began first is healed first.
func (p *pairing) fault(r Record) (Operation, bool, error) {
	begun := p.faults[r.Value]
	switch {
	case r.Type == Invoke:
		p.faults[r.Value] = append(begun, r)
		return Operation{}, false, nil
	case len(begun) == 0:
		return Operation{}, false, fmt.Errorf("%w: a fault was healed that had not begun: %v", ErrUnpaired, r)
	case len(begun) == 1:
		delete(p.faults, r.Value)
	default:
		p.faults[r.Value] = begun[1:]
	}
	return Operation{Invoke: begun[0], End: r}, true, nil
}

// rest tells what never completed.
func (p *pairing) rest(yield func(Operation, error) bool) {
	left := make([]Record, 0, len(p.open)+len(p.faults))
	for _, r := range p.open {
		left = append(left, r)
	}
	for _, begun := range p.faults {
		left = append(left, begun...)
	}
	slices.SortFunc(left, func(a, b Record) int { return cmp.Compare(a.Index, b.Index) })
	for _, r := range left {
		end := r
		end.Type, end.Time = Unknown, MaxTime
		if !yield(Operation{Invoke: r, End: end}, nil) {
			return
		}
	}
}
