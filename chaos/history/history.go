// Package history is the record of what clients of a cluster asked, and what they
// were told: the only evidence that a checker (chaos/check) may use.
//
// A history is a sequence of Records in the order in which they were made, on one
// monotonic clock. An operation is two of them: what was invoked, and how it
// ended. Processes do one operation at a time; one whose operation ended as
// Unknown is never heard of again, since that operation may take effect at any
// later time. A history is written to disk as it is made and never held whole:
// an hour of a busy cluster is many millions of records.
//
// The package refuses to judge, and to guess: what a client was not told, it does
// not say.
package history

import "time"

// Type says which part of an operation a record is.
type Type uint8

// The types. Jepsen's names for them are invoke, ok, fail and info.
const (
	Invoke Type = iota + 1
	// OK: it took effect, and this is the answer.
	OK
	// Refused: it did not take effect and never will.
	Refused
	// Unknown: it took effect, or will, or never will. Also what is no operation
	// at all: a fault.
	Unknown
)

// F is what an operation does.
type F uint8

// The operations. Those named Stale promise some committed state only; all others
// are to be linearizable.
const (
	// Read is of Key; Revision is the modification revision of what was found, 0
	// when there was nothing.
	Read F = iota + 1
	StaleRead
	// Put writes Value over whatever there is.
	Put
	// CAS writes Value over what has the modification revision Base; 0: nothing.
	CAS
	// Delete removes Key, or, when Base is not 0, what has that revision.
	Delete
	// List is of all keys k with Key <= k < End, shown as of At. An invocation with
	// At not 0 asks for that revision. Limit and Count are of a page.
	List
	StaleList
	// Txn is Mops in one transaction.
	Txn
	// Watch opens a watch of [Key, End) from revision Base. Its process then says
	// Deliver for each batch, and the watch's end is the completion of Watch.
	Watch
	// Deliver is what a watch delivered: KVs, as of revision At. Without KVs it is a
	// progress mark: everything up to At has been delivered. Its Type is OK.
	Deliver
	// Compact forgets what was before revision Base.
	Compact
	// Grant, KeepAlive and Revoke are of Lease; TTL is what was granted or is left.
	Grant
	KeepAlive
	Revoke
	// Lock and Unlock are of the lock Key; Base is the fencing token that holding it
	// gave. Fenced is a write to Key that carries the token Base.
	Lock
	Unlock
	Fenced
	// Hash is the state hash, Value, of Server at revision At.
	Hash
	// Fault is something done to the cluster, in words in Value: Invoke when it
	// began, Unknown when it was healed.
	Fault
)

// Record is one line of a history. Fields that an operation does not have are
// zero.
type Record struct {
	// Index is the position in the history, from 0.
	Index int64
	// Time is since the history began.
	Time    time.Duration
	Process int32
	Type    Type
	F       F
	// Server is whom the process asked, or who answered.
	Server string

	Key, End, Value string
	// Base is the revision that the operation depends on; see F.
	Base int64
	// Revision is what a write made, or the modification revision of what a read
	// found.
	Revision int64
	// At is the revision of the whole space that the answer shows, when it says so.
	At           int64
	Limit, Count int64
	More         bool
	Lease        int64
	TTL          time.Duration
	KVs          []KV
	Mops         []Mop
	// Error is what a refused or unknown operation ended with.
	Error string
}

// KV is a key as a list or a watch showed it.
type KV struct {
	Key, Value                                  string
	CreateRevision, ModRevision, Version, Lease int64
	// Deleted is of a watch: the key is gone since ModRevision.
	Deleted bool
	// Prev is the key before the change, when the watch asked for it and got it.
	Prev *KV
}

// Mop is one step of a transaction.
type Mop struct {
	F   MopF
	Key string
	// Value is what is appended or written.
	Value string
	// Values are what a read found: the list, or the one value of a register. nil
	// in an invocation.
	Values []string
}

// MopF is what a step does.
type MopF uint8

// The steps, as in Elle's list-append and rw-register.
const (
	MopRead MopF = iota + 1
	MopAppend
	MopWrite
)

// Operation is what one process asked for, and what came of it.
type Operation struct {
	Invoke Record
	// End is the completion. Without one, when the history ended first, its Type is
	// Unknown and its Time is MaxTime.
	End Record
}

// MaxTime is when an operation ends that never did.
const MaxTime = time.Duration(1<<63 - 1)
