package store

import "google.golang.org/protobuf/proto"

// Revision numbers the states of one space. Revision 1 is the empty space;
// each transaction that changes something makes the next one.
type Revision int64

// The spaces that every cluster has.
const (
	// SpaceObjects holds Balsa's own kinds.
	SpaceObjects = "objects"
	// SpaceEvents holds what happened; it forgets the oldest when it is full.
	SpaceEvents = "events"
	// SpaceEtcd holds the applications' keys behind the etcd API.
	SpaceEtcd = "etcd"
)

// KV is a key as it was at one revision. Value and Object are shared with every
// other reader: clone them before changing anything.
type KV struct {
	Key string
	// Value is the bytes as they were proposed.
	Value []byte
	// Object is the decoded value; nil in a space without a decoder and where
	// the value could not be decoded.
	Object proto.Message
	// CreateRevision is the revision that created the key, after its last deletion.
	CreateRevision Revision
	// ModRevision is the revision of the last change.
	ModRevision Revision
	// Version counts the changes since the creation; the first is 1.
	Version int64
	// Lease is the lease that the key is bound to; 0 when none.
	Lease int64
}

// EventType says what happened to a key.
type EventType uint8

// The two things that happen to a key.
const (
	EventPut EventType = iota + 1
	EventDelete
)

// String is the type in lower case.
func (t EventType) String() string {
	switch t {
	case EventPut:
		return "put"
	case EventDelete:
		return "delete"
	}
	return "unknown"
}

// Event is one change of one key.
type Event struct {
	Type EventType
	// KV is the key after the change. For EventDelete only Key and ModRevision
	// (the revision of the deletion) are set.
	KV KV
	// Prev is the key before the change: nil when the watch did not ask for
	// it, when there was no such key, or when that state is compacted away.
	Prev *KV
}

// IsCreate is true for the put that made the key.
func (e Event) IsCreate() bool {
	return e.Type == EventPut && e.KV.CreateRevision == e.KV.ModRevision
}

// Batch is one revision of a watched range, whole. A batch without events is a
// progress mark: everything up to Revision has been delivered.
type Batch struct {
	Revision Revision
	// TimeNS is the commit time in Unix nanoseconds; 0 in a progress mark.
	TimeNS int64
	Events []Event
}

// Lease is a lease as the log knows it. The time that is left is counted by the
// leader, outside.
type Lease struct {
	ID         int64
	TTLSeconds int64
}

// IndexEntry is one name under which an object can be found: View.ByIndex.
type IndexEntry struct {
	Index string
	Value string
}

// RevisionHash is the rolling hash that a space had at a revision.
type RevisionHash struct {
	Revision Revision
	Hash     uint64
}
