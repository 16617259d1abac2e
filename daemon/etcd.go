package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/balsa-run/balsa/etcdapi"
	"github.com/balsa-run/balsa/etcdapi/archive"
	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/pki"
)

// etcdStopTimeout bounds the calls of etcd's API that are under way at the end.
const etcdStopTimeout = 5 * time.Second

// etcdFace is etcd's API on a port of its own.
type etcdFace struct {
	listener net.Listener
	server   *etcdapi.Server
}

// EtcdOptions are a server's for clients of etcd.
type EtcdOptions struct {
	// Listen is the address of etcd's API, empty: none. Advertise is the one that its
	// clients use, by default the same.
	Listen, Advertise string
	// ProgressEvery is how often a quiet watch that asked for progress is told of it;
	// 0: etcd's ten minutes.
	ProgressEvery time.Duration
}

// etcdProgressMin bounds EtcdOptions.ProgressEvery, as etcd does.
const etcdProgressMin = 100 * time.Millisecond

// completeEtcd checks where etcd's API is to be; empty: nowhere.
func (o *ServerOptions) completeEtcd() error {
	if every := o.Etcd.ProgressEvery; every != 0 && every < etcdProgressMin {
		return fmt.Errorf("--etcd-progress-every %v is less than %v", every, etcdProgressMin)
	}
	if o.Etcd.Listen == "" {
		switch {
		case o.Etcd.Advertise != "":
			return fmt.Errorf("--etcd-advertise %s without --etcd-listen: nobody would answer there", o.Etcd.Advertise)
		case o.Etcd.ProgressEvery != 0:
			return fmt.Errorf("--etcd-progress-every %v without --etcd-listen: nobody would watch", o.Etcd.ProgressEvery)
		}
		return nil
	}
	setDefault(&o.Etcd.Advertise, o.Etcd.Listen)
	if _, _, err := net.SplitHostPort(o.Etcd.Listen); err != nil {
		return fmt.Errorf("--etcd-listen %q is not host:port: %w", o.Etcd.Listen, err)
	}
	if o.Etcd.Listen == o.Listen {
		return fmt.Errorf("--etcd-listen %s is the API's address already: give another port, for example %s", o.Etcd.Listen, DefaultEtcdPort)
	}
	return reachable("--etcd-advertise", o.Etcd.Advertise)
}

// addresses are all that clients may check the server's certificate for. Clients of
// etcd on the same machine like to call it localhost; of the other ports nobody
// checks the address.
func (o *ServerOptions) addresses() []string {
	addresses := []string{o.Listen, o.Advertise}
	if o.Etcd.Listen == "" {
		return addresses
	}
	addresses = append(addresses, o.Etcd.Listen, o.Etcd.Advertise)
	host, _, _ := net.SplitHostPort(o.Etcd.Listen)
	if ip, err := netip.ParseAddr(host); host == "" || host == "localhost" || err == nil && (ip.IsUnspecified() || ip.IsLoopback()) {
		addresses = append(addresses, "localhost", "127.0.0.1")
	}
	return addresses
}

// openEtcd listens for clients of etcd's API, if that was asked for. It is called
// before the server takes part: a port that is taken is told at once.
func (s *server) openEtcd(ctx context.Context, options pki.TLSOptions) error {
	if s.Etcd.Listen == "" {
		return nil
	}
	raw, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.Etcd.Listen)
	if err != nil {
		return fmt.Errorf("--etcd-listen: %w", err)
	}
	s.etcd = &etcdFace{listener: etcdapi.NewListener(raw, pki.ServerTLS(options))}
	return nil
}

// assembleEtcd makes the API's server.
func (s *server) assembleEtcd() error {
	if s.etcd == nil {
		return nil
	}
	scratch, err := emptyDir(filepath.Join(s.dir, "etcd-snapshots"))
	if err != nil {
		return err
	}
	config := s.core.Etcd()
	config.Identify, config.Archiver = s.core.EtcdIdentify(), archive.Archiver{Dir: scratch}
	config.Limits.ProgressEvery = s.Etcd.ProgressEvery
	s.etcd.server, err = etcdapi.New(config)
	return err
}

// serveEtcd answers until ctx ends, then lets the calls under way end.
func (s *server) serveEtcd(ctx context.Context) {
	if s.etcd == nil {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.etcd.server.Serve(s.etcd.listener); err != nil {
			s.fail(err)
		}
	}()
	s.Logger.Info("etcd's API is served", "address", s.Etcd.Advertise)
	<-ctx.Done()
	limit, cancel := context.WithTimeout(context.Background(), etcdStopTimeout)
	defer cancel()
	s.etcd.server.Stop(limit)
	<-done
}

// close is for a server that never came to serve.
func (e *etcdFace) close() error {
	if e == nil {
		return nil
	}
	if err := e.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// tlsOptions are those of every listener of this server.
func (s *server) tlsOptions() pki.TLSOptions {
	return pki.TLSOptions{Credentials: s.keeper, Guard: s.guard, Clock: clock.Real{}, Log: s.Logger}
}
