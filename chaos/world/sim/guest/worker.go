package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/chaos/world/sim/history"
	"github.com/balsa-run/balsa/chaos/world/sim/inside"
	"github.com/balsa-run/balsa/client"
	"github.com/balsa-run/balsa/store"
)

const (
	namespace = "default"
	keyPrefix = "configmaps/" + namespace + "/"
	field     = "value"

	burstWrites = 6
	lieEvery    = 20 // writes

	registers = 4 // keys that all clients write
	opLimit   = 3 * time.Second
	retryFor  = time.Second // of every second client; the others never repeat
	thinkMin  = 10 * time.Millisecond
	thinkMax  = 300 * time.Millisecond
)

// The lies that can be planted, to see that they are found.
const (
	plantAck   = "ack"   // a write is acknowledged that was never sent
	plantStale = "stale" // a local read passes for a linearizable one
	plantGhost = "ghost" // a write is sent that nobody records, with no base
)

func plants() []string { return []string{plantAck, plantStale, plantGhost} }

// worker is a client at work.
type worker struct {
	*scenario
	name   string
	api    *client.Client
	chance *rand.Rand
	made   atomic.Int64 // values
	wrote  atomic.Int64 // requests
}

func newWorker(s *scenario, i int) (*worker, error) {
	addresses := s.world.Addresses()
	turn := i % len(addresses)
	return newWorkerAt(s, fmt.Sprintf("c%d", i+1), append(slices.Clone(addresses[turn:]), addresses[:turn]...))
}

func newWorkerAt(s *scenario, name string, addresses []string) (*worker, error) {
	repeat := retryFor
	w := &worker{scenario: s, name: name, chance: s.world.Chance("client " + name)}
	if w.chance.IntN(2) == 0 {
		repeat = -1
	}
	var err error
	w.api, err = s.world.Client(name, addresses, repeat)
	return w, err
}

func (w *worker) work(ctx context.Context) {
	for inside.Sleep(ctx, thinkMin+time.Duration(w.chance.Int64N(int64(thinkMax-thinkMin)))) {
		switch n := w.chance.IntN(100); {
		case n < 40:
			w.update(ctx)
		case n < 55:
			w.create(ctx)
		case n < 60:
			w.burst(ctx)
		case n < 80:
			w.get(ctx, history.Get, w.register())
		case n < 90:
			w.get(ctx, history.Stale, w.register())
		default:
			w.list(ctx)
		}
	}
}

func (w *worker) register() string { return fmt.Sprintf("r%d", w.chance.IntN(registers)) }

// value is one that nobody else writes.
func (w *worker) value() string {
	return fmt.Sprintf("%s-%d", w.name, w.made.Add(1))
}

// do carries out one request and records it. The work of ctx ends between two
// requests, never in the middle of one.
func (w *worker) do(ctx context.Context, o history.Op, request func(ctx context.Context, o *history.Op) error) history.Outcome {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), opLimit)
	defer cancel()
	o.Client, o.Begun = w.name, w.trace.Now()
	err := request(ctx, &o)
	o.Ended = w.trace.Now()
	o.Outcome = outcome(err)
	w.history.Add(o)
	w.trace.Notef(w.name, "%v %v", o, err)
	return o.Outcome
}

func outcome(err error) history.Outcome {
	switch {
	case err == nil:
		return history.OK
	case client.Applied(err) == balsav1.ErrorDetail_APPLIED_NOT_APPLIED:
		return history.Refused
	}
	return history.Unknown
}

func (w *worker) create(ctx context.Context) history.Outcome {
	value := w.value()
	return w.put(ctx, history.Op{Kind: history.Create, Key: "new-" + value, Value: value}, &balsav1.ConfigMap{})
}

// burst creates several at once, which then share an entry of the log, and which a
// leader that is cut off takes in before it notices.
func (w *worker) burst(ctx context.Context) {
	var all sync.WaitGroup
	for range burstWrites {
		all.Go(func() { w.create(ctx) })
	}
	all.Wait()
}

