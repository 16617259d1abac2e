package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/balsa-run/balsa/apiserver/blobs"
	"github.com/balsa-run/balsa/cluster"
	"github.com/balsa-run/balsa/cluster/gossip"
	"github.com/balsa-run/balsa/cluster/raftlog"
	"github.com/balsa-run/balsa/daemon/core"
	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/internal/version"
	"github.com/balsa-run/balsa/pki"
	"github.com/balsa-run/balsa/store"
)

const (
	adminName     = "admin"
	gossipSuffix  = ".server" // a server and an agent may share a name
	gossipTimeout = 5 * time.Second
)

// RunServer runs a server until ctx ends, or until it must not go on: then it
// returns why.
func RunServer(ctx context.Context, options ServerOptions) error {
	if err := options.complete(); err != nil {
		return asOption(err)
	}
	s := &server{ServerOptions: options, dir: filepath.Join(options.DataDir, "server"), fatal: make(chan error, 1)}
	unlock, err := lockDir(s.dir)
	if err != nil {
		return err
	}
	defer unlock()
	s.Logger = s.Logger.With("server", s.Name)
	protect(serverOOMScore, s.Logger)
	if err := s.open(ctx); err != nil {
		return errors.Join(unlessAsked(ctx, err), s.close())
	}
	return errors.Join(unlessAsked(ctx, s.run(ctx)), s.close())
}

// server is a running server and what it stands on.
type server struct {
	ServerOptions
	dir      string
	identity *pki.ServerFiles
	keeper   *pki.Credentials
	guard    *pki.Guard
	id       string // in the raft group
	peers    []string

	network *network
	gossip  *gossip.Gossip
	disk    *raftlog.Store
	core    *core.Server
	etcd    *etcdFace  // nil: not asked for
	fatal   chan error // gets the first reason to stop
}

// open brings everything up to the point where the server takes part.
func (s *server) open(ctx context.Context) error {
	id, err := readMember(s.dir)
	if err != nil {
		return err
	}
	s.id = id
	if err := s.identify(ctx); err != nil {
		return err
	}
	if err := s.assemble(ctx); err != nil {
		return err
	}
	if s.core.Cluster().Phase() != cluster.PhaseUninitialised || s.Init {
		return nil
	}
	if err := s.core.Join(ctx); err != nil {
		return err
	}
	return nil
}

func (s *server) identityDir() pki.Dir { return pki.OSDir(filepath.Join(s.dir, "identity")) }

func (s *server) sans() (pki.SANs, error) { return pki.ParseSANs(s.addresses()...) }

// identify loads who this server is, or makes a cluster, or joins one. A server
// whose disk has no raft state yet joins anew under a new id: whatever it
// promised under an old one is forgotten.
func (s *server) identify(ctx context.Context) error {
	sans, err := s.sans()
	if err != nil {
		return err
	}
	s.identity, err = pki.OpenServer(s.identityDir(), s.Name, sans, time.Now())
	switch {
	case err == nil && s.id != "":
		if s.identity.Reissued != "" {
			s.Logger.Info("signed a new certificate", "why", s.identity.Reissued)
		}
	case err == nil, errors.Is(err, pki.ErrNoMaterial):
		if err := s.enter(ctx, sans); err != nil {
			return err
		}
	default:
		return err
	}
	s.keeper = pki.NewCredentials(s.identity.Credential)
	removed, err := pki.NewRemoved(nil)
	if err != nil {
		return err
	}
	s.guard = pki.NewGuard(clock.Real{}, removed)
	return nil
}

// enter makes a cluster, or joins one.
func (s *server) enter(ctx context.Context, sans pki.SANs) (err error) {
	if s.Init && s.identity == nil {
		if s.identity, err = pki.InitServer(s.identityDir(), pki.NewClusterID(), s.Name, sans, time.Now()); err != nil {
			return err
		}
	}
	if s.id, err = newMember(s.dir, s.Name); err != nil || s.Init {
		return err
	}
	j := &joiner{
		role: pki.RoleServer, name: s.Name, token: s.Token, servers: s.Join, dir: s.identityDir(), sans: sans,
		addresses: s.addresses(), advertise: s.Advertise, memberID: s.id,
	}
	result, err := j.join(ctx)
	if err != nil {
		return err
	}
	if err := pki.SaveBundle(s.identityDir(), result.bundle); err != nil {
		return err
	}
	if err := pki.SaveCredential(s.identityDir(), result.credential); err != nil {
		return err
	}
	s.peers = result.response.GetGossipPeers()
	s.identity, err = pki.OpenServer(s.identityDir(), s.Name, sans, time.Now())
	return err
}

func (s *server) assemble(ctx context.Context) (err error) {
	if s.network, err = listen(ctx, s.Listen, s.tlsOptions(), s.Logger); err != nil {
		return err
	}
	if err := s.openEtcd(ctx, s.tlsOptions()); err != nil {
		return err
	}
	if s.disk, err = raftlog.Open(raftlog.Options{Dir: filepath.Join(s.dir, "raft"), Logger: s.Logger}); err != nil {
		return err
	}
	key := s.identity.Bundle.GossipKey
	s.gossip, err = gossip.Start(gossip.Options{
		Name: s.Name + gossipSuffix, Bind: s.Gossip, Key: key[:], Logger: quiet(s.Logger),
		Tags:         cluster.GossipTags{ID: s.id, Role: "server", Address: s.Advertise, Version: version.Version(), MaxFeatureLevel: store.FeatureLevel},
		SnapshotPath: filepath.Join(s.dir, "gossip.snapshot"),
	})
	if err != nil {
		return err
	}
	return s.assembleCore()
}

