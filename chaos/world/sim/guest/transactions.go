package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/balsa-run/balsa/chaos/check"
	"github.com/balsa-run/balsa/chaos/history"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/store"
)

const (
	listKeys  = 3
	listSteps = 4
	// listMax is how long a list grows before a new one takes its place: each read
	// of it is in the history whole.
	listMax = 40
)

// appends makes transactions of reads of lists and appends to them.
func appends(ctx context.Context, c *session) {
	generation := make([]int, listKeys)
	for c.think(ctx) {
		c.wander()
		mops := make([]history.Mop, 1+c.chance.IntN(listSteps))
		for i := range mops {
			n := c.chance.IntN(listKeys)
			mops[i] = history.Mop{F: history.MopRead, Key: fmt.Sprintf("%s%d-%d", check.PrefixTxn, n, generation[n])}
			if c.chance.IntN(2) == 0 {
				mops[i].F, mops[i].Value = history.MopAppend, c.unique()
			}
		}
		for n, length := range c.append(ctx, mops) {
			if length > listMax {
				generation[n]++
			}
		}
	}
}

// append carries out a transaction, and tells how long the lists are that it read,
// by their number.
func (c *session) append(ctx context.Context, mops []history.Mop) map[int]int {
	ctx, cancel, o := c.begin(ctx, history.Record{F: history.Txn, Mops: mops})
	defer cancel()
	t := &listTxn{lists: map[string][]string{}, revisions: map[string]int64{}}
	writes := strings.Contains(fmt.Sprint(mops), history.MopAppend.String())
	// A transaction that writes compares what it read, so it may read anywhere.
	view, ok := c.look(ctx, o, writes && c.chance.IntN(2) == 0)
	if !ok {
		return nil
	}
	o.Answer.Mops = t.run(view, mops)
	o.Answer.At = int64(view.Revision())
	if len(t.written) > 0 {
		result := c.commit(ctx, o, t.txn())
		if result == nil {
			return nil
		}
		o.Answer.Revision = result.GetRevision()
	}
	c.ok(o)
	lengths := map[int]int{}
	for key, list := range t.lists {
		n, _, _ := strings.Cut(strings.TrimPrefix(key, check.PrefixTxn), "-")
		lengths[int(number(n))] = len(list)
	}
	return lengths
}

// listTxn is a transaction on lists in the making: what it found, and what it has
// made of that. A list is stored as its elements with blanks between.
type listTxn struct {
	keys      []string // in the order of their first use
	lists     map[string][]string
	revisions map[string]int64
	written   map[string]bool
}

func (t *listTxn) run(view store.View, mops []history.Mop) []history.Mop {
	out := make([]history.Mop, len(mops))
	t.written = map[string]bool{}
	for i, m := range mops {
		t.touch(view, m.Key)
		if m.F == history.MopAppend {
			t.lists[m.Key] = append(t.lists[m.Key][:len(t.lists[m.Key]):len(t.lists[m.Key])], m.Value)
			t.written[m.Key] = true
		} else {
			m.Values = t.lists[m.Key]
		}
		out[i] = m
	}
	return out
}

func (t *listTxn) touch(view store.View, key string) {
	if _, known := t.lists[key]; known {
		return
	}
	t.keys = append(t.keys, key)
	t.lists[key] = []string{}
	if kv, there := view.Get(key); there {
		t.lists[key], t.revisions[key] = strings.Fields(string(kv.Value)), int64(kv.ModRevision)
	}
}

func (t *listTxn) txn() *internalv1.Txn {
	txn := &internalv1.Txn{}
	for _, key := range t.keys {
		txn.Compares = append(txn.Compares, unchanged(key, t.revisions[key]))
		if t.written[key] {
			txn.Success = append(txn.Success, putOf(key, strings.Join(t.lists[key], " "), 0))
		}
	}
	return txn
}

// unique is a number that nobody else appends.
func (c *session) unique() string {
	return strconv.FormatInt(c.numbers.Add(1), 10)
}

const transferMost = 20

// bank moves money between accounts and looks whether it is still all there. The
// first session opens the accounts.
func bank(ctx context.Context, c *session) {
	for c.think(ctx) {
		c.wander()
		switch n := c.chance.IntN(10); {
		case n < 5:
			c.transfer(ctx)
		case n < 9:
			c.list(ctx, history.List, check.PrefixBank)
		default:
			c.list(ctx, history.StaleList, check.PrefixBank)
		}
	}
}

// transfer moves money, or opens the accounts when there are none.
func (c *session) transfer(ctx context.Context) {
	names := check.BankAccounts()
	from, to := c.chance.IntN(len(names)), c.chance.IntN(len(names)-1)
	if to >= from {
		to++
	}
	view, err := c.stale()
	if err != nil {
		return
	}
	a, has := view.Get(names[from])
	b, _ := view.Get(names[to])
	if !has {
		c.open(ctx, names)
		return
	}
	amount := min(1+c.chance.Int64N(transferMost), number(string(a.Value)))
	left, more := number(string(a.Value))-amount, number(string(b.Value))+amount
	mops := []history.Mop{
		{F: history.MopRead, Key: names[from]}, {F: history.MopRead, Key: names[to]},
		{F: history.MopWrite, Key: names[from], Value: strconv.FormatInt(left, 10)},
		{F: history.MopWrite, Key: names[to], Value: strconv.FormatInt(more, 10)},
	}
	ctx, cancel, o := c.begin(ctx, history.Record{F: history.Txn, Mops: mops})
	defer cancel()
	txn := &internalv1.Txn{
		Compares: []*internalv1.Compare{unchanged(names[from], int64(a.ModRevision)), unchanged(names[to], int64(b.ModRevision))},
		Success:  []*internalv1.Op{putOf(names[from], mops[2].Value, 0), putOf(names[to], mops[3].Value, 0)},
	}
	if result := c.commit(ctx, o, txn); result != nil {
		o.Answer.Mops = append([]history.Mop{}, mops...)
		o.Answer.Mops[0].Values, o.Answer.Mops[1].Values = []string{string(a.Value)}, []string{string(b.Value)}
		o.Answer.Revision = result.GetRevision()
		c.ok(o)
	}
}

func (c *session) open(ctx context.Context, names []string) {
	var mops []history.Mop
	txn := &internalv1.Txn{}
	for _, name := range names {
		value := strconv.Itoa(check.BankTotal / len(names))
		mops = append(mops, history.Mop{F: history.MopWrite, Key: name, Value: value})
		txn.Compares = append(txn.Compares, unchanged(name, 0))
		txn.Success = append(txn.Success, putOf(name, value, 0))
	}
	ctx, cancel, o := c.begin(ctx, history.Record{F: history.Txn, Mops: mops})
	defer cancel()
	if result := c.commit(ctx, o, txn); result != nil {
		o.Answer.Revision = result.GetRevision()
		c.ok(o)
	}
}
