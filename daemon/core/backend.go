package core

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"

	"connectrpc.com/connect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/gen/balsainternal/v1/internalv1connect"

	"github.com/balsa-run/balsa/cluster"
)

// backend is apiserver.Backend over the raft group.
type backend struct{ *cluster.Cluster }

func (b backend) ReadBarrier(ctx context.Context) error {
	_, err := b.ReadIndex(ctx)
	return err
}

// beater keeps leases; the reconciler of nodes has them while this server leads.
type beater interface {
	Beat(ctx context.Context, beat *balsav1.HeartbeatRequest) (*balsav1.HeartbeatResponse, error)
}

// localBeats are heartbeats that this server takes itself: while it leads.
type localBeats struct {
	mu     sync.Mutex
	leases beater // guarded by mu; nil unless this server leads
}

func (l *localBeats) set(leases beater) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leases = leases
}

func (l *localBeats) Beat(ctx context.Context, beat *balsav1.HeartbeatRequest) (*balsav1.HeartbeatResponse, error) {
	l.mu.Lock()
	leases := l.leases
	l.mu.Unlock()
	if leases == nil {
		return nil, &cluster.Error{Class: cluster.NotApplied, Reason: cluster.ReasonNotLeader, Err: fmt.Errorf("this server does not lead; leases are the leader's")}
	}
	return leases.Beat(ctx, beat)
}

// beats takes a heartbeat here, or hands it to the leader.
type beats struct {
	local   *localBeats
	cluster *cluster.Cluster
	peers   *peers
}

func (b *beats) Beat(ctx context.Context, beat *balsav1.HeartbeatRequest) (*balsav1.HeartbeatResponse, error) {
	status := b.cluster.Status()
	if status.Leading != 0 {
		return b.local.Beat(ctx, beat)
	}
	if status.LeaderAddress == "" || status.LeaderID == status.ID {
		return nil, &cluster.Error{Class: cluster.NotApplied, Reason: cluster.ReasonNoLeader, Err: fmt.Errorf("no server leads at this moment")}
	}
	response, err := b.peers.at(status.LeaderAddress).Heartbeat(ctx, &internalv1.HeartbeatRequest{Heartbeat: beat})
	if err != nil {
		return nil, cluster.FromConnect(err)
	}
	return response.GetHeartbeat(), nil
}

// agents is apiserver.Nodes: it reaches the agent of a node where the node says
// that it listens.
type agents struct{ network Network }

func (a agents) Agent(_ context.Context, node *balsav1.Node) (internalv1connect.AgentServiceClient, error) {
	name := node.GetMetadata().GetName()
	address := agentAddress(node)
	if address == "" {
		return nil, fmt.Errorf("node %s: status has no InternalIP or no port of its agent", name)
	}
	client, base := doer(a.network.Plain(), func(ctx context.Context, address string) (net.Conn, error) {
		return a.network.DialAgent(ctx, name, address)
	})
	// Calls are few and each may be to another node: no connection is kept.
	client.Transport.(*http.Transport).DisableKeepAlives = true
	return internalv1connect.NewAgentServiceClient(client, base+address, connect.WithGRPC()), nil
}

func agentAddress(node *balsav1.Node) string {
	port := node.GetStatus().GetDaemonEndpoints().GetKubeletEndpoint().GetPort()
	for _, address := range node.GetStatus().GetAddresses() {
		if address.GetType() == "InternalIP" && port != 0 {
			return net.JoinHostPort(address.GetAddress(), strconv.Itoa(int(port)))
		}
	}
	return ""
}
