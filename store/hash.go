package store

import (
	"encoding/binary"

	"github.com/zeebo/xxh3"
)

// fold mixes words into a hash. The order counts.
func fold(hash uint64, words ...uint64) uint64 {
	var b [64]byte
	buf := binary.LittleEndian.AppendUint64(b[:0], hash)
	for _, w := range words {
		buf = binary.LittleEndian.AppendUint64(buf, w)
	}
	return xxh3.Hash(buf)
}

// What is folded into state.pending by commands that make no revision.
const (
	foldCompact uint64 = iota + 1
	foldGrant
	foldRevoke
)

// ringStrides are how far apart the revisions of a ring are. Every member
// passes the same multiples, so two members that are less than
// ringSize*stride apart have a revision in common.
var ringStrides = [...]Revision{1 << 4, 1 << 8, 1 << 12}

const ringSize = 32

// ring is the rolling hashes at the last multiples of each stride. A published
// ring is never changed.
type ring struct {
	at [len(ringStrides)][ringSize]RevisionHash
}

// with is the ring after the space has reached rev.
func (r *ring) with(rev Revision, hash uint64) *ring {
	if rev%ringStrides[0] != 0 {
		return r
	}
	next := *r
	for i, stride := range ringStrides {
		if rev%stride == 0 {
			next.at[i][rev/stride%ringSize] = RevisionHash{rev, hash}
		}
	}
	return &next
}

// list is what the ring holds, newest first, each revision once.
func (r *ring) list() []RevisionHash {
	var all []RevisionHash
	oldest := Revision(0)
	for i, stride := range ringStrides {
		newest := r.newest(i)
		for rev := newest; rev > 0 && rev > newest-stride*ringSize; rev -= stride {
			h := r.at[i][rev/stride%ringSize]
			if h.Revision == rev && (oldest == 0 || rev < oldest) {
				all = append(all, h)
			}
		}
		if len(all) > 0 {
			oldest = all[len(all)-1].Revision
		}
	}
	return all
}

func (r *ring) newest(i int) Revision {
	newest := Revision(0)
	for _, h := range r.at[i] {
		newest = max(newest, h.Revision)
	}
	return newest
}
