package object

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// MaxPoolAddresses bounds the addresses of an AddressPool.
const MaxPoolAddresses = 65_536

// maxPoolRanges bounds its prefixes and ranges.
const maxPoolRanges = 256

// AddressRange is a range of IPv4 addresses, both ends included.
type AddressRange struct{ First, Last netip.Addr }

// ParseAddressRange reads "192.0.2.0/28", all of whose addresses count, or
// "192.0.2.10-192.0.2.20", or a single address.
func ParseAddressRange(text string) (AddressRange, error) {
	const allowed = "an IPv4 prefix such as 192.0.2.0/28, or a range such as 192.0.2.10-192.0.2.20"
	if first, last, isRange := strings.Cut(text, "-"); isRange {
		a, err1 := netip.ParseAddr(strings.TrimSpace(first))
		b, err2 := netip.ParseAddr(strings.TrimSpace(last))
		switch {
		case err1 != nil || err2 != nil:
			return AddressRange{}, fmt.Errorf("found %s, allowed: %s", quoted(text), allowed)
		case !a.Is4() || !b.Is4():
			return AddressRange{}, fmt.Errorf("found %s: IPv6 is not supported yet, allowed: %s", quoted(text), allowed)
		case b.Less(a):
			return AddressRange{}, fmt.Errorf("found %s, whose end is before its beginning, allowed: %s", quoted(text), b.String()+"-"+a.String())
		}
		return AddressRange{a, b}, nil
	}
	if ip, err := netip.ParseAddr(text); err == nil && ip.Is4() {
		return AddressRange{ip, ip}, nil
	}
	p, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		return AddressRange{}, fmt.Errorf("found %s, allowed: %s", quoted(text), allowed)
	case !p.Addr().Is4():
		return AddressRange{}, fmt.Errorf("found %s: IPv6 is not supported yet, allowed: %s", quoted(text), allowed)
	case p != p.Masked():
		return AddressRange{}, fmt.Errorf("found %s, which has bits set beyond its length, allowed: %s", quoted(text), p.Masked())
	}
	return RangeOf(p), nil
}

// RangeOf is an IPv4 prefix as a range.
func RangeOf(p netip.Prefix) AddressRange {
	first := number(p.Masked().Addr())
	return AddressRange{address(first), address(first | uint32(1<<(32-p.Bits())-1))}
}

// Size is the number of addresses.
func (r AddressRange) Size() int64 { return int64(number(r.Last)) - int64(number(r.First)) + 1 }

// At is an address by its place, from 0.
func (r AddressRange) At(i int64) netip.Addr { return address(number(r.First) + uint32(i)) }

// Contains tells whether an address lies in the range.
func (r AddressRange) Contains(ip netip.Addr) bool {
	return ip.Is4() && !ip.Less(r.First) && !r.Last.Less(ip)
}

// Overlaps tells whether two ranges have an address in common.
func (r AddressRange) Overlaps(o AddressRange) bool {
	return !r.Last.Less(o.First) && !o.Last.Less(r.First)
}

// String is the range as people write it.
func (r AddressRange) String() string {
	if r.First == r.Last {
		return r.First.String()
	}
	return r.First.String() + "-" + r.Last.String()
}

func number(ip netip.Addr) uint32 {
	b := ip.As4()
	return binary.BigEndian.Uint32(b[:])
}

func address(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, n)))
}

// PoolRanges are the addresses of an AddressPool. An error means an object that
// was never validated.
func PoolRanges(pool *balsav1.AddressPool) ([]AddressRange, error) {
	out := make([]AddressRange, len(pool.GetSpec().GetAddresses()))
	for i, text := range pool.GetSpec().GetAddresses() {
		var err error
		if out[i], err = ParseAddressRange(text); err != nil {
			return nil, fmt.Errorf("%s: %s: %w", Describe(pool), index("spec.addresses", i), err)
		}
	}
	return out, nil
}

// PoolSize is the number of addresses in ranges that do not overlap.
func PoolSize(ranges []AddressRange) (n int64) {
	for _, r := range ranges {
		n += r.Size()
	}
	return n
}

// addressDraws is how many random addresses ChooseAddress tries before it goes
// through all.
const addressDraws = 64

// ChooseAddress finds an address that is not taken: a random one, so that writers
// that choose at the same time seldom meet; all are tried where few are left. draw
// gives a random number below its argument. ok is false where every one is taken.
func ChooseAddress(ranges []AddressRange, taken func(netip.Addr) bool, draw func(below int64) int64) (ip netip.Addr, ok bool) {
	total := PoolSize(ranges)
	if total == 0 {
		return netip.Addr{}, false
	}
	for range min(addressDraws, total) {
		if ip = addressIn(ranges, draw(total)); !taken(ip) {
			return ip, true
		}
	}
	// From a random place on: the first free one of all would be everybody's.
	for start, i := draw(total), int64(0); i < total; i++ {
		if ip = addressIn(ranges, (start+i)%total); !taken(ip) {
			return ip, true
		}
	}
	return netip.Addr{}, false
}

func addressIn(ranges []AddressRange, i int64) netip.Addr {
	for _, r := range ranges {
		if i < r.Size() {
			return r.At(i)
		}
		i -= r.Size()
	}
	panic("object: an address beyond its ranges")
}

func (c *check) addressPool(m *balsav1.AddressPool) {
	const path = "spec.addresses"
	list := m.GetSpec().GetAddresses()
	if len(list) == 0 {
		c.required(path, "name at least one prefix or range, for example 192.0.2.0/28")
	}
	c.labels("spec.nodeSelector", m.GetSpec().GetNodeSelector())
	if !c.atMost(path, len(list), maxPoolRanges, "prefixes and ranges") {
		return
	}
	var ranges []AddressRange
	for i, text := range list {
		here := index(path, i)
		r, err := ParseAddressRange(text)
		if err != nil {
			c.add(Violation{Field: here, Message: err.Error()})
			continue
		}
		c.poolRange(here, r)
		for _, other := range ranges {
			if r.Overlaps(other) {
				c.add(Violation{Field: here, Message: "overlaps with another of the pool", Found: quoted(text), Allowed: "every address once: " + other.String() + " is there already"})
			}
		}
		ranges = append(ranges, r)
	}
	if n := PoolSize(ranges); n > MaxPoolAddresses {
		c.add(Violation{Field: path, Message: "has too many addresses", Found: fmt.Sprint(n), Allowed: fmt.Sprintf("at most %d", MaxPoolAddresses)})
	}
}

// poolRange: both ends tell, since the special ranges are prefixes as large as a
// pool may be, or larger. The broadcast address is the last of one.
func (c *check) poolRange(path string, r AddressRange) {
	for _, ip := range []netip.Addr{r.First, r.Last} {
		if problem := specialAddress(ip); problem != "" {
			c.add(Violation{Field: path, Message: ip.String() + " is " + problem, Found: r.String(), Allowed: "addresses that a host may have"})
			return
		}
	}
}
