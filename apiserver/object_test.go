package apiserver

import (
	"strconv"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/pki"
	"github.com/balsa-run/balsa/store"
)

func TestCreateGetUpdateDelete(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.admin()
		made := create(t, c, newConfigMap("cm", map[string]string{"a": "1"}))
		meta := made.GetMetadata()
		if meta.GetUid() == "" || meta.GetNamespace() != "default" || meta.GetGeneration() != 1 || !meta.GetCreationTimestamp().AsTime().Equal(time.Now()) {
			t.Fatalf("metadata: %v", meta)
		}
		if meta.GetResourceVersion() != revisionString(w.revision()) {
			t.Fatalf("resource version %s, want %d", meta.GetResourceVersion(), w.revision())
		}
		got := get[*balsav1.ConfigMap](t, c, "", "cm")
		if !proto.Equal(got, made) {
			t.Fatalf("got %v, made %v", got, made)
		}
		got.Data["a"] = "2"
		res, err := c.objects.Update(t.Context(), &balsav1.UpdateRequest{Object: object.Wrap(got)})
		must(t, err)
		next := res.GetObject().GetConfigMap()
		if next.GetData()["a"] != "2" || next.GetMetadata().GetGeneration() != 2 || next.GetMetadata().GetUid() != meta.GetUid() {
			t.Fatalf("updated: %v", next)
		}
		del, err := c.objects.Delete(t.Context(), &balsav1.DeleteRequest{Kind: "cm", Name: "cm"})
		must(t, err)
		if !del.GetDeleted() || del.GetObject().GetConfigMap().GetData()["a"] != "2" {
			t.Fatalf("deleted: %v", del)
		}
		gone(t, c, "ConfigMap", "default", "cm")
	})
}

func TestCreateRefusals(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.admin()
		live := create(t, c, newConfigMap("cm", nil))
		claimed := newConfigMap("x", nil)
		claimed.Metadata.Uid = "u"
		versioned := newConfigMap("x", nil)
		versioned.Metadata.ResourceVersion = "7"
		statused := newDeployment("d", 1)
		statused.Status = &balsav1.DeploymentStatus{Replicas: 3}
		for _, one := range []struct {
			name   string
			m      object.Message
			code   connect.Code
			reason string
		}{
			{"exists", newConfigMap("cm", nil), connect.CodeAlreadyExists, "AlreadyExists"},
			{"no namespace", inNS("nowhere", newConfigMap("x", nil)), connect.CodeNotFound, "NamespaceNotFound"},
			{"uid", claimed, connect.CodeInvalidArgument, "Invalid"},
			{"resourceVersion", versioned, connect.CodeInvalidArgument, "Invalid"},
			{"status", statused, connect.CodeInvalidArgument, "Invalid"},
			{"bad name", newConfigMap("No_Good", nil), connect.CodeInvalidArgument, "Invalid"},
			{"node", &balsav1.Node{Metadata: &balsav1.ObjectMeta{Name: "n1"}}, connect.CodePermissionDenied, "Derived"},
			{"slice", &balsav1.EndpointSlice{Metadata: &balsav1.ObjectMeta{Name: "s"}}, connect.CodePermissionDenied, "Derived"},
		} {
			at := w.revision()
			_, err := c.objects.Create(t.Context(), &balsav1.CreateRequest{Object: object.Wrap(one.m)})
			d := refused(t, err, one.code, one.reason)
			if d.GetApplied() != notApplied {
				t.Errorf("%s: applied %v", one.name, d.GetApplied())
			}
			if w.revision() != at {
				t.Errorf("%s: something was written", one.name)
			}
			if one.name == "exists" && d.GetCurrentResourceVersion() != live.GetMetadata().GetResourceVersion() {
				t.Errorf("exists: current %s", d.GetCurrentResourceVersion())
			}
		}
		_, err := c.objects.Create(t.Context(), &balsav1.CreateRequest{Object: &balsav1.Object{}})
		refused(t, err, connect.CodeInvalidArgument, "Invalid")
	})
}

func TestGenerateName(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c, seen := w.admin(), map[string]bool{}
		for range 20 {
			m := newConfigMap("", nil)
			m.Metadata.GenerateName = "job-"
			name := create(t, c, m).GetMetadata().GetName()
			if len(name) != len("job-")+5 || seen[name] {
				t.Fatalf("name %q", name)
			}
			seen[name] = true
		}
	})
}

