package node

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"net/netip"

	"connectrpc.com/connect"

	"github.com/balsa-run/balsa/dns"
	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/netproxy"
	"github.com/balsa-run/balsa/node/podnet"
	"github.com/balsa-run/balsa/node/runtime"
)

// API is all that the agent knows of the control plane. FromClient makes one of
// the SDK's node service.
type API interface {
	Register(context.Context, *balsav1.RegisterRequest) (*balsav1.RegisterResponse, error)
	Heartbeat(context.Context, *balsav1.HeartbeatRequest) (*balsav1.HeartbeatResponse, error)
	ReportStatus(context.Context, *balsav1.ReportStatusRequest) (*balsav1.ReportStatusResponse, error)
	// Assignments opens the stream; it ends with ctx.
	Assignments(context.Context, *balsav1.AssignmentsRequest) (AssignmentStream, error)
}

// AssignmentStream is one open stream of assignments.
type AssignmentStream interface {
	// Recv waits for a message; io.EOF when the server has ended the stream.
	Recv() (*balsav1.AssignmentsResponse, error)
	Close() error
}

// Runtime is what runs pods.
type Runtime = runtime.Runtime

// Network is the part of podnet.Network that the agent uses: all of it.
type Network interface {
	Setup(ctx context.Context, uid, netnsPath string) (netip.Addr, error)
	Teardown(ctx context.Context, uid string) error
	Addresses() map[string]netip.Addr
	SyncRoutes(ctx context.Context, routes []podnet.NodeRoute) error
	SyncAnnounced(ctx context.Context, addrs []netip.Addr) error
	Scrub(ctx context.Context) (repaired []string, err error)
	NextDisturbance(ctx context.Context) error
	Cleanup(ctx context.Context, living []string) (removed []string, err error)
}

// Proxy makes a node's kernel route service traffic; see netproxy.Kernel.
type Proxy interface {
	Sync(ctx context.Context, r netproxy.Ruleset) (netproxy.Result, error)
	Scrub(ctx context.Context) (netproxy.ScrubReport, error)
	// Forget ends what the kernel still tracks of connections to endpoints that are
	// no more.
	Forget(ctx context.Context, gone []netip.Addr) (int, error)
	// Watch calls changed each time somebody else has touched the rules, until ctx
	// ends.
	Watch(ctx context.Context, changed func()) error
}

// Resolver answers the pods' questions; *dns.Server is one.
type Resolver interface {
	SetZone(z *dns.Zone)
	// SetClients says which pods ask, so that their search domains can be tried
	// for them.
	SetClients(c *dns.Clients)
}

// Disk keeps small files, by names such as "pods/uid". Dir is the real one.
type Disk interface {
	// Read returns fs.ErrNotExist for a file that is not there.
	Read(name string) ([]byte, error)
	// Write replaces a file as a whole, durably, readable by the agent alone.
	Write(name string, data []byte) error
	// Remove deletes a file; one that is not there is no error.
	Remove(name string) error
	// List returns the names of the files in a folder, none if it is not there.
	List(folder string) ([]string, error)
	// Show replaces a file that containers are shown, with a mode that lets them
	// read or write it. It need not be durable.
	Show(name string, data []byte, mode fs.FileMode) error
	// Tail reads the end of a file, at most so many bytes.
	Tail(name string, most int) ([]byte, error)
	// Path is where containers can be shown the file; empty: nowhere.
	Path(name string) string
}

// Machine tells what the node is.
type Machine interface {
	Facts(ctx context.Context) (MachineFacts, error)
}

// MachineFacts is what a node tells about itself when it registers.
type MachineFacts struct {
	MilliCPU    int64
	MemoryBytes int64
	// EphemeralBytes is the disk for what lives as long as pods; 0: not known.
	EphemeralBytes int64
	Info           *balsav1.NodeSystemInfo
}

// ClusterFacts is what a node learns when it registers, and keeps on disk.
type ClusterFacts struct {
	ClusterID string
	// PodCIDR holds this node's pods, ClusterCIDR those of all nodes.
	PodCIDR     netip.Prefix
	ClusterCIDR netip.Prefix
	ServiceCIDR netip.Prefix
	DNSDomain   string
	Servers     []string
}

// Plant is what can only be made once the cluster is known.
type Plant struct {
	Network  Network
	Proxy    Proxy
	Resolver Resolver
	// Connections may be nil: then nobody waits for open connections to finish.
	Connections Connections
}

// NodeService is the part of the generated client that FromClient needs.
type NodeService interface {
	Register(context.Context, *balsav1.RegisterRequest) (*balsav1.RegisterResponse, error)
	Heartbeat(context.Context, *balsav1.HeartbeatRequest) (*balsav1.HeartbeatResponse, error)
	ReportStatus(context.Context, *balsav1.ReportStatusRequest) (*balsav1.ReportStatusResponse, error)
	Assignments(context.Context, *balsav1.AssignmentsRequest) (*connect.ServerStreamForClient[balsav1.AssignmentsResponse], error)
}

// FromClient makes an API of the SDK's client: node.FromClient(c.Nodes).
func FromClient(c NodeService) API { return clientAPI{c} }

type clientAPI struct{ NodeService }

// Assignments implements API.
func (c clientAPI) Assignments(ctx context.Context, req *balsav1.AssignmentsRequest) (AssignmentStream, error) {
	stream, err := c.NodeService.Assignments(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("open assignments: %w", err)
	}
	return clientStream{stream}, nil
}

type clientStream struct {
	stream *connect.ServerStreamForClient[balsav1.AssignmentsResponse]
}

func (s clientStream) Recv() (*balsav1.AssignmentsResponse, error) {
	if s.stream.Receive() {
		return s.stream.Msg(), nil
	}
	if err := s.stream.Err(); err != nil {
		return nil, fmt.Errorf("assignments: %w", err)
	}
	return nil, io.EOF
}

func (s clientStream) Close() error { return s.stream.Close() }
