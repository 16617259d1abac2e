package store

import (
	"errors"
	"fmt"
)

// Errors that callers branch on with errors.Is; the typed errors below carry
// the numbers and match them.
var (
	// ErrCompacted: the revision was compacted away. List again.
	ErrCompacted = errors.New("revision is compacted")
	// ErrFutureRevision: the space has not reached the revision.
	ErrFutureRevision = errors.New("revision does not exist yet")
	// ErrResync: the store was restored from a snapshot under an open watch.
	// Watch again from the last revision seen, or list when that is compacted.
	ErrResync = errors.New("store was restored from a snapshot")
	// ErrCorrupt: a snapshot or the memory of this member does not hold what
	// was written.
	ErrCorrupt = errors.New("data is corrupt")
	// ErrUnsupported: a snapshot or a command of a later version.
	ErrUnsupported = errors.New("not supported by this version")
	// ErrWatchOptions: the options of a watch contradict each other.
	ErrWatchOptions = errors.New("watch options are not valid")
	// ErrTooManyWatchers: the space has Limits.Watchers open watches.
	ErrTooManyWatchers = errors.New("too many watches")
)

// CompactedError is an ErrCompacted with its numbers.
type CompactedError struct {
	Space string
	// Revision is what was asked for.
	Revision Revision
	// Compact is the oldest revision that can still be read and watched from.
	Compact Revision
}

func (e *CompactedError) Error() string {
	return fmt.Sprintf("space %q: revision %d is compacted, the oldest is %d: list again", e.Space, e.Revision, e.Compact)
}

// Is makes errors.Is(err, ErrCompacted) true.
func (e *CompactedError) Is(target error) bool { return target == ErrCompacted }

// FutureRevisionError is an ErrFutureRevision with its numbers.
type FutureRevisionError struct {
	Space string
	// Revision is what was asked for.
	Revision Revision
	// Current is the newest revision of the space.
	Current Revision
}

func (e *FutureRevisionError) Error() string {
	return fmt.Sprintf("space %q: revision %d does not exist yet, the newest is %d", e.Space, e.Revision, e.Current)
}

// Is makes errors.Is(err, ErrFutureRevision) true.
func (e *FutureRevisionError) Is(target error) bool { return target == ErrFutureRevision }

// FatalError is what Apply panics with, as a *FatalError, when this member must
// not go on: the log holds something that it cannot apply as the others do.
// Nothing of the entry has been applied. The caller records the error and
// exits; a newer binary resumes at the same entry.
type FatalError struct {
	// Index is the log entry that could not be applied.
	Index uint64
	// Command is the position of the command in the entry, -1 for the entry itself.
	Command int
	Reason  string
}

func (e *FatalError) Error() string {
	if e.Command < 0 {
		return fmt.Sprintf("log entry %d cannot be applied: %s", e.Index, e.Reason)
	}
	return fmt.Sprintf("log entry %d, command %d cannot be applied: %s", e.Index, e.Command, e.Reason)
}

// CorruptError is an ErrCorrupt that says where.
type CorruptError struct {
	// Space is empty when the damage is outside of any space.
	Space string
	// Key is empty when the damage is not in one key.
	Key    string
	Reason string
}

func (e *CorruptError) Error() string {
	switch {
	case e.Space == "":
		return "data is corrupt: " + e.Reason
	case e.Key == "":
		return fmt.Sprintf("space %q is corrupt: %s", e.Space, e.Reason)
	}
	return fmt.Sprintf("space %q, key %q is corrupt: %s", e.Space, e.Key, e.Reason)
}

// Is makes errors.Is(err, ErrCorrupt) true.
func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }
