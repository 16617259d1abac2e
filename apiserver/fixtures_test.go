package apiserver

import (
	"context"
	"errors"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/store"
)

func podTemplate(app string) *balsav1.PodTemplateSpec {
	return &balsav1.PodTemplateSpec{
		Metadata: &balsav1.ObjectMeta{Labels: map[string]string{"app": app}},
		Spec:     &balsav1.PodSpec{Containers: []*balsav1.Container{{Name: "main", Image: "app:1"}}},
	}
}

func newPod(name string, labels map[string]string) *balsav1.Pod {
	return &balsav1.Pod{
		Metadata: &balsav1.ObjectMeta{Name: name, Labels: labels},
		Spec:     &balsav1.PodSpec{Containers: []*balsav1.Container{{Name: "main", Image: "app:1"}}},
	}
}

func newDeployment(name string, replicas int32) *balsav1.Deployment {
	return &balsav1.Deployment{
		Metadata: &balsav1.ObjectMeta{Name: name},
		Spec: &balsav1.DeploymentSpec{
			Replicas: &replicas,
			Selector: &balsav1.LabelSelector{MatchLabels: map[string]string{"app": name}},
			Template: podTemplate(name),
		},
	}
}

func newService(name, ip string) *balsav1.Service {
	return &balsav1.Service{
		Metadata: &balsav1.ObjectMeta{Name: name},
		Spec:     &balsav1.ServiceSpec{Selector: map[string]string{"app": name}, ClusterIp: ip, Ports: []*balsav1.ServicePort{{Port: 80}}},
	}
}

func newConfigMap(name string, data map[string]string) *balsav1.ConfigMap {
	return &balsav1.ConfigMap{Metadata: &balsav1.ObjectMeta{Name: name}, Data: data}
}

func newSecret(name string, data map[string][]byte) *balsav1.Secret {
	return &balsav1.Secret{Metadata: &balsav1.ObjectMeta{Name: name}, Data: data}
}

func newNamespace(name string) *balsav1.Namespace {
	return &balsav1.Namespace{Metadata: &balsav1.ObjectMeta{Name: name}}
}

func inNS[M object.Message](namespace string, m M) M {
	object.EnsureMetadata(m).Namespace = namespace
	return m
}

// create makes an object that must be accepted.
func create[M object.Message](t *testing.T, c *clients, m M) M {
	t.Helper()
	res, err := c.objects.Create(t.Context(), &balsav1.CreateRequest{Object: object.Wrap(m)})
	must(t, err)
	got, err := object.Unwrap(res.GetObject())
	must(t, err)
	return got.(M)
}

func apply(t *testing.T, c *clients, m object.Message, manager string) *balsav1.ApplyResponse {
	t.Helper()
	res, err := c.objects.Apply(t.Context(), &balsav1.ApplyRequest{Object: object.Wrap(m), Manager: manager})
	must(t, err)
	return res
}

func get[M object.Message](t *testing.T, c *clients, namespace, name string) M {
	t.Helper()
	var zero M
	kind := object.KindOf(zero)
	res, err := c.objects.Get(t.Context(), &balsav1.GetRequest{Kind: kind.Name, Namespace: namespace, Name: name})
	must(t, err)
	m, err := object.Unwrap(res.GetObject())
	must(t, err)
	return m.(M)
}

func gone(t *testing.T, c *clients, kind, namespace, name string) {
	t.Helper()
	_, err := c.objects.Get(t.Context(), &balsav1.GetRequest{Kind: kind, Namespace: namespace, Name: name})
	refused(t, err, connect.CodeNotFound, "NotFound")
}

// direct writes an object past the API, as a reconciler does.
func (w *world) direct(m object.Message) {
	w.t.Helper()
	value, err := object.Encode(m)
	must(w.t, err)
	w.txn(object.KindOf(m).Space, &internalv1.Op{Op: &internalv1.Op_Put{Put: &internalv1.Put{Key: []byte(object.KeyOf(m)), Value: value}}})
}

func (w *world) directDelete(key string) {
	w.t.Helper()
	w.txn(store.SpaceObjects, &internalv1.Op{Op: &internalv1.Op_DeleteRange{DeleteRange: &internalv1.DeleteRange{Key: []byte(key)}}})
}

func (w *world) txn(space string, ops ...*internalv1.Op) {
	w.t.Helper()
	result := w.backend.apply(&internalv1.Command{Space: space, TimeNs: 1, Op: &internalv1.Command_Txn{Txn: &internalv1.Txn{Success: ops}}})
	if result.GetOutcome() != internalv1.CommandResult_OUTCOME_OK {
		w.t.Fatalf("txn: %v", result)
	}
}

// bind puts a pod on a node, as the scheduler does.
func (w *world) bind(pod *balsav1.Pod, node string) {
	w.t.Helper()
	kv, ok := w.objects().Get(object.KeyOf(pod))
	if !ok {
		w.t.Fatalf("%s does not exist", object.Describe(pod))
	}
	next := proto.CloneOf(kv.Object.(*balsav1.Pod))
	next.Spec.NodeName = node
	w.direct(next)
}

func (w *world) objects() store.View { return w.store.Space(store.SpaceObjects).View() }

func (w *world) revision() store.Revision { return w.objects().Revision() }

// watcher reads a Watch into a channel until the stream ends.
type watcher struct {
	events chan *balsav1.WatchResponse
	err    error // once events is closed
	cancel context.CancelFunc
}

func startWatch(t *testing.T, c *clients, req *balsav1.WatchRequest) *watcher {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := c.objects.Watch(ctx, req)
	must(t, err)
	w := &watcher{events: make(chan *balsav1.WatchResponse, 1024), cancel: cancel}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(w.events)
		for stream.Receive() {
			w.events <- proto.CloneOf(stream.Msg())
		}
		w.err = stream.Err()
		_ = stream.Close()
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return w
}

// next is the next response but for bookmarks between events.
func (w *watcher) next(t *testing.T) *balsav1.WatchResponse {
	t.Helper()
	for res := range w.events {
		if res.GetType() != watchBookmark || res.GetInitialEventsEnd() {
			return res
		}
	}
	t.Fatalf("the watch has ended: %v", w.err)
	return nil
}

// expect checks the types and names of the next responses: "ADDED a".
func (w *watcher) expect(t *testing.T, want ...string) {
	t.Helper()
	for _, one := range want {
		res := w.next(t)
		got := res.GetType()
		if m, err := object.Unwrap(res.GetObject()); err == nil {
			got += " " + m.GetMetadata().GetName()
		} else if !errors.Is(err, object.ErrNoObject) {
			t.Fatal(err)
		}
		if got != one {
			t.Fatalf("got %q, want %q", got, one)
		}
	}
}

// end waits for the stream's error.
func (w *watcher) end(t *testing.T) error {
	t.Helper()
	for range w.events { // only the end counts
	}
	return w.err
}
