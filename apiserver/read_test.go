package apiserver

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/pki"
	"github.com/balsa-run/balsa/store"
)

func names(items []*balsav1.Object) string {
	var out []string
	for _, item := range items {
		m, err := object.Unwrap(item)
		if err != nil {
			return err.Error()
		}
		name := m.GetMetadata().GetName()
		if ns := m.GetMetadata().GetNamespace(); ns != "" && ns != "default" {
			name = ns + "/" + name
		}
		out = append(out, name)
	}
	return strings.Join(out, " ")
}

func (w *world) compact(space string, at store.Revision) {
	w.t.Helper()
	result := w.backend.apply(&internalv1.Command{Space: space, TimeNs: 1, Op: &internalv1.Command_Compact{Compact: &internalv1.Compact{Revision: int64(at)}}})
	if result.GetOutcome() != internalv1.CommandResult_OUTCOME_OK {
		w.t.Fatalf("compact: %v", result)
	}
}

func TestListSelectors(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.admin()
		create(t, c, newNamespace("team"))
		create(t, c, newPod("a", map[string]string{"app": "web", "tier": "api"}))
		create(t, c, newPod("b", map[string]string{"app": "web"}))
		create(t, c, newPod("c", map[string]string{"app": "db"}))
		create(t, c, inNS("team", newPod("a", map[string]string{"app": "web"})))
		w.bind(get[*balsav1.Pod](t, c, "", "b"), "n1")
		w.bind(get[*balsav1.Pod](t, c, "team", "a"), "n1")
		for _, one := range []struct{ ns, labels, fields, want string }{
			{"", "", "", "a b c team/a"},
			{"default", "", "", "a b c"},
			{"", "app=web", "", "a b team/a"},
			{"default", "app=web", "", "a b"},
			{"default", "app=web,tier", "", "a"},
			{"default", "app in (db,cache)", "", "c"},
			{"default", "!tier", "", "b c"},
			{"", "", "metadata.name=a", "a team/a"},
			{"team", "", "metadata.name=a", "team/a"},
			{"", "", "spec.nodeName=n1", "b team/a"},
			{"default", "app=web", "spec.nodeName=n1", "b"},
			{"", "", "spec.nodeName=", "a c"},
			{"", "", "status.phase!=Pending", ""},
			{"nowhere", "", "", ""},
		} {
			res, err := c.objects.List(t.Context(), &balsav1.ListRequest{Kind: "po", Namespace: one.ns, LabelSelector: one.labels, FieldSelector: one.fields})
			must(t, err)
			if got := names(res.GetItems()); got != one.want {
				t.Errorf("%+v: got %q", one, got)
			}
			if res.GetMetadata().GetResourceVersion() != revisionString(w.revision()) {
				t.Errorf("%+v: resource version %s", one, res.GetMetadata().GetResourceVersion())
			}
		}
	})
}

func TestListRefusals(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.admin()
		for name, req := range map[string]*balsav1.ListRequest{
			"kind":      {Kind: "Cat"},
			"labels":    {Kind: "Pod", LabelSelector: "a=b=c="},
			"fields":    {Kind: "Pod", FieldSelector: "spec.hostname=x"},
			"namespace": {Kind: "Node", Namespace: "default"},
			"negative":  {Kind: "Pod", Limit: -1},
			"continue":  {Kind: "Pod", Continue: "nonsense"},
			"revision":  {Kind: "Pod", Read: &balsav1.ReadOptions{ResourceVersion: "-3"}},
		} {
			_, err := c.objects.List(t.Context(), req)
			if d := refused(t, err, connect.CodeInvalidArgument, "Invalid"); len(d.GetViolations()) != 1 || d.GetHint() == "" {
				t.Errorf("%s: %v", name, d)
			}
		}
		_, err := c.objects.List(t.Context(), &balsav1.ListRequest{Kind: "Pod", Limit: 5001})
		refused(t, err, connect.CodeResourceExhausted, "LimitReached")
		if !strings.Contains(err.Error(), "ListItems") || !strings.Contains(err.Error(), "5000") {
			t.Errorf("the error does not name the limit and its value: %v", err)
		}
		_, err = c.objects.List(t.Context(), &balsav1.ListRequest{Kind: "Pod", Read: &balsav1.ReadOptions{ResourceVersion: "999"}})
		refused(t, err, connect.CodeOutOfRange, "FutureRevision")
	})
}

