package inside

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/balsa-run/balsa/cluster"
	"github.com/balsa-run/balsa/cluster/memlog"
)

const (
	// lowRoom is below what a server needs to lead.
	lowRoom = cluster.DefaultLowSpace / 2
	// restartPause is how long whoever looks after processes waits before it starts
	// one again.
	restartPause = 500 * time.Millisecond
)

var errIO = errors.New("input/output error")

// hang stops the disk until the result is called.
func (s *Server) hang() (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	disk := s.disk
	disk.Hang()
	return disk.Release
}

func (s *Server) slowDown(by time.Duration) (undo func()) {
	s.slow.Add(int64(by))
	return func() { s.slow.Add(-int64(by)) }
}

// setFault lets the disk fail, in this life and the next ones.
func (s *Server) setFault(f memlog.Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
	s.disk.SetFault(f)
}

// reap ends a process that has failed and may not know it yet.
func (s *Server) reap() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.life != nil && s.life.core.Cluster().Phase() == cluster.PhaseFailed {
		s.crashLocked().bury()
	}
}

// ioError fails every write. What the server acknowledged before is there.
func (w *World) ioError(s *Server, chance *rand.Rand) (undo func()) {
	end := s.excuse(IOError)
	torn := rand.New(rand.NewPCG(chance.Uint64(), 0))
	var mu sync.Mutex
	s.setFault(func(int, string) (error, bool) {
		mu.Lock()
		defer mu.Unlock()
		return errIO, torn.IntN(2) == 0
	})
	return func() {
		s.setFault(nil)
		s.reap()
		end()
		w.start(s)
	}
}

// noRoom fills the disk: first so far that the server should not lead, then
// wholly. The server gives up, is started again, and waits.
func (w *World) noRoom(s *Server, lasts time.Duration) (undo func()) {
	end := s.excuse(NoRoom)
	s.free.Store(lowRoom)
	stop := background(func(undone <-chan struct{}) {
		if !pause(undone, lasts/3) {
			return
		}
		s.free.Store(0)
		s.setFault(func(int, string) (error, bool) {
			return fmt.Errorf("%w: no space left on device", cluster.ErrDiskFull), false
		})
		for pause(undone, restartPause) {
			if s.Core() == nil {
				w.startFull(s)
			}
		}
	})
	return func() {
		stop()
		s.free.Store(plenty)
		s.setFault(nil)
		s.reap()
		end()
		w.start(s)
	}
}

// startFull starts a server whose disk is full, which may fail.
func (w *World) startFull(s *Server) {
	s.mu.Lock()
	cannot := s.life != nil || s.booting != nil || s.removed
	s.mu.Unlock()
	if cannot {
		return
	}
	if err := s.Start(); err != nil && !errors.Is(err, cluster.ErrDiskFull) {
		w.Wrongf("start on a full disk: %v", err)
	}
}

// flip damages the disk of a server while its power is cut. It is started on
// what is left, and replaced in the end: a disk with wrong bits is not used again.
func (w *World) flip(s *Server, kind Kind, chance *rand.Rand) (undo func()) {
	restore := w.damage(s, func() {
		switch kind {
		case FlipSnapshot:
			w.Trace.Sayf(s.Name, "a bit of snapshot %q is flipped", s.disk.FlipSnapshot(chance.IntN))
		default:
			w.Trace.Sayf(s.Name, "a bit of entry %d is flipped", s.disk.FlipEntry(chance.IntN))
		}
	})
	restore()
	return func() { w.rejoin(s) }
}

// diskLost empties a disk and starts the server under the id that it had. It must
// not take part: it has forgotten its votes.
func (w *World) diskLost(s *Server) (undo func()) {
	restore := w.damage(s, func() { s.useDisk(memlog.New()) })
	restore()
	return func() {
		if running := s.Core(); running != nil {
			switch phase := running.Cluster().Phase(); phase {
			case cluster.PhaseUninitialised:
				w.Reach(ReachedAmnesiac)
			case cluster.PhaseStopped: // an upgrade is stopping it just now
			default:
				w.Wrongf("%s lost its disk and is %s under the id that it had", s.Name, phase)
			}
		}
		w.rejoin(s)
	}
}

// damage cuts the power, does something to the disk, and returns what starts the
// server again.
func (w *World) damage(s *Server, do func()) (restore func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.life == nil {
		w.Wrongf("damage: %s is off", s.Name)
		return func() {}
	}
	p := s.crashLocked()
	s.damaged = true
	do()
	return func() {
		p.bury()
		w.start(s)
	}
}
