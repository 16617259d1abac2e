package store

import (
	"fmt"

	"google.golang.org/protobuf/proto"
)

// Scrub reads everything that a view holds, the older versions of each key as
// well, and compares it with the checksums that were taken when it was written,
// and the whole with the state hash that Apply has kept. It finds bits that
// memory has flipped and keys that have gone astray, and shared objects that a
// reader has changed. It works in steps, so that it can run beside everything
// else.
type Scrub struct {
	view  View
	trees []tree[slot]
	next  string // the first key of trees[0] that was not looked at
	sum   uint64
	keys  int
}

// Scrub begins a scrub of the space as it is now.
func (sp *Space) Scrub() *Scrub {
	v := sp.View()
	return &Scrub{view: v, trees: []tree[slot]{v.st.live, v.st.graves}}
}

// Revision is the revision that is looked at.
func (s *Scrub) Revision() Revision { return s.view.rev }

// Step looks at so many keys. It fails with a *CorruptError at the first damage.
// done means that everything was looked at.
func (s *Scrub) Step(keys int) (done bool, err error) {
	for ; keys > 0 && len(s.trees) > 0; keys-- {
		c := s.trees[0].seek(span{start: s.next})
		key, sl, ok := c.next()
		if !ok {
			s.trees, s.next = s.trees[1:], ""
			continue
		}
		if err := s.look(key, sl); err != nil {
			return false, err
		}
		s.next = key + "\x00"
	}
	if len(s.trees) > 0 {
		return false, nil
	}
	return true, s.whole()
}

func (s *Scrub) look(key string, sl slot) error {
	versions := []*version{sl.cur}
	if sl.past != nil {
		versions = append(versions, sl.past.versions...)
	}
	for _, v := range versions {
		if got := v.checksum(key); got != v.sum {
			return &CorruptError{Space: s.view.space.name, Key: key,
				Reason: fmt.Sprintf("the change of revision %d has the checksum %016x, written was %016x", v.mod, got, v.sum)}
		}
	}
	if !s.view.space.intact(key, sl.cur) {
		return &CorruptError{Space: s.view.space.name, Key: key,
			Reason: "somebody has changed the shared object: clone what a view gives you"}
	}
	if !sl.cur.tombstone() {
		s.sum += sl.cur.sum
		s.keys++
	}
	return nil
}

// intact compares the cached object of v, if there is one, with its value.
func (sp *Space) intact(key string, v *version) bool {
	o := v.obj.Load()
	if o == nil || o.msg == nil {
		return true
	}
	again, err := sp.decode(key, v.value, int64(v.mod))
	return err == nil && proto.Equal(o.msg, again)
}

// whole compares what was found with what Apply has counted.
func (s *Scrub) whole() error {
	st := s.view.st
	if s.keys != st.live.len() || s.sum != st.sum {
		return &CorruptError{Space: s.view.space.name,
			Reason: fmt.Sprintf("%d keys with the state hash %016x were found, %d with %016x were written", s.keys, s.sum, st.live.len(), st.sum)}
	}
	return nil
}

// StateHash is the hash of the keys of the space at its newest revision, history
// left out. Unlike Hash it does not depend on how the space came to be so.
func (sp *Space) StateHash() (Revision, uint64) {
	st := sp.state.Load()
	return st.rev, st.sum
}