// All pages show one revision, whatever is written between them.
func TestPagesShowOneRevision(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.admin()
		var want []string
		for i := range 25 {
			name := fmt.Sprintf("cm-%02d", i)
			create(t, c, newConfigMap(name, map[string]string{"v": "old"}))
			want = append(want, name)
		}
		req := &balsav1.ListRequest{Kind: "ConfigMap", Limit: 4}
		var got []string
		version, pages := "", 0
		for {
			res, err := c.objects.List(t.Context(), req)
			must(t, err)
			pages++
			if version == "" {
				version = res.GetMetadata().GetResourceVersion()
			}
			if res.GetMetadata().GetResourceVersion() != version {
				t.Fatalf("page %d is of revision %s, the first of %s", pages, res.GetMetadata().GetResourceVersion(), version)
			}
			for _, item := range res.GetItems() {
				if item.GetConfigMap().GetData()["v"] != "old" {
					t.Fatalf("page %d shows a later write", pages)
				}
				got = append(got, item.GetConfigMap().GetMetadata().GetName())
			}
			rest := len(want) - len(got)
			if req.Continue = res.GetMetadata().GetContinue(); req.Continue == "" {
				break
			}
			if n := res.GetMetadata().RemainingItemCount; n == nil || *n != int64(rest) {
				t.Fatalf("page %d says %v remain, want %d", pages, n, rest)
			}
			// Meanwhile: one is deleted, one added, one changed.
			_, err = c.objects.Delete(t.Context(), &balsav1.DeleteRequest{Kind: "cm", Name: want[len(want)-pages]})
			must(t, err)
			create(t, c, newConfigMap("cm-new-"+strconv.Itoa(pages), nil))
			apply(t, c, newConfigMap("cm-12", map[string]string{"v": "new" + strconv.Itoa(pages)}), "x")
		}
		if strings.Join(got, " ") != strings.Join(want, " ") || pages != 7 {
			t.Fatalf("%d pages: %v", pages, got)
		}
	})
}

func TestPageTokens(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.admin()
		for i := range 6 {
			create(t, c, newConfigMap("cm-"+strconv.Itoa(i), nil))
		}
		first, err := c.objects.List(t.Context(), &balsav1.ListRequest{Kind: "cm", Limit: 2})
		must(t, err)
		token := first.GetMetadata().GetContinue()
		_, err = c.objects.List(t.Context(), &balsav1.ListRequest{Kind: "cm", Limit: 2, LabelSelector: "a=b", Continue: token})
		refused(t, err, connect.CodeInvalidArgument, "Invalid")
		_, err = c.objects.List(t.Context(), &balsav1.ListRequest{Kind: "cm", Limit: 2, Continue: token[:len(token)-2] + "AA"})
		refused(t, err, connect.CodeInvalidArgument, "Invalid")
		_, err = c.objects.List(t.Context(), &balsav1.ListRequest{Kind: "cm", Continue: token, Read: &balsav1.ReadOptions{ResourceVersion: "3"}})
		refused(t, err, connect.CodeInvalidArgument, "Invalid")
		create(t, c, newConfigMap("later", nil))
		w.compact(store.SpaceObjects, w.revision())
		_, err = c.objects.List(t.Context(), &balsav1.ListRequest{Kind: "cm", Limit: 2, Continue: token})
		d := refused(t, err, connect.CodeOutOfRange, "Compacted")
		if d.GetCurrentResourceVersion() != revisionString(w.revision()) || !strings.Contains(d.GetHint(), "list again") {
			t.Fatalf("detail: %v", d)
		}
	})
}

