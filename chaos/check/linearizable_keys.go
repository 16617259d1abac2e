package check

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/balsa-run/balsa/chaos/history"
)

// linKey is what is held of one key.
type linKey struct {
	key string
	// versions are in the order of their revisions; the first stands for all before
	// it, and is a deletion at revision 0 in the beginning.
	versions []linVersion
	// open are the writes of the key that have not ended.
	open []*linOp
	// puts and deletes count what may make a version that is not known: open, or
	// ended as Unknown. wild counts the transactions that may, and blind those among
	// them of which it is not known what they make of this key.
	puts, deletes, wild, blind int
	// absences are answers that need a deletion that is not known yet; see needs.
	absences []linAbsence
	// written: the history writes it. leased: it may vanish with a lease.
	written, leased bool
}

// linVersion is what a key was from one revision on.
type linVersion struct {
	rev int64
	content
	// opaque: its value is not known. shownOnly: its write has not been acknowledged;
	// holder is that write, when it is still open or ended as Unknown.
	opaque, shownOnly bool
	holder            *linOp
	// invoked is where its write began, -1 when that is not known.
	invoked int64
	// by told of it first: its write, or what showed it.
	by linSlip
	// until is the highest revision at which quiet showed that it was still there.
	until int64
	quiet linSlip
	// gone showed, at index gone.index, that it was not there any more; nil when
	// nothing did.
	gone *linSlip
}

// linAbsence is an answer that did not show a key which was there at revision after:
// so it was deleted since.
type linAbsence struct {
	after int64
	by    linSlip
	// chained: the deletion is another one than those of all absences before.
	chained bool
}

func (c *Linearizable) key(name string) *linKey {
	k, there := c.keys[name]
	if !there {
		k = &linKey{key: name, versions: []linVersion{{content: content{deletes: true}, invoked: -1}}}
		k.versions[0].key = k
		c.keys[name] = k
		at, _ := slices.BinarySearchFunc(c.sorted, name, func(k *linKey, name string) int { return cmp.Compare(k.key, name) })
		c.sorted = slices.Insert(c.sorted, at, k)
	}
	return k
}

func (k *linKey) begin(o *linOp) {
	k.written = true
	k.open = append(k.open, o)
	if o.deletes {
		k.deletes++
	} else {
		k.puts++
	}
}

// at is where the version of a revision is, or where it belongs. The latest
// versions are what is asked for.
func (k *linKey) at(revision int64) (int, bool) {
	for i := len(k.versions) - 1; i >= 0 && i > len(k.versions)-8; i-- {
		switch v := k.versions[i].rev; {
		case v == revision:
			return i, true
		case v < revision:
			return i + 1, false
		}
	}
	return slices.BinarySearchFunc(k.versions, revision, func(v linVersion, revision int64) int { return cmp.Compare(v.rev, revision) })
}

// insert adds a version, judges what it contradicts, and returns where it is; -1
// when it belongs to what was forgotten.
func (c *Linearizable) insert(k *linKey, v linVersion) int {
	if v.deletes {
		k.deletedAt(v.rev)
	}
	at, _ := k.at(v.rev)
	if at == 0 {
		return -1
	}
	before := &k.versions[at-1]
	switch {
	case before.until < v.rev:
	case !before.deletes:
		rule := "stale"
		if before.quiet.f == history.CAS || before.quiet.f == history.Delete {
			rule = "basis"
		}
		c.violate(rule, fmt.Sprintf("it holds that %q was not changed after revision %d up to %d, and it was changed at %d",
			k.key, before.rev, before.until, v.rev), before.quiet.record(), v.by.record())
	case !v.deletes && !slices.ContainsFunc(k.versions[at:], func(v linVersion) bool { return v.deletes }):
		c.needs(k, v.rev, v.invoked, before.quiet)
	}
	k.versions = slices.Insert(k.versions, at, v)
	return c.prune(k, at)
}

// prune forgets versions that no open operation can show. It returns the new place
// of the version at.
func (c *Linearizable) prune(k *linKey, at int) int {
	if len(k.versions) < 4 {
		return at
	}
	cut := 0
	for cut+1 < len(k.versions) && (k.versions[cut+1].rev <= c.horizon || len(k.versions)-cut > maxVersions) {
		cut++
	}
	if cut < 2 {
		return at
	}
	k.versions = slices.Delete(k.versions, 0, cut)
	return max(at-cut, -1)
}

