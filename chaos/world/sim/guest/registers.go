package main

import (
	"context"
	"fmt"

	"github.com/balsa-run/balsa/chaos/check"
	"github.com/balsa-run/balsa/chaos/history"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
)

const registerKeys = 4

// registers reads and writes a few keys in every way, at every server.
func registers(ctx context.Context, c *session) {
	for c.think(ctx) {
		c.wander()
		key := fmt.Sprintf("%s%d", check.PrefixRegister, c.chance.IntN(registerKeys))
		switch n := c.chance.IntN(100); {
		case n < 30:
			c.get(ctx, history.Read, key)
		case n < 40:
			c.get(ctx, history.StaleRead, key)
		case n < 55:
			c.put(ctx, key)
		case n < 80:
			if found, ok := c.get(ctx, history.Read, key); ok {
				c.cas(ctx, key, c.value(), found.ModRevision)
			}
		case n < 90:
			c.remove(ctx, key)
		default:
			c.list(ctx, history.List, check.PrefixRegister)
		}
	}
}

// get is the key as it was found; ok tells that there was an answer.
func (c *session) get(ctx context.Context, f history.F, key string) (found history.KV, ok bool) {
	ctx, cancel, o := c.begin(ctx, history.Record{F: f, Key: key})
	defer cancel()
	view, ok := c.look(ctx, o, f == history.StaleRead)
	if !ok {
		return found, false
	}
	if kv, there := view.Get(key); there {
		found = kvOf(kv)
	}
	o.Answer.Value, o.Answer.Revision, o.Answer.At = found.Value, found.ModRevision, int64(view.Revision())
	c.ok(o)
	return found, true
}

func (c *session) put(ctx context.Context, key string) {
	value := c.value()
	ctx, cancel, o := c.begin(ctx, history.Record{F: history.Put, Key: key, Value: value})
	defer cancel()
	if result := c.commit(ctx, o, &internalv1.Txn{Success: []*internalv1.Op{putOf(key, value, 0)}}); result != nil {
		o.Answer.Revision = result.GetRevision()
		c.ok(o)
	}
}

func (c *session) cas(ctx context.Context, key, value string, base int64) {
	ctx, cancel, o := c.begin(ctx, history.Record{F: history.CAS, Key: key, Value: value, Base: base})
	defer cancel()
	txn := &internalv1.Txn{Compares: []*internalv1.Compare{unchanged(key, base)}, Success: []*internalv1.Op{putOf(key, value, 0)}}
	if result := c.commit(ctx, o, txn); result != nil {
		o.Answer.Revision = result.GetRevision()
		c.ok(o)
	}
}

func (c *session) remove(ctx context.Context, key string) {
	ctx, cancel, o := c.begin(ctx, history.Record{F: history.Delete, Key: key})
	defer cancel()
	result := c.commit(ctx, o, &internalv1.Txn{Success: []*internalv1.Op{deleteOf(key)}})
	if result == nil {
		return
	}
	switch deleted := result.GetTxn().GetResults()[0].GetDeleteRange().GetDeleted(); deleted {
	case 0: // there was nothing, and no revision was made
	case 1:
		o.Answer.Revision = result.GetRevision()
	default:
		c.world.Wrongf("one key was deleted, %d are said to be gone", deleted)
	}
	c.ok(o)
}

// list reads all keys with a prefix.
func (c *session) list(ctx context.Context, f history.F, prefix string) {
	ctx, cancel, o := c.begin(ctx, history.Record{F: f, Key: prefix, End: endOf(prefix)})
	defer cancel()
	view, ok := c.look(ctx, o, f == history.StaleList)
	if !ok {
		return
	}
	for kv := range view.Prefix(prefix) {
		o.Answer.KVs = append(o.Answer.KVs, kvOf(kv))
	}
	o.Answer.At, o.Answer.Count = int64(view.Revision()), int64(len(o.Answer.KVs))
	c.ok(o)
}

// grow adds elements to a set, each once, and reads all of it.
func grow(ctx context.Context, c *session) {
	for c.think(ctx) {
		c.wander()
		switch n := c.chance.IntN(10); {
		case n < 7 && c.made < setElements:
			value := c.value()
			c.cas(ctx, check.PrefixSet+value, value, 0)
		case n < 9:
			c.list(ctx, history.List, check.PrefixSet)
		default:
			c.list(ctx, history.StaleList, check.PrefixSet)
		}
	}
	c.list(context.WithoutCancel(ctx), history.List, check.PrefixSet)
}

// setElements bounds what one session adds: each list shows all.
const setElements = 120

const (
	rangeKeys = 24
	pageLimit = 5
)

// ranges writes keys and reads them page by page, all pages as of the revision of
// the first.
func ranges(ctx context.Context, c *session) {
	for c.think(ctx) {
		c.wander()
		key := fmt.Sprintf("%s%02d", check.PrefixRange, c.chance.IntN(rangeKeys))
		switch n := c.chance.IntN(100); {
		case n < 45:
			c.put(ctx, key)
		case n < 55:
			c.remove(ctx, key)
		case n < 65:
			c.list(ctx, history.StaleList, check.PrefixRange)
		default:
			c.pages(ctx)
		}
	}
}

func (c *session) pages(ctx context.Context) {
	from, at := check.PrefixRange, int64(0)
	for more := true; more && ctx.Err() == nil; {
		from, at, more = c.page(ctx, from, at)
		c.wander() // the next page may come from another server
	}
}

// page reads one page from a key on; next is where the one after it begins.
func (c *session) page(ctx context.Context, from string, at int64) (next string, rev int64, more bool) {
	ctx, cancel, o := c.begin(ctx, history.Record{F: history.List, Key: from, End: endOf(check.PrefixRange), At: at, Limit: pageLimit})
	defer cancel()
	view, ok := c.look(ctx, o, false)
	if !ok {
		return "", 0, false
	}
	if at != 0 {
		var err error
		if view, err = c.viewAt(at); err != nil {
			c.refused(o, err)
			return "", 0, false
		}
	}
	for kv := range view.Range(from, endOf(check.PrefixRange), pageLimit) {
		o.Answer.KVs = append(o.Answer.KVs, kvOf(kv))
	}
	o.Answer.At = int64(view.Revision())
	o.Answer.Count = int64(view.Count(from, endOf(check.PrefixRange)))
	o.Answer.More = o.Answer.Count > int64(len(o.Answer.KVs))
	rev, more = o.Answer.At, o.Answer.More
	if more {
		next = o.Answer.KVs[len(o.Answer.KVs)-1].Key + "\x00"
	}
	c.ok(o)
	return next, rev, more
}
