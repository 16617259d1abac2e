package store

import (
	"cmp"
	"iter"
)

// LeaseSet is the leases of a space at one moment. Unlike a View it holds nothing else
// of the space in memory, so it may be kept for long. The zero LeaseSet is empty.
type LeaseSet struct{ leases tree[leaseState] }

// LeaseChange is a lease that one LeaseSet has and another does not, or has with another
// time to live.
type LeaseChange struct {
	Lease
	// Gone says that the newer set does not have it; Lease is what the older had.
	Gone bool
}

// LeaseSet is the leases as they were when the view was taken.
func (v View) LeaseSet() LeaseSet {
	if v.st == nil {
		return LeaseSet{}
	}
	return LeaseSet{v.st.leases}
}

// Since yields how s differs from an older set of the same space, by id. It costs as much
// as there was written to leases and the keys that are bound to them between the two;
// after a restore, which shares nothing with what was before, as much as there are leases.
func (s LeaseSet) Since(old LeaseSet) iter.Seq[LeaseChange] {
	return func(yield func(LeaseChange) bool) {
		old.leases.differences(s.leases, func(key string, before, after *leaseState) bool {
			switch {
			case after == nil:
				return yield(LeaseChange{Lease{ID: leaseID(key), TTLSeconds: before.ttlSeconds}, true})
			case before != nil && before.ttlSeconds == after.ttlSeconds:
				return true
			}
			return yield(LeaseChange{Lease{ID: leaseID(key), TTLSeconds: after.ttlSeconds}, false})
		})
	}
}

// differences calls visit, in order, for every key that may be bound to something else in
// u than in t, until it returns false; nil stands for no such key. What both share is
// skipped a node at a time.
//
// Both trees are taken apart from the left, and whoever's next key is smaller goes first.
// If both begin with the same key, the higher of the two parts is opened. A node that both
// have is met on both sides at once: its keys are smaller than all that is left, and
// what contains it is higher.
func (t tree[V]) differences(u tree[V], visit func(key string, before, after *V) bool) {
	a, b := partsOf(t), partsOf(u)
	for len(a) > 0 || len(b) > 0 {
		switch order := a.compare(b); {
		case order == 0 && a.top().n == b.top().n && a.top().i == b.top().i:
			a.drop()
			b.drop()
		case order == 0 && a.top().level == 0 && b.top().level == 0:
			key, before := a.take()
			_, after := b.take()
			if !visit(key, before, after) {
				return
			}
		case order < 0 || order == 0 && a.top().level > b.top().level:
			if a.top().level > 0 {
				a.open()
			} else if key, before := a.take(); !visit(key, before, nil) {
				return
			}
		case b.top().level > 0:
			b.open()
		default:
			if key, after := b.take(); !visit(key, nil, after) {
				return
			}
		}
	}
}

// parts are what is left of a tree, the leftmost last.
type parts[V any] []part[V]

// part is a node, or when its level is 0 what a leaf has from its i-th key on.
type part[V any] struct {
	n     *node[V]
	level int
	i     int
}

func partsOf[V any](t tree[V]) parts[V] {
	if t.len() == 0 {
		return nil
	}
	level := 0
	for n := t.root; n.kids != nil; n = n.kids[0] {
		level++
	}
	return parts[V]{{n: t.root, level: level}}
}

func (p parts[V]) top() part[V] { return p[len(p)-1] }

func (p *parts[V]) drop() { *p = (*p)[:len(*p)-1] }

// first is the smallest key that is left.
func (p parts[V]) first() string {
	n := p.top().n
	for n.kids != nil {
		n = n.kids[0]
	}
	return n.keys[p.top().i]
}

// compare orders by the first key; what is used up comes last.
func (p parts[V]) compare(q parts[V]) int {
	switch {
	case len(p) == 0:
		return 1
	case len(q) == 0:
		return -1
	}
	return cmp.Compare(p.first(), q.first())
}

// open puts a node's children in its place.
func (p *parts[V]) open() {
	top := p.top()
	p.drop()
	for i := len(top.n.kids) - 1; i >= 0; i-- {
		*p = append(*p, part[V]{n: top.n.kids[i], level: top.level - 1})
	}
}

// take is the next key of a leaf.
func (p *parts[V]) take() (string, *V) {
	top := &(*p)[len(*p)-1]
	key, v := top.n.keys[top.i], &top.n.vals[top.i]
	if top.i++; top.i == len(top.n.keys) {
		p.drop()
	}
	return key, v
}
