//go:build linux

package podnet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
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
	// NoMasquerade are destinations outside the cluster that pods reach with their
	// own addresses: what is there must know the way back. See ParseNoMasquerade.
	NoMasquerade []netip.Prefix
	// Table is the nftables table; empty means DefaultTable.
	Table string
	// Logger may be nil.
	Logger *slog.Logger
}

// Linux implements Network. Its calls run one at a time, but for those about
// announced addresses, which wait for answers from the link.
type Linux struct {
	o    Options
	log  *slog.Logger
	pool *Pool
	ns   *os.File // nil for the caller's namespace
	link *netlink.Handle

	mu sync.Mutex // serialises what follows
	// up is the device that leads to the other nodes, as last seen; guarded by mu.
	up uplink
	// paths are the namespaces of pods that this process has connected, by uid;
	// guarded by mu.
	paths map[string]string
	// nodes are those of the last SyncRoutes; guarded by mu.
	nodes []NodeRoute
	// noTunnel is why there are no tunnels; guarded by mu.
	noTunnel error

	announced announced
	disturbed disturbed
}

var _ Network = (*Linux)(nil)

// NewLinux reads the address pool and opens the namespace; Prepare changes it.
func NewLinux(o Options) (*Linux, error) {
	if o.Table == "" {
		o.Table = DefaultTable
	}
	l := &Linux{o: o, log: o.Logger, paths: map[string]string{}}
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
	l.stopListening()
	if l.link != nil {
		l.link.Close()
	}
	if l.ns == nil {
		return nil
	}
	return l.ns.Close()
}

// Prepare makes the node ready for pods: forwarding, masquerading of what pods
// send out of the cluster, the local address, the node's end of the tunnels. Call
// it at every start. A node without tunnels is ready: what needs them is told by
// SyncRoutes.
func (l *Linux) Prepare(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := context.Cause(ctx); err != nil {
		return fmt.Errorf("prepare pod network %s: %w", l.o.PodCIDR, err)
	}
	// From now on, so that nothing is missed before the first NextDisturbance.
	if _, err := l.listen(); err != nil {
		return fmt.Errorf("prepare pod network %s: listen for changes: %w", l.o.PodCIDR, err)
	}
	k, err := l.look()
	if err != nil {
		return fmt.Errorf("prepare pod network %s: %w", l.o.PodCIDR, err)
	}
	if err := l.ownAddressesAreFree(k); err != nil {
		return fmt.Errorf("prepare pod network %s: %w", l.o.PodCIDR, err)
	}
	m := &mending{}
	l.findUplink(k, m)
	l.mendNode(k, m)
	if l.noTunnel != nil {
		l.log.Warn("nodes that share no link with this one cannot be reached", "why", l.noTunnel)
	}
	if err := errors.Join(m.errs...); err != nil {
		return fmt.Errorf("prepare pod network %s: %w", l.o.PodCIDR, err)
	}
	return nil
}

// ownAddressesAreFree refuses to take addresses of pods away from a network that
// the node is in already.
func (l *Linux) ownAddressesAreFree(k *kernel) error {
	for _, n := range l.localNets(k) {
		if n.prefix.Overlaps(l.o.PodCIDR) {
			return fmt.Errorf("%w: this node's device %s is in %s; give the device other addresses, or make the cluster with another --pod-cidr", ErrOverlap, n.device, n.prefix)
		}
	}
	if who, taken := l.foreignRoutes(k)[l.o.PodCIDR.Masked()]; taken {
		return fmt.Errorf("%w: there is a route for %s that is not ours (%s); remove it, or find out who makes it", ErrOverlap, l.o.PodCIDR, who)
	}
	return nil
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
	l.paths[uid] = netnsPath
	return addr, nil
}

// Addresses implements Network.
func (l *Linux) Addresses() map[string]netip.Addr { return l.pool.Addresses() }

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
	delete(l.paths, uid)
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

// Cleanup implements Network. It also removes announced addresses that an agent
// before this one has left, on other devices for instance, once SyncAnnounced has
// said which are wanted.
func (l *Linux) Cleanup(ctx context.Context, living []string) ([]string, error) {
	removed, err := l.cleanupPods(ctx, living)
	return removed, errors.Join(err, l.cleanupAnnounced())
}

func (l *Linux) cleanupPods(ctx context.Context, living []string) ([]string, error) {
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

// inside runs f where the node's network is: on a thread of its own in the
// network namespace, if that is not the caller's.
func (l *Linux) inside(f func() error) error {
	if l.ns == nil {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Setns(int(l.ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

const sysctls = "/proc/sys/"

// setting is a sysctl and what it has to be.
type setting struct {
	key, value string
	// optional: a kernel without it is fine.
	optional bool
}

// mendSettings compares first: it is asked often, and a write is told to everybody
// who watches.
func (l *Linux) mendSettings(m *mending, settings []setting) {
	err := l.inside(func() error {
		for _, s := range settings {
			have, err := os.ReadFile(sysctls + s.key)
			if s.optional && errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err == nil && strings.TrimSpace(string(have)) == s.value {
				continue
			}
			if err == nil {
				err = os.WriteFile(sysctls+s.key, []byte(s.value), 0o644)
			}
			m.did(err, "%s was %q, not %s", s.key, strings.TrimSpace(string(have)), s.value)
		}
		return nil
	})
	m.failed(err)
}

func isNotFound(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound)
}

func hostNet(a netip.Addr) *net.IPNet { return ipNet(netip.PrefixFrom(a, a.BitLen())) }

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Masked().Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
