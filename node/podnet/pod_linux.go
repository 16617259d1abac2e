//go:build linux

package podnet

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// podDevice is the pod's end of its veth pair.
const podDevice = "eth0"

// gateway is every pod's next hop. No device has it; a permanent neighbour
// entry in the pod says which hardware address it is.
func gateway() net.IP { return net.IPv4(169, 254, 1, 1) }

// hardwareAddr derives a device's address from the pod. It is given
// explicitly, because udev changes one that the kernel chose, and permanent
// neighbour entries would then point nowhere.
func hardwareAddr(uid string, end byte) net.HardwareAddr {
	sum := sha256.Sum256(append([]byte(uid), end))
	return net.HardwareAddr{0x02, sum[0], sum[1], sum[2], sum[3], sum[4]} // 02: unicast, locally administered
}

// podLink connects one pod.
type podLink struct {
	node   *Linux
	uid    string
	device string // the node's end
	addr   netip.Addr
	ns     *os.File
	link   *netlink.Handle // inside the pod
}

func (l *Linux) openPod(uid, path string, addr netip.Addr) (*podLink, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	h, err := netlink.NewHandleAt(netns.NsHandle(f.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("not a network namespace: %w", err), f.Close())
	}
	return &podLink{node: l, uid: uid, device: DeviceName(uid), addr: addr, ns: f, link: h}, nil
}

func (p *podLink) close() {
	p.link.Close()
	if err := p.ns.Close(); err != nil {
		p.node.log.Warn("close pod's network namespace", "pod", p.uid, "error", err)
	}
}

// connect makes the pair, unless it is there, and sets everything on it, which
// changes nothing where it is right already.
func (p *podLink) connect() error {
	outside, inside, err := p.ensurePair()
	if err != nil {
		return err
	}
	if err := p.fitMTU(inside, outside); err != nil {
		return err
	}
	if err := p.configureInside(inside, outside); err != nil {
		return fmt.Errorf("inside the pod: %w", err)
	}
	if err := p.configureOutside(outside, inside); err != nil {
		return err
	}
	return errors.Join(operational(p.link, inside), operational(p.node.link, outside))
}

const (
	operationalTimeout = 2 * time.Second
	operationalPause   = time.Millisecond
)

// operational waits until a device carries traffic. The end of a pair that was
// set up first does not until the kernel's link watch has noticed that the other
// is up as well; until then it drops what it is given without a word, which
// would cost a pod its first DNS question, and five seconds.
func operational(link *netlink.Handle, device netlink.Link) error {
	name := device.Attrs().Name
	for deadline := time.Now().Add(operationalTimeout); ; time.Sleep(operationalPause) {
		now, err := link.LinkByName(name)
		if err != nil {
			return fmt.Errorf("look whether %s is up: %w", name, err)
		}
		if now.Attrs().OperState == netlink.OperUp {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s is %s, not up, after %v", name, now.Attrs().OperState, operationalTimeout)
		}
	}
}

func (p *podLink) ensurePair() (outside, inside netlink.Link, err error) {
	if outside, inside, err = p.findPair(); err != nil || outside != nil {
		return outside, inside, err
	}
	// Half a pair, or one into a namespace that the pod no longer uses.
	if err := p.node.deleteDevice(p.device); err != nil {
		return nil, nil, err
	}
	if stray, err := p.link.LinkByName(podDevice); err == nil {
		if err := p.link.LinkDel(stray); err != nil {
			return nil, nil, fmt.Errorf("delete %s of an earlier attempt: %w", podDevice, err)
		}
	}
	if err := p.addPair(); err != nil {
		return nil, nil, err
	}
	if outside, inside, err = p.findPair(); err == nil && outside == nil {
		err = errors.New("the new veth pair is gone again")
	}
	return outside, inside, err
}

func (p *podLink) addPair() error {
	mtu, _ := PodMTU(p.node.up.mtu)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = p.device, mtu, hardwareAddr(p.uid, 'n')
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: podDevice, PeerHardwareAddr: hardwareAddr(p.uid, 'p'),
		PeerNamespace: netlink.NsFd(p.ns.Fd()), PeerTxQLen: -1, PeerMTU: uint32(mtu)}
	if err := p.node.link.LinkAdd(pair); err != nil {
		return fmt.Errorf("add veth pair: %w", err)
	}
	return nil
}

