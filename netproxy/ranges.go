package netproxy

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// addrRange is a range of IPv4 addresses, both ends included.
type addrRange struct{ lo, hi uint32 }

func number(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func oneAddr(a netip.Addr) addrRange { return addrRange{number(a), number(a)} }

func prefixRange(p netip.Prefix) addrRange {
	lo := number(p.Masked().Addr())
	return addrRange{lo, lo | uint32(1<<(32-p.Bits())-1)}
}

func everywhere() addrRange { return addrRange{0, 1<<32 - 1} }

func (r addrRange) first() string { return string(binary.BigEndian.AppendUint32(nil, r.lo)) }
func (r addrRange) last() string  { return string(binary.BigEndian.AppendUint32(nil, r.hi)) }

// union sorts ranges and merges those that overlap. Neighbours stay apart, so
// that an address more or less is one range more or less: kernels before Linux
// 6.17 do not change a range for others without a moment that has neither.
func union(ranges []addrRange) []addrRange {
	slices.SortFunc(ranges, func(a, b addrRange) int {
		switch {
		case a.lo < b.lo:
			return -1
		case a.lo > b.lo:
			return 1
		}
		return 0
	})
	out := ranges[:0]
	for _, r := range ranges {
		if n := len(out); n > 0 && r.lo <= out[n-1].hi {
			out[n-1].hi = max(out[n-1].hi, r.hi)
			continue
		}
		out = append(out, r)
	}
	return out
}

// subtract returns what of the disjoint sorted ranges a is in none of the
// disjoint sorted ranges b.
func subtract(a, b []addrRange) []addrRange {
	var out []addrRange
	for _, r := range a {
		for len(b) > 0 && b[0].hi < r.lo {
			b = b[1:]
		}
		lo, gone := uint64(r.lo), b
		for len(gone) > 0 && gone[0].lo <= r.hi {
			if uint64(gone[0].lo) > lo {
				out = append(out, addrRange{uint32(lo), gone[0].lo - 1})
			}
			lo = max(lo, uint64(gone[0].hi)+1)
			gone = gone[1:]
		}
		if lo <= uint64(r.hi) {
			out = append(out, addrRange{uint32(lo), r.hi})
		}
	}
	return out
}

func coversAddr(ranges []addrRange, a netip.Addr) bool {
	if !a.Is4() {
		return false
	}
	n := number(a)
	return slices.ContainsFunc(ranges, func(r addrRange) bool { return r.lo <= n && n <= r.hi })
}
