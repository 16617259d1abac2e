package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/balsa-run/balsa/apiserver"
	"github.com/balsa-run/balsa/client"
	"github.com/balsa-run/balsa/cluster"
	"github.com/balsa-run/balsa/cluster/gossip"
	"github.com/balsa-run/balsa/dns"
	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/internal/helpers"
	"github.com/balsa-run/balsa/internal/hostmount"
	"github.com/balsa-run/balsa/internal/version"
	"github.com/balsa-run/balsa/netproxy/apply"
	"github.com/balsa-run/balsa/node"
	"github.com/balsa-run/balsa/node/image"
	"github.com/balsa-run/balsa/node/image/registry"
	"github.com/balsa-run/balsa/node/podnet"
	"github.com/balsa-run/balsa/node/runtime/runc"
	"github.com/balsa-run/balsa/node/volume"
	"github.com/balsa-run/balsa/pki"
)

const (
	agentGossipSuffix = ".node"
	dnsPort           = 53
	bindRetries       = 20
	bindPause         = 250 * time.Millisecond
	headerTimeout     = 10 * time.Second
	// pingAfter is how long a connection may be silent before it is asked, and
	// pingTimeout how long it may take to answer.
	pingAfter   = 15 * time.Second
	pingTimeout = 15 * time.Second
)

// RunAgent runs the agent of a node until ctx ends. Its pods live on.
func RunAgent(ctx context.Context, options AgentOptions) error {
	if err := options.complete(); err != nil {
		return asOption(err)
	}
	if err := checkMachine(); err != nil {
		return err
	}
	a := &agent{AgentOptions: options, dir: filepath.Join(options.DataDir, "agent")}
	unlock, err := lockDir(a.dir)
	if err != nil {
		return err
	}
	defer unlock()
	a.Logger = a.Logger.With("node", a.Name)
	protect(agentOOMScore, a.Logger)
	return errors.Join(a.run(ctx), a.close())
}

// agent is a running agent and what it stands on.
type agent struct {
	AgentOptions
	dir    string
	keeper *pki.Credentials
	guard  *pki.Guard
	banned *removedList // feeds guard
	client *client.Client
	ip     netip.Addr

	gossip  *gossip.Gossip
	runtime *runc.Runtime
	images  *images
	applier *apply.Applier
	podnet  *podnet.Linux
	metrics *prometheus.Registry
	peers   []string // gossip addresses that the join told
}

func (a *agent) identityDir() pki.Dir { return pki.OSDir(filepath.Join(a.dir, "identity")) }
func (a *agent) serversFile() string  { return filepath.Join(a.dir, "servers.json") }

func (a *agent) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	files, err := a.identify(ctx)
	if err != nil {
		return err
	}
	if a.client, err = client.New(client.Config{Servers: a.servers(), Logger: a.Logger, Dial: dialGuarded(a.keeper, a.guard)}); err != nil {
		return err
	}
	if err := a.findAddress(ctx); err != nil {
		return err
	}
	a.metrics = newAgentRegistry()
	made, err := a.makeNode(ctx)
	if err != nil {
		return err
	}
	serving, err := a.serve(ctx, portHandler(made.Handler(), a.images.store, a.metrics), cancel)
	if err != nil {
		return err
	}
	defer serving.Close()
	if err := a.startGossip(files.GossipKey); err != nil {
		return err
	}
	go a.guard.Run(ctx)
	go a.renew(ctx)
	go a.joinGossip(ctx)
	a.Logger.Info("agent runs", "address", a.ip, "version", version.Version())
	err = made.Run(ctx)
	if errors.Is(err, node.ErrNodeRemoved) {
		return errors.Join(fmt.Errorf("%w; to let it in again, start it with a new token: balsa token create --role agent", err), setAside(a.dir))
	}
	if cause := context.Cause(ctx); errors.Is(cause, errServe) {
		return cause
	}
	return unlessAsked(ctx, err)
}