// findPair returns both ends if they are there and belong together, else nil.
func (p *podLink) findPair() (outside, inside netlink.Link, err error) {
	outside, err = p.node.link.LinkByName(p.device)
	if isNotFound(err) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("find device: %w", err)
	}
	inside, err = p.link.LinkByName(podDevice)
	if isNotFound(err) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("find %s in the pod: %w", podDevice, err)
	}
	id, err := p.node.link.GetNetNsIdByFd(int(p.ns.Fd()))
	if err != nil {
		return nil, nil, fmt.Errorf("identify the pod's network namespace: %w", err)
	}
	o, i := outside.Attrs(), inside.Attrs()
	if o.NetNsID != id || o.ParentIndex != i.Index || i.ParentIndex != o.Index {
		return nil, nil, nil
	}
	return outside, inside, nil
}

// fitMTU gives a pair that was made before the uplink's MTU changed, or by another
// version, the MTU of today.
func (p *podLink) fitMTU(inside, outside netlink.Link) error {
	mtu, _ := PodMTU(p.node.up.mtu)
	for _, end := range []struct {
		link   *netlink.Handle
		device netlink.Link
	}{{p.link, inside}, {p.node.link, outside}} {
		if end.device.Attrs().MTU == mtu {
			continue
		}
		if err := end.link.LinkSetMTU(end.device, mtu); err != nil {
			return fmt.Errorf("set MTU of %s to %d: %w", end.device.Attrs().Name, mtu, err)
		}
	}
	return nil
}

func (p *podLink) configureInside(inside, outside netlink.Link) error {
	lo, err := p.link.LinkByName("lo")
	if err != nil {
		return err
	}
	for _, d := range []netlink.Link{lo, inside} {
		if err := p.link.LinkSetUp(d); err != nil {
			return fmt.Errorf("set %s up: %w", d.Attrs().Name, err)
		}
	}
	if err := p.link.AddrReplace(inside, &netlink.Addr{IPNet: hostNet(p.addr)}); err != nil {
		return fmt.Errorf("add address: %w", err)
	}
	index := inside.Attrs().Index
	if err := p.link.NeighSet(&netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: gateway(), HardwareAddr: outside.Attrs().HardwareAddr}); err != nil {
		return fmt.Errorf("add neighbour %s: %w", gateway(), err)
	}
	via := &net.IPNet{IP: gateway(), Mask: net.CIDRMask(32, 32)}
	if err := p.link.RouteReplace(&netlink.Route{LinkIndex: index, Scope: netlink.SCOPE_LINK, Dst: via}); err != nil {
		return fmt.Errorf("add route to %s: %w", gateway(), err)
	}
	everything := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	if err := p.link.RouteReplace(&netlink.Route{LinkIndex: index, Dst: everything, Gw: gateway()}); err != nil {
		return fmt.Errorf("add default route: %w", err)
	}
	return nil
}

func (p *podLink) configureOutside(outside, inside netlink.Link) error {
	if err := p.filter(); err != nil {
		return err
	}
	if err := p.node.link.LinkSetUp(outside); err != nil {
		return fmt.Errorf("set device up: %w", err)
	}
	// For people who look at the devices. It is a sign as well: see linkDisturbs.
	if alias := "balsa pod " + p.uid; outside.Attrs().Alias != alias {
		if err := p.node.link.LinkSetAlias(outside, alias); err != nil {
			return fmt.Errorf("set alias: %w", err)
		}
	}
	index, ip := outside.Attrs().Index, net.IP(p.addr.AsSlice())
	if err := p.node.link.NeighSet(&netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: ip, HardwareAddr: inside.Attrs().HardwareAddr}); err != nil {
		return fmt.Errorf("add neighbour: %w", err)
	}
	if err := p.node.link.RouteReplace(p.node.podRoute(p.addr, index)); err != nil {
		return fmt.Errorf("add route to pod: %w", err)
	}
	return nil
}

// filter comes before the device is up.
func (p *podLink) filter() error {
	m := &mending{}
	p.node.mendSettings(m, podSettings(p.device))
	return errors.Join(m.errs...)
}
