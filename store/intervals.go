package store

import "github.com/zeebo/xxh3"

// intervals is a map from spans to V that finds the spans a key lies in, in
// O(log n + found): a treap ordered by span, each node knowing the furthest end
// below it (Cormen et al., Introduction to Algorithms, "Interval trees"). The
// priorities are hashes of the spans, so the shape depends on the content only.
type intervals[V any] struct {
	root *interval[V]
	n    int
}

type interval[V any] struct {
	s           span
	v           V
	priority    uint64
	furthest    string // the greatest end in this subtree, if bounded
	bounded     bool   // no span in this subtree is without an end
	left, right *interval[V]
}

func compareSpans(a, b span) int {
	switch {
	case a == b:
		return 0
	case a.start < b.start, a.start == b.start && a.end < b.end:
		return -1
	}
	return 1
}

// get is the value of exactly this span.
func (t *intervals[V]) get(s span) (v V, ok bool) {
	for n := t.root; n != nil; {
		switch c := compareSpans(s, n.s); {
		case c == 0:
			return n.v, true
		case c < 0:
			n = n.left
		default:
			n = n.right
		}
	}
	return v, false
}

// set binds a span to v. A span without keys is not found by any key.
func (t *intervals[V]) set(s span, v V) {
	if _, ok := t.get(s); !ok {
		t.n++
	}
	t.root = t.root.set(s, v)
}

// delete removes a span.
func (t *intervals[V]) delete(s span) {
	if _, ok := t.get(s); ok {
		t.n--
		t.root = t.root.delete(s)
	}
}

// stab calls visit for each span that key lies in.
func (t *intervals[V]) stab(key string, visit func(span, V)) {
	t.root.stab(key, func(n *interval[V]) bool {
		visit(n.s, n.v)
		return true
	})
}

// touches says whether key lies in any span.
func (t *intervals[V]) touches(key string) bool {
	return !t.root.stab(key, func(*interval[V]) bool { return false })
}

// merge adds the spans of other.
func (t *intervals[V]) merge(other intervals[V]) {
	other.root.each(func(n *interval[V]) { t.set(n.s, n.v) })
}

func (n *interval[V]) each(visit func(*interval[V])) {
	if n != nil {
		n.left.each(visit)
		visit(n)
		n.right.each(visit)
	}
}

func (n *interval[V]) stab(key string, visit func(*interval[V]) bool) bool {
	if n == nil || n.bounded && n.furthest <= key {
		return true
	}
	if !n.left.stab(key, visit) {
		return false
	}
	if n.s.start > key {
		return true
	}
	if n.s.contains(key) && !visit(n) {
		return false
	}
	return n.right.stab(key, visit)
}

func (n *interval[V]) set(s span, v V) *interval[V] {
	if n == nil {
		n = &interval[V]{s: s, v: v, priority: fold(xxh3.HashString(s.start), xxh3.HashString(s.end))}
		return n.fix()
	}
	switch c := compareSpans(s, n.s); {
	case c == 0:
		n.v = v
		return n
	case c < 0:
		n.left = n.left.set(s, v)
		if n.left.priority > n.priority {
			return n.rotateRight()
		}
	default:
		n.right = n.right.set(s, v)
		if n.right.priority > n.priority {
			return n.rotateLeft()
		}
	}
	return n.fix()
}

func (n *interval[V]) delete(s span) *interval[V] {
	switch c := compareSpans(s, n.s); {
	case c < 0:
		n.left = n.left.delete(s)
	case c > 0:
		n.right = n.right.delete(s)
	case n.left == nil:
		return n.right
	case n.right == nil:
		return n.left
	case n.left.priority > n.right.priority:
		n = n.rotateRight()
		n.right = n.right.delete(s)
	default:
		n = n.rotateLeft()
		n.left = n.left.delete(s)
	}
	return n.fix()
}

func (n *interval[V]) rotateRight() *interval[V] {
	top := n.left
	n.left, top.right = top.right, n
	n.fix()
	return top.fix()
}

func (n *interval[V]) rotateLeft() *interval[V] {
	top := n.right
	n.right, top.left = top.left, n
	n.fix()
	return top.fix()
}

// fix makes furthest and bounded true again after a child has changed.
func (n *interval[V]) fix() *interval[V] {
	n.furthest, n.bounded = n.s.end, n.s.end != ""
	for _, kid := range []*interval[V]{n.left, n.right} {
		if kid != nil {
			n.bounded = n.bounded && kid.bounded
			n.furthest = max(n.furthest, kid.furthest)
		}
	}
	return n
}
