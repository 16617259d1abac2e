package store

import (
	"google.golang.org/protobuf/proto"
)

// FeatureLevel is the highest feature level that this version can apply.
const FeatureLevel uint32 = 0

// Options make a Store. The zero value is a store of raw bytes with the default
// spaces and limits.
type Options struct {
	// Decode turns a stored value into a message that is then frozen and
	// shared. It must be a pure function; an error leaves KV.Object nil and is
	// counted. nil: no space is decoded.
	Decode func(key string, value []byte, modRevision int64) (proto.Message, error)
	// Index gives the names of a decoded message. It must be a pure function.
	// It never decides what a command does. nil: no indexes.
	Index func(key string, msg proto.Message) []IndexEntry
	// FeatureLevel is the highest level this member can apply; 0 is the first.
	FeatureLevel uint32
	// Limits bound everything; zero fields take the defaults.
	Limits Limits
	// Spaces are the spaces that exist; nil takes DefaultSpaces. Every member
	// of a cluster must have the same.
	Spaces []SpaceOptions
}

// SpaceOptions describe one space.
type SpaceOptions struct {
	Name string
	// Decoded spaces run Options.Decode and Options.Index over their values.
	Decoded bool
	// Shed spaces delete their oldest keys when they are full, in the revision
	// that filled them, and compact their history by themselves. Other spaces
	// refuse what does not fit with OUTCOME_NO_SPACE.
	Shed bool
	// Bytes bounds what the space holds, live keys and history, as Stats.Bytes
	// counts it.
	Bytes int64
	// ReserveBytes of Bytes is kept for transactions that do not grow the live
	// keys. Deletes and compaction go through in any case. 0: an eighth of Bytes.
	ReserveBytes int64
}

// Defaults of the spaces, in bytes as Stats.Bytes counts them.
const (
	DefaultObjectsBytes = 2 << 30
	DefaultEventsBytes  = 64 << 20
	DefaultEtcdBytes    = 2 << 30
)

// DefaultSpaces are the spaces of a cluster.
func DefaultSpaces() []SpaceOptions {
	return []SpaceOptions{
		{Name: SpaceObjects, Decoded: true, Bytes: DefaultObjectsBytes},
		{Name: SpaceEvents, Decoded: true, Shed: true, Bytes: DefaultEventsBytes},
		{Name: SpaceEtcd, Bytes: DefaultEtcdBytes},
	}
}

// Limits bound what one command, one watch and one snapshot may ask for. Those
// marked (replicated) decide outcomes: every member must have the same.
type Limits struct {
	// TxnOps (replicated) bounds compares, success and failure ops of a
	// transaction, each; a nested transaction has what its parents left.
	TxnOps int
	// KeyBytes (replicated) bounds the length of a key.
	KeyBytes int
	// ValueBytes (replicated) bounds the length of a value.
	ValueBytes int
	// TxnBytes (replicated) bounds the keys and values that a transaction puts.
	TxnBytes int
	// RangeKeys (replicated) bounds what a Range inside a transaction returns.
	RangeKeys int
	// Leases (replicated) bounds the leases of a space.
	Leases int
	// Watchers bounds the open watches of a space.
	Watchers int
	// WatchBuffer is the number of batches a watch buffers when it does not
	// say; a watch whose buffer is full goes on from history.
	WatchBuffer int
	// PurgeRecords bounds how many records of compacted history one Maintain
	// step clears away, and one Apply beyond twice the records that it adds.
	PurgeRecords int
}

// The default limits.
const (
	DefaultTxnOps       = 128
	DefaultKeyBytes     = 4 << 10
	DefaultValueBytes   = 3 << 19 // 1.5 MiB
	DefaultTxnBytes     = 8 << 20
	DefaultRangeKeys    = 100_000
	DefaultLeases       = 1 << 20
	DefaultWatchers     = 1 << 16
	DefaultWatchBuffer  = 128
	DefaultPurgeRecords = 128
)

func (l Limits) withDefaults() Limits {
	set := func(field *int, value int) {
		if *field <= 0 {
			*field = value
		}
	}
	set(&l.TxnOps, DefaultTxnOps)
	set(&l.KeyBytes, DefaultKeyBytes)
	set(&l.ValueBytes, DefaultValueBytes)
	set(&l.TxnBytes, DefaultTxnBytes)
	set(&l.RangeKeys, DefaultRangeKeys)
	set(&l.Leases, DefaultLeases)
	set(&l.Watchers, DefaultWatchers)
	set(&l.WatchBuffer, DefaultWatchBuffer)
	set(&l.PurgeRecords, DefaultPurgeRecords)
	return l
}
