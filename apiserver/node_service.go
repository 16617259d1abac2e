package apiserver

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"net/netip"
	"time"

	"connectrpc.com/connect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/pki"
	"github.com/balsa-run/balsa/store"
)

// nodeService is balsa.v1.NodeService: node_assignments.go is the way out,
// node_report.go the way back.
type nodeService struct{ *Server }

// LeaseTimes is what nodes are told about their heartbeats.
type LeaseTimes struct {
	// Interval is how often a node beats.
	Interval time.Duration
	// Duration without a beat means that the node is lost.
	Duration time.Duration
}

func (l LeaseTimes) valid() bool { return l.Interval > 0 && l.Duration > l.Interval }

// ownNode refuses an agent that speaks for another node than its own.
func ownNode(ctx context.Context, name string) error {
	id, _ := pki.IdentityFrom(ctx)
	kind, _ := object.KindByName("Node")
	about(ctx, keyOf(kind, "", clip(name)))
	if name == "" {
		return invalid("nodeName", "give the name in the agent's certificate", "it is empty")
	}
	if id.Role == pki.RoleServer || id.Role == pki.RoleAgent && id.Name == name {
		return nil
	}
	return &problem{
		code: connect.CodePermissionDenied, reason: "OtherNode", object: keyOf(kind, "", clip(name)),
		hint: "an agent's certificate is for the node of its own name",
		err:  fmt.Errorf("%s may not speak for node %q", id, clip(name)),
	}
}

// Register makes or updates the Node of an agent. A node keeps its pod CIDR for
// as long as its Node exists.
func (n nodeService) Register(ctx context.Context, req *balsav1.RegisterRequest) (*balsav1.RegisterResponse, error) {
	name := req.GetNode().GetMetadata().GetName()
	if err := ownNode(ctx, name); err != nil {
		return nil, err
	}
	c, err := n.write(ctx, store.SpaceObjects, false, func(view store.View, now time.Time) (*change, error) {
		return n.planRegister(view, req.GetNode(), now)
	})
	if err != nil {
		return nil, err
	}
	info, err := n.clusterInfo()
	if err != nil {
		return nil, err
	}
	n.finishWrite(ctx, c, false)
	return &balsav1.RegisterResponse{Node: c.result.(*balsav1.Node), Cluster: info}, nil
}

func (n nodeService) planRegister(view store.View, said *balsav1.Node, now time.Time) (*change, error) {
	record, err := clusterRecord(view)
	if err != nil {
		return nil, err
	}
	if err := apart(record, said); err != nil {
		return nil, err
	}
	kind := object.KindOf(said)
	c := &change{space: kind.Space}
	kv, known := view.Get(object.Key(kind, "", said.GetMetadata().GetName()))
	c.expect(object.Key(kind, "", said.GetMetadata().GetName()), kv.ModRevision)
	if !known {
		return n.newNode(c, view, record, said, now)
	}
	m, err := messageOf(kv)
	if err != nil {
		return nil, err
	}
	return n.knownNode(c, view, record, m.(*balsav1.Node), said, now)
}

// apart refuses a node whose own address the cluster gives to others: what is
// sent to it would be taken for a Service's, or routed to a pod.
func apart(record *internalv1.ClusterRecord, said *balsav1.Node) error {
	for _, own := range []struct{ what, flag, cidr string }{
		{"service", "--service-cidr", record.GetServiceCidr()}, {"pod", "--pod-cidr", record.GetPodCidr()},
	} {
		taken, err := netip.ParsePrefix(own.cidr)
		if err != nil {
			return fmt.Errorf("the cluster's %s CIDR: %w", own.what, err)
		}
		for i, address := range said.GetStatus().GetAddresses() {
			if ip, err := netip.ParseAddr(address.GetAddress()); err == nil && taken.Contains(ip) {
				return invalid(fmt.Sprintf("status.addresses[%d]", i), "give the node another address with --node-ip, or make the cluster with another "+own.flag,
					"%s lies in the cluster's %s CIDR %s", ip, own.what, taken)
			}
		}
	}
	return nil
}