// A page ends early rather than outgrow ListBytes.
func TestPageBytes(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.admin()
		for i := range 5 {
			create(t, c, newConfigMap("cm-"+strconv.Itoa(i), map[string]string{"v": strings.Repeat("x", 2000)}))
		}
		res, err := c.objects.List(t.Context(), &balsav1.ListRequest{Kind: "cm"})
		must(t, err)
		if len(res.GetItems()) != 2 || res.GetMetadata().GetContinue() == "" {
			t.Fatalf("%d items, continue %q", len(res.GetItems()), res.GetMetadata().GetContinue())
		}
	}, func(c *Config) { c.Limits.ListBytes = 5000 })
}

func TestReadAtRevision(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.admin()
		old := create(t, c, newConfigMap("cm", map[string]string{"v": "1"})).GetMetadata().GetResourceVersion()
		apply(t, c, newConfigMap("cm", map[string]string{"v": "2"}), "m")
		res, err := c.objects.Get(t.Context(), &balsav1.GetRequest{Kind: "cm", Name: "cm", Read: &balsav1.ReadOptions{ResourceVersion: old}})
		must(t, err)
		if res.GetObject().GetConfigMap().GetData()["v"] != "1" {
			t.Fatalf("got %v", res)
		}
		before := w.backend.barriers
		_, err = c.objects.Get(t.Context(), &balsav1.GetRequest{Kind: "cm", Name: "cm", Read: &balsav1.ReadOptions{Stale: true}})
		must(t, err)
		if w.backend.barriers != before {
			t.Fatal("a stale read asked the leader")
		}
	})
}

func TestWatchFromNow(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.admin()
		create(t, c, newConfigMap("a", nil))
		create(t, c, newConfigMap("b", nil))
		wa := startWatch(t, w.admin(), &balsav1.WatchRequest{Kind: "ConfigMap"})
		wa.expect(t, "ADDED a", "ADDED b")
		mark := wa.next(t)
		if mark.GetType() != watchBookmark || !mark.GetInitialEventsEnd() || mark.GetResourceVersion() != revisionString(w.revision()) {
			t.Fatalf("bookmark: %v", mark)
		}
		create(t, c, newConfigMap("c", nil))
		apply(t, c, newConfigMap("a", map[string]string{"x": "1"}), "m")
		_, err := c.objects.Delete(t.Context(), &balsav1.DeleteRequest{Kind: "cm", Name: "b"})
		must(t, err)
		wa.expect(t, "ADDED c", "MODIFIED a", "DELETED b")
	})
}

// An object that leaves the selector is DELETED, one that enters it is ADDED.
func TestWatchSelector(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.admin()
		label := func(name, app string) {
			t.Helper()
			m := newConfigMap(name, map[string]string{"app": app})
			m.Metadata.Labels = map[string]string{"app": app}
			apply(t, c, m, "m")
		}
		label("a", "web")
		label("b", "db")
		wa := startWatch(t, w.admin(), &balsav1.WatchRequest{Kind: "cm", Namespace: "default", LabelSelector: "app=web"})
		wa.expect(t, "ADDED a", "BOOKMARK")
		label("b", "web")
		label("a", "db")
		label("a", "cache") // out of sight
		label("b", "web2")
		label("b", "web")
		res := wa.next(t)
		if res.GetType() != watchAdded || res.GetObject().GetConfigMap().GetData()["app"] != "web" {
			t.Fatalf("enters: %v", res)
		}
		res = wa.next(t)
		if res.GetType() != watchDeleted || res.GetObject().GetConfigMap().GetData()["app"] != "web" {
			t.Fatalf("leaves: the last state that was seen is expected: %v", res)
		}
		wa.expect(t, "DELETED b", "ADDED b")
		one := startWatch(t, w.admin(), &balsav1.WatchRequest{Kind: "cm", Namespace: "default", FieldSelector: "metadata.name=a"})
		one.expect(t, "ADDED a", "BOOKMARK")
		label("b", "x")
		label("a", "x")
		one.expect(t, "MODIFIED a")
	})
}

