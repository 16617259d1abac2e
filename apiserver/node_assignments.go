package apiserver

import (
	"context"
	"errors"
	"slices"
	"time"

	"connectrpc.com/connect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/store"
)

// coalesce bounds how many revisions one step of Assignments takes together.
const coalesce = 256

// Assignments streams what a node needs: a full set at one revision, then one
// consistent step after another. When its history is gone it sends a full set
// again, so that an agent never has to ask twice.
func (n nodeService) Assignments(ctx context.Context, req *balsav1.AssignmentsRequest, stream *connect.ServerStream[balsav1.AssignmentsResponse]) error {
	if err := ownNode(ctx, req.GetNodeName()); err != nil {
		return err
	}
	return n.whileInContact(ctx, func(ctx context.Context) error { return n.assign(ctx, req, stream) })
}

func (n nodeService) assign(ctx context.Context, req *balsav1.AssignmentsRequest, stream *connect.ServerStream[balsav1.AssignmentsResponse]) error {
	gauge := n.metrics.Watches.WithLabelValues("assignments")
	gauge.Inc()
	defer gauge.Dec()
	pace := newPace(ctx, n.limits.SendStall)
	defer pace.stop()
	a := &assignments{Server: n.Server, node: req.GetNodeName(), space: n.store.Space(store.SpaceObjects)}
	a.send = func(res *balsav1.AssignmentsResponse) error {
		return pace.send(func() error { return stream.Send(res) })
	}
	return a.run(ctx)
}

// assignments is one open stream. What the agent holds follows from pods and
// refs and need not be kept: every object of the shared kinds is sent.
type assignments struct {
	*Server
	node  string
	space *store.Space
	send  func(*balsav1.AssignmentsResponse) error

	// pods are the node's pods by key, with the keys of what they use.
	pods map[string][]string
	// refs counts how many pods use a ConfigMap or Secret; it holds no zeros.
	refs map[string]int
	// dropped are refs that had no user at some moment of the step at hand: their
	// changes went unnoticed, so they are read anew if they have one again.
	dropped map[string]bool
	// sent: the agent has the state at this revision, since told.
	sent store.Revision
	told time.Time
}

// tellAlive is how often an agent hears that nothing has changed: a stream that
// says nothing for three times as long counts as broken.
const tellAlive = 10 * time.Second

// sharedKinds are sent to every node whole: routes, proxy and resolver are made
// from them, and policies name namespaces.
func sharedKinds() [7]string {
	return [...]string{"services", "endpointslices", "nodes", "networkpolicies", "networkpolicyslices", "addresspools", "namespaces"}
}

func (a *assignments) run(ctx context.Context) error {
	for {
		err := a.session(ctx)
		if !errors.Is(err, store.ErrCompacted) && !errors.Is(err, store.ErrResync) {
			return err
		}
		a.log.Info("assignments begin again with a full set", "node", a.node, "why", err.Error())
	}
}

// session sends a full set and follows it. The barrier matters: an agent that
// comes from a server that was further ahead must not be taken back in time.
func (a *assignments) session(ctx context.Context) error {
	if err := a.barrier(ctx); err != nil {
		return err
	}
	view := a.space.View()
	watcher, err := a.space.Watch(ctx, store.WatchOptions{From: view.Revision() + 1, Buffer: a.limits.WatchBuffer})
	if err != nil {
		return err
	}
	defer watcher.Stop()
	if err := a.full(view); err != nil {
		return err
	}
	progress := a.clock.NewTimer(a.limits.ProgressEvery)
	defer progress.Stop()
	return a.follow(ctx, watcher, progress)
}

func (a *assignments) follow(ctx context.Context, watcher *store.Watcher, progress clock.Timer) error {
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case batch, ok := <-watcher.Events():
			if !ok {
				return endOf(ctx, watcher)
			}
			if err := a.step(gather(batch, watcher)); err != nil {
				return err
			}
		case <-progress.C():
			watcher.RequestProgress()
			progress.Reset(a.limits.ProgressEvery)
		}
	}
}

// gather takes what has come meanwhile.
func gather(first store.Batch, watcher *store.Watcher) []store.Batch {
	batches := []store.Batch{first}
	for len(batches) < coalesce {
		select {
		case batch, ok := <-watcher.Events():
			if !ok {
				return batches
			}
			batches = append(batches, batch)
		default:
			return batches
		}
	}
	return batches
}