func TestUpdateConflicts(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.admin()
		old := create(t, c, newConfigMap("cm", map[string]string{"a": "1"}))
		next := proto.CloneOf(old)
		next.Data["a"] = "2"
		_, err := c.objects.Update(t.Context(), &balsav1.UpdateRequest{Object: object.Wrap(next)})
		must(t, err)
		_, err = c.objects.Update(t.Context(), &balsav1.UpdateRequest{Object: object.Wrap(next)})
		d := refused(t, err, connect.CodeAborted, "Conflict")
		if d.GetCurrentResourceVersion() != revisionString(w.revision()) || d.GetApplied() != notApplied || d.GetHint() == "" {
			t.Fatalf("detail: %v", d)
		}
		next.Metadata.ResourceVersion, next.Metadata.Uid = "", "another"
		_, err = c.objects.Update(t.Context(), &balsav1.UpdateRequest{Object: object.Wrap(next)})
		refused(t, err, connect.CodeAborted, "OtherObject")
		next.Metadata.Uid = ""
		_, err = c.objects.Update(t.Context(), &balsav1.UpdateRequest{Object: object.Wrap(next)})
		must(t, err)
		next.Metadata.Name = "absent"
		_, err = c.objects.Update(t.Context(), &balsav1.UpdateRequest{Object: object.Wrap(next)})
		refused(t, err, connect.CodeNotFound, "NotFound")
	})
}

// Another writer comes in between plan and proposal: an unconditional write is
// planned anew, at most WriteAttempts times.
func TestConflictIsPlannedAnewAndBounded(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c, n := w.admin(), 0
		create(t, c, newConfigMap("cm", map[string]string{"count": "0"}))
		meddle := 3
		w.backend.before = func(*internalv1.Command) error {
			if n < meddle {
				n++
				kv, _ := w.objects().Get("configmaps/default/cm")
				next := proto.CloneOf(kv.Object.(*balsav1.ConfigMap))
				next.Data["count"] = strconv.Itoa(n)
				w.direct(next)
			}
			return nil
		}
		mine := newConfigMap("cm", map[string]string{"mine": "x"})
		res := apply(t, c, mine, "me")
		if got := res.GetObject().GetConfigMap().GetData(); got["count"] != "3" || got["mine"] != "x" {
			t.Fatalf("merged: %v", got)
		}
		n, meddle = 0, 1000
		mine.Data["mine"] = "y"
		_, err := c.objects.Apply(t.Context(), &balsav1.ApplyRequest{Object: object.Wrap(mine), Manager: "me"})
		if d := refused(t, err, connect.CodeAborted, "Contention"); d.GetApplied() != notApplied {
			t.Fatalf("detail: %v", d)
		}
		if want := w.server.limits.WriteAttempts; n != want {
			t.Fatalf("%d attempts, want %d", n, want)
		}
	})
}

// Two managers, one field each: a scale survives the next apply of a manifest
// that does not mention replicas.
func TestScaleSurvivesApply(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.admin()
		manifest := newDeployment("web", 1)
		manifest.Spec.Replicas = nil
		if res := apply(t, c, manifest, "cli"); res.GetResult() != "created" || res.GetObject().GetDeployment().GetSpec().GetReplicas() != 1 {
			t.Fatalf("first: %v", res)
		}
		scaled := get[*balsav1.Deployment](t, c, "", "web")
		scaled.Spec.Replicas = proto.Int32(5)
		_, err := c.objects.Update(t.Context(), &balsav1.UpdateRequest{Object: object.Wrap(scaled)})
		must(t, err)
		at := w.revision()
		if res := apply(t, c, manifest, "cli"); res.GetResult() != "unchanged" || res.GetObject().GetDeployment().GetSpec().GetReplicas() != 5 {
			t.Fatalf("again: %v", res)
		}
		if w.revision() != at {
			t.Fatal("an unchanged apply wrote")
		}
		manifest.Spec.Template.Spec.Containers[0].Image = "app:2"
		res := apply(t, c, manifest, "cli")
		d := res.GetObject().GetDeployment()
		if res.GetResult() != "configured" || d.GetSpec().GetReplicas() != 5 || d.GetSpec().GetTemplate().GetSpec().GetContainers()[0].GetImage() != "app:2" {
			t.Fatalf("changed: %v", res)
		}
		_, err = c.objects.Apply(t.Context(), &balsav1.ApplyRequest{Object: object.Wrap(manifest)})
		refused(t, err, connect.CodeInvalidArgument, "Invalid")
		manifest.Metadata.ResourceVersion = "1"
		_, err = c.objects.Apply(t.Context(), &balsav1.ApplyRequest{Object: object.Wrap(manifest), Manager: "cli"})
		refused(t, err, connect.CodeAborted, "Conflict")
		manifest.Metadata.Name = "absent"
		_, err = c.objects.Apply(t.Context(), &balsav1.ApplyRequest{Object: object.Wrap(manifest), Manager: "cli"})
		refused(t, err, connect.CodeNotFound, "NotFound")
	})
}

