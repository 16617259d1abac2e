package inside

import (
	"context"
	crypto "crypto/rand"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/balsa-run/balsa/apiserver"
	"github.com/balsa-run/balsa/cluster"
	"github.com/balsa-run/balsa/cluster/memlog"
	"github.com/balsa-run/balsa/daemon/core"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/pki"
	"github.com/balsa-run/balsa/store"
)

const (
	simVersion = "0.0.0-sim"
	// Snapshots come early, so that a short run has some, and members that fell
	// behind get them.
	snapshotEntries = 40
	trailingEntries = 8
	trailingBytes   = 1 << 10
)

// Server is a machine with one server of the control plane on it. Its process
// dies and is started again; its disk stays.
type Server struct {
	Name    string
	address string
	world   *World

	mu    sync.Mutex
	disk  *memlog.Disk // guarded by mu
	life  *life        // guarded by mu; nil while it is off
	lives int          // guarded by mu
	past  []*life      // guarded by mu; every life that there was
}

// life is a process.
type life struct {
	core   *core.Server
	port   *port
	cancel context.CancelFunc
	ended  chan struct{}
}

func newServer(w *World, name string) *Server {
	s := &Server{Name: name, address: name + apiPort, world: w}
	s.useDisk(memlog.New())
	return s
}

func (s *Server) useDisk(disk *memlog.Disk) {
	chance := s.world.Chance(fmt.Sprintf("disk %d of %s", s.lives, s.Name))
	var mu sync.Mutex
	disk.SetLatency(func() time.Duration {
		mu.Lock()
		defer mu.Unlock()
		if chance.IntN(slowWrites) == 0 {
			return slowWrite
		}
		return between(chance, writeMin, writeMax)
	})
	s.disk = disk
}

// Address is where the others reach it.
func (s *Server) Address() string { return s.address }

// Core is the server as it runs now; nil while it is off.
func (s *Server) Core() *core.Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.life == nil {
		return nil
	}
	return s.life.core
}

// Start starts the process on the disk as it is.
func (s *Server) Start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.life != nil {
		return fmt.Errorf("%s runs already", s.Name)
	}
	s.lives++
	l, err := s.boot()
	if err != nil {
		return fmt.Errorf("start %s: %w", s.Name, err)
	}
	s.life = l
	s.past = append(s.past, l)
	s.world.Trace.Sayf(s.Name, "started, life %d", s.lives)
	return nil
}

func (s *Server) boot() (*life, error) {
	p, err := newPort(s.world.net, s.address, pki.Identity{Role: pki.RoleServer, Name: s.Name})
	if err != nil {
		return nil, err
	}
	l := &life{port: p, ended: make(chan struct{})}
	l.core, err = core.NewServer(s.config(l))
	if err != nil {
		p.die()
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	go s.watchLeadership(ctx, l)
	go func() {
		defer close(l.ended)
		err := l.core.Run(ctx)
		s.world.Trace.Notef(s.Name, "a process has ended: %v", err)
	}()
	return l, nil
}

func (s *Server) config(l *life) core.Config {
	return core.Config{
		ID: s.Name, Name: s.Name, Address: s.address, Version: simVersion, Network: l.port,
		Logs: s.disk.Log(), Stable: s.disk.Stable(), Snapshots: s.disk.Snapshots(),
		Blobs: noImages{}, Archives: noImages{}, Bundle: s.world.bundle, Guard: pki.NewGuard(clock.Real{}, nil),
		Clock: clock.Real{}, Random: crypto.Reader, Logger: s.world.Trace.Logger(s.Name),
		Fatal:        func(reason error) { s.fatal(l, reason) },
		Limits:       cluster.Limits{SnapshotEntries: snapshotEntries, TrailingEntries: trailingEntries, TrailingBytes: trailingBytes},
		FeatureLevel: store.FeatureLevel,
	}
}

// fatal: a process that lives must have no reason to give up, whatever is done
// to its network, and as long as its disk comes back in time.
func (s *Server) fatal(l *life, reason error) {
	s.mu.Lock()
	current := s.life == l
	s.mu.Unlock()
	if current {
		s.world.Wrongf("%s gave up: %v", s.Name, reason)
	}
}

func (s *Server) watchLeadership(ctx context.Context, l *life) {
	for state := range l.core.Cluster().Leadership(ctx) {
		s.mu.Lock()
		current := s.life == l
		s.mu.Unlock()
		if current && state.Leader {
			s.world.elected(s.Name, state.Epoch)
		}
	}
}

// Crash ends the process between two instructions: what was not synced is lost,
// nothing that still runs of it has any effect. The result makes the machine
// ready for Start; loud means that the kernel lives and closes the process's
// connections at once, else the other ends hear nothing before that.
func (s *Server) Crash(loud bool) (restore func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.life
	if l == nil {
		return nil, fmt.Errorf("%s is off already", s.Name)
	}
	s.life = nil
	s.useDisk(s.disk.Crash())
	l.port.die()
	l.cancel()
	if loud {
		l.port.bury()
		return func() {}, nil
	}
	return l.port.bury, nil
}

// Stop ends the process as an operator does, and waits for it.
func (s *Server) Stop(ctx context.Context) error {
	s.mu.Lock()
	l := s.life
	s.mu.Unlock()
	if l == nil {
		return fmt.Errorf("%s is off already", s.Name)
	}
	l.cancel()
	select {
	case <-l.ended:
	case <-ctx.Done():
		return fmt.Errorf("stop %s: %w", s.Name, context.Cause(ctx))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.life == l { // else it has crashed meanwhile
		s.life = nil
		l.port.die()
		l.port.bury()
		s.useDisk(s.disk.Crash())
	}
	return nil
}

// gone waits until everything has ended that its processes did.
func (s *Server) gone(ctx context.Context) error {
	s.mu.Lock()
	past := s.past
	s.mu.Unlock()
	for i, l := range past {
		select {
		case <-l.ended:
		case <-ctx.Done():
			return fmt.Errorf("%s: life %d has not ended: %w", s.Name, i+1, context.Cause(ctx))
		}
	}
	return nil
}

// hang stops the disk until the result is called.
func (s *Server) hang() (heal func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	disk := s.disk
	disk.Hang()
	return disk.Release
}

// noImages is a server's share of images in a world without agents to run them:
// none, and no room.
type noImages struct{}

var errNoImages = errors.New("this world has no images")

func (noImages) Stat(string) (int64, bool, error)          { return 0, false, nil }
func (noImages) Open(string, int64) (io.ReadCloser, error) { return nil, errNoImages }
func (noImages) Put(context.Context, string, io.Reader, int64) (int64, error) {
	return 0, errNoImages
}

func (noImages) Import(context.Context, io.Reader, string, apiserver.Blobs) ([]*internalv1.ImageRecord, error) {
	return nil, errNoImages
}