func TestWatchResumesAndBookmarks(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.admin()
		create(t, c, newConfigMap("a", nil))
		from := revisionString(w.revision())
		create(t, c, newConfigMap("b", nil))
		create(t, c, newPod("elsewhere", nil))
		wa := startWatch(t, w.admin(), &balsav1.WatchRequest{Kind: "cm", ResourceVersion: from})
		wa.expect(t, "ADDED b")
		for res := range wa.events {
			if res.GetType() != watchBookmark || res.GetInitialEventsEnd() {
				t.Fatalf("got %v", res)
			}
			if res.GetResourceVersion() == revisionString(w.revision()) {
				break // the pod's revision has passed as well
			}
		}
		_, err := stream(t, w.admin(), &balsav1.WatchRequest{Kind: "cm", ResourceVersion: "zero"})
		refused(t, err, connect.CodeInvalidArgument, "Invalid")
		_, err = stream(t, w.admin(), &balsav1.WatchRequest{Kind: "cm", ResourceVersion: "4711"})
		refused(t, err, connect.CodeOutOfRange, "FutureRevision")
		w.compact(store.SpaceObjects, w.revision())
		_, err = stream(t, w.admin(), &balsav1.WatchRequest{Kind: "cm", ResourceVersion: from})
		if d := refused(t, err, connect.CodeOutOfRange, "Compacted"); d.GetCurrentResourceVersion() != revisionString(w.revision()) {
			t.Fatalf("detail: %v", d)
		}
	})
}

// stream reads a watch that must fail at once.
func stream(t *testing.T, c *clients, req *balsav1.WatchRequest) (*balsav1.WatchResponse, error) {
	t.Helper()
	wa := startWatch(t, c, req)
	for res := range wa.events {
		return res, nil
	}
	return nil, wa.err
}

// Of a revision with several events only the last carries it, so that a reader
// that resumes in the middle misses none.
func TestWatchRevisionOfTransaction(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.admin()
		wa := startWatch(t, w.admin(), &balsav1.WatchRequest{Kind: "cm"})
		wa.expect(t, "BOOKMARK")
		before := revisionString(w.revision())
		var ops []*internalv1.Op
		for _, name := range []string{"x", "y", "z"} {
			m := inNS("default", newConfigMap(name, nil))
			value, err := object.Encode(m)
			must(t, err)
			ops = append(ops, &internalv1.Op{Op: &internalv1.Op_Put{Put: &internalv1.Put{Key: []byte(object.KeyOf(m)), Value: value}}})
		}
		w.txn(store.SpaceObjects, ops...)
		for i, want := range []string{before, before, revisionString(w.revision())} {
			if res := wa.next(t); res.GetResourceVersion() != want {
				t.Fatalf("event %d has %s, want %s", i, res.GetResourceVersion(), want)
			}
		}
		_ = c
	})
}

// A restored store ends the store's watchers; the stream goes on.
func TestWatchSurvivesRestore(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.admin()
		create(t, c, newConfigMap("a", nil))
		wa := startWatch(t, w.admin(), &balsav1.WatchRequest{Kind: "cm"})
		wa.expect(t, "ADDED a", "BOOKMARK")
		create(t, c, newConfigMap("b", nil))
		wa.expect(t, "ADDED b")
		var snapshot strings.Builder
		_, err := w.store.Snapshot().WriteTo(&snapshot)
		must(t, err)
		must(t, w.store.Restore(strings.NewReader(snapshot.String())))
		create(t, c, newConfigMap("c", nil))
		wa.expect(t, "ADDED c")
	})
}