// full sends everything that the node needs at a view.
func (a *assignments) full(view store.View) error {
	a.pods, a.refs = map[string][]string{}, map[string]int{}
	a.sent, a.told = view.Revision(), a.clock.Now()
	a.dropped = map[string]bool{}
	out := &outbox{assignments: a, next: &balsav1.AssignmentsResponse{Full: true}}
	for kv := range view.ByIndex(object.IndexNode, a.node) {
		if pod, ok := kv.Object.(*balsav1.Pod); ok {
			a.hold(kv.Key, pod)
			out.upsert(kv)
		}
	}
	for _, key := range sortedKeys(a.refs) {
		if kv, ok := view.Get(key); ok {
			out.upsert(kv)
		}
	}
	for kv := range view.Prefix("persistentvolumes/") {
		if a.liesHere(kv) {
			out.upsert(kv)
		}
	}
	for _, plural := range sharedKinds() {
		for kv := range view.Prefix(plural + "/") {
			out.upsert(kv)
		}
	}
	return out.close(view.Revision())
}

// step sends the outcome of some revisions as one. Quiet ones only move the
// revision, which a rollout may be waiting for the node to have reached.
func (a *assignments) step(batches []store.Batch) error {
	clear(a.dropped)
	before := make(map[string]bool, len(a.refs))
	for key := range a.refs {
		before[key] = true
	}
	touched := map[string]*store.KV{} // the last state of a key; nil: deleted
	for _, batch := range batches {
		for _, e := range batch.Events {
			a.note(touched, e)
		}
	}
	last := batches[len(batches)-1]
	progress := len(last.Events) == 0
	if err := a.changedRefs(touched, before, last.Revision); err != nil {
		return err
	}
	if len(touched) == 0 && (!progress || last.Revision <= a.sent && a.clock.Now().Sub(a.told) < tellAlive) {
		return nil
	}
	out := &outbox{assignments: a, next: &balsav1.AssignmentsResponse{}}
	for _, key := range sortedKeys(touched) {
		if kv := touched[key]; kv != nil {
			out.upsert(*kv)
		} else {
			out.remove(key)
		}
	}
	a.sent, a.told = last.Revision, a.clock.Now()
	return out.close(last.Revision)
}

// note takes an event in if it is of interest to the node.
func (a *assignments) note(touched map[string]*store.KV, e store.Event) {
	kind, _, _, ok := object.ParseKey(e.KV.Key)
	if !ok {
		return
	}
	shared := sharedKinds()
	switch plural := kind.Plural; {
	case plural == "pods":
		a.notePod(touched, e)
	case plural == "persistentvolumes":
		// One that lay elsewhere is never told: where it lies does not change.
		if e.Type == store.EventDelete || a.liesHere(e.KV) {
			touched[e.KV.Key] = stateAfter(e)
		}
	case isRefKind(plural):
		if a.refs[e.KV.Key] > 0 {
			touched[e.KV.Key] = stateAfter(e)
		}
	case slices.Contains(shared[:], plural):
		touched[e.KV.Key] = stateAfter(e)
	}
}

// isRef tells the keys of what pods refer to.
func isRef(key string) bool {
	kind, _, _, ok := object.ParseKey(key)
	return ok && isRefKind(kind.Plural)
}

func isRefKind(plural string) bool {
	return plural == "configmaps" || plural == "secrets" || plural == "persistentvolumeclaims"
}

// liesHere tells whether a PersistentVolume's contents are on the node.
func (a *assignments) liesHere(kv store.KV) bool {
	volume, ok := kv.Object.(*balsav1.PersistentVolume)
	return ok && object.VolumeNode(volume.GetSpec()) == a.node
}

func stateAfter(e store.Event) *store.KV {
	if e.Type == store.EventDelete {
		return nil
	}
	return &e.KV
}

func (a *assignments) notePod(touched map[string]*store.KV, e store.Event) {
	_, held := a.pods[e.KV.Key]
	pod, ok := e.KV.Object.(*balsav1.Pod)
	if e.Type == store.EventPut && ok && pod.GetSpec().GetNodeName() == a.node {
		a.hold(e.KV.Key, pod)
		touched[e.KV.Key] = &e.KV
		return
	}
	if held {
		a.letGo(e.KV.Key)
		touched[e.KV.Key] = nil
	}
}