func (n nodeService) newNode(c *change, view store.View, record *internalv1.ClusterRecord, said *balsav1.Node, now time.Time) (*change, error) {
	uid, err := object.NewUID(rand.Reader)
	if err != nil {
		return nil, err
	}
	taints, err := firstTaints(said.GetSpec().GetTaints())
	if err != nil {
		return nil, err
	}
	node := &balsav1.Node{
		Metadata: &balsav1.ObjectMeta{Name: said.GetMetadata().GetName(), Labels: maps.Clone(said.GetMetadata().GetLabels())},
		Spec:     &balsav1.NodeSpec{Taints: taints},
		Status:   object.Clone(said).GetStatus(),
	}
	if node.Status != nil {
		node.Status.Conditions = mergeConditions(nil, node.Status.GetConditions(), now)
	}
	if node.Spec.PodCidr, err = claimPodCIDR(c, view, record, node.Metadata.Name); err != nil {
		return nil, err
	}
	object.Default(node)
	object.Stamp(node, uid, now)
	if err := object.Validate(node, object.System).Err(node); err != nil {
		return nil, err
	}
	c.result, c.outcome = node, outcomeCreated
	return c, n.putObject(c, node)
}

// knownNode takes what the agent says over: its labels beside those that users
// gave, and its status but for the conditions that servers write.
func (n nodeService) knownNode(c *change, view store.View, record *internalv1.ClusterRecord, live, said *balsav1.Node, now time.Time) (*change, error) {
	next := object.Clone(live)
	meta := object.EnsureMetadata(next)
	if meta.Labels == nil && len(said.GetMetadata().GetLabels()) > 0 {
		meta.Labels = map[string]string{}
	}
	maps.Copy(meta.Labels, said.GetMetadata().GetLabels())
	next.Status = object.Clone(said).GetStatus()
	if conditions := mergeConditions(live.GetStatus().GetConditions(), said.GetStatus().GetConditions(), now); len(conditions) > 0 {
		if next.Status == nil {
			next.Status = &balsav1.NodeStatus{}
		}
		next.Status.Conditions = conditions
	}
	if next.GetSpec().GetPodCidr() == "" {
		cidr, err := claimPodCIDR(c, view, record, meta.Name)
		if err != nil {
			return nil, err
		}
		if next.Spec == nil {
			next.Spec = &balsav1.NodeSpec{}
		}
		next.Spec.PodCidr = cidr
	}
	object.Default(next)
	object.BumpGeneration(live, next)
	c.result, c.outcome = next, outcomeConfigured
	if object.Same(live, next) {
		c.compares, c.outcome = nil, outcomeUnchanged
		return c, nil
	}
	if err := object.ValidateUpdate(live, next, object.System).Err(next); err != nil {
		return nil, err
	}
	return c, n.putObject(c, next)
}

// clusterInfo is what a node needs to know of the cluster.
func (n nodeService) clusterInfo() (*balsav1.ClusterInfo, error) {
	record, err := clusterRecord(n.store.Space(store.SpaceObjects).View())
	if err != nil {
		return nil, err
	}
	servers, _ := n.members.Addresses()
	return &balsav1.ClusterInfo{
		ClusterId:           record.GetClusterId(),
		PodCidr:             record.GetPodCidr(),
		ServiceCidr:         record.GetServiceCidr(),
		DnsDomain:           record.GetDnsDomain(),
		Servers:             servers,
		HeartbeatIntervalMs: n.lease.Interval.Milliseconds(),
		LeaseDurationMs:     n.lease.Duration.Milliseconds(),
	}, nil
}

// Heartbeat renews a lease, and tells each time whose certificates are refused:
// the list is short, and an agent need not say what it knows. A node that is not there is told to register, after
// a look at the newest state: a server that lags must not send nodes away.
func (n nodeService) Heartbeat(ctx context.Context, req *balsav1.HeartbeatRequest) (*balsav1.HeartbeatResponse, error) {
	if err := ownNode(ctx, req.GetNodeName()); err != nil {
		return nil, err
	}
	kind, _ := object.KindByName("Node")
	key, space := object.Key(kind, "", req.GetNodeName()), n.store.Space(kind.Space)
	if _, known := space.View().Get(key); !known {
		if err := n.barrier(ctx); err != nil {
			return nil, err
		}
	}
	if _, known := space.View().Get(key); !known {
		return &balsav1.HeartbeatResponse{Register: true, LeaseDurationMs: n.lease.Duration.Milliseconds(), Removed: n.told.Load()}, nil
	}
	response, err := n.heartbeats.Beat(ctx, req)
	if err != nil {
		return nil, err
	}
	response.Removed = n.told.Load()
	return response, nil
}
