package store

import (
	"encoding/binary"
	"slices"
	"sync/atomic"

	"github.com/zeebo/xxh3"
	"google.golang.org/protobuf/proto"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
)

// version is what one revision made of a key. It is never changed once a reader
// can see it, except for obj, which is a cache. It is 80 bytes, a size class of
// the allocator: think before adding a field.
type version struct {
	value  []byte
	create Revision
	mod    Revision
	number int64 // KV.Version; 0 is a tombstone
	lease  int64
	// sum is the checksum of all of the above and the key, taken when the
	// version was made. The scrub takes it again.
	sum uint64
	obj atomic.Pointer[object]
}

// object is the decoded value of a version; msg is nil where decoding failed.
type object struct {
	msg proto.Message
}

func (v *version) tombstone() bool { return v.number == 0 }

// checksum is what v.sum must be.
func (v *version) checksum(key string) uint64 {
	var b [48]byte
	binary.LittleEndian.PutUint64(b[0:], xxh3.HashString(key))
	binary.LittleEndian.PutUint64(b[8:], xxh3.Hash(v.value))
	binary.LittleEndian.PutUint64(b[16:], uint64(v.create))
	binary.LittleEndian.PutUint64(b[24:], uint64(v.mod))
	binary.LittleEndian.PutUint64(b[32:], uint64(v.number))
	binary.LittleEndian.PutUint64(b[40:], uint64(v.lease))
	return xxh3.Hash(b[:])
}

// versionBytes is what a version costs beside its key and value: itself, its
// place in the tree and in the log. Quotas count it, so it is replicated:
// changing it needs a feature level.
const versionBytes = 128

// bytes is what v counts for in its space.
func (v *version) bytes(key string) int64 {
	return int64(len(key)) + int64(len(v.value)) + versionBytes
}

// kv is the version as a KV without its object.
func (v *version) kv(key string) KV {
	return KV{Key: key, Value: v.value, CreateRevision: v.create, ModRevision: v.mod, Version: v.number, Lease: v.lease}
}

// stored is the version in a command's result; nil when there is none.
func (v *version) stored(key string) *internalv1.StoredKey {
	if v == nil {
		return nil
	}
	return v.kv(key).stored()
}

func (kv KV) stored() *internalv1.StoredKey {
	return &internalv1.StoredKey{
		Key:            []byte(kv.Key),
		Value:          kv.Value,
		CreateRevision: int64(kv.CreateRevision),
		ModRevision:    int64(kv.ModRevision),
		Version:        kv.Version,
		Lease:          kv.Lease,
	}
}

// slot is what the trees of a space hold for a key: its newest version, and the
// older ones that can still be read.
type slot struct {
	cur  *version
	past *past
}

// past is the superseded versions of a key, oldest first. Tombstones are among
// them. A past is never changed: a longer one shares its array.
type past struct {
	versions []*version
}

// superseded is the past of a slot whose newest version is replaced.
func (s slot) superseded() *past {
	if s.past == nil {
		return &past{versions: []*version{s.cur}}
	}
	// Only the newest past of a key is ever appended to, and readers of older
	// ones never look behind their own length.
	return &past{versions: append(s.past.versions, s.cur)}
}

// at is the version that a reader at rev sees; nil when the key did not exist.
func (s slot) at(rev Revision) *version {
	v := s.cur
	if v.mod > rev {
		v = s.past.at(rev)
	}
	if v == nil || v.tombstone() {
		return nil
	}
	return v
}

func (p *past) at(rev Revision) *version {
	if p == nil {
		return nil
	}
	i, _ := slices.BinarySearchFunc(p.versions, rev, func(v *version, rev Revision) int {
		if v.mod <= rev {
			return -1
		}
		return 1
	})
	if i == 0 {
		return nil
	}
	return p.versions[i-1]
}

// trimmed is the slot without what nobody can read once everything before
// compact is forgotten; ok is false when nothing is left of it.
func (s slot) trimmed(compact Revision) (_ slot, ok bool) {
	if s.cur.mod <= compact {
		return slot{cur: s.cur}, !s.cur.tombstone()
	}
	if s.past == nil {
		return s, true
	}
	vs := s.past.versions
	keep := 0
	for keep+1 < len(vs) && vs[keep+1].mod <= compact {
		keep++
	}
	if vs[keep].mod <= compact && vs[keep].tombstone() {
		keep++
	}
	switch keep {
	case 0:
		return s, true
	case len(vs):
		return slot{cur: s.cur}, true
	}
	return slot{cur: s.cur, past: &past{versions: slices.Clone(vs[keep:])}}, true
}