// A field that an Update changed is no longer the manager's who applied it
// first: an Apply that drops it leaves the updated value.
func TestUpdateTakesOverWhatItChanges(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.admin()
		manifest := newDeployment("web", 3)
		apply(t, c, manifest, "cli")
		updated := get[*balsav1.Deployment](t, c, "", "web")
		updated.Spec.Replicas = proto.Int32(5)
		_, err := c.objects.Update(t.Context(), &balsav1.UpdateRequest{Object: object.Wrap(updated)})
		must(t, err)
		manifest.Spec.Replicas = nil
		res := apply(t, c, manifest, "cli")
		if got := res.GetObject().GetDeployment().GetSpec().GetReplicas(); got != 5 {
			t.Fatalf("after an apply without replicas there are %d, the update said 5", got)
		}
	})
}

func TestUpdateStatusChangesOnlyStatus(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.admin()
		d := create(t, c, newDeployment("web", 1))
		d.Spec.Replicas = proto.Int32(9)
		d.Status = &balsav1.DeploymentStatus{Replicas: 1, ObservedGeneration: 1}
		res, err := c.objects.UpdateStatus(t.Context(), &balsav1.UpdateStatusRequest{Object: object.Wrap(d)})
		must(t, err)
		got := res.GetObject().GetDeployment()
		if got.GetSpec().GetReplicas() != 1 || got.GetStatus().GetReplicas() != 1 || got.GetMetadata().GetGeneration() != 1 {
			t.Fatalf("got %v", got)
		}
		got.Spec.Replicas, got.Status = proto.Int32(2), nil
		up, err := c.objects.Update(t.Context(), &balsav1.UpdateRequest{Object: object.Wrap(got)})
		must(t, err)
		if up.GetObject().GetDeployment().GetStatus().GetReplicas() != 1 {
			t.Fatal("an update took the status away")
		}
		_, err = c.objects.UpdateStatus(t.Context(), &balsav1.UpdateStatusRequest{Object: object.Wrap(newConfigMap("x", nil))})
		refused(t, err, connect.CodeInvalidArgument, "Invalid")
	})
}

func TestDryRunWritesNothing(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.admin()
		create(t, c, newConfigMap("cm", map[string]string{"a": "1"}))
		d := create(t, c, newDeployment("web", 1))
		d.Status = &balsav1.DeploymentStatus{Replicas: 4}
		before := w.backend.index
		cm := object.Wrap(newConfigMap("cm", map[string]string{"a": "2"}))
		up, err := c.objects.Update(t.Context(), &balsav1.UpdateRequest{Object: cm, DryRun: true})
		must(t, err)
		if up.GetObject().GetConfigMap().GetData()["a"] != "2" {
			t.Fatalf("update shows %v", up)
		}
		ap, err := c.objects.Apply(t.Context(), &balsav1.ApplyRequest{Object: cm, Manager: "m", DryRun: true})
		must(t, err)
		if ap.GetResult() != "configured" {
			t.Fatalf("apply shows %v", ap)
		}
		svc, err := c.objects.Create(t.Context(), &balsav1.CreateRequest{Object: object.Wrap(newService("s", "")), DryRun: true})
		must(t, err)
		if svc.GetObject().GetService().GetSpec().GetClusterIp() == "" {
			t.Fatalf("create shows %v", svc)
		}
		_, err = c.objects.UpdateStatus(t.Context(), &balsav1.UpdateStatusRequest{Object: object.Wrap(d), DryRun: true})
		must(t, err)
		del, err := c.objects.Delete(t.Context(), &balsav1.DeleteRequest{Kind: "cm", Name: "cm", DryRun: true})
		must(t, err)
		if !del.GetDeleted() {
			t.Fatalf("delete shows %v", del)
		}
		_, err = c.objects.Create(t.Context(), &balsav1.CreateRequest{Object: cm, DryRun: true})
		refused(t, err, connect.CodeAlreadyExists, "AlreadyExists")
		if w.backend.index != before {
			t.Fatal("a dry run proposed a command")
		}
	})
}

