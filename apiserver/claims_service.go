package apiserver

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/store"
)

// Addresses at the beginning of the service CIDR that no Service gets: the
// network's own, and one for the cluster.
const reservedServiceAddresses = 2

// maxNodePortChanges bounds the node ports that one write claims and gives up
// together: each is an operation of its transaction, of which the store takes 128.
const maxNodePortChanges = 120

// random gives a number below its argument.
type random func(below int64) int64

// claim adds to a write what it must claim, and gives up what the object does not
// use any more: law 9. live is nil for a new object; next is completed with what is
// chosen for it. Both are valid.
func claim(c *change, view store.View, live, next object.Message, draw random) error {
	switch next := next.(type) {
	case *balsav1.Service:
		old, _ := live.(*balsav1.Service)
		return claimService(c, view, old, next, draw)
	case *balsav1.AddressPool:
		return claimPool(c, view, next)
	}
	return nil
}

func claimService(c *change, view store.View, old, next *balsav1.Service, draw random) error {
	if err := claimClusterIP(c, view, old, next, draw); err != nil {
		return err
	}
	if err := claimNodePorts(c, view, old, next, draw); err != nil {
		return err
	}
	if err := poolAddressFree(view, old, next); err != nil {
		return err
	}
	if old != nil {
		releaseService(c, old, next)
	}
	return nil
}

// releaseService gives up what old has claimed and next, which may be nil, has not.
func releaseService(c *change, old, next *balsav1.Service) {
	var stays []string
	if next != nil {
		stays = object.ServiceClaims(next)
	}
	for _, key := range object.ServiceClaims(old) {
		if !slices.Contains(stays, key) {
			c.remove(key)
		}
	}
}

func refuseService(svc *balsav1.Service, v object.Violation) error {
	return object.Violations{v}.Err(svc)
}

// claimClusterIP chooses an address where none was asked for.
func claimClusterIP(c *change, view store.View, old, next *balsav1.Service, draw random) error {
	want := next.GetSpec().GetClusterIp()
	if !object.HasClusterIP(next.GetSpec()) || want == object.ClusterIPNone || want != "" && want == old.GetSpec().GetClusterIp() {
		return nil
	}
	record, err := clusterRecord(view)
	if err != nil {
		return err
	}
	cidr, err := netip.ParsePrefix(record.GetServiceCidr())
	if err != nil {
		return fmt.Errorf("service CIDR of the cluster: %w", err)
	}
	ip, err := chooseClusterIP(view, cidr, next, draw)
	if err != nil {
		return err
	}
	next.Spec.ClusterIp = ip.String()
	next.Spec.ClusterIps = []string{next.Spec.ClusterIp}
	c.claim(object.ClaimClusterIP(ip), next)
	return nil
}

// claim puts a key that must not be there yet.
func (c *change) claim(key string, owner object.Message) {
	c.expect(key, 0)
	c.put(key, []byte(object.KeyOf(owner)))
}

func chooseClusterIP(view store.View, cidr netip.Prefix, svc *balsav1.Service, draw random) (netip.Addr, error) {
	usable, ok := usableAddresses(cidr)
	if want := svc.GetSpec().GetClusterIp(); want != "" {
		return namedClusterIP(view, cidr, usable, svc)
	}
	if !ok {
		return netip.Addr{}, overLimit("service CIDR "+cidr.String(), 0, "make a cluster with a larger one", "there is no address for services")
	}
	taken := func(ip netip.Addr) bool { _, taken := view.Get(object.ClaimClusterIP(ip)); return taken }
	ip, ok := object.ChooseAddress([]object.AddressRange{usable}, taken, draw)
	if !ok {
		return ip, overLimit("service CIDR "+cidr.String(), usable.Size(), "delete services that are not needed", "every cluster IP is taken")
	}
	return ip, nil
}

// usableAddresses leaves out the reserved ones, and the last, which is the
// broadcast address by convention.
func usableAddresses(cidr netip.Prefix) (object.AddressRange, bool) {
	all := object.RangeOf(cidr)
	if all.Size() <= reservedServiceAddresses+1 {
		return object.AddressRange{}, false
	}
	return object.AddressRange{First: all.At(reservedServiceAddresses), Last: all.At(all.Size() - 2)}, true
}