// unlessAsked forgets an error that only says that ctx has ended: whoever ended
// it asked for just that.
func unlessAsked(ctx context.Context, err error) error {
	if ctx.Err() != nil && (errors.Is(err, context.Cause(ctx)) || errors.Is(err, context.Canceled)) {
		return nil
	}
	return err
}

// identify loads who the agent is, or joins a cluster.
func (a *agent) identify(ctx context.Context) (*pki.AgentFiles, error) {
	files, err := pki.OpenAgent(a.identityDir())
	if errors.Is(err, pki.ErrNoMaterial) {
		files, err = a.join(ctx)
	}
	if err != nil {
		return nil, err
	}
	if have := files.Credential.Identity().Name; have != a.Name {
		return nil, fmt.Errorf("%s belongs to node %q, but --name is %q: use the old name, or another --data-dir", a.dir, have, a.Name)
	}
	a.keeper = pki.NewCredentials(files.Credential)
	if a.banned, err = openRemoved(filepath.Join(a.dir, removedName), clock.Real{}, a.Logger); err != nil {
		return nil, err
	}
	a.guard = a.banned.guard
	return files, nil
}

func (a *agent) join(ctx context.Context) (*pki.AgentFiles, error) {
	j := &joiner{role: pki.RoleAgent, name: a.Name, token: a.Token, servers: a.Join, dir: a.identityDir()}
	result, err := j.join(ctx)
	if err != nil {
		return nil, err
	}
	key := pki.GossipKey{}
	if copy(key[:], result.response.GetGossipKey()) != len(key) || len(result.response.GetGossipKey()) != len(key) {
		return nil, fmt.Errorf("the server's answer has a gossip key of %d bytes, not %d: is it of another version?", len(result.response.GetGossipKey()), len(key))
	}
	if err := writeServers(a.serversFile(), result.response.GetServers()); err != nil {
		return nil, err
	}
	a.peers = result.response.GetGossipPeers()
	files := &pki.AgentFiles{Credential: result.credential, GossipKey: key}
	return files, pki.SaveAgent(a.identityDir(), files)
}

// servers are those of the command line, and those that were told last.
func (a *agent) servers() []string { return a.withJoin(readServers(a.serversFile())) }

// withJoin puts the servers of the command line first: an operator who names
// others than before knows more than the disk, and than a server that still
// tells its old address.
func (a *agent) withJoin(told []string) []string {
	servers := slices.Clone(a.Join)
	for _, server := range told {
		if !slices.Contains(servers, server) {
			servers = append(servers, server)
		}
	}
	return servers
}

func (a *agent) findAddress(ctx context.Context) (err error) {
	if a.NodeIP != "" {
		a.ip, err = netip.ParseAddr(a.NodeIP)
		return err
	}
	a.ip, err = ownAddress(ctx, a.servers()[0])
	return err
}

// makeNode opens the container runtime and the images; what belongs to the
// cluster's addresses is opened when they are known.
func (a *agent) makeNode(ctx context.Context) (*node.Agent, error) {
	programs, err := helpers.Extract(filepath.Join(a.dir, "bin"))
	if err != nil {
		return nil, err
	}
	pods, err := podsFolder(a.DataDir, a.RunDir, hostmount.OnTmpfs, a.Logger)
	if err != nil {
		return nil, err
	}
	a.runtime, err = runc.Open(ctx, runc.Options{
		Dir: pods, CgroupPrefix: a.CgroupPrefix, Helpers: programs, Log: a.Logger,
	})
	if err != nil {
		return nil, err
	}
	if a.images, err = a.openImages(); err != nil {
		return nil, err
	}
	volumes, err := a.openVolumes()
	if err != nil {
		return nil, err
	}
	port, err := strconv.Atoi(a.Port)
	if err != nil {
		return nil, fmt.Errorf("--port %q is no port: %w", a.Port, err)
	}
	means, err := a.parse()
	if err != nil {
		return nil, err
	}
	return node.New(means.apply(node.Config{
		Name: a.Name, NodeIP: a.ip, AgentPort: port, Labels: a.Labels, Version: version.Version(),
		Disk: node.Dir(filepath.Join(a.dir, "state")), RunDisk: node.Dir(a.memory("state")), Volumes: volumes,
		HostFiles: node.HostPaths{SeccompFolder: filepath.Join(a.DataDir, "seccomp")},
		Clock:     clock.Real{}, Rand: mathrand.New(mathrand.NewPCG(mathrand.Uint64(), mathrand.Uint64())), Logger: a.Logger,
		Metrics: a.metrics,
		API:     node.FromClient(a.client.Nodes), Machine: thisMachine{dirs: []string{a.dir, a.RunDir}}, Runtime: a.runtime,
		Images: a.images, Open: a.openPlant, OnServers: a.onServers,
		OnRemoved: a.banned.told, AskRemoved: a.askRemoved,
	}, a.MaxPods))
}

