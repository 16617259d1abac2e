package apiserver

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/store"
)

const keyCluster = object.PrefixSystem + "cluster"

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
		part := netip.PrefixFrom(object.RangeOf(pods).At(i<<(32-bits)), bits)
		if _, taken := view.Get(object.ClaimPodCIDR(part)); taken {
			continue
		}
		nodeKind, _ := object.KindByName("Node")
		c.expect(object.ClaimPodCIDR(part), 0)
		c.put(object.ClaimPodCIDR(part), []byte(object.Key(nodeKind, "", node)))
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
	c.remove(object.ClaimPodCIDR(p))
	return nil
}