func TestClusterIPs(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c, seen := w.admin(), map[string]bool{}
		// 10.96.0.0/24: 256 addresses but for two at the beginning and the last.
		for i := range 253 {
			ip := create(t, c, newService("s"+strconv.Itoa(i), "")).GetSpec().GetClusterIp()
			if seen[ip] || ip == "10.96.0.0" || ip == "10.96.0.1" || ip == "10.96.0.255" {
				t.Fatalf("ip %s", ip)
			}
			seen[ip] = true
		}
		_, err := c.objects.Create(t.Context(), &balsav1.CreateRequest{Object: object.Wrap(newService("full", ""))})
		refused(t, err, connect.CodeResourceExhausted, "LimitReached")
		if create(t, c, newService("headless", "None")).GetSpec().GetClusterIp() != "None" {
			t.Fatal("a headless service got an address")
		}
		victim := get[*balsav1.Service](t, c, "", "s7")
		ip := victim.GetSpec().GetClusterIp()
		if kv, ok := w.objects().Get("claims/clusterip/" + ip); !ok || string(kv.Value) != "services/default/s7" {
			t.Fatalf("claim: %v %s", ok, kv.Value)
		}
		for _, bad := range []string{ip, "10.96.0.1", "10.96.0.255", "10.97.0.4", "fd00::1", "nonsense"} {
			_, err := c.objects.Create(t.Context(), &balsav1.CreateRequest{Object: object.Wrap(newService("wants", bad))})
			d := refused(t, err, connect.CodeInvalidArgument, "Invalid")
			if len(d.GetViolations()) != 1 || d.GetViolations()[0].GetField() != "spec.clusterIP" {
				t.Fatalf("%s: %v", bad, d)
			}
		}
		// An update keeps the address, a deletion frees it.
		victim.Spec.Ports[0].Port, victim.Spec.ClusterIp = 81, ""
		up, err := c.objects.Update(t.Context(), &balsav1.UpdateRequest{Object: object.Wrap(victim)})
		must(t, err)
		if up.GetObject().GetService().GetSpec().GetClusterIp() != ip {
			t.Fatal("the address changed")
		}
		_, err = c.objects.Delete(t.Context(), &balsav1.DeleteRequest{Kind: "svc", Name: "s7"})
		must(t, err)
		if got := create(t, c, newService("wants", ip)).GetSpec().GetClusterIp(); got != ip {
			t.Fatalf("got %s, want %s", got, ip)
		}
	})
}

// Two servers choose the same address at once: the claim decides, and the loser
// chooses another one.
func TestClusterIPRace(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c, stolen := w.admin(), ""
		w.backend.before = func(cmd *internalv1.Command) error {
			if stolen == "" {
				for _, op := range cmd.GetTxn().GetSuccess() {
					if p := op.GetPut(); string(p.GetKey()) != "services/default/s" {
						stolen = string(p.GetKey())
						w.txn(store.SpaceObjects, &internalv1.Op{Op: &internalv1.Op_Put{Put: &internalv1.Put{Key: p.GetKey(), Value: []byte("services/x/other")}}})
					}
				}
			}
			return nil
		}
		ip := create(t, c, newService("s", "")).GetSpec().GetClusterIp()
		if kv, _ := w.objects().Get("claims/clusterip/" + ip); string(kv.Value) != "services/default/s" {
			t.Fatalf("claim of %s: %s", ip, kv.Value)
		}
		if kv, _ := w.objects().Get(stolen); string(kv.Value) != "services/x/other" {
			t.Fatalf("the winner's claim %s was overwritten: %s", stolen, kv.Value)
		}
	})
}

