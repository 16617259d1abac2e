package apiserver

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/store"
)

// Claims are keys that say who has an address: law 9. They are written in the
// transaction of the object that uses the address, on the condition that they
// did not exist, so that two objects never have the same one.
const (
	prefixClusterIP = object.PrefixClaims + "clusterip/"
	prefixPodCIDR   = object.PrefixClaims + "podcidr/"
	keyCluster      = object.PrefixSystem + "cluster"
)

// Addresses at the beginning of the service CIDR that no Service gets: the
// network's own, and one for the cluster.
const reservedServiceAddresses = 2

// addressDraws is how many random addresses are tried before all are.
const addressDraws = 64

func clusterIPKey(ip netip.Addr) string { return prefixClusterIP + ip.String() }

func podCIDRKey(p netip.Prefix) string {
	return prefixPodCIDR + strings.ReplaceAll(p.String(), "/", "_")
}

// clusterRecord is what the cluster was initialised with.
func clusterRecord(view store.View) (*internalv1.ClusterRecord, error) {
	record := &internalv1.ClusterRecord{}
	found, err := readRecord(view, keyCluster, record)
	if err != nil {
		return nil, err
	}
	if found == 0 {
		return nil, &problem{
			code: connect.CodeUnavailable, reason: "NotInitialised", applied: notApplied,
			hint: "start one server with --init, or wait until this one has caught up",
			err:  errors.New("the cluster is not initialised yet"),
		}
	}
	return record, nil
}

// readRecord decodes a system record; revision 0: there is none.
func readRecord(view store.View, key string, into proto.Message) (store.Revision, error) {
	kv, ok := view.Get(key)
	if !ok {
		return 0, nil
	}
	if err := proto.Unmarshal(kv.Value, into); err != nil {
		return 0, fmt.Errorf("decode %q: %w", key, err)
	}
	return kv.ModRevision, nil
}

func (c *change) putRecord(key string, record proto.Message) error {
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(record)
	if err != nil {
		return fmt.Errorf("encode %q: %w", key, err)
	}
	c.put(key, value)
	return nil
}

// addressService claims the cluster IP of a Service that is written, choosing
// one where none was asked for, and gives up the one it had. live is nil for a
// new Service.
func (s *Server) addressService(c *change, view store.View, live, next object.Message) error {
	svc, ok := next.(*balsav1.Service)
	if !ok {
		return nil
	}
	had := ""
	if old, ok := live.(*balsav1.Service); ok {
		had = old.GetSpec().GetClusterIp()
	}
	want := svc.GetSpec().GetClusterIp()
	if want == had && want != "" || want == object.ClusterIPNone {
		return s.releaseIP(c, had, want)
	}
	record, err := clusterRecord(view)
	if err != nil {
		return err
	}
	services, err := netip.ParsePrefix(record.GetServiceCidr())
	if err != nil {
		return fmt.Errorf("service CIDR of the cluster: %w", err)
	}
	ip, err := chooseIP(view, services, svc, want)
	if err != nil {
		return err
	}
	svc.Spec.ClusterIp = ip.String()
	c.expect(clusterIPKey(ip), 0)
	c.put(clusterIPKey(ip), []byte(object.KeyOf(svc)))
	return s.releaseIP(c, had, svc.Spec.ClusterIp)
}

// releaseIP gives up the claim on had unless it stays.
func (s *Server) releaseIP(c *change, had, now string) error {
	if had == "" || had == now || had == object.ClusterIPNone {
		return nil
	}
	ip, err := netip.ParseAddr(had)
	if err != nil {
		return fmt.Errorf("cluster IP in the store: %w", err)
	}
	c.remove(clusterIPKey(ip))
	return nil
}

