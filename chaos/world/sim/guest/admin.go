package main

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/balsa-run/balsa/chaos/check"
	"github.com/balsa-run/balsa/chaos/history"
	"github.com/balsa-run/balsa/chaos/world/sim/inside"
	"github.com/balsa-run/balsa/daemon/core"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/store"
)

const (
	compactMin  = time.Second
	compactMax  = 4 * time.Second
	compactKeep = 60 // revisions at most that a compaction leaves behind it
	hashEvery   = 500 * time.Millisecond
)

// compact forgets history now and then, sometimes nearly all of it.
func compact(ctx context.Context, c *session) {
	for inside.Sleep(ctx, between(c.chance, compactMin, compactMax)) {
		c.wander()
		view, err := c.stale()
		if err != nil {
			continue
		}
		if revision := int64(view.Revision()) - c.chance.Int64N(compactKeep); revision > int64(view.CompactRevision()) {
			c.compactAt(ctx, revision)
		}
	}
}

func (c *session) compactAt(ctx context.Context, revision int64) {
	ctx, cancel, o := c.begin(ctx, history.Record{F: history.Compact, Base: revision})
	defer cancel()
	command := &internalv1.Command{Op: &internalv1.Command_Compact{Compact: &internalv1.Compact{Revision: revision}}}
	if c.propose(ctx, o, command) != nil {
		c.world.Reach(inside.ReachedCompacted)
		c.ok(o)
	}
}

// stale is what the session's server has, without asking anybody.
func (c *session) stale() (store.View, error) {
	running := c.server.Core()
	if running == nil {
		return store.View{}, errOff
	}
	return running.Store().Space(store.SpaceEtcd).View(), nil
}

func (c *session) viewAt(revision int64) (store.View, error) {
	running := c.server.Core()
	if running == nil {
		return store.View{}, errOff
	}
	return running.Store().Space(store.SpaceEtcd).ViewAt(store.Revision(revision))
}

// hashes notes what each server says that its state hashes to, while faults go on:
// each life of a server once for each revision that it still remembers.
func hashes(ctx context.Context, c *session) {
	lives := map[string]*noted{}
	for inside.Sleep(ctx, hashEvery) {
		for _, server := range c.world.Servers() {
			running := server.Core()
			if running == nil {
				continue
			}
			if lives[server.Name] == nil || lives[server.Name].life != running {
				lives[server.Name] = &noted{life: running}
			}
			c.noteHashes(server.Name, lives[server.Name])
		}
	}
}

// noted is up to which revision the hashes of one life of a server are noted.
type noted struct {
	life *core.Server
	upTo store.Revision
}

func (c *session) noteHashes(name string, n *noted) {
	for _, h := range slices.Backward(n.life.Store().Space(store.SpaceEtcd).Hashes()) { // the newest comes first
		if h.Revision <= n.upTo {
			continue
		}
		n.upTo = h.Revision
		c.etcd.Note(history.Record{
			Type: history.OK, F: history.Hash, Server: name, At: int64(h.Revision), Value: check.FormatHash(h.Hash),
		})
		c.count(c.workload, history.OK)
	}
}

const (
	planMin = time.Millisecond
	planMax = 2500 * time.Millisecond
)

// plans does what a reconciler does: it takes the term in which its server leads,
// thinks for a while, and writes with that term as epoch. Others of the same server
// do so at the same time: when it has led again in a later term and has written,
// nothing planned before may follow. The epoch is the fencing token.
func plans(ctx context.Context, c *session) {
	for c.think(ctx) {
		running := c.server.Core()
		if running == nil {
			continue
		}
		epoch := running.Cluster().Status().Leading
		if epoch == 0 {
			continue
		}
		plan := planMin
		if c.chance.IntN(2) == 0 {
			plan = planMax
		}
		inside.Sleep(ctx, between(c.chance, 0, plan))
		c.carryOut(ctx, epoch)
	}
}

// epochKey is written by reconcilers only.
const epochKey = check.PrefixLock + "epoch"

func (c *session) carryOut(ctx context.Context, epoch uint64) {
	value := c.value()
	ctx, cancel, o := c.begin(ctx, history.Record{F: history.Fenced, Key: epochKey, Value: value, Base: int64(epoch)})
	defer cancel()
	result := c.propose(ctx, o, &internalv1.Command{
		Epoch: epoch, Op: &internalv1.Command_Txn{Txn: &internalv1.Txn{Success: []*internalv1.Op{putOf(epochKey, value, 0)}}},
	})
	if result != nil {
		o.Answer.Revision = result.GetRevision()
		c.ok(o)
	}
}

const (
	lockKeys   = 2
	leaseTTL   = 2 // seconds
	criticals  = 4 // fenced writes under a lock, at most
	lockPrefix = check.PrefixLock + "held-"
)