func TestNamespaceLife(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.admin()
		if ns := create(t, c, newNamespace("team")); ns.GetStatus().GetPhase() != "Active" {
			t.Fatalf("new: %v", ns)
		}
		create(t, c, inNS("team", newConfigMap("cm", nil)))
		del, err := c.objects.Delete(t.Context(), &balsav1.DeleteRequest{Kind: "ns", Name: "team"})
		must(t, err)
		ns := del.GetObject().GetNamespace()
		if del.GetDeleted() || ns.GetStatus().GetPhase() != "Terminating" || ns.GetMetadata().GetDeletionTimestamp() == nil {
			t.Fatalf("deleted: %v", del)
		}
		get[*balsav1.ConfigMap](t, c, "team", "cm") // still there: the servers empty it
		_, err = c.objects.Create(t.Context(), &balsav1.CreateRequest{Object: object.Wrap(inNS("team", newConfigMap("late", nil)))})
		refused(t, err, connect.CodeFailedPrecondition, "NamespaceTerminating")
		at := w.revision()
		_, err = c.objects.Delete(t.Context(), &balsav1.DeleteRequest{Kind: "ns", Name: "team"})
		must(t, err)
		if w.revision() != at {
			t.Fatal("a second deletion wrote")
		}
		_, err = c.objects.Delete(t.Context(), &balsav1.DeleteRequest{Kind: "ns", Name: "default"})
		refused(t, err, connect.CodeFailedPrecondition, "Protected")
	})
}

// A namespace that begins to go between plan and proposal takes nothing in.
func TestNamespaceRace(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.admin()
		create(t, c, newNamespace("team"))
		other := w.admin()
		w.backend.before = func(*internalv1.Command) error {
			w.backend.before = nil
			_, err := other.objects.Delete(t.Context(), &balsav1.DeleteRequest{Kind: "ns", Name: "team"})
			return err
		}
		_, err := c.objects.Create(t.Context(), &balsav1.CreateRequest{Object: object.Wrap(inNS("team", newConfigMap("cm", nil)))})
		refused(t, err, connect.CodeFailedPrecondition, "NamespaceTerminating")
	})
}

func TestDeletePod(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.admin()
		w.register("n1")
		remove := func(name string, grace *int64) *balsav1.DeleteResponse {
			t.Helper()
			res, err := c.objects.Delete(t.Context(), &balsav1.DeleteRequest{Kind: "Pod", Name: name, GracePeriodSeconds: grace})
			must(t, err)
			return res
		}
		unbound := create(t, c, newPod("unbound", nil))
		if !remove("unbound", nil).GetDeleted() {
			t.Fatal("an unbound pod waits")
		}
		_ = unbound
		w.bind(create(t, c, newPod("bound", nil)), "n1")
		res := remove("bound", nil)
		meta := res.GetObject().GetPod().GetMetadata()
		if res.GetDeleted() || meta.GetDeletionGracePeriodSeconds() != 30 || meta.GetDeletionTimestamp() == nil {
			t.Fatalf("bound: %v", res)
		}
		if got := remove("bound", proto.Int64(60)).GetObject().GetPod().GetMetadata(); got.GetDeletionGracePeriodSeconds() != 30 {
			t.Fatalf("a second deletion gave more time: %v", got)
		}
		if got := remove("bound", proto.Int64(5)).GetObject().GetPod().GetMetadata(); got.GetDeletionGracePeriodSeconds() != 5 || !proto.Equal(got.GetDeletionTimestamp(), meta.GetDeletionTimestamp()) {
			t.Fatalf("a second deletion did not shorten: %v", got)
		}
		if !remove("bound", proto.Int64(0)).GetDeleted() {
			t.Fatal("grace 0 waits")
		}
		w.bind(create(t, c, newPod("lost", nil)), "n9")
		if !remove("lost", nil).GetDeleted() {
			t.Fatal("a pod on no node waits")
		}
		done := create(t, c, newPod("done", nil))
		done.Spec.NodeName, done.Status.Phase = "n1", object.PodSucceeded
		w.direct(done)
		if !remove("done", nil).GetDeleted() {
			t.Fatal("a finished pod waits")
		}
	})
}

