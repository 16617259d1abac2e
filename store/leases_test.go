package store

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
)

// TestDifferencesOfTrees: between two copies of a tree, however it grew, shrank and was
// made anew between them, the differences are those of the maps, in order, and what was not
// touched is not looked at.
func TestDifferencesOfTrees(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var tr tree[int]
		want := map[string]int{}
		write := func(what string, most int) (keys int) {
			e, first, n := &edit{}, rapid.IntRange(0, 3000).Draw(t, what+" first"), rapid.IntRange(0, most).Draw(t, what)
			insert, stride := rapid.IntRange(0, 2).Draw(t, "insert") < 2, rapid.IntRange(1, 40).Draw(t, "stride")
			for i := range n {
				key := fmt.Sprintf("%05d", first+i*stride)
				if insert {
					tr.set(e, key, i)
					want[key] = i
				} else {
					tr.delete(e, key)
					delete(want, key)
				}
			}
			return n
		}
		for range rapid.IntRange(0, 6).Draw(t, "before") {
			write("many", 1500)
		}
		old, was := tr, maps.Clone(want)
		changes := 0
		for range rapid.IntRange(0, 4).Draw(t, "between") {
			changes += write("few", 60)
		}
		if rapid.IntRange(0, 9).Draw(t, "restored") == 0 {
			fresh, e := tree[int]{}, &edit{}
			tr.each(span{}, func(key string, v int) bool { fresh.set(e, key, v); return true })
			tr, changes = fresh, 1<<20
		}
		got, visits, last := map[string][2]int{}, 0, ""
		value := func(v *int) int {
			if v == nil {
				return -1
			}
			return *v
		}
		old.differences(tr, func(key string, before, after *int) bool {
			if key <= last && visits > 0 {
				t.Fatalf("key %q comes after %q", key, last)
			}
			visits, last = visits+1, key
			if b, a := value(before), value(after); b != a {
				got[key] = [2]int{b, a}
			}
			return true
		})
		wanted := map[string][2]int{}
		for key, v := range want {
			if b, there := was[key]; !there {
				wanted[key] = [2]int{-1, v}
			} else if b != v {
				wanted[key] = [2]int{b, v}
			}
		}
		for key, b := range was {
			if _, there := want[key]; !there {
				wanted[key] = [2]int{b, -1}
			}
		}
		if diff := cmp.Diff(wanted, got); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
		// Each write touches its leaf, and at most two beside it.
		if most := 3 * nodeMax * changes; visits > most {
			t.Fatalf("%d keys were looked at for %d writes", visits, changes)
		}
	})
}

func TestLeaseSetSince(t *testing.T) {
	d := newDriver(t, Options{})
	grant := func(id, ttl int64) {
		d.do(&internalv1.Command{Space: SpaceEtcd, Op: &internalv1.Command_LeaseGrant{LeaseGrant: &internalv1.LeaseGrant{Id: id, TtlSeconds: ttl}}})
	}
	revoke := func(id int64) {
		d.do(&internalv1.Command{Space: SpaceEtcd, Op: &internalv1.Command_LeaseRevoke{LeaseRevoke: &internalv1.LeaseRevoke{Id: id}}})
	}
	set := func() LeaseSet { return d.Space(SpaceEtcd).View().LeaseSet() }
	expect := func(what string, from, to LeaseSet, want ...LeaseChange) {
		t.Helper()
		if diff := cmp.Diff(want, slices.Collect(to.Since(from))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	none := set()
	grant(-3, 10)
	grant(1, 10)
	grant(2, 20)
	some := set()
	expect("granted", none, some, LeaseChange{Lease{-3, 10}, false}, LeaseChange{Lease{1, 10}, false}, LeaseChange{Lease{2, 20}, false})
	expect("from the beginning", LeaseSet{}, some, LeaseChange{Lease{-3, 10}, false}, LeaseChange{Lease{1, 10}, false}, LeaseChange{Lease{2, 20}, false})
	bound := putOp("k", "v")
	bound.GetPut().Lease = 2
	d.do(command(SpaceEtcd, bound))
	expect("a key was bound", some, set())
	revoke(2)
	revoke(1)
	grant(1, 30)
	expect("revoked, and granted for longer", some, set(), LeaseChange{Lease{1, 30}, false}, LeaseChange{Lease{2, 20}, true})
	expect("backwards", set(), none, LeaseChange{Lease{-3, 10}, true}, LeaseChange{Lease{1, 30}, true})
	for range set().Since(none) {
		break // who has seen enough is not told more
	}
	if (View{}).LeaseSet() != (LeaseSet{}) {
		t.Error("a view of nothing has leases")
	}
}

// BenchmarkLeaseSetSince is what one lease that came costs whoever follows many.
func BenchmarkLeaseSetSince(b *testing.B) {
	for _, many := range []int64{1_000, 100_000} {
		b.Run(fmt.Sprint(many), func(b *testing.B) {
			d := newDriver(b, Options{})
			grant := func(id int64) {
				d.do(&internalv1.Command{Space: SpaceEtcd, Op: &internalv1.Command_LeaseGrant{LeaseGrant: &internalv1.LeaseGrant{Id: id, TtlSeconds: 60}}})
			}
			for id := range many {
				grant(1 + id*7919)
			}
			old := d.Space(SpaceEtcd).View().LeaseSet()
			grant(5)
			now := d.Space(SpaceEtcd).View().LeaseSet()
			b.ResetTimer()
			for range b.N {
				for range now.Since(old) {
				}
			}
		})
	}
}
