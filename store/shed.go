package store

// A shedding space divides its bytes: three quarters for the live keys, one
// quarter for the history. Both are kept by the space itself, as functions of
// its state alone, so that every member sheds the same.

func (o SpaceOptions) shedLiveBytes() int64    { return o.Bytes - o.Bytes/4 }
func (o SpaceOptions) shedHistoryBytes() int64 { return o.Bytes / 4 }

// shed deletes the oldest keys, in the revision that made the space too big.
// What the revision itself put fits: txnCheck has seen to it.
func (t *txn) shed() {
	st := &t.w.st
	for st.liveBytes > t.w.space.opts.shedLiveBytes() {
		c := st.ages.seek(span{})
		_, key, ok := c.next()
		if !ok {
			return
		}
		t.delete(key)
	}
}

// shedHistory compacts the older half of the history for as long as there is
// too much of it.
func (w *writer) shedHistory() {
	st := &w.st
	for st.historyBytes() > w.space.opts.shedHistoryBytes() && st.compacted < st.rev {
		first := st.log.from(st.compacted + 1)
		middle := st.log.at(first + (st.log.end-1-first)/2).v.mod
		w.compact(middle)
	}
}