// openImages opens the store of images and the ways to fill it.
func (a *agent) openImages() (*images, error) {
	config, err := registry.LoadConfig(a.Registries)
	if err != nil {
		return nil, fmt.Errorf("--registries: %w", err)
	}
	store, err := image.Open(image.Options{Dir: filepath.Join(a.dir, "images"), Log: a.Logger})
	if err != nil {
		return nil, err
	}
	return &images{
		store: store, api: a.client.Nodes, log: a.Logger, peers: dialPeers(a.keeper, a.guard),
		registries: registry.New(registry.Options{Config: config, Log: a.Logger}),
	}, nil
}

// memory is a path below RunDir that lies on a tmpfs.
func (a *agent) memory(name string) string { return filepath.Join(a.RunDir, "memory", name) }

// openVolumes makes the folder that holds opened Secrets, and never reaches a
// disk, before anything writes there.
func (a *agent) openVolumes() (*volume.Store, error) {
	const private = 0o700
	if err := os.MkdirAll(a.memory(""), private); err != nil {
		return nil, err
	}
	if err := hostmount.InMemory(a.memory("")); err != nil {
		return nil, err
	}
	// Version 0.1 kept them beside it, on whatever RunDir is.
	if err := os.Remove(filepath.Join(a.RunDir, "state", "secrets.pb")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return volume.Open(volume.Options{Dir: filepath.Join(a.dir, "volumes"), RunDir: a.memory("volumes"), Log: a.Logger})
}

// openPlant makes network, proxy and resolver.
func (a *agent) openPlant(ctx context.Context, facts node.ClusterFacts) (node.Plant, error) {
	err := apart(a.ip, facts)
	if err != nil {
		return node.Plant{}, err
	}
	exceptions, err := podnet.ParseNoMasquerade(a.NoMasquerade)
	if err != nil {
		return node.Plant{}, err
	}
	a.podnet, err = podnet.NewLinux(podnet.Options{
		Dir: filepath.Join(a.RunDir, "network"), PodCIDR: facts.PodCIDR, ClusterCIDR: facts.ClusterCIDR, NodeIP: a.ip,
		LocalAddress: node.DefaultDNSAddress(), NoMasquerade: exceptions, Logger: a.Logger,
	})
	if err != nil {
		return node.Plant{}, err
	}
	if err := a.podnet.Prepare(ctx); err != nil {
		return node.Plant{}, err
	}
	if a.applier, err = apply.New(apply.Options{Logger: a.Logger}); err != nil {
		return node.Plant{}, err
	}
	resolver, err := a.openResolver(ctx, facts.DNSDomain)
	return node.Plant{Network: a.podnet, Proxy: a.applier, Resolver: resolver, Connections: a.podnet}, err
}

// apart refuses a node whose own address the cluster gives to others: what is
// sent to it would be taken for a Service's, or routed to a pod.
func apart(ip netip.Addr, facts node.ClusterFacts) error {
	for what, cidr := range map[string]netip.Prefix{"service": facts.ServiceCIDR, "pod": facts.ClusterCIDR} {
		if cidr.Contains(ip) {
			return fmt.Errorf("this node's address %s lies in the %s CIDR %s of the cluster: give another with --node-ip, or make the cluster with another --%s-cidr", ip, what, cidr, what)
		}
	}
	return nil
}

func (a *agent) openResolver(ctx context.Context, domain string) (*dns.Server, error) {
	own := netip.AddrPortFrom(node.DefaultDNSAddress(), dnsPort)
	server, err := dns.NewServer(dns.Options{Domain: domain, Self: []netip.AddrPort{own}, Logger: a.Logger})
	if err != nil {
		return nil, err
	}
	server.SetUpstreams(upstreams(a.Logger))
	udp, tcp, err := bindDNS(ctx, own.String())
	if err != nil {
		return nil, err
	}
	go func() {
		if err := server.Serve(ctx, udp, tcp); err != nil && ctx.Err() == nil {
			a.Logger.Error("the resolver has stopped", "error", err)
		}
	}()
	return server, nil
}

// bindDNS opens the resolver's sockets; an agent that has just been replaced may
// hold them a moment longer.
func bindDNS(ctx context.Context, address string) (net.PacketConn, net.Listener, error) {
	var failed error
	for range bindRetries {
		udp, err := new(net.ListenConfig).ListenPacket(ctx, "udp4", address)
		if err == nil {
			tcp, err := new(net.ListenConfig).Listen(ctx, "tcp4", address)
			if err == nil {
				return udp, tcp, nil
			}
			failed = errors.Join(err, udp.Close())
		} else {
			failed = err
		}
		if err := sleep(ctx, bindPause); err != nil {
			return nil, nil, err
		}
	}
	return nil, nil, fmt.Errorf("the resolver cannot listen on %s: %w; does another agent run on this host?", address, failed)
}

func upstreams(logger *slog.Logger) []netip.AddrPort {
	file, err := os.Open("/etc/resolv.conf")
	if err != nil {
		logger.Warn("no upstream name servers", "error", err)
		return nil
	}
	defer file.Close()
	servers, err := dns.ParseResolvConf(file)
	if err != nil {
		logger.Warn("no upstream name servers", "error", err)
	}
	return servers
}

// onServers keeps the addresses for the next start.
func (a *agent) onServers(addresses []string) {
	a.client.SetServers(a.withJoin(addresses))
	if err := writeServers(a.serversFile(), addresses); err != nil {
		a.Logger.Error("the servers' addresses cannot be kept", "error", err)
	}
}

var errServe = errors.New("the agent's port failed")

// serve answers servers on the agent's port, and users who want its metrics.
func (a *agent) serve(ctx context.Context, handler http.Handler, fail context.CancelCauseFunc) (*http.Server, error) {
	address := net.JoinHostPort(a.ip.String(), a.Port)
	raw, err := new(net.ListenConfig).Listen(ctx, "tcp4", address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w; does another agent run on this host?", address, err)
	}
	config := pki.AgentTLS(pki.TLSOptions{Credentials: a.keeper, Guard: a.guard, Clock: clock.Real{}, Log: a.Logger})
	server := &http.Server{
		Handler: a.identified(handler), ReadHeaderTimeout: headerTimeout, ConnContext: withWire,
		ErrorLog: slog.NewLogLogger(a.Logger.Handler(), slog.LevelDebug),
		// A server whose host has vanished must not keep a program in a pod running.
		HTTP2: &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
	}
	go func() {
		if err := server.Serve(tls.NewListener(guardedListener{raw}, config)); !errors.Is(err, http.ErrServerClosed) {
			fail(fmt.Errorf("%w: %w", errServe, err))
		}
	}()
	return server, nil
}

// identified tells a handler who calls, and ends the connection of one who may
// not be here any more.
func (a *agent) identified(next http.Handler) http.Handler {
	clusterID := a.keeper.Current().ClusterID()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS != nil {
			if identity, err := pki.IdentityOf(*r.TLS, clusterID); err == nil {
				if err := watchWire(r.Context(), a.guard, identity); err != nil {
					http.Error(w, err.Error(), http.StatusForbidden)
					return
				}
				r = r.WithContext(pki.WithIdentity(r.Context(), identity))
			}
		}
		next.ServeHTTP(w, r)
	})
}

