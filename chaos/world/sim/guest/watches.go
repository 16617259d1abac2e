package main

import (
	"context"
	"errors"
	"time"

	"github.com/balsa-run/balsa/chaos/check"
	"github.com/balsa-run/balsa/chaos/history"
	"github.com/balsa-run/balsa/chaos/world/sim/inside"
	"github.com/balsa-run/balsa/store"
)

const (
	// A watch is left after so long, and another is opened where it ended, or a good
	// deal before that, at any server.
	watchMin    = 300 * time.Millisecond
	watchMax    = 6 * time.Second
	watchBehind = 60 // revisions
	// A slow reader has a buffer of one, and rests between two batches.
	slowRest = 150 * time.Millisecond
)

// errLeft is how a watch ends that nobody wants any more.
var errLeft = errors.New("left")

// watch follows keys, from server to server.
func watch(ctx context.Context, c *session) {
	prefixes := []string{check.PrefixRegister, check.PrefixTxn, check.PrefixRange, ""}
	seen := int64(0)
	for c.think(ctx) {
		c.goTo(c.chance.IntN(len(c.world.Servers())))
		o := store.WatchOptions{Prefix: prefixes[c.chance.IntN(len(prefixes))], PrevKV: c.chance.IntN(2) == 0, Buffer: 16}
		slow := c.chance.IntN(3) == 0
		if slow {
			o.Buffer = 1
		}
		o.From = store.Revision(max(seen+1-c.chance.Int64N(watchBehind), 1))
		if view, err := c.stale(); err == nil && seen > 0 && o.From < view.CompactRevision() {
			c.world.Reach(inside.ReachedResumedAcross)
		}
		seen = max(seen, c.follow(ctx, o, slow))
	}
}

// follow records one watch, and returns the last revision that it has shown.
func (c *session) follow(ctx context.Context, options store.WatchOptions, slow bool) (last int64) {
	record := history.Record{F: history.Watch, Key: options.Prefix, End: endOf(options.Prefix), Base: int64(options.From)}
	if options.Prefix == "" {
		record.End = "\x00" // all keys
	}
	running := c.server.Core()
	if running == nil {
		return 0
	}
	ctx, cancel := context.WithTimeoutCause(ctx, between(c.chance, watchMin, watchMax), errLeft)
	defer cancel()
	o := c.process.Begin(record)
	w, err := running.Store().Space(store.SpaceEtcd).Watch(ctx, options)
	if err != nil {
		c.refused(o, err)
		return max(last, compactedAt(err)-1)
	}
	defer w.Stop()
	alive := func() bool { return c.server.Core() == running }
	for batch := range w.Events() {
		if !alive() {
			break
		}
		c.deliver(o, batch)
		last = int64(batch.Revision)
		if c.chance.IntN(10) == 0 {
			w.RequestProgress()
		}
		if slow {
			inside.Sleep(ctx, slowRest)
		}
	}
	switch err := w.Err(); {
	case !alive():
		c.unknown(o, errDied)
	case errors.Is(err, store.ErrCompacted):
		c.refused(o, err)
		last = max(last, compactedAt(err)-1)
	case errors.Is(err, store.ErrResync):
		c.unknown(o, err)
	default:
		c.ok(o)
	}
	return last
}

func (c *session) deliver(o *history.Op, batch store.Batch) {
	kvs := make([]history.KV, len(batch.Events))
	for i, e := range batch.Events {
		kvs[i] = eventOf(e)
	}
	c.delivered.Add(1)
	o.Deliver(kvs, int64(batch.Revision))
}

// compactedAt is the oldest revision that there still is, when an error says so.
func compactedAt(err error) int64 {
	var compacted *store.CompactedError
	if errors.As(err, &compacted) {
		return int64(compacted.Compact)
	}
	return 0
}
