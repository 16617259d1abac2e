package podnet

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// mending collects what was found wrong and repaired, and what could not be.
type mending struct {
	repaired []string
	errs     []error
}

// did notes a difference from what should be, and how its repair went.
func (m *mending) did(err error, format string, args ...any) {
	what := fmt.Sprintf(format, args...)
	if err != nil {
		m.errs = append(m.errs, fmt.Errorf("%s: %w", what, err))
		return
	}
	m.repaired = append(m.repaired, what)
}

func (m *mending) failed(err error) {
	if err != nil {
		m.errs = append(m.errs, err)
	}
}

// kernel is what the node's network looked like at one moment.
type kernel struct {
	links  map[int]netlink.Link
	byName map[string]netlink.Link
	addrs  []netlink.Addr
	// routes are those of the main table, neighs IPv4's, fdb the tunnels'.
	routes []netlink.Route
	neighs map[neighKey]netlink.Neigh
	fdb    []netlink.Neigh
}

type neighKey struct {
	device int
	ip     netip.Addr
}

// look reads the kernel. It costs a few messages, whatever there is to mend.
func (l *Linux) look() (*kernel, error) {
	k := &kernel{links: map[int]netlink.Link{}, byName: map[string]netlink.Link{}, neighs: map[neighKey]netlink.Neigh{}}
	links, err := dump("devices", l.link.LinkList)
	if err != nil {
		return nil, err
	}
	for _, d := range links {
		k.links[d.Attrs().Index], k.byName[d.Attrs().Name] = d, d
	}
	if k.addrs, err = dump("addresses", func() ([]netlink.Addr, error) { return l.link.AddrList(nil, netlink.FAMILY_V4) }); err != nil {
		return nil, err
	}
	if k.routes, err = dump("routes", func() ([]netlink.Route, error) {
		return l.link.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	}); err != nil {
		return nil, err
	}
	neighs, err := dump("neighbours", func() ([]netlink.Neigh, error) { return l.link.NeighList(0, netlink.FAMILY_V4) })
	if err != nil {
		return nil, err
	}
	for _, n := range neighs {
		if ip, ok := netip.AddrFromSlice(n.IP.To4()); ok {
			k.neighs[neighKey{n.LinkIndex, ip}] = n
		}
	}
	if tunnel, ok := k.byName[TunnelDevice]; ok {
		index := tunnel.Attrs().Index
		k.fdb, err = dump("forwarding entries", func() ([]netlink.Neigh, error) { return l.link.NeighList(index, unix.AF_BRIDGE) })
	}
	return k, err
}

// dumpTries bounds how often a list is read again that changed meanwhile.
const dumpTries = 20

// dump reads a list from the kernel. One that changed while it was read may lack
// entries that were there all the time, so it is read again.
func dump[T any](what string, read func() ([]T, error)) ([]T, error) {
	for try := 1; ; try++ {
		list, err := read()
		switch {
		case err == nil:
			return list, nil
		case !errors.Is(err, netlink.ErrDumpInterrupted) || try == dumpTries:
			return nil, fmt.Errorf("list %s: %w", what, err)
		}
		time.Sleep(time.Duration(try) * time.Millisecond) // whoever changes it comes to an end
	}
}