func namedClusterIP(view store.View, cidr netip.Prefix, usable object.AddressRange, svc *balsav1.Service) (netip.Addr, error) {
	v := object.Violation{Field: "spec.clusterIP", Found: svc.GetSpec().GetClusterIp(), Hint: "leave it empty: the server chooses one"}
	ip, err := netip.ParseAddr(svc.GetSpec().GetClusterIp())
	if err != nil {
		return ip, fmt.Errorf("cluster IP of %s: %w", object.Describe(svc), err)
	}
	if !usable.Contains(ip) {
		v.Message, v.Allowed = "is outside of the cluster's service CIDR, or reserved", "an address of "+cidr.String()+" but for its first and last"
		return ip, refuseService(svc, v)
	}
	if kv, taken := view.Get(object.ClaimClusterIP(ip)); taken {
		v.Message, v.Allowed = fmt.Sprintf("belongs to %s", kv.Value), "an address that is free"
		return ip, refuseService(svc, v)
	}
	return ip, nil
}

// claimNodePorts chooses ports where the type needs them and none are given.
func claimNodePorts(c *change, view store.View, old, next *balsav1.Service, draw random) error {
	had := object.NodePorts(old)
	p := portChooser{view: view, had: had, mine: object.NodePorts(next), svc: next, draw: draw}
	if err := p.check(); err != nil {
		return err
	}
	if object.NeedsNodePorts(next.GetSpec()) {
		if err := p.fill(); err != nil {
			return err
		}
	}
	now := object.NodePorts(next)
	changes := 0
	for _, port := range now {
		if !slices.Contains(had, port) {
			c.claim(object.ClaimNodePort(port), next)
			changes++
		}
	}
	for _, port := range had {
		if !slices.Contains(now, port) {
			changes++
		}
	}
	if changes > maxNodePortChanges {
		return overLimit("maxNodePortChanges", maxNodePortChanges, "change some of the ports now, and the others in a second step",
			"the write claims and gives up %d node ports", changes)
	}
	return nil
}

// portChooser gives a Service its node ports.
type portChooser struct {
	view store.View
	// had are those of the Service that is replaced, mine those that it keeps, was
	// given or asks for.
	had, mine []object.NodePort
	svc       *balsav1.Service
	draw      random
}

// holder tells who else has a port.
func (p *portChooser) holder(port object.NodePort) (string, bool) {
	if slices.Contains(p.had, port) {
		return "", false
	}
	kv, taken := p.view.Get(object.ClaimNodePort(port))
	return string(kv.Value), taken
}

// check refuses ports that were asked for and that others have.
func (p *portChooser) check() error {
	var found object.Violations
	for i, port := range p.svc.GetSpec().GetPorts() {
		number := object.NodePort{Port: port.GetNodePort(), Protocol: port.GetProtocol()}
		if holder, taken := p.holder(number); number.Port != 0 && taken {
			found = append(found, object.Violation{
				Field: fmt.Sprintf("spec.ports[%d].nodePort", i), Message: "belongs to " + holder, Found: strconv.Itoa(int(number.Port)) + "/" + number.Protocol,
				Allowed: "a port that is free", Hint: "leave it out: the server chooses one",
			})
		}
	}
	return found.Err(p.svc)
}

// fill chooses. Ports of one number and several protocols get one node port, as in
// Kubernetes, so that a name server's clients need to know one.
func (p *portChooser) fill() error {
	for _, port := range p.svc.GetSpec().GetPorts() {
		if port.GetNodePort() != 0 {
			continue
		}
		number, ok := p.sibling(port)
		if !ok {
			number, ok = p.choose(port)
		}
		if !ok {
			r := object.NodePortRange()
			return overLimit(fmt.Sprintf("node ports %d to %d", r.First, r.Last), r.Size(), "delete services of type NodePort or LoadBalancer, or set allocateLoadBalancerNodePorts: false",
				"every node port of protocol %s is taken", port.GetProtocol())
		}
		port.NodePort = proto.Int32(number)
		p.mine = append(p.mine, object.NodePort{Port: number, Protocol: port.GetProtocol()})
	}
	return nil
}

// sibling is the node port of a port with the same number.
func (p *portChooser) sibling(port *balsav1.ServicePort) (int32, bool) {
	for _, other := range p.svc.GetSpec().GetPorts() {
		if other.GetPort() == port.GetPort() && other.GetNodePort() != 0 && p.free(other.GetNodePort(), port.GetProtocol()) {
			return other.GetNodePort(), true
		}
	}
	return 0, false
}

func (p *portChooser) free(number int32, protocols ...string) bool {
	for _, protocol := range protocols {
		port := object.NodePort{Port: number, Protocol: protocol}
		if _, taken := p.holder(port); taken || slices.Contains(p.mine, port) {
			return false
		}
	}
	return true
}

