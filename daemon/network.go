package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"syscall"
	"time"

	"github.com/balsa-run/balsa/pki"
)

const dialTimeout = 2 * time.Second

// network is core.Network over mutual TLS on one port.
type network struct {
	demux   *demux
	options pki.TLSOptions
	cluster string
	dialer  *net.Dialer
}

// listen opens the port of a server.
func listen(ctx context.Context, address string, options pki.TLSOptions, logger *slog.Logger) (*network, error) {
	raw, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w; is another server running here, or is the address not this machine's?", address, err)
	}
	return &network{
		demux:   newDemux(raw, pki.ServerTLS(options), logger),
		options: options,
		cluster: options.Credentials.Current().ClusterID(),
		dialer:  &net.Dialer{Timeout: dialTimeout},
	}, nil
}

func (n *network) API() net.Listener  { return n.demux.routes[pki.ProtoHTTP2] }
func (n *network) Join() net.Listener { return n.demux.routes[pki.ProtoJoin] }
func (n *network) Raft() net.Listener { return n.demux.routes[pki.ProtoRaft] }
func (n *network) Plain() bool        { return false }

func (n *network) Identify(conn net.Conn) (pki.Identity, bool) {
	secured, ok := conn.(*tls.Conn)
	if !ok {
		return pki.Identity{}, false
	}
	identity, err := pki.IdentityOf(secured.ConnectionState(), n.cluster)
	return identity, err == nil
}

func (n *network) DialServer(ctx context.Context, address string) (net.Conn, error) {
	return pki.Dial(ctx, n.dialer, address, pki.PeerClientTLS(n.options, ""))
}

func (n *network) DialRaft(address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return pki.Dial(ctx, n.dialer, address, pki.RaftClientTLS(n.options, ""))
}

func (n *network) DialAgent(ctx context.Context, node, address string) (net.Conn, error) {
	return pki.Dial(ctx, n.dialer, address, pki.AgentClientTLS(n.options, node))
}

func (n *network) Answers(ctx context.Context, address string) bool {
	conn, err := n.dialer.DialContext(ctx, "tcp", address)
	if err == nil {
		_ = conn.Close()
	}
	return err == nil || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET)
}

func (n *network) Close() error { return n.demux.Close() }