func (s *server) assembleCore() error {
	kept, err := blobs.Open(filepath.Join(s.dir, "blobs"))
	if err != nil {
		return err
	}
	scratch, err := emptyDir(filepath.Join(s.dir, "scratch"))
	if err != nil {
		return err
	}
	metrics := newMetrics()
	s.core, err = core.NewServer(core.Config{
		ID: s.id, Name: s.Name, Address: s.Advertise, Version: version.Version(), EtcdAddress: s.Etcd.Advertise,
		Network: s.network, Gossip: s.gossip, Logs: s.disk.Log(), Stable: s.disk.Stable(), Snapshots: s.disk.Snapshots(),
		Blobs: kept, Archives: archives{scratch}, FreeSpace: s.disk.FreeSpace,
		Bundle: s.identity.Bundle, Guard: s.guard, Clock: clock.Real{}, Random: rand.Reader, Logger: s.Logger,
		Fatal: s.fail, Metrics: metrics, APIMetrics: metrics.api, FeatureLevel: store.FeatureLevel, ScrubEvery: s.ScrubEvery,
		Extra: map[string]http.Handler{"/metrics": promhttp.HandlerFor(metrics.registry, promhttp.HandlerOpts{})},
	})
	if err != nil {
		return err
	}
	return s.assembleEtcd()
}

// fail ends the server; the first reason counts.
func (s *server) fail(reason error) {
	select {
	case s.fatal <- reason:
	default:
	}
}

func (s *server) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	etcd := make(chan struct{})
	go func() { // ends while the core lets go of leadership
		defer close(etcd)
		s.serveEtcd(ctx)
	}()
	defer func() {
		cancel()
		<-etcd
	}()
	go func() { ended <- s.core.Run(ctx) }()
	go s.renew(ctx)
	go s.joinGossip(ctx)
	if s.Init {
		go s.initialise(ctx)
	}
	s.Logger.Info("server runs", "id", s.id, "address", s.Advertise, "version", version.Version())
	select {
	case err := <-ended:
		return err
	case reason := <-s.fatal:
		cancel()
		return errors.Join(fmt.Errorf("this server must not go on: %w", reason), <-ended)
	}
}

// initialise writes what a new cluster begins with, and the first user's
// configuration.
func (s *server) initialise(ctx context.Context) {
	settings := core.Settings{
		PodCIDR: s.PodCIDR, ServiceCIDR: s.ServiceCIDR, DNSDomain: s.DNSDomain,
		Identities: []*pki.Credential{s.identity.Credential},
	}
	admin, err := s.admin()
	if admin != nil {
		settings.Identities = append(settings.Identities, admin)
	}
	if err == nil {
		err = s.core.Initialise(ctx, settings)
	}
	if err == nil {
		err = s.publishAdmin()
	}
	if err != nil && ctx.Err() == nil {
		s.fail(err)
	}
}

// renew keeps the certificate fresh; nobody is asked.
func (s *server) renew(ctx context.Context) {
	sans, err := s.sans()
	if err != nil {
		s.fail(err)
		return
	}
	pki.NewRenewer(pki.RenewerOptions{
		Credentials: s.keeper,
		Source:      pki.LocalSource{CA: s.identity.Bundle.CA, SANs: sans, Guard: s.guard, Clock: clock.Real{}},
		Save:        func(c *pki.Credential) error { return pki.SaveCredential(s.identityDir(), c) },
		Clock:       clock.Real{}, Jitter: mathrand.Float64, Log: s.Logger,
	}).Run(ctx)
}

// joinGossip looks for the others until it finds one. Serf remembers them over a
// restart; this is for the first time and for a cluster that was all down.
func (s *server) joinGossip(ctx context.Context) {
	for {
		peers := s.gossipPeers()
		if len(peers) == 0 && len(s.core.Cluster().Members()) <= 1 {
			return
		}
		attempt, cancel := context.WithTimeout(ctx, gossipTimeout)
		reached, err := s.gossip.Join(attempt, peers)
		cancel()
		if reached > 0 {
			return
		}
		s.Logger.Warn("no other server answers in the gossip", "tried", peers, "error", err)
		if sleep(ctx, gossipTimeout) != nil {
			return
		}
	}
}

// gossipPeers guesses: what the join said, and the servers' hosts with the port
// of our own gossip.
func (s *server) gossipPeers() []string {
	peers := append([]string(nil), s.peers...)
	for _, m := range s.core.Cluster().Members() {
		if !m.Self {
			peers = append(peers, withPort(m.Address, s.Gossip))
		}
	}
	return peers
}

func (s *server) close() error {
	var failed []error
	if s.gossip != nil {
		// Without a good-bye: a server that stops comes back, and one that has left
		// is taken out of the group. Who is to go is removed by an operator.
		failed = append(failed, s.gossip.Shutdown())
	}
	if s.network != nil {
		failed = append(failed, s.network.Close())
	}
	failed = append(failed, s.etcd.close())
	if s.disk != nil {
		failed = append(failed, s.disk.Close())
	}
	return errors.Join(failed...)
}

// quiet is for libraries that tell much: their information is our detail.
func quiet(logger *slog.Logger) *slog.Logger { return logger.With("part", "gossip") }

// withPort is the host of one address with the port of another.
func withPort(address, other string) string {
	host, _, _ := strings.Cut(address, ":")
	return host + other[strings.LastIndex(other, ":"):]
}
