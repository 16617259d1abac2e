package store

// compact forgets what came before rev. What readers and quotas can see of it
// happens here, in O(log n); the memory is given back by purge, later.
func (w *writer) compact(rev Revision) {
	w.st.compacted = rev
	w.st.freed = w.st.log.freed(rev)
	w.st.pending = fold(w.st.pending, foldCompact, uint64(rev))
	w.changed = true
}

// purge clears away at most limit records of compacted history and trims the
// slots of their keys. Nobody can observe it: those records are already out of
// reach. It says whether there is more to do.
func (w *writer) purge(limit int) (more bool) {
	log := &w.st.log
	end := log.from(w.st.compacted + 1)
	pos := max(log.purged, log.start)
	stop := min(end, pos+int64(limit))
	if pos == stop {
		return false
	}
	for ; pos < stop; pos++ {
		w.trim(log.at(pos).key)
	}
	log.purged = stop
	// The records of the compacted revision itself stay: a watch may start there.
	log.drop(min(stop, log.from(w.st.compacted)))
	w.changed = true
	return stop < end
}

func (w *writer) trim(key string) {
	if sl, ok := w.st.live.get(key); ok {
		if trimmed, _ := sl.trimmed(w.st.compacted); trimmed.past != sl.past {
			w.st.live.set(w.edit, key, trimmed)
		}
		return
	}
	sl, ok := w.st.graves.get(key)
	if !ok {
		return
	}
	trimmed, left := sl.trimmed(w.st.compacted)
	if !left {
		w.st.graves.delete(w.edit, key)
	} else if trimmed.past != sl.past {
		w.st.graves.set(w.edit, key, trimmed)
	}
}
