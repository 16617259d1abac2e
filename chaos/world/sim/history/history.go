package history

import (
	"fmt"
	"hash/fnv"
	"slices"
	"sync"
	"time"
)

// Kind is what a client asked for.
type Kind string

const (
	Create Kind = "create" // of a key that must not exist
	Update Kind = "update" // of a key, based on the revision that was read before
	Get    Kind = "get"    // linearizable
	Stale  Kind = "stale"  // of whatever a server has
	List   Kind = "list"   // of all keys, linearizable
)

// Outcome is what a client was told.
type Outcome string

const (
	OK Outcome = "ok"
	// Refused: it did not happen and will not.
	Refused Outcome = "refused"
	// Unknown: it may have happened, or may still.
	Unknown Outcome = "unknown"
)

// Op is one request and its answer.
type Op struct {
	Client string
	Kind   Kind
	Key    string
	// Value is what was written, by this request alone, or what was read; empty
	// for a read that found nothing. Of a list it is the Fingerprint.
	Value string
	// Base is the revision that an Update was based on.
	Base int64
	// Begun and Ended are when it was sent and answered.
	Begun, Ended time.Duration
	Outcome      Outcome
	// Revision is the one that the write made, that the value read was written
	// at, or that the list is of; 0: nothing was found.
	Revision int64
}

func (o Op) String() string {
	return fmt.Sprintf("%s %s %s=%q (revision %d) by %s, %.6f to %.6f: %s",
		o.Kind, o.Key, o.Key, o.Value, o.Revision, o.Client, o.Begun.Seconds(), o.Ended.Seconds(), o.Outcome)
}

// Write tells whether the request changes something.
func (o Op) Write() bool { return o.Kind == Create || o.Kind == Update }

// Fingerprint stands for the keys of a list and the revisions they were written
// at, in the order of the keys.
func Fingerprint(changes []Change) string {
	h := fnv.New64a()
	for _, ch := range changes {
		_, _ = fmt.Fprintf(h, "%s@%d ", ch.Key, ch.Revision)
	}
	return fmt.Sprintf("%d keys %016x", len(changes), h.Sum64())
}

// Change is one write as a member has it.
type Change struct {
	Revision int64
	Key      string
	Value    string
}

// Member is what one member has in the end.
type Member struct {
	Name     string
	Revision int64
	Hash     uint64
	// Changes are all writes of the keys that were used, in order.
	Changes []Change
}

// Recorder collects operations from any number of clients.
type Recorder struct {
	mu  sync.Mutex
	ops []Op // guarded by mu; in the order in which they ended
}

// Add records an operation that has ended.
func (r *Recorder) Add(o Op) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ops = append(r.ops, o)
}

// Ops are all that were recorded.
func (r *Recorder) Ops() []Op {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.ops)
}

// Counts is how much was done.
type Counts struct {
	Commits, Refused, Unknown, Reads, Lists, StaleReads int
}

// Count counts operations.
func Count(ops []Op) Counts {
	var c Counts
	for _, o := range ops {
		switch {
		case o.Outcome == Unknown:
			c.Unknown++
		case o.Outcome == Refused:
			c.Refused++
		case o.Write():
			c.Commits++
		case o.Kind == List:
			c.Lists++
		case o.Kind == Stale:
			c.StaleReads++
		default:
			c.Reads++
		}
	}
	return c
}