func (a *agent) startGossip(key pki.GossipKey) (err error) {
	a.gossip, err = gossip.Start(gossip.Options{
		Name: a.Name + agentGossipSuffix, Bind: net.JoinHostPort(a.ip.String(), a.Gossip), Key: key[:], Logger: quiet(a.Logger),
		Tags:         cluster.GossipTags{ID: a.Name, Role: "agent", Address: net.JoinHostPort(a.ip.String(), a.Port), Version: version.Version()},
		SnapshotPath: filepath.Join(a.dir, "gossip.snapshot"),
	})
	return err
}

func (a *agent) joinGossip(ctx context.Context) {
	for {
		peers := slices.Clone(a.peers)
		for _, server := range a.client.Servers() {
			// A server's gossip has the usual port, or that of all in this cluster.
			for _, port := range []string{a.Gossip, DefaultGossipPort} {
				if peer := withPort(server, ":"+port); !slices.Contains(peers, peer) {
					peers = append(peers, peer)
				}
			}
		}
		attempt, cancel := context.WithTimeout(ctx, gossipTimeout)
		reached, err := a.gossip.Join(attempt, peers)
		cancel()
		if reached > 0 || ctx.Err() != nil {
			return
		}
		a.Logger.Warn("no server answers in the gossip", "tried", peers, "error", err)
		if sleep(ctx, gossipTimeout) != nil {
			return
		}
	}
}

