package cluster

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/hashicorp/raft"
)

// SpaceLevel is how much room a member's disk has.
type SpaceLevel int

const (
	// SpaceEnough: nothing to do.
	SpaceEnough SpaceLevel = iota
	// SpaceLow: another member should lead.
	SpaceLow
	// SpaceCritical: stop before a write fails.
	SpaceCritical
)

// PlanSpace judges the bytes left.
func PlanSpace(free uint64, limits DiskLimits) SpaceLevel {
	switch {
	case free < limits.CriticalSpace:
		return SpaceCritical
	case free < limits.LowSpace:
		return SpaceLow
	}
	return SpaceEnough
}

func (c *Cluster) spaceIsLow() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lowSpace
}

// roomToStart: a member that was stopped by a full disk waits until there is
// room for more than the next write.
func (c *Cluster) roomToStart() bool {
	free, ok := c.freeSpace()
	return !ok || free >= c.cfg.Disk.RoomToStart
}

func (c *Cluster) freeSpace() (free uint64, ok bool) {
	if c.cfg.FreeSpace == nil {
		return 0, false
	}
	free, err := c.cfg.FreeSpace()
	if err != nil {
		c.log.Warn("free space of the log's disk", "error", err)
		return 0, false
	}
	c.cfg.Metrics.Set("cluster_disk_free_bytes", float64(free))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.free = free
	return free, true
}

func (c *Cluster) waitForRoom() {
	for c.pause(c.ctx, c.cfg.Disk.Check) {
		if !c.roomToStart() {
			continue
		}
		c.log.Info("room again: taking part")
		if err := c.start(); err != nil {
			c.fail(err)
		}
		return
	}
}

// watchSpace hands over leadership while there is still room to do it in order,
// and stops before the log's next write could fail half way.
func (c *Cluster) watchSpace() {
	if c.cfg.FreeSpace == nil {
		return
	}
	for c.pause(c.ctx, c.cfg.Disk.Check) {
		free, ok := c.freeSpace()
		if !ok {
			continue
		}
		level := PlanSpace(free, c.cfg.Disk)
		c.noteSpace(level, free)
		switch level {
		case SpaceCritical:
			c.handOver(c.ctx)
			c.fail(fmt.Errorf("%d bytes left, CriticalSpace is %d: %w; make room, this member waits for %d bytes before it votes again", free, c.cfg.Disk.CriticalSpace, ErrDiskFull, c.cfg.Disk.RoomToStart))
			return
		case SpaceLow:
			c.handOver(c.ctx)
		}
	}
}

func (c *Cluster) noteSpace(level SpaceLevel, free uint64) {
	c.mu.Lock()
	changed := c.lowSpace != (level >= SpaceLow)
	c.lowSpace = level >= SpaceLow
	c.mu.Unlock()
	if changed {
		c.log.Warn("disk space", "low", level >= SpaceLow, "free", free, "low below", c.cfg.Disk.LowSpace)
	}
}

// stopDiverged ends a member whose data is not what the majority has. Its disk
// is marked: started again, it would answer wrongly again.
func (c *Cluster) stopDiverged(d Divergence) {
	c.cfg.Metrics.Add("cluster_diverged", 1)
	err := fmt.Errorf("%w: %s", ErrDiverged, d)
	if recordErr := c.stable.refuse(err.Error()); recordErr != nil {
		err = errors.Join(err, recordErr)
	}
	c.fail(err)
}

// watchLogSize takes a snapshot when the log behind the last one has grown by
// SnapshotBytes or SnapshotEntries.
func (c *Cluster) watchLogSize() {
	for c.pause(c.ctx, c.cfg.Timing.Snapshots) {
		bytes, entries := c.machine.bytes.Load(), c.machine.entries.Load()
		if !snapshotDue(bytes, entries, c.cfg.Limits) {
			continue
		}
		if err := c.SnapshotNow(c.ctx); err != nil {
			c.log.Warn("snapshot", "error", err)
		}
	}
}

func snapshotDue(bytes, entries int64, limits Limits) bool {
	return bytes >= limits.SnapshotBytes || entries > 0 && uint64(entries) >= limits.SnapshotEntries
}

// trailing is how many entries make about TrailingBytes at their average size.
func trailing(bytes, entries int64, limits Limits) uint64 {
	if entries <= 0 || bytes <= 0 {
		return limits.TrailingEntries
	}
	average := max(bytes/entries, 1)
	n := min(limits.TrailingBytes/average, math.MaxInt32)
	return max(uint64(n), limits.TrailingEntries)
}

// SnapshotNow writes a snapshot and shortens the log.
func (c *Cluster) SnapshotNow(ctx context.Context) error {
	r, stopped := c.running()
	if stopped != nil {
		return stopped
	}
	bytes, entries := c.machine.bytes.Load(), c.machine.entries.Load()
	if err := c.reload(func(s *raft.ReloadableConfig) { s.TrailingLogs = trailing(bytes, entries, c.cfg.Limits) }); err != nil {
		return fmt.Errorf("cluster: set the trailing entries: %w", err)
	}
	start := c.cfg.Clock.Now()
	if err := await(ctx, r.Snapshot()); err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return fmt.Errorf("cluster: take a snapshot: %w", err)
	}
	c.machine.bytes.Add(-bytes)
	c.machine.entries.Add(-entries)
	c.cfg.Metrics.Observe("cluster_snapshot_seconds", c.cfg.Clock.Now().Sub(start).Seconds())
	return nil
}
