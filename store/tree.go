package store

import (
	"slices"
	"sort"
)

// tree is a persistent B+tree from strings to V: copying the struct copies the
// tree, in O(1). A write copies the nodes on its path, except those that its own
// edit has made already, so a batch of writes copies each node once.
//
// Nodes are not kept half empty: slices grow by a few elements instead of
// doubling, and a node that is split because keys arrive in order stays full.
// Of the space's million keys each then costs 36 bytes here instead of 68.
type tree[V any] struct {
	root *node[V]
}

// edit is the licence to change the nodes that carry it in place. One edit is
// used by one goroutine, and dropped before the tree is published.
type edit struct{ _ byte } // not empty: two edits must have two addresses

const (
	// nodeMax bounds the keys of a leaf and the children of an inner node.
	nodeMax = 32
	// nodeMin is where a node is merged with its neighbour or refilled from it.
	nodeMin = nodeMax / 4
	// nodeSlack is how many elements a slice of a node grows by.
	nodeSlack = 4
	// treeDepth bounds the height: nodeMin^treeDepth keys are more than fit.
	treeDepth = 16
)

// node is a leaf when kids is nil. In a leaf keys[i] belongs to vals[i]; in an
// inner node every key of kids[i] is < keys[i] <= every key of kids[i+1], so
// len(keys) == len(kids)-1.
type node[V any] struct {
	owner *edit
	count int // keys at and below this node
	keys  []string
	vals  []V
	kids  []*node[V]
}

func (t tree[V]) len() int {
	if t.root == nil {
		return 0
	}
	return t.root.count
}

func (t tree[V]) get(key string) (V, bool) {
	_, v, ok := t.entry(key)
	return v, ok
}

// entry is get with the key string that the tree itself holds.
func (t tree[V]) entry(key string) (stored string, v V, ok bool) {
	for n := t.root; n != nil; {
		if n.kids != nil {
			n = n.kids[n.child(key)]
			continue
		}
		if i, found := n.find(key); found {
			return n.keys[i], n.vals[i], true
		}
		break
	}
	return "", v, false
}

// rank is the number of keys that are smaller than key.
func (t tree[V]) rank(key string) int {
	rank := 0
	for n := t.root; n != nil; {
		if n.kids == nil {
			i, _ := n.find(key)
			return rank + i
		}
		c := n.child(key)
		for _, kid := range n.kids[:c] {
			rank += kid.count
		}
		n = n.kids[c]
	}
	return rank
}

// count is the number of keys in s.
func (t tree[V]) count(s span) int {
	if s.empty() {
		return 0
	}
	end := t.len()
	if s.end != "" {
		end = t.rank(s.end)
	}
	return end - t.rank(s.start)
}

// set binds key to v. The stored key string stays the one that came first.
func (t *tree[V]) set(e *edit, key string, v V) {
	if t.root == nil {
		t.root = &node[V]{owner: e}
	}
	t.root = t.root.own(e)
	_, right, sep := t.root.set(e, key, v)
	if right == nil {
		return
	}
	t.root = &node[V]{
		owner: e,
		count: t.root.count + right.count,
		keys:  []string{sep},
		kids:  []*node[V]{t.root, right},
	}
}

// delete removes key and says whether it was there.
func (t *tree[V]) delete(e *edit, key string) bool {
	if _, found := t.get(key); !found {
		return false
	}
	t.root = t.root.own(e)
	t.root.delete(e, key)
	if len(t.root.kids) == 1 {
		t.root = t.root.kids[0]
	}
	if t.root.count == 0 {
		t.root = nil
	}
	return true
}

// find is the position of key in a leaf, or where it would be.
func (n *node[V]) find(key string) (int, bool) {
	i := sort.Search(len(n.keys), func(i int) bool { return n.keys[i] >= key })
	return i, i < len(n.keys) && n.keys[i] == key
}

// child is the position of the child that key belongs to.
func (n *node[V]) child(key string) int {
	return sort.Search(len(n.keys), func(i int) bool { return n.keys[i] > key })
}

// own is n itself when e made it, else a copy that e may change.
func (n *node[V]) own(e *edit) *node[V] {
	if n.owner == e {
		return n
	}
	c := &node[V]{owner: e, count: n.count, keys: cloneSlack(n.keys)}
	if n.kids != nil {
		c.kids = cloneSlack(n.kids)
	} else {
		c.vals = cloneSlack(n.vals)
	}
	return c
}

// set puts key below n, which e owns. When n had to be split, right is the new
// neighbour and sep its smallest key.
func (n *node[V]) set(e *edit, key string, v V) (added bool, right *node[V], sep string) {
	if n.kids == nil {
		return n.setLeaf(e, key, v)
	}
	c := n.child(key)
	n.kids[c] = n.kids[c].own(e)
	added, kid, sep := n.kids[c].set(e, key, v)
	if added {
		n.count++
	}
	if kid == nil {
		return added, nil, ""
	}
	n.keys = insert(n.keys, c, sep)
	n.kids = insert(n.kids, c+1, kid)
	if len(n.kids) <= nodeMax {
		return added, nil, ""
	}
	right, sep = n.splitInner(e, c+1 == len(n.kids)-1)
	return added, right, sep
}