// put sends a write of o.Value, as a change of cm.
func (w *worker) put(ctx context.Context, o history.Op, cm *balsav1.ConfigMap) history.Outcome {
	if cm.Metadata == nil {
		cm.Metadata = &balsav1.ObjectMeta{Name: o.Key, Namespace: namespace}
	}
	cm.Data = map[string]string{field: o.Value}
	return w.do(ctx, o, func(ctx context.Context, o *history.Op) (err error) {
		if w.plant == plantAck && w.lies() {
			o.Revision = o.Base + 1
			return nil
		}
		if o.Kind == history.Create {
			cm, err = client.Create(ctx, w.api, cm, client.WriteOptions{})
		} else {
			cm, err = client.Update(ctx, w.api, cm, client.WriteOptions{})
		}
		if err == nil {
			o.Revision = revisionOf(cm)
		}
		return err
	})
}

// lies: not always, or it were too easy.
func (w *worker) lies() bool { return w.wrote.Add(1)%lieEvery == 0 }

// update reads a register and writes it on the base of what it has read.
func (w *worker) update(ctx context.Context) {
	key := w.register()
	cm, outcome := w.get(ctx, history.Get, key)
	if outcome != history.OK {
		return
	}
	if cm == nil {
		w.put(ctx, history.Op{Kind: history.Create, Key: key, Value: w.value()}, &balsav1.ConfigMap{})
		return
	}
	o := history.Op{Kind: history.Update, Key: key, Value: w.value(), Base: revisionOf(cm)}
	w.put(ctx, o, cm)
	if w.plant == plantGhost && w.lies() {
		cm.Metadata.ResourceVersion, cm.Data = "", map[string]string{field: "ghost of " + o.Value}
		ctx, cancel := context.WithTimeout(ctx, opLimit)
		defer cancel()
		_, _ = client.Update(ctx, w.api, cm, client.WriteOptions{})
	}
}

// get returns nil when there is nothing.
func (w *worker) get(ctx context.Context, kind history.Kind, key string) (cm *balsav1.ConfigMap, told history.Outcome) {
	told = w.do(ctx, history.Op{Kind: kind, Key: key}, func(ctx context.Context, o *history.Op) (err error) {
		stale := kind == history.Stale || w.plant == plantStale
		cm, err = client.Get[*balsav1.ConfigMap](ctx, w.api, namespace, key, client.GetOptions{Stale: stale})
		if client.IsNotFound(err) {
			cm, err = nil, nil
		}
		if cm != nil && err == nil {
			o.Value, o.Revision = cm.GetData()[field], revisionOf(cm)
		}
		return err
	})
	return cm, told
}

func (w *worker) list(ctx context.Context) {
	w.do(ctx, history.Op{Kind: history.List}, func(ctx context.Context, o *history.Op) error {
		listed, err := client.List[*balsav1.ConfigMap](ctx, w.api, namespace, client.ListOptions{})
		if err != nil {
			return err
		}
		var all []history.Change
		for _, cm := range listed.Items {
			all = append(all, history.Change{Key: cm.GetMetadata().GetName(), Revision: revisionOf(cm)})
		}
		slices.SortFunc(all, func(a, b history.Change) int { return strings.Compare(a.Key, b.Key) })
		o.Value = history.Fingerprint(all)
		o.Revision, err = strconv.ParseInt(listed.ResourceVersion, 10, 64)
		return err
	})
}

// revisionOf is 0 for a revision that is none, which no check lets pass.
func revisionOf(cm *balsav1.ConfigMap) int64 {
	revision, err := strconv.ParseInt(cm.GetMetadata().GetResourceVersion(), 10, 64)
	if err != nil {
		return 0
	}
	return revision
}

func changeOf(event store.Event) history.Change {
	ch := history.Change{Revision: int64(event.KV.ModRevision), Key: strings.TrimPrefix(event.KV.Key, keyPrefix)}
	if cm, ok := event.KV.Object.(*balsav1.ConfigMap); ok {
		ch.Value = cm.GetData()[field]
	}
	return ch
}
