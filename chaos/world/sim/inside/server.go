package inside

import (
	"context"
	crypto "crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/balsa-run/balsa/apiserver"
	"github.com/balsa-run/balsa/cluster"
	"github.com/balsa-run/balsa/cluster/memlog"
	"github.com/balsa-run/balsa/daemon/core"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/pki"
	"github.com/balsa-run/balsa/store"
)

const (
	simVersion = "0.0.%d-sim"
	// Snapshots come early, so that a short run has some, and members that fell
	// behind get them.
	snapshotEntries = 40
	trailingEntries = 8
	trailingBytes   = 1 << 10
	// commitTimeout is not 10 ms: that is two messages a follower each 15 ms on an
	// idle cluster, which were half of what a run costs. Followers hear of a commit
	// from cluster's teller at once; this is for those that missed it, and heartbeats
	// are not its business.
	commitTimeout = 400 * time.Millisecond
	// plenty is the room on a disk that nobody has filled.
	plenty = 64 << 30
)

// Server is a machine with one server of the control plane on it. Its process
// dies and is started again; its disk stays.
type Server struct {
	Name    string
	address string
	world   *World

	clock *machineClock
	slow  atomic.Int64  // nanoseconds that faults add to each write, at most
	free  atomic.Uint64 // room on the disk

	ballots ballots

	mu      sync.Mutex
	id      string       // guarded by mu; the name, and after a disk was lost another
	ids     int          // guarded by mu; how many it has had
	disk    *memlog.Disk // guarded by mu
	life    *life        // guarded by mu; nil while it is off
	booting *life        // guarded by mu; that which is being started, or nil
	lives   int          // guarded by mu
	past    []*life      // guarded by mu; every life that there was
	version uint32       // guarded by mu; what it can do beyond store.FeatureLevel
	excuses []string     // guarded by mu; why it may give up now
	removed bool         // guarded by mu; it is not a member any more, and never starts again
	fault   memlog.Fault // guarded by mu; of its disk, through all its lives
	damaged bool         // guarded by mu; what it has is less than it promised, until it joins anew
}

// life is a process.
type life struct {
	core   *core.Server
	port   *port
	cancel context.CancelFunc
	ended  chan struct{}
	leads  bool  // guarded by Server.mu; as it was last heard
	failed error // guarded by Server.mu; why it gave up while it started
}

func newServer(w *World, name string) *Server {
	s := &Server{Name: name, address: name + apiPort, world: w, clock: newMachineClock(), id: name, ids: 1}
	s.free.Store(plenty)
	s.useDisk(memlog.New())
	return s
}

// useDisk is called with mu held, but for the first.
func (s *Server) useDisk(disk *memlog.Disk) {
	chance := s.world.Chance(fmt.Sprintf("disk %d of %s", s.lives, s.Name))
	var mu sync.Mutex
	disk.SetLatency(func() time.Duration {
		slow := time.Duration(s.slow.Load())
		mu.Lock()
		defer mu.Unlock()
		takes := between(chance, writeMin, writeMax)
		if chance.IntN(slowWrites) == 0 {
			takes = slowWrite
		}
		if slow > 0 {
			takes += between(chance, 0, slow)
		}
		return takes
	})
	torn := s.world.Chance(fmt.Sprintf("torn writes %d of %s", s.lives, s.Name))
	disk.SetTorn(func(entries int) int {
		kept := torn.IntN(entries + 1)
		if kept > 0 && kept < entries {
			s.world.Reach(ReachedTornAppend)
		}
		return kept
	})
	disk.SetFault(s.fault)
	s.disk = disk
}

// ID is the id that it has now; a server whose disk was lost has another.
func (s *Server) ID() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.id
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

// Start starts the process on the disk as it is. The server's lock is not held
// meanwhile: starting reads and writes, which takes time.
func (s *Server) Start() error {
	s.mu.Lock()
	if s.life != nil || s.booting != nil {
		s.mu.Unlock()
		return fmt.Errorf("%s runs already", s.Name)
	}
	s.lives++
	lives, l := s.lives, &life{ended: make(chan struct{})}
	wrong := s.ballots.check(s.disk.Stable())
	s.booting = l
	id, config := s.id, s.configLocked(l)
	s.mu.Unlock()
	if wrong != nil {
		s.world.Wrongf("%s %v", s.Name, wrong)
	}
	err := s.boot(l, id, config)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.booting = nil
	if err != nil {
		return fmt.Errorf("start %s: %w", s.Name, err)
	}
	s.life = l
	s.past = append(s.past, l)
	s.world.Trace.Sayf(s.Name, "started, life %d", lives)
	if l.failed != nil {
		go s.fatal(l, l.failed)
	}
	return nil
}