func chooseIP(view store.View, services netip.Prefix, svc *balsav1.Service, want string) (netip.Addr, error) {
	if want == "" {
		return freeIP(view, services)
	}
	refuse := func(found, allowed, format string, args ...any) (netip.Addr, error) {
		v := object.Violation{Field: "spec.clusterIP", Message: fmt.Sprintf(format, args...), Found: found, Allowed: allowed,
			Hint: "leave it empty: the server chooses one"}
		return netip.Addr{}, object.Violations{v}.Err(svc)
	}
	ip, err := netip.ParseAddr(want)
	if err != nil || !ip.Is4() {
		return refuse(fmt.Sprintf("%q", clip(want)), "an IPv4 address, None, or empty", "is not an IPv4 address")
	}
	if n := offsetIn(services, ip); n < reservedServiceAddresses || n >= usable(services) {
		return refuse(want, "an address of "+services.String()+" but for its first and last", "is outside of the cluster's service CIDR, or reserved")
	}
	if kv, taken := view.Get(clusterIPKey(ip)); taken {
		return refuse(want, "an address that is free", "belongs to %s", kv.Value)
	}
	return ip, nil
}

// freeIP draws addresses at random, so that servers that allocate at the same
// time seldom meet, and goes through all of them when the CIDR is nearly full.
func freeIP(view store.View, services netip.Prefix) (netip.Addr, error) {
	span := usable(services) - reservedServiceAddresses
	for i := range addressDraws + span {
		n := i - addressDraws
		if i < addressDraws {
			n = randomBelow(span)
		}
		ip := addressAt(services, reservedServiceAddresses+n)
		if _, taken := view.Get(clusterIPKey(ip)); !taken {
			return ip, nil
		}
	}
	return netip.Addr{}, overLimit("service CIDR "+services.String(), max(span, 0), "delete services that are not needed", "every cluster IP is taken")
}

// usable is the number of addresses before the last, which is the broadcast
// address by convention. Service CIDRs are IPv4 and at least a /30.
func usable(p netip.Prefix) int64 { return 1<<(32-p.Bits()) - 1 }

func addressAt(p netip.Prefix, n int64) netip.Addr {
	base := p.Masked().Addr().As4()
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, binary.BigEndian.Uint32(base[:])+uint32(n))))
}

// offsetIn is the position of an address in a CIDR, -1 outside of it.
func offsetIn(p netip.Prefix, ip netip.Addr) int64 {
	if !p.Contains(ip) {
		return -1
	}
	base, at := p.Masked().Addr().As4(), ip.As4()
	return int64(binary.BigEndian.Uint32(at[:])) - int64(binary.BigEndian.Uint32(base[:]))
}

// randomBelow is good enough for spreading: its bias over 64 bits is nothing.
func randomBelow(n int64) int64 {
	if n <= 1 {
		return 0
	}
	var b [8]byte
	_, _ = rand.Read(b[:])
	return int64(binary.BigEndian.Uint64(b[:]) % uint64(n))
}

// claimPodCIDR finds the lowest free part of the cluster's pod CIDR and claims it
// for a node.
func claimPodCIDR(c *change, view store.View, record *internalv1.ClusterRecord, node string) (string, error) {
	pods, err := netip.ParsePrefix(record.GetPodCidr())
	if err != nil {
		return "", fmt.Errorf("pod CIDR of the cluster: %w", err)
	}
	bits := int(record.GetNodePrefix())
	if bits < pods.Bits() || bits > 32 {
		return "", fmt.Errorf("node prefix /%d does not fit into the pod CIDR %s", bits, pods)
	}
	parts := int64(1) << (bits - pods.Bits())
	for i := range parts {
		part := netip.PrefixFrom(addressAt(pods, i<<(32-bits)), bits)
		if _, taken := view.Get(podCIDRKey(part)); taken {
			continue
		}
		nodeKind, _ := object.KindByName("Node")
		c.expect(podCIDRKey(part), 0)
		c.put(podCIDRKey(part), []byte(object.Key(nodeKind, "", node)))
		return part.String(), nil
	}
	return "", overLimit("pod CIDR "+pods.String(), parts, "delete nodes that are gone for good", "node %q gets no addresses for its pods: every part is taken", node)
}

// releasePodCIDR gives up a node's claim.
func releasePodCIDR(c *change, cidr string) error {
	if cidr == "" {
		return nil
	}
	p, err := netip.ParsePrefix(cidr)
	if err != nil {
		return fmt.Errorf("pod CIDR in the store: %w", err)
	}
	c.remove(podCIDRKey(p))
	return nil
}
