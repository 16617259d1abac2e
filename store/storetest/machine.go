package storetest

import (
	"bytes"
	"fmt"
	"slices"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/store"
)

// Machine is what the suite tests: commands in, states and histories out.
type Machine interface {
	Apply(index, term uint64, cmds []*internalv1.Command) []*internalv1.CommandResult
	// Range is the keys start <= k < end at rev, which is 0 for now; an empty end
	// is no upper end.
	Range(space string, rev store.Revision, start, end string) ([]store.KV, error)
	// History is what a watch of that range with PrevKV is sent, from a revision
	// until now.
	History(space string, from store.Revision, start, end string) ([]store.Batch, error)
	Facts(space string) Facts
}

// Facts are what can be asked about a space as a whole.
type Facts struct {
	Revision, CompactRevision store.Revision
	LiveBytes, HistoryBytes   int64
	Leases                    []store.Lease
	LeaseKeys                 map[int64][]string
}

// Real is a store as a Machine.
type Real struct{ *store.Store }

// Range implements Machine.
func (r Real) Range(space string, rev store.Revision, start, end string) ([]store.KV, error) {
	v := r.Space(space).View()
	if rev != 0 {
		var err error
		if v, err = r.Space(space).ViewAt(rev); err != nil {
			return nil, fmt.Errorf("range of %q: %w", space, err)
		}
	}
	kvs := slices.Collect(v.Range(start, end, 0))
	if n := v.Count(start, end); n != len(kvs) {
		return nil, fmt.Errorf("count of [%q, %q) at %d is %d, the range has %d keys", start, end, v.Revision(), n, len(kvs))
	}
	return kvs, nil
}

// History implements Machine with a real watch.
func (r Real) History(space string, from store.Revision, start, end string) ([]store.Batch, error) {
	sp := r.Space(space)
	w, err := sp.Watch(neverDone(), store.WatchOptions{Start: start, End: end, From: from, PrevKV: true, Buffer: 1})
	if err != nil {
		return nil, fmt.Errorf("history of %q: %w", space, err)
	}
	defer w.Stop()
	now := sp.View().Revision()
	w.RequestProgress()
	var all []store.Batch
	for b := range w.Events() {
		if len(b.Events) > 0 {
			all = append(all, b)
			continue
		}
		if b.Revision >= now {
			return all, nil
		}
		w.RequestProgress()
	}
	return nil, fmt.Errorf("history of %q: %w", space, w.Err())
}

// Facts implements Machine.
func (r Real) Facts(space string) Facts {
	v, s := r.Space(space).View(), r.Space(space).Stats()
	f := Facts{
		Revision: v.Revision(), CompactRevision: v.CompactRevision(),
		LiveBytes: s.LiveBytes, HistoryBytes: s.HistoryBytes,
		Leases: slices.Collect(v.Leases()), LeaseKeys: map[int64][]string{},
	}
	for _, l := range f.Leases {
		f.LeaseKeys[l.ID] = slices.Collect(v.LeaseKeys(l.ID))
	}
	return f
}

// SnapshotBytes is a snapshot as it would be on disk.
func (r Real) SnapshotBytes() ([]byte, error) {
	var b bytes.Buffer
	_, err := r.Snapshot().WriteTo(&b)
	return b.Bytes(), err
}

// ScrubAll scrubs every space.
func (r Real) ScrubAll() error {
	for _, sp := range r.Spaces() {
		s := sp.Scrub()
		for {
			done, err := s.Step(3)
			if err != nil {
				return err
			}
			if done {
				break
			}
		}
	}
	return nil
}