// changedRefs adds what pods have begun to use, as it was at the step's
// revision, and takes away what none uses any more.
func (a *assignments) changedRefs(touched map[string]*store.KV, before map[string]bool, at store.Revision) error {
	var begun []string
	for key := range a.refs {
		if !before[key] || a.dropped[key] {
			begun = append(begun, key)
		}
	}
	for key := range before {
		if a.refs[key] == 0 {
			touched[key] = nil
		}
	}
	for key := range touched {
		// Used and changed within the step, but by its end not used any more.
		if isRef(key) && a.refs[key] == 0 && !before[key] {
			delete(touched, key)
		}
	}
	if len(begun) == 0 {
		return nil
	}
	view, err := a.space.ViewAt(at)
	if err != nil {
		return err
	}
	for _, key := range begun {
		kv, ok := view.Get(key)
		switch {
		case ok:
			touched[key] = &kv
		case before[key]:
			touched[key] = nil // deleted while nobody used it
		default:
			delete(touched, key) // also made in the same step, so the agent never had it
		}
	}
	return nil
}

// hold counts what the pod uses before it uncounts what it used, so that a ref
// that stays is never without a user in between.
func (a *assignments) hold(key string, pod *balsav1.Pod) {
	uses, used := usedBy(pod), a.pods[key]
	for _, ref := range uses {
		a.refs[ref]++
	}
	a.uncount(used)
	a.pods[key] = uses
}

func (a *assignments) letGo(key string) {
	a.uncount(a.pods[key])
	delete(a.pods, key)
}

func (a *assignments) uncount(refs []string) {
	for _, ref := range refs {
		if a.refs[ref]--; a.refs[ref] == 0 {
			delete(a.refs, ref)
			a.dropped[ref] = true
		}
	}
}

// usedBy is the keys of the ConfigMaps, Secrets and PersistentVolumeClaims that a
// pod refers to, each once.
func usedBy(pod *balsav1.Pod) []string {
	var keys []string
	namespace := pod.GetMetadata().GetNamespace()
	add := func(kindName, name string) {
		kind, _ := object.KindByName(kindName)
		if name != "" {
			keys = append(keys, object.Key(kind, namespace, name))
		}
	}
	for _, ref := range pod.GetSpec().GetImagePullSecrets() {
		add("Secret", ref.GetName())
	}
	for _, v := range pod.GetSpec().GetVolumes() {
		add("ConfigMap", v.GetConfigMap().GetName())
		add("Secret", v.GetSecret().GetSecretName())
		add("PersistentVolumeClaim", v.GetPersistentVolumeClaim().GetClaimName())
		for _, source := range v.GetProjected().GetSources() {
			add("ConfigMap", source.GetConfigMap().GetName())
			add("Secret", source.GetSecret().GetName())
		}
	}
	for _, c := range object.AllContainers(pod.GetSpec()) {
		for _, from := range c.GetEnvFrom() {
			add("ConfigMap", from.GetConfigMapRef().GetName())
			add("Secret", from.GetSecretRef().GetName())
		}
		for _, env := range c.GetEnv() {
			add("ConfigMap", env.GetValueFrom().GetConfigMapKeyRef().GetName())
			add("Secret", env.GetValueFrom().GetSecretKeyRef().GetName())
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// outbox cuts a step into messages of bounded size.
type outbox struct {
	*assignments
	next *balsav1.AssignmentsResponse
	size int
	err  error
}

func (o *outbox) upsert(kv store.KV) {
	m, ok := kv.Object.(object.Message)
	if !ok {
		return
	}
	if secret, ok := m.(*balsav1.Secret); ok {
		opened, err := o.openSecret(secret)
		if err != nil {
			// The pod waits for it as for one that does not exist; the others go on.
			o.log.Error("a secret cannot be opened for its node", "secret", kv.Key, "node", o.node, "err", err.Error())
			o.remove(kv.Key)
			return
		}
		m = opened
	}
	o.room(len(kv.Value))
	o.next.Upserts = append(o.next.Upserts, object.Wrap(m))
}

func (o *outbox) remove(key string) {
	kind, namespace, name, ok := object.ParseKey(key)
	if !ok {
		return
	}
	o.room(len(key))
	o.next.Deletes = append(o.next.Deletes, keyOf(kind, namespace, name))
}

// room sends what there is when the next part would make it too large.
func (o *outbox) room(size int) {
	if o.size > 0 && o.size+size > o.limits.StepBytes {
		o.flush()
	}
	o.size += size
}

func (o *outbox) flush() {
	if o.err == nil {
		o.err = o.send(o.next)
	}
	o.next, o.size = &balsav1.AssignmentsResponse{}, 0
}

// close sends the last message, which makes the state consistent.
func (o *outbox) close(at store.Revision) error {
	o.next.Synced, o.next.Revision = true, int64(at)
	o.flush()
	return o.err
}