// renew keeps the certificate fresh by proof of its key, also after it expired.
func (a *agent) renew(ctx context.Context) {
	pki.NewRenewer(pki.RenewerOptions{
		Credentials: a.keeper,
		Source:      pki.RemoteSource{Client: a.renewer()},
		Save:        func(c *pki.Credential) error { return pki.SaveCredential(a.identityDir(), c) },
		Clock:       clock.Real{}, Jitter: mathrand.Float64, Log: a.Logger,
	}).Run(ctx)
}

func (a *agent) renewer() *renewer {
	return &renewer{trust: a.keeper.Current().Trust(), guard: a.guard, servers: a.client.Servers}
}

// askRemoved asks whether this node was removed, in a way that needs no
// certificate of ours to be taken.
func (a *agent) askRemoved(ctx context.Context) (bool, error) {
	asking := a.renewer()
	nonce, err := asking.Nonce(ctx)
	if err != nil {
		return false, err
	}
	question, err := pki.NewRemovalQuestion(a.keeper.Current(), nonce)
	if err != nil {
		asking.done()
		return false, err
	}
	_, err = asking.Renew(ctx, question)
	switch client.Detail(err).GetReason() {
	case apiserver.ReasonIdentityRemoved:
		return true, nil
	case apiserver.ReasonBadProof: // the question has none: we are known
		return false, nil
	}
	return false, err
}

func (a *agent) close() error {
	var failed []error
	if a.gossip != nil {
		// Without a good-bye: the node's pods go on, and an agent that is gone for
		// a moment is not a node that has left.
		failed = append(failed, a.gossip.Shutdown())
	}
	if a.applier != nil {
		failed = append(failed, a.applier.Close())
	}
	if a.podnet != nil {
		failed = append(failed, a.podnet.Close())
	}
	if a.images != nil {
		a.images.store.Close()
	}
	if a.runtime != nil {
		failed = append(failed, a.tidyUp(), a.runtime.Close())
	}
	return errors.Join(failed...)
}

// tidyUp leaves no mount behind where no pod is left, so that the folders of an
// agent that is not wanted any more can just be removed.
func (a *agent) tidyUp() error {
	pods, err := a.runtime.Pods(context.Background())
	if err != nil || len(pods) > 0 {
		return err
	}
	return hostmount.UnmountUnder(a.memory(""))
}
