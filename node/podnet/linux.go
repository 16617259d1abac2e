//go:build linux

package podnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Route protocol numbers, by which our routes are told from others'. Numbers in
// use are listed in /etc/iproute2/rt_protos; netproxy/apply owns the one before.
const (
	podRouteProtocol  = 96
	nodeRouteProtocol = 97
)

// DefaultTable is the nftables table (family ip) for what pods send to the
// outside.
const DefaultTable = "balsa-pods"

// Options of a node's pod network. PodCIDR, ClusterCIDR, NodeIP and Dir are
// required.
type Options struct {
	// NetNS is the path of the node's network namespace; empty means the
	// caller's.
	NetNS string
	// Dir is where addresses in use are kept.
	Dir string
	// PodCIDR holds this node's pods, ClusterCIDR those of all nodes.
	PodCIDR, ClusterCIDR netip.Prefix
	NodeIP               netip.Addr
	// LocalAddress is put on the node's loopback device for a server that all
	// pods of the node reach, the resolver; the zero value means none.
	LocalAddress netip.Addr
	// MTU of the pods' devices; 0 leaves it to the kernel (1500).
	MTU int
	// Table is the nftables table; empty means DefaultTable.
	Table string
	// Logger may be nil.
	Logger *slog.Logger
}

// Linux implements Network. Its calls run one at a time.
type Linux struct {
	o    Options
	log  *slog.Logger
	pool *Pool
	ns   *os.File // nil for the caller's namespace
	link *netlink.Handle

	mu sync.Mutex // serialises what follows
	// src is the node's address if a device has it: the source of the node's
	// own packets to pods. Else the kernel chooses one.
	src net.IP
}

var _ Network = (*Linux)(nil)

// NewLinux reads the address pool and opens the namespace; Prepare changes it.
func NewLinux(o Options) (*Linux, error) {
	if o.Table == "" {
		o.Table = DefaultTable
	}
	l := &Linux{o: o, log: o.Logger}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	if err := l.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("pod network %s: %w", o.PodCIDR, err), l.Close())
	}
	if skipped := l.pool.Skipped(); len(skipped) > 0 {
		l.log.Warn("address pool holds files that are not addresses of the pod CIDR", "dir", o.Dir, "cidr", o.PodCIDR, "files", skipped)
	}
	return l, nil
}

func (l *Linux) open() (err error) {
	if !l.o.ClusterCIDR.Addr().Is4() || !l.o.ClusterCIDR.Contains(l.o.PodCIDR.Addr()) {
		return fmt.Errorf("cluster CIDR %s does not contain it", l.o.ClusterCIDR)
	}
	if !l.o.NodeIP.Is4() || l.o.Dir == "" {
		return fmt.Errorf("node address %q must be IPv4 and the folder %q not empty", l.o.NodeIP, l.o.Dir)
	}
	if l.pool, err = OpenPool(l.o.PodCIDR, l.o.Dir); err != nil {
		return err
	}
	handle := netns.None()
	if l.o.NetNS != "" {
		if l.ns, err = os.Open(l.o.NetNS); err != nil {
			return fmt.Errorf("open network namespace: %w", err)
		}
		handle = netns.NsHandle(l.ns.Fd())
	}
	if l.link, err = netlink.NewHandleAt(handle, unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("route socket: %w", err)
	}
	return nil
}

// Close frees sockets; pods stay connected.
func (l *Linux) Close() error {
	if l.link != nil {
		l.link.Close()
	}
	if l.ns == nil {
		return nil
	}
	return l.ns.Close()
}

// Prepare makes the node ready for pods: forwarding, masquerading of what pods
// send out of the cluster, the local address. Call it at every start.
func (l *Linux) Prepare(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"forwarding", func() error { return l.sysctl("net/ipv4/ip_forward", "1") }},
		{"loopback", l.ensureLoopback},
		{"node address", l.findSource},
		{"own pod CIDR", l.ensureOwnCIDR},
		{"egress rules", l.ensureEgress},
	} {
		if err := context.Cause(ctx); err != nil {
			return fmt.Errorf("prepare pod network %s: %w", l.o.PodCIDR, err)
		}
		if err := step.do(); err != nil {
			return fmt.Errorf("prepare pod network %s: %s: %w", l.o.PodCIDR, step.name, err)
		}
	}
	return nil
}