// lockStill takes the lock when the server is not in the middle of its start.
func (s *Server) lockStill() {
	for s.mu.Lock(); s.booting != nil; s.mu.Lock() {
		s.mu.Unlock()
		time.Sleep(time.Millisecond)
	}
}

func (s *Server) boot(l *life, id string, config core.Config) (err error) {
	if l.port, err = newPort(s.world.net, s.address, pki.Identity{Role: pki.RoleServer, Name: id}); err != nil {
		return err
	}
	config.Network = l.port
	if l.core, err = core.NewServer(config); err != nil {
		l.port.die()
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	go s.watchLeadership(ctx, l)
	go func() {
		defer close(l.ended)
		err := l.core.Run(ctx)
		s.world.Trace.Notef(s.Name, "a process has ended: %v", err)
	}()
	return nil
}

// configLocked is all but the network.
func (s *Server) configLocked(l *life) core.Config {
	return core.Config{
		ID: s.id, Name: s.Name, Address: s.address, Version: fmt.Sprintf(simVersion, s.version),
		Logs: s.disk.Log(), Stable: witnessed{s.disk.Stable(), &s.ballots}, Snapshots: s.disk.Snapshots(),
		Blobs: noImages{}, Archives: noImages{}, Bundle: s.world.bundle, Guard: pki.NewGuard(s.clock, nil),
		Clock: s.clock, Random: crypto.Reader, Logger: s.world.Trace.Logger(s.Name),
		Fatal:        func(reason error) { s.fatal(l, reason) },
		Limits:       cluster.Limits{SnapshotEntries: snapshotEntries, TrailingEntries: trailingEntries, TrailingBytes: trailingBytes},
		Timing:       cluster.Timing{Commit: commitTimeout},
		FeatureLevel: store.FeatureLevel + s.version,
		FreeSpace:    s.freeSpace, Metrics: s.world.metrics,
	}
}

func (s *Server) freeSpace() (uint64, error) { return s.free.Load(), nil }

// fatal: a process that lives must have no reason to give up, whatever is done
// to its network, and as long as its disk comes back in time. One that has a
// reason ends here, as the daemon does.
func (s *Server) fatal(l *life, reason error) {
	s.mu.Lock()
	if s.booting == l {
		l.failed = reason
	}
	current, excused := s.life == l, len(s.excuses) > 0 || s.damaged || s.removed
	s.mu.Unlock()
	switch {
	case !current:
	case !excused:
		s.world.Wrongf("%s gave up: %v", s.Name, reason)
	default:
		s.world.Trace.Sayf(s.Name, "gives up: %v", reason)
		s.world.Reach(ReachedGaveUp)
		s.exit(l)
	}
}

// exit ends one life, unless it has ended.
func (s *Server) exit(l *life) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.life == l {
		s.crashLocked().bury()
	}
}

// excuse lets a server give up until the result is called.
func (s *Server) excuse(why Kind) (end func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.excuses = append(s.excuses, string(why))
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		i := slices.Index(s.excuses, string(why))
		s.excuses = slices.Delete(s.excuses, i, i+1)
	}
}

func (s *Server) watchLeadership(ctx context.Context, l *life) {
	for state := range l.core.Cluster().Leadership(ctx) {
		s.mu.Lock()
		current := s.life == l
		led := l.leads
		l.leads = state.Leader
		s.mu.Unlock()
		if !current {
			continue
		}
		if state.Leader {
			s.world.elected(s.Name, state.Epoch)
		}
		if status := l.core.Cluster().Status(); led && !state.Leader && status.LastIndex > status.CommitIndex {
			s.world.Reach(ReachedDeposedWithEntries)
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
	if s.life == nil {
		return nil, fmt.Errorf("%s is off already", s.Name)
	}
	p := s.crashLocked()
	if loud {
		p.bury()
		return func() {}, nil
	}
	return p.bury, nil
}

// crashLocked returns the port of the life that it ends.
func (s *Server) crashLocked() *port {
	l := s.life
	if status := l.core.Cluster().Status(); l.leads && status.LastIndex > status.CommitIndex {
		s.world.Reach(ReachedKilledWithEntries)
	}
	s.life = nil
	s.useDisk(s.disk.Crash())
	l.port.die()
	l.cancel()
	return l.port
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
