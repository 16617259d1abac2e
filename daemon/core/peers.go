package core

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/gen/balsainternal/v1/internalv1connect"

	"github.com/balsa-run/balsa/cluster"
)

const (
	// A server that says nothing is asked after pingAfter and given up
	// pingTimeout later; raft's own connections have their own time-outs.
	pingAfter   = time.Second
	pingTimeout = time.Second
	maxClients  = 64 // addresses that a cache of clients holds
)

// doer makes an HTTP/2 client all of whose connections come from dial.
func doer(plain bool, dial func(ctx context.Context, address string) (net.Conn, error)) (client *http.Client, base string) {
	open := func(ctx context.Context, _, address string) (net.Conn, error) { return dial(ctx, address) }
	transport := &http.Transport{
		ForceAttemptHTTP2: true,
		HTTP2:             &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
	}
	if plain {
		transport.DialContext = open
		transport.Protocols = new(http.Protocols)
		transport.Protocols.SetUnencryptedHTTP2(true)
		return &http.Client{Transport: transport}, "http://"
	}
	transport.DialTLSContext = open
	return &http.Client{Transport: transport}, "https://"
}

// peers calls PeerService on other servers. It is cluster.Peers.
type peers struct {
	http  *http.Client
	calls *http.Client // the same, and says who calls
	base  string

	mu      sync.Mutex
	clients map[string]internalv1connect.PeerServiceClient // guarded by mu; by address
}

func newPeers(network Network, id string) *peers {
	p := &peers{clients: map[string]internalv1connect.PeerServiceClient{}}
	p.http, p.base = doer(network.Plain(), network.DialServer)
	p.calls = &http.Client{Transport: asking{p.http.Transport, id}}
	return p
}

// at returns the client for an address. Addresses are few; when they are many,
// because servers came and went, the cache starts anew.
func (p *peers) at(address string) internalv1connect.PeerServiceClient {
	p.mu.Lock()
	defer p.mu.Unlock()
	if client, ok := p.clients[address]; ok {
		return client
	}
	if len(p.clients) >= maxClients {
		clear(p.clients)
	}
	client := internalv1connect.NewPeerServiceClient(p.calls, p.base+address, connect.WithGRPC())
	p.clients[address] = client
	return client
}

func (p *peers) Propose(ctx context.Context, address string, request *internalv1.ProposeRequest) (*internalv1.ProposeResponse, error) {
	response, err := p.at(address).Propose(ctx, request)
	return response, cluster.FromConnect(err)
}

func (p *peers) ProposeMany(ctx context.Context, address string, request *internalv1.ProposeManyRequest) (*internalv1.ProposeManyResponse, error) {
	response, err := p.at(address).ProposeMany(ctx, request)
	return response, cluster.FromConnect(err)
}

func (p *peers) ReadIndex(ctx context.Context, address string, request *internalv1.ReadIndexRequest) (*internalv1.ReadIndexResponse, error) {
	response, err := p.at(address).ReadIndex(ctx, request)
	return response, cluster.FromConnect(err)
}

func (p *peers) Confirm(ctx context.Context, address string, request *internalv1.ConfirmRequest) (*internalv1.ConfirmResponse, error) {
	response, err := p.at(address).Confirm(ctx, request)
	return response, cluster.FromConnect(err)
}

func (p *peers) State(ctx context.Context, address string, request *internalv1.StateRequest) (*internalv1.StateResponse, error) {
	response, err := p.at(address).State(ctx, request)
	return response, refusal(cluster.FromConnect(err))
}

// refusal recognises a server that does not take this one's certificate: it says
// so on a connection that was open before, and by an alert of TLS on another.
func refusal(err error) error {
	var remote *net.OpError
	if errors.As(err, &remote) && remote.Op == "remote error" && strings.Contains(remote.Err.Error(), "certificate") {
		return &cluster.Error{Class: cluster.NotApplied, Reason: cluster.ReasonIdentity, Err: err}
	}
	return err
}

func (p *peers) close() { p.http.CloseIdleConnections() }