func (n *node[V]) setLeaf(e *edit, key string, v V) (added bool, right *node[V], sep string) {
	i, found := n.find(key)
	if found {
		n.vals[i] = v
		return false, nil, ""
	}
	n.keys, n.vals = insert(n.keys, i, key), insert(n.vals, i, v)
	n.count++
	if len(n.keys) <= nodeMax {
		return true, nil, ""
	}
	at := len(n.keys) / 2
	if i == len(n.keys)-1 {
		at = i
	}
	right = &node[V]{owner: e, count: len(n.keys) - at, keys: cloneSlack(n.keys[at:]), vals: cloneSlack(n.vals[at:])}
	n.keys, n.vals, n.count = cut(n.keys, at), cut(n.vals, at), at
	return true, right, right.keys[0]
}

func (n *node[V]) splitInner(e *edit, atEnd bool) (right *node[V], sep string) {
	at := len(n.kids) / 2
	if atEnd {
		at = len(n.kids) - 2
	}
	right = &node[V]{owner: e, keys: cloneSlack(n.keys[at:]), kids: cloneSlack(n.kids[at:])}
	sep = n.keys[at-1]
	n.keys, n.kids = cut(n.keys, at-1), cut(n.kids, at)
	right.recount()
	n.count -= right.count
	return right, sep
}

// delete removes key, which is below n; e owns n.
func (n *node[V]) delete(e *edit, key string) {
	n.count--
	if n.kids == nil {
		i, _ := n.find(key)
		n.keys, n.vals = remove(n.keys, i), remove(n.vals, i)
		return
	}
	c := n.child(key)
	n.kids[c] = n.kids[c].own(e)
	n.kids[c].delete(e, key)
	if n.kids[c].width() < nodeMin && len(n.kids) > 1 {
		n.refill(e, max(c, 1)-1)
	}
}

// width is what nodeMax bounds.
func (n *node[V]) width() int {
	if n.kids != nil {
		return len(n.kids)
	}
	return len(n.keys)
}

// refill evens out the children c and c+1, one of which is too small, or makes
// one of them.
func (n *node[V]) refill(e *edit, c int) {
	left, right := n.kids[c].own(e), n.kids[c+1].own(e)
	n.kids[c], n.kids[c+1] = left, right
	if left.kids != nil {
		left.keys = append(left.keys, n.keys[c])
		left.kids = append(left.kids, right.kids...)
	} else {
		left.vals = append(left.vals, right.vals...)
	}
	left.keys = append(left.keys, right.keys...)
	left.count += right.count
	if left.width() <= nodeMax {
		n.keys, n.kids = remove(n.keys, c), remove(n.kids, c+1)
		return
	}
	at := left.width() / 2
	if left.kids != nil {
		n.keys[c] = left.keys[at-1]
		right.keys, right.kids = cloneSlack(left.keys[at:]), cloneSlack(left.kids[at:])
		left.keys, left.kids = cut(left.keys, at-1), cut(left.kids, at)
	} else {
		n.keys[c] = left.keys[at]
		right.keys, right.vals = cloneSlack(left.keys[at:]), cloneSlack(left.vals[at:])
		left.keys, left.vals = cut(left.keys, at), cut(left.vals, at)
	}
	left.recount()
	right.recount()
}

func (n *node[V]) recount() {
	if n.kids == nil {
		n.count = len(n.keys)
		return
	}
	n.count = 0
	for _, kid := range n.kids {
		n.count += kid.count
	}
}

// cursor walks the keys of a span in order.
type cursor[V any] struct {
	s     span
	depth int
	path  [treeDepth]frame[V]
}

type frame[V any] struct {
	n *node[V]
	i int // the next key or child to visit
}

// seek is a cursor before the first key of s.
func (t tree[V]) seek(s span) cursor[V] {
	c := cursor[V]{s: s}
	if s.empty() {
		return c
	}
	for n := t.root; n != nil; {
		var i int
		if n.kids == nil {
			i, _ = n.find(s.start)
			c.push(n, i)
			break
		}
		i = n.child(s.start)
		c.push(n, i+1)
		n = n.kids[i]
	}
	return c
}

func (c *cursor[V]) push(n *node[V], i int) {
	c.path[c.depth] = frame[V]{n, i}
	c.depth++
}

// next is the next key of the span.
func (c *cursor[V]) next() (key string, v V, ok bool) {
	for c.depth > 0 {
		f := &c.path[c.depth-1]
		switch {
		case f.n.kids == nil && f.i < len(f.n.keys):
			key, v = f.n.keys[f.i], f.n.vals[f.i]
			if c.s.end != "" && key >= c.s.end {
				c.depth = 0
				var none V
				return "", none, false
			}
			f.i++
			return key, v, true
		case f.n.kids != nil && f.i < len(f.n.kids):
			kid := f.n.kids[f.i]
			f.i++
			c.push(kid, 0)
		default:
			c.depth--
		}
	}
	return "", v, false
}

// each calls visit for the keys of s in order until it returns false.
func (t tree[V]) each(s span, visit func(key string, v V) bool) {
	c := t.seek(s)
	for key, v, ok := c.next(); ok; key, v, ok = c.next() {
		if !visit(key, v) {
			return
		}
	}
}

// cloneSlack copies s with room for one more and at most nodeSlack.
func cloneSlack[T any](s []T) []T {
	return append(make([]T, 0, (len(s)/nodeSlack+1)*nodeSlack), s...)
}

// insert is slices.Insert that grows by nodeSlack.
func insert[T any](s []T, i int, v T) []T {
	if len(s) == cap(s) {
		s = cloneSlack(s)
	}
	return slices.Insert(s, i, v)
}

// remove is slices.Delete of one element.
func remove[T any](s []T, i int) []T { return slices.Delete(s, i, i+1) }

// cut shortens s to n elements and gives up the room behind them.
func cut[T any](s []T, n int) []T { return slices.Clip(append([]T(nil), s[:n]...)) }