func TestDeletePreconditions(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.admin()
		m := create(t, c, newConfigMap("cm", nil))
		_, err := c.objects.Delete(t.Context(), &balsav1.DeleteRequest{Kind: "cm", Name: "cm", Uid: "other"})
		refused(t, err, connect.CodeAborted, "OtherObject")
		_, err = c.objects.Delete(t.Context(), &balsav1.DeleteRequest{Kind: "cm", Name: "cm", ResourceVersion: "1"})
		refused(t, err, connect.CodeAborted, "Conflict")
		_, err = c.objects.Delete(t.Context(), &balsav1.DeleteRequest{Kind: "cm", Name: "cm", GracePeriodSeconds: proto.Int64(1)})
		refused(t, err, connect.CodeInvalidArgument, "Invalid")
		_, err = c.objects.Delete(t.Context(), &balsav1.DeleteRequest{Kind: "cm", Name: "cm", PropagationPolicy: "Foreground"})
		refused(t, err, connect.CodeInvalidArgument, "Invalid")
		_, err = c.objects.Delete(t.Context(), &balsav1.DeleteRequest{Kind: "cm", Name: "cm", Uid: m.GetMetadata().GetUid(), ResourceVersion: m.GetMetadata().GetResourceVersion()})
		must(t, err)
		_, err = c.objects.Delete(t.Context(), &balsav1.DeleteRequest{Kind: "cm", Name: "cm"})
		refused(t, err, connect.CodeNotFound, "NotFound")
		_, err = c.objects.Delete(t.Context(), &balsav1.DeleteRequest{Kind: "EndpointSlice", Name: "x"})
		refused(t, err, connect.CodePermissionDenied, "Derived")
	})
}

func TestDeleteOrphan(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.admin()
		owner := create(t, c, newDeployment("web", 1))
		for i := range 3 {
			child := create(t, c, newPod("p"+strconv.Itoa(i), nil))
			child.Metadata.OwnerReferences = []*balsav1.OwnerReference{object.NewControllerRef(owner)}
			w.direct(child)
		}
		at := w.revision()
		res, err := c.objects.Delete(t.Context(), &balsav1.DeleteRequest{Kind: "deploy", Name: "web", PropagationPolicy: "Orphan"})
		must(t, err)
		if !res.GetDeleted() || w.revision() != at+1 {
			t.Fatalf("one transaction expected: %v, revision %d after %d", res, w.revision(), at)
		}
		for i := range 3 {
			if p := get[*balsav1.Pod](t, c, "", "p"+strconv.Itoa(i)); len(p.GetMetadata().GetOwnerReferences()) != 0 {
				t.Fatalf("still owned: %v", p.GetMetadata())
			}
		}
	})
}

// Law 10: every failed write says whether it took place.
func TestFailedWritesSayWhetherTheyWereApplied(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.admin()
		put := func(name string) error {
			_, err := c.objects.Create(t.Context(), &balsav1.CreateRequest{Object: object.Wrap(newConfigMap(name, nil))})
			return err
		}
		w.backend.before = func(*internalv1.Command) error { return classed{notApplied: true} }
		if d := refused(t, put("a"), connect.CodeUnavailable, "Unavailable"); d.GetApplied() != notApplied {
			t.Fatalf("detail: %v", d)
		}
		w.backend.before = nil
		w.backend.after = func(*internalv1.Command) error { return classed{notApplied: false} }
		if d := refused(t, put("b"), connect.CodeUnavailable, "Unavailable"); d.GetApplied() != unknown {
			t.Fatalf("detail: %v", d)
		}
		wire := connect.NewError(connect.CodeUnavailable, classed{})
		detail, err := connect.NewErrorDetail(&balsav1.ErrorDetail{Reason: "NoLeader", Applied: notApplied, Hint: "wait"})
		must(t, err)
		wire.AddDetail(detail)
		w.backend.after = func(*internalv1.Command) error { return wire }
		if d := refused(t, put("c"), connect.CodeUnavailable, "NoLeader"); d.GetApplied() != notApplied || d.GetHint() != "wait" {
			t.Fatalf("detail: %v", d)
		}
		w.backend.after = func(*internalv1.Command) error { return strconv.ErrRange }
		d := refused(t, put("d"), connect.CodeInternal, "Internal")
		if d.GetApplied() != unknown {
			t.Fatalf("detail: %v", d)
		}
		w.backend.after = nil
		get[*balsav1.ConfigMap](t, c, "", "b") // it was applied: UNKNOWN was the truth
		w.backend.barrier = func() error { return classed{notApplied: true} }
		_, err = c.objects.Get(t.Context(), &balsav1.GetRequest{Kind: "cm", Name: "b"})
		if d := refused(t, err, connect.CodeUnavailable, "Unavailable"); d.GetApplied() != balsav1.ErrorDetail_APPLIED_UNSPECIFIED {
			t.Fatalf("a read says applied: %v", d)
		}
		if d := refused(t, put("b"), connect.CodeUnavailable, "Unavailable"); d.GetApplied() != notApplied {
			t.Fatalf("a write that failed before its proposal: %v", d)
		}
	})
}

