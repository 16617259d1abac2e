package apiserver

import (
	"crypto/rand"
	"fmt"
	"net/netip"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/store"
)

// InitCommand is the first command of a cluster: its record, the namespace
// "default", and the identities that exist already, which are the first server
// and the first admin. It changes nothing in a cluster that has a record.
func InitCommand(record *internalv1.ClusterRecord, identities []*internalv1.IdentityRecord, now time.Time) (*internalv1.Command, error) {
	if err := checkCluster(record); err != nil {
		return nil, err
	}
	c := &change{space: store.SpaceObjects}
	c.expect(keyCluster, 0)
	record = proto.CloneOf(record)
	record.Created = timestamppb.New(now)
	if err := c.putRecord(keyCluster, record); err != nil {
		return nil, err
	}
	if err := c.putDefaultNamespace(now); err != nil {
		return nil, err
	}
	for _, id := range identities {
		id = proto.CloneOf(id)
		id.Created = timestamppb.New(now)
		if err := c.putRecord(identityKey(id.GetRole(), id.GetName()), id); err != nil {
			return nil, err
		}
		if err := c.putRecord(serialPrefix(id.GetRole(), id.GetName())+id.GetSerial(), id); err != nil {
			return nil, err
		}
	}
	return &internalv1.Command{
		Space: c.space, TimeNs: now.UnixNano(),
		Op: &internalv1.Command_Txn{Txn: &internalv1.Txn{Compares: c.compares, Success: c.ops}},
	}, nil
}

func (c *change) putDefaultNamespace(now time.Time) error {
	uid, err := object.NewUID(rand.Reader)
	if err != nil {
		return err
	}
	ns := &balsav1.Namespace{Metadata: &balsav1.ObjectMeta{Name: object.DefaultNamespace}}
	object.Default(ns)
	object.Stamp(ns, uid, now)
	value, err := object.Encode(ns)
	if err != nil {
		return err
	}
	c.put(object.KeyOf(ns), value)
	return nil
}

// checkCluster refuses address ranges that nothing could be claimed from.
func checkCluster(r *internalv1.ClusterRecord) error {
	pods, err := ipv4Prefix("pod CIDR", r.GetPodCidr())
	if err != nil {
		return err
	}
	services, err := ipv4Prefix("service CIDR", r.GetServiceCidr())
	if err != nil {
		return err
	}
	bits := int(r.GetNodePrefix())
	switch {
	case pods.Overlaps(services):
		return fmt.Errorf("pod CIDR %s and service CIDR %s overlap: use ranges of their own", pods, services)
	case services.Bits() > 30:
		return fmt.Errorf("service CIDR %s is too small: at least a /30 is needed", services)
	case bits < pods.Bits() || bits > 30:
		return fmt.Errorf("node prefix /%d does not fit: /%d to /30 are possible within pod CIDR %s", bits, pods.Bits(), pods)
	case r.GetClusterId() == "":
		return fmt.Errorf("the cluster has no id")
	}
	return nil
}

func ipv4Prefix(what, text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return p, fmt.Errorf("%s: %w", what, err)
	}
	if !p.Addr().Is4() || p != p.Masked() {
		return p, fmt.Errorf("%s %s: an IPv4 network such as 10.244.0.0/16 is needed; IPv6 does not work yet", what, text)
	}
	return p, nil
}