// Property: what a watcher has pieced together equals what List says, for any
// selector and any history.
func TestWatchEqualsList(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		ops := rapid.SliceOfN(rapid.Custom(drawOp), 1, 40).Draw(rt, "ops")
		split := rapid.IntRange(0, len(ops)).Draw(rt, "split")
		selector := rapid.SampledFrom([]string{"", "app=web", "app!=web", "app in (web,db)", "!app"}).Draw(rt, "selector")
		good := t.Run("", func(t *testing.T) {
			run(t, func(t *testing.T, w *world) {
				c := w.admin()
				for _, o := range ops[:split] {
					o.do(t, c)
				}
				wa := startWatch(t, w.admin(), &balsav1.WatchRequest{Kind: "cm", LabelSelector: selector})
				for _, o := range ops[split:] {
					o.do(t, c)
				}
				synctest.Wait()
				mirror := map[string]*balsav1.ConfigMap{}
				for len(wa.events) > 0 {
					res := <-wa.events
					cm := res.GetObject().GetConfigMap()
					_, had := mirror[cm.GetMetadata().GetName()]
					switch res.GetType() {
					case watchAdded:
						if had {
							t.Fatalf("ADDED twice: %v", cm)
						}
						mirror[cm.GetMetadata().GetName()] = cm
					case watchModified:
						if !had {
							t.Fatalf("MODIFIED before ADDED: %v", cm)
						}
						mirror[cm.GetMetadata().GetName()] = cm
					case watchDeleted:
						if !had {
							t.Fatalf("DELETED before ADDED: %v", cm)
						}
						delete(mirror, cm.GetMetadata().GetName())
					}
				}
				list, err := c.objects.List(t.Context(), &balsav1.ListRequest{Kind: "cm", LabelSelector: selector})
				must(t, err)
				if len(list.GetItems()) != len(mirror) {
					t.Fatalf("list %s, mirror %v", names(list.GetItems()), mirror)
				}
				for _, item := range list.GetItems() {
					if got := mirror[item.GetConfigMap().GetMetadata().GetName()]; !proto.Equal(got, item.GetConfigMap()) {
						t.Fatalf("mirror has %v, list %v", got, item)
					}
				}
			})
		})
		if !good {
			rt.Fatal("see the subtest")
		}
	})
}

type drawnOp struct {
	Name, App, Value string
	Delete           bool
}

func drawOp(t *rapid.T) drawnOp {
	return drawnOp{
		Name:   rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "name"),
		App:    rapid.SampledFrom([]string{"", "web", "db"}).Draw(t, "app"),
		Value:  rapid.StringMatching("[xy]").Draw(t, "value"),
		Delete: rapid.IntRange(0, 4).Draw(t, "delete") == 0,
	}
}

func (o drawnOp) do(t *testing.T, c *clients) {
	t.Helper()
	if o.Delete {
		_, err := c.objects.Delete(t.Context(), &balsav1.DeleteRequest{Kind: "cm", Name: o.Name})
		if err != nil {
			refused(t, err, connect.CodeNotFound, "NotFound")
		}
		return
	}
	m := newConfigMap(o.Name, map[string]string{"v": o.Value})
	if o.App != "" {
		m.Metadata.Labels = map[string]string{"app": o.App}
	}
	apply(t, c, m, "m")
}

// A reader that does not read does not hold the server for ever.
func TestSlowWatcherIsEnded(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.admin()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		slow, err := w.as(pki.RoleReader, "rui", connect.WithAcceptCompression("gzip", nil, nil)).objects.Watch(ctx, &balsav1.WatchRequest{Kind: "cm"})
		must(t, err)
		for i := range 40 {
			create(t, c, newConfigMap("cm-"+strconv.Itoa(i), map[string]string{"v": strings.Repeat("x", 1<<18)}))
		}
		waitGone(t, w) // 30 virtual seconds pass
		for slow.Receive() {
		}
		if slow.Err() == nil {
			t.Fatal("the stream ended well")
		}
		_ = slow.Close()
	})
}

// waitGone waits until no stream is in flight.
func waitGone(t *testing.T, w *world) {
	t.Helper()
	timer := w.server.clock.NewTimer(2 * w.server.limits.SendStall)
	defer timer.Stop()
	<-timer.C()
	synctest.Wait()
	w.server.streams.mu.Lock()
	defer w.server.streams.mu.Unlock()
	if w.server.streams.total != 0 {
		t.Fatalf("%d streams are still served", w.server.streams.total)
	}
}

func FuzzParseContinue(f *testing.F) {
	q, err := newQuery("cm", "", "", "")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(q.continueAt(7, "configmaps/default/a"))
	f.Add("")
	f.Add("AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
	f.Fuzz(func(t *testing.T, text string) {
		rev, key, err := q.parseContinue(text)
		if err != nil {
			return
		}
		if rev < 1 || !strings.HasPrefix(key, "configmaps/") {
			t.Fatalf("revision %d, key %q", rev, key)
		}
		if again := q.continueAt(rev, key); again != text {
			t.Fatalf("%q comes back as %q", text, again)
		}
	})
}