// locks takes a lock with a lease, which it keeps alive at times, writes what it
// guards with the fencing token, and gives the lock back, or forgets to.
func locks(ctx context.Context, c *session) {
	for c.think(ctx) {
		c.wander()
		lock := lockPrefix + strconv.Itoa(c.chance.IntN(lockKeys))
		lease := c.grant(ctx)
		if lease == 0 {
			continue
		}
		token := c.lock(ctx, lock, lease)
		for range c.chance.IntN(criticals) {
			if token == 0 || !c.think(ctx) {
				break
			}
			c.wander()
			if c.chance.IntN(2) == 0 {
				c.keepAlive(ctx, lease)
			}
			c.fenced(ctx, lock, token)
		}
		switch {
		case token != 0 && c.chance.IntN(2) == 0:
			c.unlock(ctx, lock, token)
		case c.chance.IntN(2) == 0:
			continue // it forgets: the lease has to end by itself
		}
		c.revoke(ctx, lease)
	}
}

func (c *session) grant(ctx context.Context) int64 {
	id := c.numbers.Add(1)
	ctx, cancel, o := c.begin(ctx, history.Record{F: history.Grant, Lease: id, TTL: leaseTTL * time.Second})
	defer cancel()
	command := &internalv1.Command{Op: &internalv1.Command_LeaseGrant{LeaseGrant: &internalv1.LeaseGrant{Id: id, TtlSeconds: leaseTTL}}}
	if c.propose(ctx, o, command) == nil {
		return 0
	}
	c.ok(o)
	return id
}

// keepAlive gives a lease its time again, through any server.
func (c *session) keepAlive(ctx context.Context, lease int64) {
	ctx, cancel, o := c.begin(ctx, history.Record{F: history.KeepAlive, Lease: lease})
	defer cancel()
	running := c.server.Core()
	if running == nil {
		c.refused(o, errOff)
		return
	}
	answer, err := running.Etcd().Leases.LeaseTime(ctx, &internalv1.LeaseTimeRequest{Id: lease, Renew: true})
	switch {
	case c.server.Core() != running:
		c.unknown(o, errDied)
	case err != nil:
		c.unknown(o, err) // it may have been renewed all the same
	case !answer.GetFound():
		c.refused(o, errors.New(check.ErrorNotFound))
	default:
		o.Answer.TTL = max(time.Duration(answer.GetRemainingMs())*time.Millisecond, time.Millisecond)
		c.ok(o)
	}
}

// lock returns the fencing token, 0 when it did not get the lock.
func (c *session) lock(ctx context.Context, lock string, lease int64) int64 {
	value := c.value()
	ctx, cancel, o := c.begin(ctx, history.Record{F: history.Lock, Key: lock, Value: value, Lease: lease})
	defer cancel()
	txn := &internalv1.Txn{Compares: []*internalv1.Compare{unchanged(lock, 0)}, Success: []*internalv1.Op{putOf(lock, value, lease)}}
	result := c.commit(ctx, o, txn)
	if result == nil {
		return 0
	}
	o.Answer.Base, o.Answer.Revision = result.GetRevision(), result.GetRevision()
	c.ok(o)
	return result.GetRevision()
}

// fenced writes what the lock guards: only as long as the lock is the one that
// gave the token.
func (c *session) fenced(ctx context.Context, lock string, token int64) {
	key, value := lock+"/data", c.value()
	ctx, cancel, o := c.begin(ctx, history.Record{F: history.Fenced, Key: key, Value: value, Base: token})
	defer cancel()
	txn := &internalv1.Txn{
		Compares: []*internalv1.Compare{compareOf(lock, internalv1.Compare_TARGET_CREATE, token)},
		Success:  []*internalv1.Op{putOf(key, value, 0)},
	}
	if result := c.commit(ctx, o, txn); result != nil {
		o.Answer.Revision = result.GetRevision()
		c.ok(o)
	}
}

func (c *session) unlock(ctx context.Context, lock string, token int64) {
	ctx, cancel, o := c.begin(ctx, history.Record{F: history.Unlock, Key: lock, Base: token})
	defer cancel()
	txn := &internalv1.Txn{
		Compares: []*internalv1.Compare{compareOf(lock, internalv1.Compare_TARGET_CREATE, token)},
		Success:  []*internalv1.Op{deleteOf(lock)},
	}
	if result := c.commit(ctx, o, txn); result != nil {
		o.Answer.Revision = result.GetRevision()
		c.ok(o)
	}
}

func (c *session) revoke(ctx context.Context, lease int64) {
	ctx, cancel, o := c.begin(ctx, history.Record{F: history.Revoke, Lease: lease})
	defer cancel()
	command := &internalv1.Command{Op: &internalv1.Command_LeaseRevoke{LeaseRevoke: &internalv1.LeaseRevoke{Id: lease}}}
	if result := c.propose(ctx, o, command); result != nil {
		o.Answer.Revision = result.GetRevision()
		c.ok(o)
	}
}
