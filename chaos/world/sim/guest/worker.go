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

	"github.com/balsa-run/balsa/chaos/history"
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

	apiKeys  = 4           // keys that all clients write
	retryFor = time.Second // of every second client; the others never repeat
)

// The lies that can be planted, to see that they are found.
const (
	plantAck   = "ack"   // a write is acknowledged that was never sent
	plantStale = "stale" // a local read passes for a linearizable one
	plantGhost = "ghost" // a write is sent that nobody records, with no base
)

func plants() []string { return []string{plantAck, plantStale, plantGhost} }

// worker is a client of the API at work.
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
	p := w.objects.Process("")
	for inside.Sleep(ctx, w.thinking(w.chance)) {
		switch n := w.chance.IntN(100); {
		case n < 40:
			w.update(ctx, p)
		case n < 55:
			w.create(ctx)
		case n < 60:
			w.burst(ctx)
		case n < 80:
			w.get(ctx, p, history.Read, w.register())
		case n < 90:
			w.get(ctx, p, history.StaleRead, w.register())
		default:
			w.list(ctx, p)
		}
	}
}

func (w *worker) register() string { return fmt.Sprintf("r%d", w.chance.IntN(apiKeys)) }

// value is one that nobody else writes.
func (w *worker) value() string {
	return fmt.Sprintf("%s-%d", w.name, w.made.Add(1))
}

// do carries out one request and records it. The work of ctx ends between two
// requests, never in the middle of one.
func (w *worker) do(ctx context.Context, p *history.Process, invoke history.Record, request func(ctx context.Context, answer *history.Record) error) history.Type {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), opLimit)
	defer cancel()
	o := p.Begin(invoke)
	err := request(ctx, &o.Answer)
	told := outcome(err)
	w.count(workAPI, told)
	w.trace.Notef(w.name, "%v %v %v", o.Answer.F, told, err)
	switch told {
	case history.OK:
		o.OK()
	case history.Refused:
		o.Refused(err)
	default:
		o.Unknown(err)
	}
	return told
}

func outcome(err error) history.Type {
	switch {
	case err == nil:
		return history.OK
	case client.Applied(err) == balsav1.ErrorDetail_APPLIED_NOT_APPLIED:
		return history.Refused
	}
	return history.Unknown
}

func (w *worker) create(ctx context.Context) history.Type {
	value := w.value()
	return w.put(ctx, w.objects.Process(""), history.Record{F: history.CAS, Key: "new-" + value, Value: value}, &balsav1.ConfigMap{})
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

// put sends a write of r.Value, as a change of cm: a CAS, of which Base 0 is a
// creation.
func (w *worker) put(ctx context.Context, p *history.Process, r history.Record, cm *balsav1.ConfigMap) history.Type {
	if cm.Metadata == nil {
		cm.Metadata = &balsav1.ObjectMeta{Name: r.Key, Namespace: namespace}
	}
	cm.Data = map[string]string{field: r.Value}
	return w.do(ctx, p, r, func(ctx context.Context, answer *history.Record) (err error) {
		if w.plant == plantAck && w.lies() {
			answer.Revision = r.Base + 1
			return nil
		}
		if r.Base == 0 {
			cm, err = client.Create(ctx, w.api, cm, client.WriteOptions{})
		} else {
			cm, err = client.Update(ctx, w.api, cm, client.WriteOptions{})
		}
		if err == nil {
			answer.Revision = revisionOf(cm)
		}
		return err
	})
}

// lies: not always, or it were too easy.
func (w *worker) lies() bool { return w.wrote.Add(1)%lieEvery == 0 }

// update reads a register and writes it on the base of what it has read.
func (w *worker) update(ctx context.Context, p *history.Process) {
	key := w.register()
	cm, told := w.get(ctx, p, history.Read, key)
	if told != history.OK {
		return
	}
	if cm == nil {
		w.put(ctx, p, history.Record{F: history.CAS, Key: key, Value: w.value()}, &balsav1.ConfigMap{})
		return
	}
	r := history.Record{F: history.CAS, Key: key, Value: w.value(), Base: revisionOf(cm)}
	w.put(ctx, p, r, cm)
	if w.plant == plantGhost && w.lies() {
		cm.Metadata.ResourceVersion, cm.Data = "", map[string]string{field: "ghost of " + r.Value}
		ctx, cancel := context.WithTimeout(ctx, opLimit)
		defer cancel()
		_, _ = client.Update(ctx, w.api, cm, client.WriteOptions{})
	}
}

// get returns nil when there is nothing.
func (w *worker) get(ctx context.Context, p *history.Process, f history.F, key string) (cm *balsav1.ConfigMap, told history.Type) {
	told = w.do(ctx, p, history.Record{F: f, Key: key}, func(ctx context.Context, answer *history.Record) (err error) {
		stale := f == history.StaleRead || w.plant == plantStale
		cm, err = client.Get[*balsav1.ConfigMap](ctx, w.api, namespace, key, client.GetOptions{Stale: stale})
		if client.IsNotFound(err) {
			cm, err = nil, nil
		}
		if cm != nil && err == nil {
			answer.Value, answer.Revision = cm.GetData()[field], revisionOf(cm)
		}
		return err
	})
	return cm, told
}

func (w *worker) list(ctx context.Context, p *history.Process) {
	w.do(ctx, p, history.Record{F: history.List, End: "\x00"}, func(ctx context.Context, answer *history.Record) error {
		listed, err := client.List[*balsav1.ConfigMap](ctx, w.api, namespace, client.ListOptions{})
		if err != nil {
			return err
		}
		for _, cm := range listed.Items {
			answer.KVs = append(answer.KVs, history.KV{Key: cm.GetMetadata().GetName(), Value: cm.GetData()[field], ModRevision: revisionOf(cm)})
		}
		slices.SortFunc(answer.KVs, func(a, b history.KV) int { return strings.Compare(a.Key, b.Key) })
		answer.At, err = strconv.ParseInt(listed.ResourceVersion, 10, 64)
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

// objectOf is a change of a ConfigMap as the history of the API's clients has it;
// false for what is none of theirs.
func objectOf(event store.Event) (history.KV, bool) {
	name, ours := strings.CutPrefix(event.KV.Key, keyPrefix)
	kv := history.KV{Key: name, ModRevision: int64(event.KV.ModRevision), Deleted: event.Type == store.EventDelete}
	if cm, ok := event.KV.Object.(*balsav1.ConfigMap); ok {
		kv.Value = cm.GetData()[field]
	}
	return kv, ours
}
