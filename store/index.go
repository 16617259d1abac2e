package store

import (
	"encoding/binary"
	"slices"
)

// indexKey is where the keys of an index entry stand in state.index.
func indexKey(e IndexEntry) string { return e.Index + "\x00" + e.Value }

// names are the index entries of a version.
func (sp *Space) names(key string, v *version) []IndexEntry {
	if sp.index == nil || v == nil {
		return nil
	}
	msg := sp.object(key, v)
	if msg == nil {
		return nil
	}
	return sp.index(key, msg)
}

func (sp *Space) named(key string, v *version, want IndexEntry) bool {
	return slices.Contains(sp.names(key, v), want)
}

// reindex moves key from the names of old to those of next; either may be nil.
func (w *writer) reindex(key string, old, next *version) {
	if w.space.index == nil {
		return
	}
	before, after := w.space.names(key, old), w.space.names(key, next)
	for _, e := range before {
		if !slices.Contains(after, e) {
			w.unname(indexKey(e), key)
		}
	}
	for _, e := range after {
		if slices.Contains(before, e) {
			continue
		}
		keys, _ := w.st.index.get(indexKey(e))
		keys.set(w.edit, key, struct{}{})
		w.st.index.set(w.edit, indexKey(e), keys)
	}
}

func (w *writer) unname(name, key string) {
	keys, _ := w.st.index.get(name)
	keys.delete(w.edit, key)
	if keys.len() == 0 {
		w.st.index.delete(w.edit, name)
		return
	}
	w.st.index.set(w.edit, name, keys)
}

// ageKey orders keys by when they were last changed, and within a revision by
// name.
func ageKey(mod Revision, key string) string {
	return string(binary.BigEndian.AppendUint64(nil, uint64(mod))) + key
}

// leaseState is a lease and the keys bound to it.
type leaseState struct {
	ttlSeconds int64
	keys       tree[struct{}]
}

// leaseKey orders leases by id.
func leaseKey(id int64) string {
	return string(binary.BigEndian.AppendUint64(nil, uint64(id)^1<<63))
}

func leaseID(key string) int64 {
	return int64(binary.BigEndian.Uint64([]byte(key)) ^ 1<<63)
}
