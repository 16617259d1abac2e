package store

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// treeKey spreads keys so that ranges cut through nodes of every level.
func treeKey(i int) string { return fmt.Sprintf("%05d", i*7919%100000) }

// checkTree looks at everything that must hold inside.
func checkTree(t *rapid.T, n *node[int], top bool) (count, depth int) {
	if len(n.keys) > nodeMax || !slices.IsSorted(n.keys) {
		t.Fatalf("node with the keys %q", n.keys)
	}
	if n.kids == nil {
		if n.count != len(n.keys) || len(n.vals) != len(n.keys) || len(n.keys) == 0 {
			t.Fatalf("leaf with count %d, %d keys, %d values", n.count, len(n.keys), len(n.vals))
		}
		return n.count, 1
	}
	if len(n.kids) != len(n.keys)+1 || len(n.kids) > nodeMax || top && len(n.kids) < 2 {
		t.Fatalf("inner node with %d keys and %d children", len(n.keys), len(n.kids))
	}
	for i, kid := range n.kids {
		c, d := checkTree(t, kid, false)
		if i > 0 && d != depth {
			t.Fatalf("children %d and %d levels deep", depth, d)
		}
		count, depth = count+c, d
	}
	if count != n.count {
		t.Fatalf("count %d, it has %d keys", n.count, count)
	}
	return count, depth + 1
}

func checkAgainst(t *rapid.T, tr tree[int], want map[string]int, s span) {
	if tr.root != nil {
		checkTree(t, tr.root, true)
	}
	got := map[string]int{}
	last, n := "", 0
	tr.each(s, func(key string, v int) bool {
		if key <= last && n > 0 {
			t.Fatalf("key %q after %q", key, last)
		}
		got[key], last, n = v, key, n+1
		return true
	})
	in := maps.Clone(want)
	maps.DeleteFunc(in, func(key string, _ int) bool { return !s.contains(key) })
	if diff := cmp.Diff(in, got); diff != "" {
		t.Fatalf("keys of %v (-want +got):\n%s", s, diff)
	}
	if n := tr.count(s); n != len(in) {
		t.Fatalf("count of %v is %d, want %d", s, n, len(in))
	}
}

// TestTreeEqualsMap: any mixture of writes equals a map, and copies that were
// taken on the way keep what they had.
func TestTreeEqualsMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type copied struct {
			tree tree[int]
			want map[string]int
		}
		var tr tree[int]
		want, e := map[string]int{}, &edit{}
		var copies []copied
		for step := range rapid.IntRange(5, 20).Draw(t, "steps") {
			first, n := rapid.IntRange(0, 900).Draw(t, "first"), rapid.IntRange(1, 300).Draw(t, "n")
			insert, ordered := rapid.IntRange(0, 2).Draw(t, "insert") < 2, rapid.Bool().Draw(t, "ordered")
			for i := first; i < first+n; i++ {
				key := treeKey(i)
				if ordered {
					key = fmt.Sprintf("%05d", i)
				}
				if insert {
					tr.set(e, key, step)
					want[key] = step
				} else if _, there := want[key]; tr.delete(e, key) != there {
					t.Fatalf("delete of %q says %v", key, !there)
				} else {
					delete(want, key)
				}
			}
			if rapid.Bool().Draw(t, "copy") {
				copies = append(copies, copied{tr, maps.Clone(want)})
				e = &edit{}
			}
			if v, ok := tr.get(treeKey(first)); ok != (want[treeKey(first)] == v && ok) {
				t.Fatalf("get of %q is %d, %v", treeKey(first), v, ok)
			}
		}
		s := span{treeKey(rapid.IntRange(0, 900).Draw(t, "start")), treeKey(rapid.IntRange(0, 900).Draw(t, "end"))}
		copies = append(copies, copied{tr, want})
		for _, c := range copies {
			checkAgainst(t, c.tree, c.want, span{})
			checkAgainst(t, c.tree, c.want, s)
		}
	})
}

func TestTreeStaysFullWhenKeysComeInOrder(t *testing.T) {
	var tr tree[int]
	e := &edit{}
	for i := range 10_000 {
		tr.set(e, fmt.Sprintf("%05d", i), i)
	}
	leaves := 0
	var walk func(*node[int])
	walk = func(n *node[int]) {
		if n.kids == nil {
			leaves++
		}
		for _, kid := range n.kids {
			walk(kid)
		}
	}
	walk(tr.root)
	if most := 10_000/nodeMax + 1; leaves > most {
		t.Fatalf("%d leaves, at most %d are needed", leaves, most)
	}
}

func TestIntervalsEqualList(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var tr intervals[int]
		want := map[span]int{}
		letter := rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f", "g", "h"})
		for i := range rapid.IntRange(1, 60).Draw(t, "steps") {
			s := span{letter.Draw(t, "start"), letter.Draw(t, "end")}
			if rapid.IntRange(0, 5).Draw(t, "unbounded") == 3 {
				s.end = ""
			}
			if rapid.IntRange(0, 3).Draw(t, "delete") == 2 {
				tr.delete(s)
				delete(want, s)
			} else {
				tr.set(s, i)
				want[s] = i
			}
			key := letter.Draw(t, "key")
			got := map[span]int{}
			tr.stab(key, func(s span, v int) { got[s] = v })
			in := maps.Clone(want)
			maps.DeleteFunc(in, func(s span, _ int) bool { return !s.contains(key) })
			if diff := cmp.Diff(in, got, cmp.AllowUnexported(span{})); diff != "" {
				t.Fatalf("spans with %q (-want +got):\n%s", key, diff)
			}
			if tr.touches(key) != (len(in) > 0) || tr.n != len(want) {
				t.Fatalf("touches %q: %v, %d spans of %d", key, tr.touches(key), tr.n, len(want))
			}
		}
	})
}

func TestPrefixSpan(t *testing.T) {
	for _, c := range []struct {
		prefix string
		want   span
	}{
		{"", span{}},
		{"pods/", span{"pods/", "pods0"}},
		{"a\xff", span{"a\xff", "b"}},
		{"\xff\xff", span{"\xff\xff", ""}},
	} {
		if got := prefixSpan(c.prefix); got != c.want {
			t.Errorf("span of prefix %q is %v, want %v", c.prefix, got, c.want)
		}
	}
}