// choose draws from the part of the range that is the server's, and from the rest
// once that is full.
func (p *portChooser) choose(port *balsav1.ServicePort) (int32, bool) {
	var protocols []string
	for _, other := range p.svc.GetSpec().GetPorts() {
		if other.GetPort() == port.GetPort() && other.GetNodePort() == 0 {
			protocols = append(protocols, other.GetProtocol())
		}
	}
	for _, wanted := range [][]string{protocols, {port.GetProtocol()}} {
		for _, r := range []object.PortRange{object.ChosenNodePorts(), object.NodePortRange()} {
			if number, ok := drawPort(r, p.draw, func(n int32) bool { return p.free(n, wanted...) }); ok {
				return number, true
			}
		}
	}
	return 0, false
}

// portDraws is how many random ports are tried before all are.
const portDraws = 64

func drawPort(r object.PortRange, draw random, free func(int32) bool) (int32, bool) {
	at := func(i int64) int32 { return r.First + int32(i%r.Size()) }
	for range portDraws {
		if n := at(draw(r.Size())); free(n) {
			return n, true
		}
	}
	for start, i := draw(r.Size()), int64(0); i < r.Size(); i++ {
		if n := at(start + i); free(n) {
			return n, true
		}
	}
	return 0, false
}

// poolAddressFree refuses a load balancer's address that is asked for anew and that
// another Service has. reconciler/addresses claims it; which pool has it, and
// whether one has, is known there only.
func poolAddressFree(view store.View, old, next *balsav1.Service) error {
	want := next.GetSpec().GetLoadBalancerIp()
	if want == "" || !object.WantsPoolAddress(next) || object.WantsPoolAddress(old) && old.GetSpec().GetLoadBalancerIp() == want {
		return nil
	}
	ip, err := netip.ParseAddr(want)
	if err != nil {
		return fmt.Errorf("load balancer IP of %s: %w", object.Describe(next), err)
	}
	kv, taken := view.Get(object.ClaimLoadBalancer(ip))
	if !taken || string(kv.Value) == object.KeyOf(next) {
		return nil
	}
	return refuseService(next, object.Violation{
		Field: "spec.loadBalancerIP", Message: fmt.Sprintf("belongs to %s", kv.Value), Found: want, Allowed: "an address that is free",
		Hint: "leave it empty: an AddressPool's free address is given",
	})
}

// claimPool refuses a pool some of whose addresses are others' already. Two pools
// that are written at the same time meet at one key.
func claimPool(c *change, view store.View, pool *balsav1.AddressPool) error {
	ranges, err := object.PoolRanges(pool)
	if err != nil {
		return err
	}
	others, err := otherRanges(view, pool)
	if err != nil {
		return err
	}
	var found object.Violations
	for i, r := range ranges {
		for _, o := range others {
			if r.Overlaps(o.addresses) {
				found = append(found, object.Violation{
					Field: fmt.Sprintf("spec.addresses[%d]", i), Message: "overlaps with " + o.whose, Found: pool.GetSpec().GetAddresses()[i],
					Allowed: "addresses outside of " + o.addresses.String(),
				})
			}
		}
	}
	if err := found.Err(pool); err != nil {
		return err
	}
	kv, _ := view.Get(object.ClaimAddressPools)
	c.expect(object.ClaimAddressPools, kv.ModRevision)
	c.put(object.ClaimAddressPools, []byte(object.KeyOf(pool)))
	return nil
}

// owned are addresses that a pool cannot have.
type owned struct {
	addresses object.AddressRange
	whose     string
}

func otherRanges(view store.View, pool *balsav1.AddressPool) ([]owned, error) {
	record, err := clusterRecord(view)
	if err != nil {
		return nil, err
	}
	var out []owned
	for _, cidr := range []struct{ text, whose string }{{record.GetPodCidr(), "the cluster's pod CIDR"}, {record.GetServiceCidr(), "the cluster's service CIDR"}} {
		p, err := netip.ParsePrefix(cidr.text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", cidr.whose, err)
		}
		out = append(out, owned{object.RangeOf(p), cidr.whose + " " + p.String()})
	}
	for kv := range view.Prefix(object.Prefix(object.KindOf(pool), "")) {
		if kv.Key == object.KeyOf(pool) {
			continue
		}
		other, err := messageOf(kv)
		if err != nil {
			return nil, err
		}
		ranges, err := object.PoolRanges(other.(*balsav1.AddressPool))
		if err != nil {
			return nil, err
		}
		for _, r := range ranges {
			out = append(out, owned{r, object.Describe(other) + ", which has " + r.String()})
		}
	}
	return out, nil
}
