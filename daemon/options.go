// Package daemon is Balsa running: it gives daemon/core and node a disk, a TLS
// port, gossip and real containers, and is the only package that wires rooms
// together. A command is one of three programs:
//
//	RunServer  a server of the control plane
//	RunAgent   a node
//	RunDev     both, in one process
//
// It decides nothing that a cluster could see: settings come from the options,
// everything else from the rooms.
package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/balsa-run/balsa/daemon/core"
	"github.com/balsa-run/balsa/node/podnet"
	"github.com/balsa-run/balsa/pki"
)

// Ports, where nothing else is said.
const (
	DefaultAPIPort    = "7443" // API, joins and raft, told apart by ALPN
	DefaultGossipPort = "7446" // TCP and UDP
	DefaultAgentPort  = "7450" // servers reach the agent here
	DefaultEtcdPort   = "2379" // etcd's own; nothing listens there unless it is asked to
)

// ServerOptions say how a server runs.
type ServerOptions struct {
	Name    string // unique in the cluster; empty: the host's name
	DataDir string
	// Listen is the address of API, joins and raft; Advertise is the one that
	// others use, by default the same, and it must then be a real address.
	Listen, Advertise string
	// Gossip is the address of the gossip; empty: Listen's with port 7446.
	Gossip string
	Etcd   EtcdOptions

	// Init makes a new cluster; otherwise Join and Token lead to one. A server
	// that is part of a cluster ignores all three.
	Init  bool
	Join  []string
	Token string

	// What a new cluster is made with; empty: the defaults.
	PodCIDR, ServiceCIDR, DNSDomain string

	// ScrubEvery is how often the server looks through all that it holds for
	// damage; 0: core.DefaultScrubEvery.
	ScrubEvery time.Duration

	Logger *slog.Logger
}

// AgentOptions say how a node runs.
type AgentOptions struct {
	Name    string // of the node; empty: the host's name
	DataDir string // survives a reboot
	// RunDir does not: network state, opened Secrets, and the pods' folder unless it
	// is a tmpfs; empty: DataDir/run
	RunDir string
	// NodeIP is the address that other nodes and servers reach; empty: the one
	// that leads to the servers.
	NodeIP string
	// Port is where servers reach the agent; empty: 7450.
	Port string
	// Gossip is the port of the gossip; empty: 7446.
	Gossip string
	// CgroupPrefix holds the pods' cgroups; empty: /balsa.
	CgroupPrefix string
	Labels       map[string]string
	// Registries is a file that says how registries are reached; empty: as their
	// names say, by https.
	Registries string
	// NoMasquerade are networks outside the cluster that pods reach with their own
	// addresses, since what is there knows the way back; empty: none.
	NoMasquerade []string
	ResourceOptions

	Join  []string
	Token string

	Logger *slog.Logger
}

// startTimeout bounds each step of a start that needs the cluster.
const startTimeout = 60 * time.Second

// OptionError is a mistake in the options themselves: nothing was tried.
type OptionError struct{ Err error }

func (e *OptionError) Error() string { return e.Err.Error() }
func (e *OptionError) Unwrap() error { return e.Err }

// asOption marks what is wrong with the options.
func asOption(err error) error {
	if err == nil {
		return nil
	}
	return &OptionError{err}
}

func (o *ServerOptions) complete() error {
	if err := complete(&o.Name, &o.DataDir, pki.RoleServer); err != nil {
		return err
	}
	if o.Advertise == "" {
		o.Advertise = o.Listen
	}
	host, _, err := net.SplitHostPort(o.Listen)
	if err != nil {
		return fmt.Errorf("--listen %q is not host:port: %w", o.Listen, err)
	}
	if err := reachable("--advertise", o.Advertise); err != nil {
		return err
	}
	if err := o.completeEtcd(); err != nil {
		return err
	}
	if o.Gossip == "" {
		o.Gossip = net.JoinHostPort(host, DefaultGossipPort)
	}
	if o.ScrubEvery < 0 {
		return fmt.Errorf("--scrub-every %v is negative: leave it out for every %v", o.ScrubEvery, core.DefaultScrubEvery)
	}
	if o.Init && len(o.Join) > 0 {
		return errors.New("--init makes a new cluster and --join enters one: give one of them")
	}
	return nil
}

func (o *AgentOptions) complete() error {
	if err := complete(&o.Name, &o.DataDir, pki.RoleAgent); err != nil {
		return err
	}
	setDefault(&o.RunDir, filepath.Join(o.DataDir, "run"))
	setDefault(&o.Port, DefaultAgentPort)
	setDefault(&o.Gossip, DefaultGossipPort)
	setDefault(&o.CgroupPrefix, "/balsa")
	if !filepath.IsAbs(o.CgroupPrefix) {
		return fmt.Errorf("--cgroup-prefix %q does not begin with /", o.CgroupPrefix)
	}
	if o.NodeIP != "" {
		if ip, err := netip.ParseAddr(o.NodeIP); err != nil || !ip.Is4() {
			return fmt.Errorf("--node-ip %q is not an IPv4 address (IPv6 does not work yet)", o.NodeIP)
		}
	}
	if _, err := o.parse(); err != nil {
		return err
	}
	if _, err := podnet.ParseNoMasquerade(o.NoMasquerade); err != nil {
		return fmt.Errorf("--no-masquerade: %w", err)
	}
	var err error
	o.RunDir, err = filepath.Abs(o.RunDir)
	return err
}

func complete(name, dataDir *string, role pki.Role) error {
	if *name == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("--name is not given and the host's name cannot be read: %w", err)
		}
		*name = host
	}
	if err := pki.ValidateName(role, *name); err != nil {
		return fmt.Errorf("--name: %w", err)
	}
	if *dataDir == "" {
		return errors.New("--data-dir is not given")
	}
	absolute, err := filepath.Abs(*dataDir)
	*dataDir = absolute
	return err
}

// reachable refuses addresses that only listen everywhere and lead nowhere.
func reachable(flag, address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%s %q is not host:port: %w", flag, address, err)
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsUnspecified() {
		return fmt.Errorf("%s %s is no address that others can reach: give this machine's own with %s", flag, address, flag)
	}
	return nil
}

func setDefault(field *string, value string) {
	if *field == "" {
		*field = value
	}
}
