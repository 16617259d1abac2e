package store

import (
	"bytes"
	"cmp"
	"slices"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
)

// Holds tells whether a key satisfies a compare. A key that does not exist
// compares as the zero KV, except that, as in etcd, its value compares with
// nothing, not even as unequal: that case is the caller's, who knows.
func Holds(c *internalv1.Compare, kv KV) bool {
	order := 0
	switch c.GetTarget() {
	case internalv1.Compare_TARGET_VERSION:
		order = cmp.Compare(kv.Version, c.GetNumber())
	case internalv1.Compare_TARGET_CREATE:
		order = cmp.Compare(int64(kv.CreateRevision), c.GetNumber())
	case internalv1.Compare_TARGET_MOD:
		order = cmp.Compare(int64(kv.ModRevision), c.GetNumber())
	case internalv1.Compare_TARGET_LEASE:
		order = cmp.Compare(kv.Lease, c.GetNumber())
	case internalv1.Compare_TARGET_VALUE:
		order = bytes.Compare(kv.Value, c.GetValue())
	}
	switch c.GetResult() {
	case internalv1.Compare_RESULT_EQUAL:
		return order == 0
	case internalv1.Compare_RESULT_NOT_EQUAL:
		return order != 0
	case internalv1.Compare_RESULT_GREATER:
		return order > 0
	case internalv1.Compare_RESULT_LESS:
		return order < 0
	}
	return false
}

// Sifts tells that a range filters or sorts its keys: as in etcd it is then read
// whole before its limit cuts it.
func Sifts(r *internalv1.Range) bool {
	return r.GetSortOrder() != 0 ||
		r.GetMinModRevision() != 0 || r.GetMaxModRevision() != 0 || r.GetMinCreateRevision() != 0 || r.GetMaxCreateRevision() != 0
}

// Passes tells whether a key passes the range's filters.
func Passes(r *internalv1.Range, kv KV) bool {
	return inBounds(kv.ModRevision, r.GetMinModRevision(), r.GetMaxModRevision()) &&
		inBounds(kv.CreateRevision, r.GetMinCreateRevision(), r.GetMaxCreateRevision())
}

// inBounds tells least <= rev <= most, where 0 is no bound.
func inBounds(rev Revision, least, most int64) bool {
	return (least == 0 || int64(rev) >= least) && (most == 0 || int64(rev) <= most)
}

// SortKeys puts keys that are in their own order into the order that the range
// asks for. What is equal in its target stays in the order of keys. A target
// without an order sorts too, upwards: only what the limit has let through.
func SortKeys(r *internalv1.Range, found []KV) {
	target, descend := r.GetSortTarget(), r.GetSortOrder() == internalv1.Range_SORT_ORDER_DESCEND
	switch {
	case target == internalv1.Range_SORT_TARGET_UNSPECIFIED && descend:
		slices.Reverse(found)
	case descend:
		slices.SortStableFunc(found, func(a, b KV) int { return compareBy(target, b, a) })
	case target != internalv1.Range_SORT_TARGET_UNSPECIFIED:
		slices.SortStableFunc(found, func(a, b KV) int { return compareBy(target, a, b) })
	}
}

func compareBy(target internalv1.Range_SortTarget, a, b KV) int {
	switch target {
	case internalv1.Range_SORT_TARGET_VERSION:
		return cmp.Compare(a.Version, b.Version)
	case internalv1.Range_SORT_TARGET_CREATE:
		return cmp.Compare(a.CreateRevision, b.CreateRevision)
	case internalv1.Range_SORT_TARGET_MOD:
		return cmp.Compare(a.ModRevision, b.ModRevision)
	case internalv1.Range_SORT_TARGET_VALUE:
		return bytes.Compare(a.Value, b.Value)
	}
	return 0
}
