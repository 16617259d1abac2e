package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"connectrpc.com/connect"

	"github.com/balsa-run/balsa/gen/balsa/v1/balsav1connect"
	"github.com/balsa-run/balsa/internal/clock"
)

// Defaults and limits of a Client.
const (
	DefaultRetryFor = 15 * time.Second
	MaxMessageBytes = 64 << 20 // of one answer; servers send less

	backoffFirst = 25 * time.Millisecond
	backoffMax   = time.Second
	// A server that says nothing for pingAfter is asked, and given up pingTimeout
	// later, so that a request does not wait for TCP to notice.
	pingAfter   = 2 * time.Second
	pingTimeout = 2 * time.Second
	dialTimeout = 2 * time.Second
)

// Dialer opens a connection to one server, authenticated on both sides.
type Dialer func(ctx context.Context, address string) (net.Conn, error)

// Config tells a Client where the servers are and how to reach them.
type Config struct {
	// Addresses of the API, host:port. At least one.
	Servers []string
	// Dial opens TLS connections with ALPN h2 (see FromFile). Others are refused
	// unless Plain is set.
	Dial Dialer
	// Plain takes connections without TLS: those inside one process, where Dial
	// vouches for both ends.
	Plain bool
	// Pinned keeps to Servers. Without it a Client goes by what servers tell: it
	// sends writes to the one that leads, and, when all of Servers fail, calls to
	// those that were told of.
	Pinned bool
	// RetryFor bounds how long a call is repeated; 0: DefaultRetryFor; negative:
	// never repeated.
	RetryFor time.Duration
	// Clock times the pauses between repetitions; nil: the machine's.
	Clock clock.Clock
	// Logger gets a line for each change of server; nil: nothing is logged.
	Logger *slog.Logger
}

// Client calls the API. It is safe for use by any number of goroutines.
type Client struct {
	// The services as they are, for calls that have no typed form here. They
	// share the failover and the repetitions of everything else.
	Objects balsav1connect.ObjectServiceClient
	Nodes   balsav1connect.NodeServiceClient
	Pods    balsav1connect.PodServiceClient
	Images  balsav1connect.ImageServiceClient
	Network balsav1connect.NetworkServiceClient
	Cluster balsav1connect.ClusterServiceClient

	// The file that FromFile has read, and the cluster it was of.
	file, fileCluster string

	servers   *pool
	transport *http.Transport
	clock     clock.Clock
	retryFor  time.Duration
}

// New makes a Client. It dials nothing yet.
func New(cfg Config) (*Client, error) {
	if len(cfg.Servers) == 0 {
		return nil, errors.New("client: no servers: give at least one address host:port")
	}
	if cfg.Dial == nil {
		return nil, errors.New("client: no Dial: use FromFile, or say how servers are reached")
	}
	for _, server := range cfg.Servers {
		if _, _, err := net.SplitHostPort(server); err != nil {
			return nil, fmt.Errorf("client: server %q is not host:port: %w", server, err)
		}
	}
	cfg = cfg.withDefaults()
	servers := newPool(cfg)
	transport := newTransport(cfg)
	return assemble(cfg, servers, transport), nil
}

func (cfg Config) withDefaults() Config {
	if cfg.RetryFor == 0 {
		cfg.RetryFor = DefaultRetryFor
	}
	if cfg.Clock == nil {
		cfg.Clock = clock.Real{}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return cfg
}

func assemble(cfg Config, servers *pool, transport *http.Transport) *Client {
	doer := &http.Client{Transport: &balancer{servers: servers, next: transport}}
	base := "http://" + anyServer // what Dial returns is encrypted already
	options := []connect.ClientOption{
		connect.WithGRPC(),
		connect.WithReadMaxBytes(MaxMessageBytes),
		connect.WithInterceptors(&retrier{servers: servers, clock: cfg.Clock, retryFor: cfg.RetryFor}),
	}
	return &Client{
		Objects:   balsav1connect.NewObjectServiceClient(doer, base, options...),
		Nodes:     balsav1connect.NewNodeServiceClient(doer, base, options...),
		Pods:      balsav1connect.NewPodServiceClient(doer, base, options...),
		Images:    balsav1connect.NewImageServiceClient(doer, base, options...),
		Network:   balsav1connect.NewNetworkServiceClient(doer, base, options...),
		Cluster:   balsav1connect.NewClusterServiceClient(doer, base, options...),
		servers:   servers,
		transport: transport,
		clock:     cfg.Clock,
		retryFor:  cfg.RetryFor,
	}
}

// SetServers replaces the addresses that were given to New. An empty list
// changes nothing.
func (c *Client) SetServers(addresses []string) { c.servers.set(addresses) }

// Servers returns the addresses in use: those that were given, then those that
// servers told of.
func (c *Client) Servers() []string { return c.servers.known() }

// Close ends the connections that are idle. Calls under way go on.
func (c *Client) Close() { c.transport.CloseIdleConnections() }
