package core

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"

	"connectrpc.com/connect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/gen/balsainternal/v1/internalv1connect"

	"github.com/balsa-run/balsa/cluster"
)

// edge is the raft group as the API server sees it: apiserver.Backend and
// apiserver.Peer. Errors leave it with their class and the leader's address in a
// form that survives the wire.
type edge struct{ cluster *cluster.Cluster }

func (e edge) Propose(ctx context.Context, command *internalv1.Command) (*internalv1.CommandResult, error) {
	result, err := e.cluster.Propose(ctx, command)
	return result, cluster.ToConnect(err)
}

func (e edge) ReadBarrier(ctx context.Context) error {
	_, err := e.cluster.ReadIndex(ctx)
	return cluster.ToConnect(err)
}

func (e edge) ServePropose(ctx context.Context, request *internalv1.ProposeRequest) (*internalv1.ProposeResponse, error) {
	response, err := e.cluster.ServePropose(ctx, request)
	return response, cluster.ToConnect(err)
}

func (e edge) ServeProposeMany(ctx context.Context, request *internalv1.ProposeManyRequest) (*internalv1.ProposeManyResponse, error) {
	response, err := e.cluster.ServeProposeMany(ctx, request)
	return response, cluster.ToConnect(err)
}

func (e edge) ServeReadIndex(ctx context.Context, request *internalv1.ReadIndexRequest) (*internalv1.ReadIndexResponse, error) {
	response, err := e.cluster.ServeReadIndex(ctx, request)
	return response, cluster.ToConnect(err)
}

func (e edge) ServeConfirm(ctx context.Context, request *internalv1.ConfirmRequest) (*internalv1.ConfirmResponse, error) {
	response, err := e.cluster.ServeConfirm(ctx, request)
	return response, cluster.ToConnect(err)
}

func (e edge) ServeState(ctx context.Context, request *internalv1.StateRequest) (*internalv1.StateResponse, error) {
	if err := e.cluster.Expelled(ctx, askerOf(ctx)); err != nil {
		return nil, cluster.ToConnect(err)
	}
	response, err := e.cluster.ServeState(ctx, request)
	return response, cluster.ToConnect(err)
}

// noLeader is what a server says when it cannot hand something to a leader.
func noLeader(reason cluster.Reason, text string) error {
	return cluster.ToConnect(&cluster.Error{Class: cluster.NotApplied, Reason: reason, Err: errors.New(text)})
}

// beater keeps leases; the reconciler of nodes has them while this server leads.
type beater interface {
	Beat(ctx context.Context, beat *balsav1.HeartbeatRequest) (*balsav1.HeartbeatResponse, error)
}

// whileLeading holds what counts leases in this server's memory: only a leader does.
type whileLeading[T any] struct {
	leases atomic.Pointer[T] // nil unless this server leads
}

func (w *whileLeading[T]) set(leases T) { w.leases.Store(&leases) }

func (w *whileLeading[T]) unset() { w.leases.Store(nil) }

func (w *whileLeading[T]) get() (T, error) {
	if leases := w.leases.Load(); leases != nil {
		return *leases, nil
	}
	var none T
	return none, noLeader(cluster.ReasonNotLeader, "this server does not lead; leases are the leader's")
}

// localBeats are heartbeats that this server takes itself: while it leads.
type localBeats struct{ whileLeading[beater] }

func (l *localBeats) Beat(ctx context.Context, beat *balsav1.HeartbeatRequest) (*balsav1.HeartbeatResponse, error) {
	leases, err := l.get()
	if err != nil {
		return nil, err
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
		return nil, noLeader(cluster.ReasonNoLeader, "no server leads at this moment")
	}
	response, err := b.peers.at(status.LeaderAddress).Heartbeat(ctx, &internalv1.HeartbeatRequest{Heartbeat: beat})
	if err != nil {
		return nil, err
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