// A server that lags plans from old state; what it would refuse it looks at
// again after a barrier.
func TestLaggingServerDoesNotRefuseWrongly(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.admin()
		late := newConfigMap("late", map[string]string{"a": "1"})
		w.backend.barrier = func() error {
			if _, ok := w.objects().Get("configmaps/default/late"); !ok {
				made := inNS("default", proto.CloneOf(late))
				object.Default(made)
				object.Stamp(made, "u1", time.Now())
				w.direct(made)
			}
			return nil
		}
		late.Data["a"] = "2"
		_, err := c.objects.Update(t.Context(), &balsav1.UpdateRequest{Object: object.Wrap(late)})
		must(t, err)
		if got := get[*balsav1.ConfigMap](t, c, "", "late"); got.GetData()["a"] != "2" || got.GetMetadata().GetUid() != "u1" {
			t.Fatalf("got %v", got)
		}
	})
}

// A write that the plan lets through costs no barrier of its own.
func TestWriteNeedsNoBarrier(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.admin()
		before := w.backend.barriers
		create(t, c, newConfigMap("cm", nil))
		if w.backend.barriers != before {
			t.Fatalf("%d barriers", w.backend.barriers-before)
		}
	})
}

func TestServerRoleWritesDerivedKinds(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.as(pki.RoleServer, "s1")
		create(t, c, &balsav1.EndpointSlice{Metadata: &balsav1.ObjectMeta{Name: "web-1"}, AddressType: "IPv4"})
		get[*balsav1.EndpointSlice](t, c, "", "web-1")
	})
}

// What Apply refuses was not applied, and says why.
func TestOutcomes(t *testing.T) {
	for outcome, want := range map[internalv1.CommandResult_Outcome]connect.Code{
		internalv1.CommandResult_OUTCOME_NO_SPACE:    connect.CodeResourceExhausted,
		internalv1.CommandResult_OUTCOME_LIMIT:       connect.CodeResourceExhausted,
		internalv1.CommandResult_OUTCOME_STALE_EPOCH: connect.CodeAborted,
		internalv1.CommandResult_OUTCOME_INVALID:     connect.CodeInternal,
	} {
		p := toProblem(outcomeError(&internalv1.CommandResult{Outcome: outcome, Message: "why"}))
		if p.code != want || p.applied != notApplied || p.reason == "" || p.hint == "" {
			t.Errorf("%s: %+v", outcome, p)
		}
	}
	if err := outcomeError(&internalv1.CommandResult{Outcome: internalv1.CommandResult_OUTCOME_OK}); err != nil {
		t.Error(err)
	}
}

func TestApplyRefusals(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.admin()
		create(t, c, newNamespace("team"))
		_, err := c.objects.Delete(t.Context(), &balsav1.DeleteRequest{Kind: "ns", Name: "team"})
		must(t, err)
		ns := newNamespace("team")
		ns.Metadata.Labels = map[string]string{"a": "b"}
		for _, one := range []struct {
			m       object.Message
			manager string
			code    connect.Code
			reason  string
		}{
			{ns, "m", connect.CodeFailedPrecondition, "Terminating"},
			{newConfigMap("a", nil), "with space", connect.CodeInvalidArgument, "Invalid"},
			{newConfigMap("", nil), "m", connect.CodeInvalidArgument, "Invalid"},
			{&balsav1.Node{Metadata: &balsav1.ObjectMeta{Name: "n1"}}, "m", connect.CodePermissionDenied, "Derived"},
			{&balsav1.EndpointSlice{Metadata: &balsav1.ObjectMeta{Name: "e"}}, "m", connect.CodePermissionDenied, "Derived"},
		} {
			_, err := c.objects.Apply(t.Context(), &balsav1.ApplyRequest{Object: object.Wrap(one.m), Manager: one.manager})
			if d := refused(t, err, one.code, one.reason); d.GetApplied() != notApplied {
				t.Errorf("%v: %v", one.m, d)
			}
		}
	})
}