// ensureLoopback brings lo up and puts the local address on it. Its scope is
// "host", or masquerading would choose it: a pod's device on the node has no
// address, and the kernel then takes the first global one of any device, lo
// before all others.
func (l *Linux) ensureLoopback() error {
	lo, err := l.link.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := l.link.LinkSetUp(lo); err != nil {
		return err
	}
	if !l.o.LocalAddress.IsValid() {
		return nil
	}
	addr := &netlink.Addr{IPNet: hostNet(l.o.LocalAddress), Scope: unix.RT_SCOPE_HOST}
	if err := l.link.AddrReplace(lo, addr); err != nil {
		return fmt.Errorf("add %s: %w", l.o.LocalAddress, err)
	}
	return nil
}

func (l *Linux) findSource() error {
	addrs, err := l.link.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return err
	}
	l.src = nil
	if slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IP.Equal(l.o.NodeIP.AsSlice()) }) {
		l.src = l.o.NodeIP.AsSlice()
	}
	return nil
}

// ensureOwnCIDR makes addresses without a pod unreachable: a route to a pod is
// more specific, and without either, packets to a pod that is gone would leave
// by the default route, and come back from a router that sends the whole CIDR
// here.
func (l *Linux) ensureOwnCIDR() error {
	return l.link.RouteReplace(&netlink.Route{Dst: ipNet(l.o.PodCIDR), Type: unix.RTN_UNREACHABLE,
		Protocol: podRouteProtocol, Table: unix.RT_TABLE_MAIN})
}

// Setup implements Network.
func (l *Linux) Setup(ctx context.Context, uid, netnsPath string) (netip.Addr, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := context.Cause(ctx); err != nil {
		return netip.Addr{}, fmt.Errorf("set up network of pod %s: %w", uid, err)
	}
	addr, err := l.pool.Acquire(uid)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("set up network of pod %s: %w", uid, err)
	}
	p, err := l.openPod(uid, netnsPath, addr)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("set up network of pod %s in %q: %w", uid, netnsPath, err)
	}
	defer p.close()
	if err := p.connect(); err != nil {
		return netip.Addr{}, fmt.Errorf("set up network of pod %s, address %s, device %s: %w", uid, addr, p.device, err)
	}
	return addr, nil
}

// Teardown implements Network. The device goes before the address is freed, so
// that no two pods ever have the same.
func (l *Linux) Teardown(ctx context.Context, uid string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := context.Cause(ctx); err != nil {
		return fmt.Errorf("tear down network of pod %s: %w", uid, err)
	}
	if err := l.teardownLocked(uid); err != nil {
		return fmt.Errorf("tear down network of pod %s: %w", uid, err)
	}
	return nil
}

func (l *Linux) teardownLocked(uid string) error {
	if err := l.deleteDevice(DeviceName(uid)); err != nil {
		return err
	}
	return l.pool.Release(uid)
}

// deleteDevice deletes a veth pair, and with it the routes and neighbours that
// name it.
func (l *Linux) deleteDevice(name string) error {
	d, err := l.link.LinkByName(name)
	if isNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find device %s: %w", name, err)
	}
	// It may go by itself at any time, with the pod's namespace.
	if err := l.link.LinkDel(d); err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("delete device %s: %w", name, err)
	}
	return nil
}

