package inside

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/balsa-run/balsa/cluster"
	"github.com/balsa-run/balsa/cluster/memlog"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/store"
)

const (
	// mostServers is how many AddServer makes at most.
	mostServers = 5
	// joinLimit is what it may take until a server is a voter, whatever else is
	// done to it and the others meanwhile.
	joinLimit = 3 * time.Minute
	askLimit  = 5 * time.Second
	askAgain  = 200 * time.Millisecond
)

// isWeak tells whether a server has less than it promised, or no vote yet.
func (s *Server) isWeak() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.damaged || s.removed
}

func (s *Server) setDamaged(damaged bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.damaged = damaged
}

// rejoin gives a server an empty disk and a new id, and returns when it has a
// vote.
func (w *World) rejoin(s *Server) {
	s.lockStill()
	if s.life != nil {
		s.crashLocked().bury()
	}
	s.damaged = true
	s.ids++
	s.id = fmt.Sprintf("%s-%d", s.Name, s.ids)
	s.useDisk(memlog.New())
	s.mu.Unlock()
	w.start(s)
	w.join(s)
	w.Reach(ReachedReplaced)
}

// join lets the leader admit a server, and waits until it has a vote. Whatever
// happens to either meanwhile, it tries again.
func (w *World) join(s *Server) {
	ctx, cancel := context.WithTimeout(context.Background(), joinLimit)
	defer cancel()
	err := Await(ctx, func() (bool, string) {
		if w.knows(s.ID()) {
			return true, ""
		}
		return w.admit(ctx, s)
	})
	if err == nil {
		err = Await(ctx, func() (bool, string) { return w.takePart(ctx, s) })
	}
	if err != nil {
		w.Wrongf("%s cannot join as %s: %v", s.Name, s.ID(), err)
		return
	}
	s.setDamaged(false)
}

// knows tells whether the leader has a member of that id.
func (w *World) knows(id string) bool {
	leader := w.leaderCore()
	return leader != nil && slices.ContainsFunc(leader.Members(), func(m cluster.Member) bool { return m.ID == id })
}

func (w *World) leaderCore() *cluster.Cluster {
	if leader := w.Leader(); leader != nil {
		if running := leader.Core(); running != nil {
			return running.Cluster()
		}
	}
	return nil
}

func (w *World) admit(ctx context.Context, s *Server) (bool, string) {
	leader := w.leaderCore()
	if leader == nil {
		return false, "no leader"
	}
	apart := w.partitioned()
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	if err := leader.AddNonvoter(ctx, s.ID(), s.address); err != nil {
		Sleep(ctx, askAgain)
		return false, err.Error()
	}
	w.changed(apart)
	return true, ""
}

// changed notes a change of the membership that was made in a partition.
func (w *World) changed(apart bool) {
	if apart {
		w.Reach(ReachedChangedInPartition)
	}
}

// takePart is true when an admitted server has its vote.
func (w *World) takePart(ctx context.Context, s *Server) (bool, string) {
	running := s.Core()
	if running == nil {
		return false, "it is off"
	}
	c := running.Cluster()
	if c.Phase() == cluster.PhaseUninitialised {
		if err := running.Join(ctx); err != nil {
			return false, err.Error()
		}
	}
	status := c.Status()
	return status.Phase == cluster.PhaseRunning && status.Voter, fmt.Sprintf("it is %s, voter: %t", status.Phase, status.Voter)
}

// add lets a new machine join.
func (w *World) add(f Fault) (heal func()) {
	if len(w.Servers()) >= mostServers {
		w.Trace.Sayf("", "no room for another server")
		return nil
	}
	s := w.buy()
	s.setDamaged(true)
	w.connect(s.address)
	w.Trace.Sayf(s.Name, "FAULT %s", f)
	w.start(s)
	joined := make(chan struct{})
	go func() {
		defer close(joined)
		w.join(s)
		w.Reach(ReachedAdded)
	}()
	return func() { <-joined }
}

// connect gives a new host links to and from all others.
func (w *World) connect(address string) {
	chance := w.Chance("links of " + address)
	for _, other := range w.hosts() {
		if other != address {
			w.setDelay(other, address, between(chance, latencyMin, latencyMax))
			w.setDelay(address, other, between(chance, latencyMin, latencyMax))
		}
	}
}

