package store

import "sort"

// record is one change of one key. Records stand in the log in the order in
// which they happened; v.mod is the revision, and several records may share it.
type record struct {
	key string
	v   *version
	// prev is the live version that v replaced; nil when the key did not exist.
	prev   *version
	timeNS int64
}

// garbage counts what compaction gives back, summed up from the beginning of
// the space. A version that was replaced at revision r goes when the space is
// compacted at r or later; a tombstone made at r goes when it is compacted
// later than r, since a watch may still start at r itself.
type garbage struct {
	replaced   int64
	tombstones int64
}

func (g *garbage) add(r *record) {
	if r.prev != nil {
		g.replaced += r.prev.bytes(r.key)
	}
	if r.v.tombstone() {
		g.tombstones += r.v.bytes(r.key)
	}
}

const (
	chunkBits = 8
	chunkSize = 1 << chunkBits
	chunkMask = chunkSize - 1
)

// chunk is a piece of a log. The records are written once, in order; readers
// never look behind the end that their log has.
type chunk struct {
	before  garbage // the sum over every record before this chunk
	records [chunkSize]record
}

// history is the log of a space's changes, from the oldest that a watch may
// ask for to the newest. Copying the struct is a snapshot.
//
//	position   0 ...  | start ........ purged ......... end |
//	                  | kept for watch | not yet trimmed    |
//	chunks           [chunks[0]     ][chunks[1]     ][ ...  ]
//	                  first<<chunkBits
type history struct {
	chunks []*chunk
	first  int64   // number of chunks[0]
	start  int64   // position of the oldest record that is kept
	purged int64   // records before it have had their slots trimmed
	end    int64   // position behind the newest record
	total  garbage // the sum over every record
}

func (h *history) at(pos int64) *record {
	return &h.chunks[pos>>chunkBits-h.first].records[pos&chunkMask]
}

// add appends r. It writes behind the end of every published copy of h.
func (h *history) add(r record) {
	if h.end&chunkMask == 0 {
		if len(h.chunks) == 0 {
			h.first = h.end >> chunkBits
		}
		h.chunks = append(h.chunks, &chunk{before: h.total})
	}
	*h.at(h.end) = r
	h.end++
	h.total.add(&r)
}

// from is the position of the first kept record of a revision >= rev.
func (h *history) from(rev Revision) int64 {
	n := sort.Search(int(h.end-h.start), func(i int) bool { return h.at(h.start+int64(i)).v.mod >= rev })
	return h.start + int64(n)
}

// before is the sum over every record before pos.
func (h *history) before(pos int64) garbage {
	if pos == h.end {
		return h.total
	}
	g := h.chunks[pos>>chunkBits-h.first].before
	for p := pos &^ chunkMask; p < pos; p++ {
		g.add(h.at(p))
	}
	return g
}

// freed is what compaction at rev gives back, summed up from the beginning.
func (h *history) freed(rev Revision) int64 {
	return h.before(h.from(rev+1)).replaced + h.before(h.from(rev)).tombstones
}

// bytes is what the log and the superseded versions count for after a
// compaction that freed so much.
func (h *history) bytes(freed int64) int64 {
	return h.total.replaced + h.total.tombstones - freed
}

// drop forgets the records before pos.
func (h *history) drop(pos int64) {
	h.start = pos
	gone := pos>>chunkBits - h.first
	if gone == 0 || len(h.chunks) == 0 {
		return
	}
	// A new array, so that the old one does not keep the chunks alive.
	h.chunks = append([]*chunk(nil), h.chunks[min(gone, int64(len(h.chunks))):]...)
	h.first += gone
}

// visible is the version that a reader one revision before the record at pos
// saw: the previous value of an event. It is r.prev, except in the few
// transactions that change a key more than once.
func (h *history) visible(pos int64) *version {
	r := h.at(pos)
	if r.prev != nil && r.prev.mod < r.v.mod {
		return r.prev
	}
	before := r.prev
	for p := pos - 1; p >= h.start && h.at(p).v.mod == r.v.mod; p-- {
		if earlier := h.at(p); earlier.key == r.key {
			before = earlier.prev
		}
	}
	if before != nil && before.mod == r.v.mod {
		return nil
	}
	return before
}