// Cleanup implements Network.
func (l *Linux) Cleanup(ctx context.Context, living []string) ([]string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	alive := make(map[string]bool, 2*len(living))
	for _, uid := range living {
		alive[uid], alive[DeviceName(uid)] = true, true
	}
	var removed []string
	for _, uid := range l.pool.UIDs() {
		if alive[uid] {
			continue
		}
		if err := context.Cause(ctx); err != nil {
			return removed, fmt.Errorf("clean up pod networks: %w", err)
		}
		if err := l.teardownLocked(uid); err != nil {
			return removed, fmt.Errorf("clean up network of pod %s: %w", uid, err)
		}
		removed = append(removed, uid)
	}
	devices, err := l.deleteOrphans(alive)
	removed = append(removed, devices...)
	if err := errors.Join(err, l.pool.ReleaseNameless()); err != nil {
		return removed, fmt.Errorf("clean up pod networks: %w", err)
	}
	return removed, nil
}

// deleteOrphans deletes our devices whose pods are neither alive nor in the
// pool.
func (l *Linux) deleteOrphans(alive map[string]bool) (removed []string, err error) {
	links, err := l.link.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	for _, d := range links {
		name := d.Attrs().Name
		if d.Type() != "veth" || !isDeviceName(name) || alive[name] {
			continue
		}
		if err := l.deleteDevice(name); err != nil {
			return removed, err
		}
		removed = append(removed, name)
	}
	return removed, nil
}

func isDeviceName(name string) bool {
	rest, ours := strings.CutPrefix(name, devicePrefix)
	return ours && len(name) == len(DeviceName("")) && strings.Trim(rest, "0123456789abcdef") == ""
}

// SyncRoutes implements Network.
func (l *Linux) SyncRoutes(ctx context.Context, routes []NodeRoute) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := errors.Join(context.Cause(ctx), CheckRoutes(routes)); err != nil {
		return fmt.Errorf("sync routes: %w", err)
	}
	want := map[string]net.IP{}
	for _, r := range routes {
		if r.PodCIDR.Masked() != l.o.PodCIDR.Masked() {
			want[r.PodCIDR.Masked().String()] = r.NodeIP.AsSlice()
		}
	}
	have, err := l.link.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: nodeRouteProtocol, Table: unix.RT_TABLE_MAIN},
		netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	if err != nil {
		return fmt.Errorf("sync routes: list: %w", err)
	}
	return errors.Join(l.addRoutes(want, have), l.deleteRoutes(want, have))
}

func (l *Linux) addRoutes(want map[string]net.IP, have []netlink.Route) error {
	var errs []error
	for cidr, via := range want {
		if slices.ContainsFunc(have, func(r netlink.Route) bool { return r.Dst.String() == cidr && r.Gw.Equal(via) }) {
			continue
		}
		_, dst, err := net.ParseCIDR(cidr)
		if err == nil {
			err = l.link.RouteReplace(&netlink.Route{Dst: dst, Gw: via, Protocol: nodeRouteProtocol, Table: unix.RT_TABLE_MAIN})
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("sync routes: %s via %s: %w", cidr, via, err))
		}
	}
	return errors.Join(errs...)
}

// deleteRoutes comes after addRoutes, so that a route that moved is replaced
// in one step. A route whose new gateway was refused goes: it is wrong.
func (l *Linux) deleteRoutes(want map[string]net.IP, have []netlink.Route) error {
	var errs []error
	for _, r := range have {
		if via, wanted := want[r.Dst.String()]; wanted && via.Equal(r.Gw) {
			continue
		}
		if err := l.link.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("sync routes: delete %s via %s: %w", r.Dst, r.Gw, err))
		}
	}
	return errors.Join(errs...)
}

// sysctl writes a value under /proc/sys, which shows the network namespace of
// the thread that opens it.
func (l *Linux) sysctl(key, value string) error {
	write := func() error { return os.WriteFile("/proc/sys/"+key, []byte(value), 0o644) }
	if l.ns == nil {
		return write()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Setns(int(l.ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		done <- write()
	}()
	return <-done
}

func isNotFound(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound)
}

func hostNet(a netip.Addr) *net.IPNet { return ipNet(netip.PrefixFrom(a, a.BitLen())) }

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Masked().Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