// remove takes a server out of the cluster, if the leader agrees, and then the
// machine out of the world.
func (w *World) remove(s *Server) (undo func()) {
	s.setDamaged(true) // nobody else may be taken away meanwhile
	removed := make(chan bool, 1)
	go func() { removed <- w.dismiss(s) }()
	return func() {
		if !<-removed {
			s.setDamaged(false)
			w.start(s)
			return
		}
		s.lockStill()
		s.removed = true
		if s.life != nil {
			s.crashLocked().bury()
		}
		s.mu.Unlock()
		w.scrap(s)
		w.Reach(ReachedRemoved)
	}
}

// dismiss asks each leader until one has said what becomes of it.
func (w *World) dismiss(s *Server) (gone bool) {
	ctx, cancel := context.WithTimeout(context.Background(), joinLimit)
	defer cancel()
	asked := false
	err := Await(ctx, func() (bool, string) {
		leader := w.leaderCore()
		if leader == nil {
			return false, "no leader"
		}
		if w.Leader() == s { // it hands over, and another removes it
			_ = leader.TransferLeadership(ctx, "")
			return false, "no other leader"
		}
		apart := w.partitioned()
		ask, cancel := context.WithTimeout(ctx, askLimit)
		defer cancel()
		if asked && !slices.ContainsFunc(leader.Members(), func(m cluster.Member) bool { return m.ID == s.ID() }) {
			gone = true
			return true, ""
		}
		asked = true
		err := leader.Remove(ask, s.ID(), false)
		switch {
		case err == nil:
			w.changed(apart)
			gone = true
			return true, ""
		case cluster.IsUnknown(err):
			Sleep(ask, askAgain)
			return false, err.Error()
		}
		w.Trace.Sayf(s.Name, "is not removed: %v", err)
		return true, ""
	})
	if err != nil {
		w.Wrongf("%s: nobody can say whether it is removed: %v", s.Name, err)
	}
	return gone
}

// replace switches a server off for good; another with its address joins.
func (w *World) replace(s *Server) (undo func()) {
	w.damage(s, func() {})
	return func() { w.rejoin(s) }
}

// orderLimit is what a thing may take that an operator asks for. It may fail.
const orderLimit = 10 * time.Second

// order has a server do something that may fail, for a reason that is noted.
func (w *World) order(s *Server, what Kind, do func(ctx context.Context, c *cluster.Cluster) error) (undo func()) {
	running := s.Core()
	ctx, cancel := context.WithTimeout(context.Background(), orderLimit)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer cancel()
		if err := do(ctx, running.Cluster()); err != nil {
			w.Trace.Sayf(s.Name, "%s: %v", what, err)
		}
	}()
	return func() { <-ended }
}

func (w *World) transfer(s *Server) (undo func()) {
	return w.order(s, Transfer, func(ctx context.Context, c *cluster.Cluster) error {
		err := c.TransferLeadership(ctx, "")
		if err == nil {
			w.Reach(ReachedTransfer)
		}
		return err
	})
}

func (w *World) snapshot(s *Server) (undo func()) {
	return w.order(s, Snapshot, func(ctx context.Context, c *cluster.Cluster) error { return c.SnapshotNow(ctx) })
}

// compact forgets what is older than the newest revisions of objects, and of them
// all but keep. The etcd space is left to those who watch it: they have to know.
func (w *World) compact(s *Server, keep int64) (undo func()) {
	view := s.Core().Store().Space(store.SpaceObjects).View()
	to := int64(view.Revision()) - keep
	return w.order(s, Compact, func(ctx context.Context, c *cluster.Cluster) error {
		if to <= int64(view.CompactRevision()) {
			return nil
		}
		_, err := c.Propose(ctx, &internalv1.Command{Space: store.SpaceObjects, Op: &internalv1.Command_Compact{Compact: &internalv1.Compact{Revision: to}}})
		if err == nil {
			w.Reach(ReachedCompacted)
		}
		return err
	})
}
