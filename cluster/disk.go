package cluster

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/balsa-run/balsa/internal/clock"
)

// diskWatch knows how long the oldest unfinished write has taken. A write that
// does not come back is the one fault that the library cannot see: its main
// goroutine waits in it while other goroutines go on sending heartbeats.
type diskWatch struct {
	clock clock.Clock

	mu    sync.Mutex
	next  uint64               // guarded by mu
	since map[uint64]time.Time // guarded by mu; writes under way
}

func newDiskWatch(c clock.Clock) *diskWatch {
	return &diskWatch{clock: c, since: make(map[uint64]time.Time)}
}

// begin marks a write; the result marks its end.
func (d *diskWatch) begin() (end func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	id := d.next
	d.next++
	d.since[id] = d.clock.Now()
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.since, id)
	}
}

// stuck is how long the oldest write has been under way.
func (d *diskWatch) stuck() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	var longest time.Duration
	for _, since := range d.since {
		longest = max(longest, d.clock.Now().Sub(since))
	}
	return longest
}

// guardedLog is the log store as raft sees it.
type guardedLog struct {
	inner raft.LogStore
	disk  *diskWatch
	c     *Cluster
}

var _ raft.MonotonicLogStore = (*guardedLog)(nil)

func (g *guardedLog) IsMonotonic() bool {
	m, ok := g.inner.(raft.MonotonicLogStore)
	return ok && m.IsMonotonic()
}

func (g *guardedLog) FirstIndex() (uint64, error) { return g.inner.FirstIndex() }
func (g *guardedLog) LastIndex() (uint64, error)  { return g.inner.LastIndex() }

// GetLog: an entry that is not there is normal; one that cannot be read would
// make the library panic, so the member stops with the reason instead.
func (g *guardedLog) GetLog(index uint64, entry *raft.Log) error {
	err := g.inner.GetLog(index, entry)
	if err != nil && !errors.Is(err, raft.ErrLogNotFound) && g.c.raft.Load() != nil {
		g.c.halt(fmt.Errorf("read log entry %d: %w", index, err))
	}
	return err
}

func (g *guardedLog) StoreLog(entry *raft.Log) error { return g.StoreLogs([]*raft.Log{entry}) }

// StoreLogs: after a failed write nobody knows what is on the disk, so nothing
// more is acknowledged from it.
func (g *guardedLog) StoreLogs(entries []*raft.Log) error {
	return g.c.guardWrite("append to the log", func() error { return g.inner.StoreLogs(entries) })
}

func (g *guardedLog) DeleteRange(low, high uint64) error {
	return g.c.guardWrite("truncate the log", func() error { return g.inner.DeleteRange(low, high) })
}

func (c *Cluster) guardWrite(what string, write func() error) error {
	if err := c.failureReason(); err != nil {
		return fmt.Errorf("%s: this member has stopped: %w", what, err)
	}
	end := c.disk.begin()
	err := write()
	end()
	if err != nil {
		err = fmt.Errorf("%s: %w", what, err)
		c.fail(err)
	}
	return err
}

// guardedSnapshots stops the member when a snapshot cannot be written: the same
// disk holds the log.
type guardedSnapshots struct {
	inner raft.SnapshotStore
	c     *Cluster
}

func (g *guardedSnapshots) List() ([]*raft.SnapshotMeta, error) { return g.inner.List() }
func (g *guardedSnapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	return g.inner.Open(id)
}

func (g *guardedSnapshots) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration, configurationIndex uint64, trans raft.Transport) (raft.SnapshotSink, error) {
	if err := g.c.failureReason(); err != nil {
		return nil, fmt.Errorf("create a snapshot: this member has stopped: %w", err)
	}
	sink, err := g.inner.Create(version, index, term, configuration, configurationIndex, trans)
	if err != nil {
		return nil, g.note("create a snapshot", err)
	}
	return &guardedSink{SnapshotSink: sink, g: g}, nil
}

func (g *guardedSnapshots) note(what string, err error) error {
	if err == nil {
		return nil
	}
	err = fmt.Errorf("%s: %w", what, err)
	g.c.fail(err)
	return err
}

type guardedSink struct {
	raft.SnapshotSink
	g *guardedSnapshots
}

func (s *guardedSink) Write(p []byte) (int, error) {
	n, err := s.SnapshotSink.Write(p)
	return n, s.g.note("write a snapshot", err)
}

func (s *guardedSink) Close() error { return s.g.note("finish a snapshot", s.SnapshotSink.Close()) }

// watchDisk tells leadership about a stuck write and ends the member when it
// does not come back.
func (c *Cluster) watchDisk() {
	stalled := false
	for c.pause(c.ctx, max(c.cfg.Disk.StallAfter/4, time.Millisecond)) {
		stuck := c.disk.stuck()
		c.cfg.Metrics.Set("cluster_disk_stuck_seconds", stuck.Seconds())
		if now := stuck > c.cfg.Disk.StallAfter; now != stalled {
			stalled = now
			c.log.Warn("own disk", "stalled", stalled, "stuck", stuck)
			c.lead.nudge()
		}
		if stuck > c.cfg.Disk.StallFatal {
			c.fail(fmt.Errorf("a write to the log has been stuck for %v, allowed %v: check the disk", stuck.Round(time.Millisecond), c.cfg.Disk.StallFatal))
			return
		}
	}
}

// stalled tells whether another member had better lead. An only voter keeps the
// leadership however slow its disk is: there is nobody to take it.
func (c *Cluster) stalled() bool {
	if c.disk.stuck() <= c.cfg.Disk.StallAfter {
		return false
	}
	r := c.raft.Load()
	return r == nil || c.otherVoters(r) > 0
}
