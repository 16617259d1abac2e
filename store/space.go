package store

import (
	"sync/atomic"

	"google.golang.org/protobuf/proto"
)

// Space is one key space of a store. Its methods may be called from any
// goroutine, at any time, also while Apply or Restore run.
type Space struct {
	name   string
	opts   SpaceOptions
	limits Limits
	decode func(key string, value []byte, modRevision int64) (proto.Message, error)
	index  func(key string, msg proto.Message) []IndexEntry

	// state is what readers see. Only Apply, Maintain and Restore store to it,
	// under Store.mu.
	state atomic.Pointer[state]

	hub          hub
	notes        notes
	decodeErrors atomic.Uint64
}

func newSpace(o SpaceOptions, opts Options) *Space {
	if o.ReserveBytes <= 0 {
		o.ReserveBytes = o.Bytes / 8
	}
	sp := &Space{name: o.Name, opts: o, limits: opts.Limits}
	if o.Decoded {
		sp.decode = opts.Decode
	}
	if sp.decode != nil {
		sp.index = opts.Index
	}
	sp.hub.init()
	st := emptyState()
	sp.state.Store(&st)
	return sp
}

// Name is the name of the space.
func (sp *Space) Name() string { return sp.name }

// View is the space as it is now: at least as new as anything that any watch
// of it has delivered.
func (sp *Space) View() View {
	st := sp.state.Load()
	return View{space: sp, st: st, rev: st.rev}
}

// ViewAt is the space as it was at rev. It fails with a *CompactedError when
// that is forgotten and a *FutureRevisionError when it is still to come.
func (sp *Space) ViewAt(rev Revision) (View, error) { return sp.View().At(rev) }

func (sp *Space) compactedError(st *state, rev Revision) error {
	return &CompactedError{Space: sp.name, Revision: rev, Compact: st.oldest()}
}

// Hash is the rolling hash of the space at its newest revision. Members that
// applied the same log have the same hash at the same revision.
func (sp *Space) Hash() (Revision, uint64) {
	st := sp.state.Load()
	return st.rev, st.hash
}

// Hashes are the rolling hashes at the newest revision and at earlier ones that
// every member keeps too, newest first.
func (sp *Space) Hashes() []RevisionHash {
	st := sp.state.Load()
	all := st.ring.list()
	if len(all) > 0 && all[0].Revision == st.rev {
		return all
	}
	return append([]RevisionHash{{st.rev, st.hash}}, all...)
}

// Stats are the figures of a space at one moment.
type Stats struct {
	Revision Revision
	// CompactRevision is the oldest revision that can be read and watched from.
	CompactRevision Revision
	Keys            int
	Leases          int
	// HistoryRecords counts the changes that can be watched again.
	HistoryRecords int
	// Bytes is what counts against QuotaBytes: LiveBytes and HistoryBytes.
	// Each version counts its key, its value and a fixed overhead. The figures
	// are the same on every member.
	Bytes, LiveBytes, HistoryBytes int64
	QuotaBytes                     int64
	// PurgeRecords is how much compacted history Maintain has still to clear.
	PurgeRecords int
	// Watchers counts the open watches; SlowWatchers how often one has fallen
	// off the live feed, CompactedWatchers how often one has lost its place.
	Watchers          int
	SlowWatchers      uint64
	CompactedWatchers uint64
	// DecodeErrors counts the values that Options.Decode refused.
	DecodeErrors uint64
}

// Stats are the figures of the space now.
func (sp *Space) Stats() Stats {
	st := sp.state.Load()
	s := Stats{
		Revision:        st.rev,
		CompactRevision: st.oldest(),
		Keys:            st.live.len(),
		Leases:          st.leases.len(),
		HistoryRecords:  int(st.log.end - st.log.from(st.compacted)),
		Bytes:           st.bytes(),
		LiveBytes:       st.liveBytes,
		HistoryBytes:    st.historyBytes(),
		QuotaBytes:      sp.opts.Bytes,
		PurgeRecords:    int(st.log.from(st.compacted+1) - max(st.log.purged, st.log.start)),
		DecodeErrors:    sp.decodeErrors.Load(),
	}
	sp.hub.stats(&s)
	return s
}