// deletedAt answers the absences that a deletion explains, also one of a revision that
// was forgotten.
func (k *linKey) deletedAt(revision int64) {
	k.absences = slices.DeleteFunc(k.absences, func(a linAbsence) bool { return a.after < revision })
}

// needs notes that k was there at revision after, whose write began at invoked, and
// was then seen to be gone, though no deletion is known. Each chain of such
// absences, in which the key was written again after the absence before was told,
// needs as many deletions.
func (c *Linearizable) needs(k *linKey, after, invoked int64, by linSlip) {
	if k.leased {
		return
	}
	a := linAbsence{after: after, by: by, chained: len(k.absences) > 0}
	for _, b := range k.absences {
		a.chained = a.chained && b.by.index < invoked
	}
	if !slices.ContainsFunc(k.absences, func(b linAbsence) bool { return b.after == after }) {
		k.absences = append(k.absences, a)
	}
	c.lookAtAbsences(k)
}

func (c *Linearizable) lookAtAbsences(k *linKey) {
	if len(k.absences) == 0 {
		return
	}
	chain := 1
	for _, a := range k.absences[1:] {
		if a.chained {
			chain++
		}
	}
	if chain <= k.deletes {
		return
	}
	last := k.absences[len(k.absences)-1]
	k.absences = k.absences[:len(k.absences)-1]
	rule := "stale"
	if last.by.f == history.CAS {
		rule = "basis"
	}
	proof := append(c.writeOf(k, last.after), last.by.record())
	c.violate(rule, fmt.Sprintf("%q was there at revision %d, nobody deleted it since, and it was not there", k.key, last.after), proof...)
}

// writeOf is the record of the write at a revision of k, as well as it is known.
func (c *Linearizable) writeOf(k *linKey, revision int64) []history.Record {
	if made := c.made.get(revision); made != nil {
		return made
	}
	if at, there := k.at(revision); there && k.versions[at].by.f != 0 {
		return []history.Record{k.versions[at].by.record()}
	}
	return nil
}

// linSight is an answer, as it is judged for one key after the other.
type linSight struct {
	r *history.Record
	// floor is what it must show at least, and invoked where it began.
	floor, invoked int64
	// late: it promises committed state only.
	late bool
}

// seen is what r, the end of o, is to be held to.
func (c *Linearizable) seen(o *linOp, r *history.Record) linSight {
	s := linSight{r: r, floor: o.floor, invoked: o.index, late: r.F == history.StaleRead || r.F == history.StaleList || o.asked != 0}
	if s.late {
		s.floor = 0
	}
	return s
}

// position is the revision that s shows at least, or exactly when exact.
func (s *linSight) position() (revision int64, exact bool) {
	if s.r.At != 0 && s.r.F != history.Deliver {
		return s.r.At, true
	}
	return s.floor, false
}

// shows judges that s showed k with the modification revision rev.
func (c *Linearizable) shows(k *linKey, rev int64, what content, s linSight) {
	what.key = k
	position, exact := s.position()
	if exact && rev > position {
		c.violate("future", fmt.Sprintf("it shows %q as of revision %d, modified at %d", k.key, position, rev), *s.r)
		return
	}
	at, there := k.at(rev)
	if !there {
		if at = c.showsNew(k, rev, what, s); at < 0 {
			return
		}
	} else if !c.sameValue(&k.versions[at], what, s) {
		return
	}
	v := &k.versions[at]
	if !s.late && v.gone != nil && v.gone.index < s.invoked {
		c.violate("stale", fmt.Sprintf("%q was gone before it began, and it shows revision %d of it", k.key, rev), v.gone.record(), *s.r)
		return
	}
	c.still(k, at, position, s)
}

// sameValue judges that a known revision has the value that it was written with.
func (c *Linearizable) sameValue(v *linVersion, what content, s linSight) bool {
	if v.opaque || v.content == what {
		return true
	}
	if v.invoked < 0 && v.by.f == 0 {
		// The beginning, at revision 0: nobody asks for it.
		return true
	}
	c.violate("value", fmt.Sprintf("revision %d of %q is %s, and it shows %s", v.rev, v.key.key, v.content.text(), what.text()),
		append(c.writeOf(v.key, v.rev), *s.r)...)
	return false
}

func (w content) text() string {
	if w.deletes {
		return "a deletion"
	}
	return fmt.Sprintf("%.64q", w.value)
}

// still notes that version at was there at revision position, and judges it by the
// next one.
func (c *Linearizable) still(k *linKey, at int, position int64, s linSight) {
	v := &k.versions[at]
	if next := at + 1; next < len(k.versions) && k.versions[next].rev <= position {
		n := &k.versions[next]
		proof := append(c.writeOf(k, n.rev), *s.r)
		if n.by.index > s.invoked && !s.late {
			proof = append(c.witness(s.floor), proof...)
		}
		c.violate("stale", fmt.Sprintf("it shows revision %d of %q, which was changed at %d; it has to show revision %d",
			v.rev, k.key, n.rev, position), proof...)
		return
	}
	if position > v.until {
		v.until, v.quiet = position, linSlipOfKey(s.r, k.key, v.value, v.rev)
		if v.rev > c.opts.Start {
			c.fact(v.rev).until = position
		}
	}
}

// absent judges that s did not show k.
func (c *Linearizable) absent(k *linKey, s linSight) {
	position, exact := s.position()
	if s.late && !exact || c.opts.Foreign && !k.written {
		return
	}
	at, there := k.at(position)
	if !there {
		at--
	}
	if at < 0 {
		return
	}
	v := &k.versions[at]
	switch {
	case v.deletes:
		if position > v.until {
			v.until, v.quiet = position, linSlipOfKey(s.r, k.key, "", 0)
		}
		return
	case v.rev == 0 || v.opaque:
		return
	case !s.late && v.gone == nil:
		v.gone = new(linSlipOfKey(s.r, k.key, "", 0))
	}
	if !exact && slices.ContainsFunc(k.versions[at+1:], func(v linVersion) bool { return v.deletes }) {
		return
	}
	if exact && k.deletes == 0 && !k.leased {
		c.violate("stale", fmt.Sprintf("%q was there at revision %d, it does not show it as of %d, and nobody deleted it", k.key, v.rev, position),
			append(c.writeOf(k, v.rev), *s.r)...)
		return
	}
	c.needs(k, v.rev, v.invoked, linSlipOfKey(s.r, k.key, "", 0))
}

// list judges each key that a list showed, and each that it did not show.
func (c *Linearizable) list(o *linOp, r *history.Record, s linSight) {
	if o.asked == 0 {
		c.atLeast(s)
	}
	highest := r.At
	kvs := r.KVs
	if !slices.IsSortedFunc(kvs, linByKey) {
		kvs = slices.Clone(kvs)
		slices.SortStableFunc(kvs, linByKey)
	}
	if r.At == 0 {
		// It is of one revision, which is that of each of its keys at least.
		for i := range kvs {
			s.floor = max(s.floor, kvs[i].ModRevision)
		}
	}
	next, _ := slices.BinarySearchFunc(c.sorted, r.Key, func(k *linKey, name string) int { return cmp.Compare(k.key, name) })
	for i := range kvs {
		kv := &kvs[i]
		highest = max(highest, kv.ModRevision)
		for ; next < len(c.sorted) && c.sorted[next].key < kv.Key && inRange(c.sorted[next].key, r.Key, r.End); next++ {
			c.absent(c.sorted[next], s)
		}
		k, ours := c.ours(kv.Key)
		if next < len(c.sorted) && c.sorted[next].key == kv.Key {
			next++
		}
		if ours {
			c.shows(k, kv.ModRevision, content{value: kv.Value}, s)
		}
	}
	// A page says nothing about the keys after it.
	for ; !r.More && next < len(c.sorted) && inRange(c.sorted[next].key, r.Key, r.End); next++ {
		c.absent(c.sorted[next], s)
	}
	c.raise(r, highest)
}

func linByKey(a, b history.KV) int { return cmp.Compare(a.Key, b.Key) }
