package apiserver

import (
	"bytes"
	"context"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/pki"
	"github.com/balsa-run/balsa/store"
)

func (w *world) agent(name string) *clients { return w.as(pki.RoleAgent, name) }

func (w *world) register(name string) *balsav1.RegisterResponse {
	w.t.Helper()
	res, err := w.agent(name).nodes.Register(w.t.Context(), &balsav1.RegisterRequest{Node: newNode(name)})
	must(w.t, err)
	return res
}

func newNode(name string) *balsav1.Node {
	return &balsav1.Node{
		Metadata: &balsav1.ObjectMeta{Name: name, Labels: map[string]string{"kubernetes.io/hostname": name}},
		Status: &balsav1.NodeStatus{
			Addresses:   []*balsav1.NodeAddress{{Type: "InternalIP", Address: "10.0.0.9"}},
			Allocatable: map[string]*balsav1.Quantity{"cpu": {String_: "2"}, "memory": {String_: "4Gi"}, "pods": {String_: "110"}},
		},
	}
}

func TestRegister(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		res := w.register("n1")
		if got := res.GetNode().GetSpec().GetPodCidr(); got != "10.244.0.0/24" {
			t.Fatalf("pod CIDR %s", got)
		}
		info := res.GetCluster()
		if info.GetClusterId() != "c1" || info.GetDnsDomain() != "cluster.local" || info.GetLeaseDurationMs() != 10_000 || info.GetHeartbeatIntervalMs() != 1000 || len(info.GetServers()) != 1 {
			t.Fatalf("cluster: %v", info)
		}
		if got := w.register("n2").GetNode().GetSpec().GetPodCidr(); got != "10.244.1.0/24" {
			t.Fatalf("the second has %s", got)
		}
		at := w.revision()
		if again := w.register("n1").GetNode(); again.GetSpec().GetPodCidr() != "10.244.0.0/24" || again.GetMetadata().GetUid() != res.GetNode().GetMetadata().GetUid() {
			t.Fatalf("again: %v", again)
		}
		if w.revision() != at {
			t.Fatal("registering again without a change wrote")
		}
		// Users' labels and the servers' conditions survive a registration.
		node := get[*balsav1.Node](t, w.admin(), "", "n1")
		node.Metadata.Labels["zone"] = "a"
		node.Spec.Unschedulable = proto.Bool(true)
		_, err := w.admin().objects.Update(t.Context(), &balsav1.UpdateRequest{Object: object.Wrap(node)})
		must(t, err)
		live := get[*balsav1.Node](t, w.admin(), "", "n1")
		live.Status.Conditions = []*balsav1.Condition{{Type: "Ready", Status: "True"}}
		w.direct(live)
		said := newNode("n1")
		said.Status.Addresses[0].Address = "10.0.0.77"
		said.Metadata.Labels["arch"] = "arm64"
		said.Spec = &balsav1.NodeSpec{PodCidr: "1.2.3.0/24"}
		up, err := w.agent("n1").nodes.Register(t.Context(), &balsav1.RegisterRequest{Node: said})
		must(t, err)
		got := up.GetNode()
		if got.GetMetadata().GetLabels()["zone"] != "a" || got.GetMetadata().GetLabels()["arch"] != "arm64" || !got.GetSpec().GetUnschedulable() ||
			len(got.GetStatus().GetConditions()) != 1 || got.GetStatus().GetAddresses()[0].GetAddress() != "10.0.0.77" || got.GetSpec().GetPodCidr() != "10.244.0.0/24" {
			t.Fatalf("changed: %v", got)
		}
		// A deleted node frees its addresses.
		_, err = w.admin().objects.Delete(t.Context(), &balsav1.DeleteRequest{Kind: "Node", Name: "n1"})
		must(t, err)
		if got := w.register("n3").GetNode().GetSpec().GetPodCidr(); got != "10.244.0.0/24" {
			t.Fatalf("the third has %s", got)
		}
	})
}

func TestAgentSpeaksForItselfOnly(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.register("n1")
		thief := w.agent("n2").nodes
		_, err := thief.Register(t.Context(), &balsav1.RegisterRequest{Node: newNode("n1")})
		refused(t, err, connect.CodePermissionDenied, "OtherNode")
		_, err = thief.Heartbeat(t.Context(), &balsav1.HeartbeatRequest{NodeName: "n1"})
		refused(t, err, connect.CodePermissionDenied, "OtherNode")
		_, err = thief.ReportStatus(t.Context(), &balsav1.ReportStatusRequest{NodeName: "n1"})
		refused(t, err, connect.CodePermissionDenied, "OtherNode")
		stream, err := thief.Assignments(t.Context(), &balsav1.AssignmentsRequest{NodeName: "n1"})
		must(t, err)
		if stream.Receive() {
			t.Error("another node's assignments")
		}
		refused(t, stream.Err(), connect.CodePermissionDenied, "OtherNode")
		_ = stream.Close()
		_, err = thief.Heartbeat(t.Context(), &balsav1.HeartbeatRequest{})
		refused(t, err, connect.CodeInvalidArgument, "Invalid")
	})
}

func TestPodCIDRsRunOut(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		for i := range 256 {
			key := object.ClaimPodCIDR(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i), 0}), 24))
			w.txn(store.SpaceObjects, &internalv1.Op{Op: &internalv1.Op_Put{Put: &internalv1.Put{Key: []byte(key), Value: []byte("nodes/x")}}})
		}
		_, err := w.agent("n1").nodes.Register(t.Context(), &balsav1.RegisterRequest{Node: newNode("n1")})
		refused(t, err, connect.CodeResourceExhausted, "LimitReached")
	})
}

func TestHeartbeat(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		beat := func() *balsav1.HeartbeatResponse {
			t.Helper()
			res, err := w.agent("n1").nodes.Heartbeat(t.Context(), &balsav1.HeartbeatRequest{NodeName: "n1", AppliedRevision: 7})
			must(t, err)
			return res
		}
		if !beat().GetRegister() || len(w.beats.beats) != 0 {
			t.Fatal("a node that is not registered beats")
		}
		w.register("n1")
		if beat().GetRegister() || len(w.beats.beats) != 1 || w.beats.beats[0].GetAppliedRevision() != 7 {
			t.Fatalf("beats: %v", w.beats.beats)
		}
	})
}

// agentSet is what an agent holds, as the proto says to build it.
type agentSet struct {
	objects  map[string]object.Message
	fulls    int
	revision int64
	updates  chan *balsav1.AssignmentsResponse
	begun    map[string]bool
}

func followAssignments(t *testing.T, c *clients) *agentSet {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := c.nodes.Assignments(ctx, &balsav1.AssignmentsRequest{NodeName: c.identity.Name})
	must(t, err)
	a := &agentSet{objects: map[string]object.Message{}, updates: make(chan *balsav1.AssignmentsResponse, 4096)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for stream.Receive() {
			a.updates <- proto.CloneOf(stream.Msg())
		}
		_ = stream.Close()
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return a
}

// settle takes in all that has come.
func (a *agentSet) settle(t *testing.T) {
	t.Helper()
	synctest.Wait()
	for len(a.updates) > 0 {
		res := <-a.updates
		if res.GetFull() {
			a.fulls++
			a.begun = map[string]bool{}
		}
		for _, o := range res.GetUpserts() {
			m, err := object.Unwrap(o)
			must(t, err)
			a.objects[object.KeyOf(m)] = m
			if a.begun != nil {
				a.begun[object.KeyOf(m)] = true
			}
		}
		for _, k := range res.GetDeletes() {
			kind, _ := object.KindByName(k.GetKind())
			delete(a.objects, object.Key(kind, k.GetNamespace(), k.GetName()))
		}
		if !res.GetSynced() {
			continue
		}
		if res.GetRevision() < a.revision {
			t.Fatalf("back in time: from %d to %d", a.revision, res.GetRevision())
		}
		a.revision = res.GetRevision()
		if a.begun != nil { // the full set is complete: the rest is gone
			for key := range a.objects {
				if !a.begun[key] {
					delete(a.objects, key)
				}
			}
			a.begun = nil
		}
	}
}

// want is the dumb twin of Assignments: what a node needs, by looking at
// everything.
func (w *world) want(t *testing.T, node string) map[string]object.Message {
	t.Helper()
	view, out := w.objects(), map[string]object.Message{}
	for kv := range view.Range("", "", 0) {
		m, ok := kv.Object.(object.Message)
		if !ok {
			continue
		}
		switch m := m.(type) {
		case *balsav1.Service, *balsav1.EndpointSlice, *balsav1.Node, *balsav1.NetworkPolicy, *balsav1.NetworkPolicySlice, *balsav1.AddressPool, *balsav1.Namespace:
			out[kv.Key] = m
		case *balsav1.Pod:
			if m.GetSpec().GetNodeName() != node {
				continue
			}
			out[kv.Key] = m
			for _, key := range usedBy(m) {
				if used, ok := view.Get(key); ok {
					opened, err := w.server.opened(used.Object.(object.Message))
					must(t, err)
					out[key] = opened
				}
			}
		}
	}
	return out
}

func (a *agentSet) check(t *testing.T, w *world, node string) {
	t.Helper()
	a.settle(t)
	want := w.want(t, node)
	for key, m := range want {
		if !proto.Equal(a.objects[key], m) {
			t.Fatalf("%s: the agent has %v, want %v", key, a.objects[key], m)
		}
	}
	for key := range a.objects {
		if want[key] == nil {
			t.Fatalf("the agent holds %s, which it needs no longer", key)
		}
	}
}

func podUsing(name, configMap, secret string) *balsav1.Pod {
	pod := newPod(name, nil)
	c := pod.Spec.Containers[0]
	if configMap != "" {
		c.EnvFrom = append(c.EnvFrom, &balsav1.EnvFromSource{ConfigMapRef: &balsav1.ObjectNameSelector{Name: configMap}})
	}
	if secret != "" {
		c.Env = append(c.Env, &balsav1.EnvVar{Name: "S", ValueFrom: &balsav1.EnvVarSource{SecretKeyRef: &balsav1.KeySelector{Name: secret, Key: "k"}}})
	}
	return pod
}

func TestAssignments(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.admin()
		w.register("n1")
		w.register("n2")
		create(t, c, newConfigMap("cm", map[string]string{"a": "1"}))
		create(t, c, newConfigMap("unused", nil))
		create(t, c, newSecret("s", map[string][]byte{"k": []byte(hidden)}))
		create(t, c, newService("web", ""))
		w.bind(create(t, c, podUsing("p1", "cm", "")), "n1")
		w.bind(create(t, c, newPod("other", nil)), "n2")
		a := followAssignments(t, w.agent("n1"))
		a.check(t, w, "n1")
		// The pod and its map, the service, two nodes, the namespace.
		if a.fulls != 1 || a.revision != int64(w.revision()) || len(a.objects) != 6 {
			t.Fatalf("%d full sets, revision %d, %d objects", a.fulls, a.revision, len(a.objects))
		}
		// A pod that uses a secret brings it, opened; the last one takes it away.
		w.bind(create(t, c, podUsing("p2", "cm", "s")), "n1")
		a.check(t, w, "n1")
		if got := a.objects["secrets/default/s"].(*balsav1.Secret); string(got.GetData()["k"]) != hidden {
			t.Fatal("the secret is not opened")
		}
		apply(t, c, newConfigMap("cm", map[string]string{"a": "2"}), "m")
		a.check(t, w, "n1")
		w.directDelete("pods/default/p2")
		a.check(t, w, "n1")
		if a.objects["secrets/default/s"] != nil || a.objects["configmaps/default/cm"] == nil {
			t.Fatal("the secret stayed, or the config map went")
		}
		// Something that the pod waits for comes later.
		w.bind(create(t, c, podUsing("p3", "later", "")), "n1")
		a.check(t, w, "n1")
		create(t, c, newConfigMap("later", nil))
		a.check(t, w, "n1")
		if a.objects["configmaps/default/later"] == nil {
			t.Fatal("what came later did not come")
		}
		// Quiet revisions move the node's revision as well, within a second.
		create(t, c, newConfigMap("quiet", nil))
		timer := time.NewTimer(2 * w.server.limits.ProgressEvery)
		<-timer.C
		a.check(t, w, "n1")
		if a.revision != int64(w.revision()) {
			t.Fatalf("revision %d, want %d", a.revision, w.revision())
		}
		if a.fulls != 1 {
			t.Fatalf("%d full sets", a.fulls)
		}
	})
}

// What routes, proxy and resolver are made from comes to every node, in the full
// set and as it changes.
func TestAssignmentsOfTheNetwork(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.register("n1")
		meta := func(name string) *balsav1.ObjectMeta { return &balsav1.ObjectMeta{Namespace: "default", Name: name} }
		policy := &balsav1.NetworkPolicy{Metadata: meta("p"), Spec: &balsav1.NetworkPolicySpec{PodSelector: &balsav1.LabelSelector{}}}
		slice := &balsav1.NetworkPolicySlice{Metadata: meta("p"), ObservedGeneration: 1}
		pool := &balsav1.AddressPool{Metadata: &balsav1.ObjectMeta{Name: "front"}, Spec: &balsav1.AddressPoolSpec{Addresses: []string{"192.0.2.0/28"}}}
		space := &balsav1.Namespace{Metadata: &balsav1.ObjectMeta{Name: "later"}}
		w.direct(policy)
		a := followAssignments(t, w.agent("n1"))
		a.check(t, w, "n1")
		if a.objects["networkpolicies/default/p"] == nil || a.objects["namespaces/default"] == nil {
			t.Fatalf("the full set has %d objects", len(a.objects))
		}
		for _, m := range []object.Message{slice, pool, space} {
			w.direct(m)
			a.check(t, w, "n1")
			if a.objects[object.KeyOf(m)] == nil {
				t.Fatalf("%s did not come", object.KeyOf(m))
			}
		}
		pool.Status = &balsav1.AddressPoolStatus{Announced: []*balsav1.AnnouncedAddress{{Ip: "192.0.2.1", NodeName: "n1"}}}
		w.direct(pool)
		a.check(t, w, "n1")
		for _, key := range []string{"networkpolicies/default/p", "networkpolicyslices/default/p", "addresspools/front", "namespaces/later"} {
			w.directDelete(key)
			a.check(t, w, "n1")
			if a.objects[key] != nil {
				t.Fatalf("%s stayed", key)
			}
		}
		if a.fulls != 1 {
			t.Fatalf("%d full sets", a.fulls)
		}
	})
}

// One revision takes the last user of a config map away, changes it, and gives it
// a new user: the change must not go unnoticed. Found by TestAssignmentsEqualTwin.
func TestAssignmentsRefChangesHands(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.register("n1")
		create(t, w.admin(), newConfigMap("cm", map[string]string{"v": "old"}))
		w.bind(create(t, w.admin(), podUsing("p", "cm", "")), "n1")
		a := followAssignments(t, w.agent("n1"))
		a.check(t, w, "n1")
		put := func(m object.Message) *internalv1.Op {
			value, err := object.Encode(m)
			must(t, err)
			return &internalv1.Op{Op: &internalv1.Op_Put{Put: &internalv1.Put{Key: []byte(object.KeyOf(m)), Value: value}}}
		}
		next := inNS("default", podUsing("q", "cm", ""))
		next.Spec.NodeName = "n1"
		w.txn(store.SpaceObjects,
			&internalv1.Op{Op: &internalv1.Op_DeleteRange{DeleteRange: &internalv1.DeleteRange{Key: []byte("pods/default/p")}}},
			put(inNS("default", newConfigMap("cm", map[string]string{"v": "new"}))),
			put(next))
		a.check(t, w, "n1")
		w.txn(store.SpaceObjects,
			&internalv1.Op{Op: &internalv1.Op_DeleteRange{DeleteRange: &internalv1.DeleteRange{Key: []byte("pods/default/q")}}},
			&internalv1.Op{Op: &internalv1.Op_DeleteRange{DeleteRange: &internalv1.DeleteRange{Key: []byte("configmaps/default/cm")}}},
			put(inNS("default", func() *balsav1.Pod { p := podUsing("r", "cm", ""); p.Spec.NodeName = "n1"; return p }())))
		a.check(t, w, "n1")
	})
}

// Within one step a config map gets a user, is changed, loses the user, is deleted,
// and gets a user again: the agent must not be given it. Found by
// TestAssignmentsEqualTwin, once in a thousand histories.
func TestAssignmentsRefThatCameAndWent(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		a := &assignments{Server: w.server, node: "n1", space: w.store.Space(store.SpaceObjects)}
		var sent []*balsav1.AssignmentsResponse
		a.send = func(res *balsav1.AssignmentsResponse) error { sent = append(sent, res); return nil }
		must(t, a.full(a.space.View()))
		watcher, err := a.space.Watch(t.Context(), store.WatchOptions{From: a.sent + 1})
		must(t, err)
		defer watcher.Stop()
		pod := func(configMap string) {
			p := inNS("default", podUsing("p", configMap, ""))
			p.Spec.NodeName = "n1"
			w.direct(p)
		}
		pod("cm")
		w.direct(inNS("default", newConfigMap("cm", map[string]string{"k": "v"})))
		pod("")
		w.directDelete("configmaps/default/cm")
		pod("cm")
		synctest.Wait()
		sent = nil
		must(t, a.step(gather(<-watcher.Events(), watcher)))
		for _, res := range sent {
			for _, o := range res.GetUpserts() {
				m, err := object.Unwrap(o)
				must(t, err)
				if key := object.KeyOf(m); key != "pods/default/p" {
					t.Errorf("it is sent %s", key)
				}
			}
		}
		if a.sent != a.space.View().Revision() {
			t.Errorf("the step ends at revision %d of %d", a.sent, a.space.View().Revision())
		}
	})
}

// A restored store, or a history that is gone, costs a full set and nothing else.
func TestAssignmentsBeginAgain(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.register("n1")
		w.bind(create(t, w.admin(), newPod("p1", nil)), "n1")
		a := followAssignments(t, w.agent("n1"))
		a.check(t, w, "n1")
		w.directDelete("pods/default/p1")
		var snapshot bytes.Buffer
		_, err := w.store.Snapshot().WriteTo(&snapshot)
		must(t, err)
		must(t, w.store.Restore(&snapshot))
		w.bind(create(t, w.admin(), newPod("p2", nil)), "n1")
		a.check(t, w, "n1")
		if a.fulls != 2 {
			t.Fatalf("%d full sets", a.fulls)
		}
	})
}

// Messages stay within StepBytes, and only the last of a step is synced.
func TestAssignmentsAreCut(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.register("n1")
		for i := range 10 {
			pod := newPod("p"+strconv.Itoa(i), nil)
			pod.Metadata.Annotations = map[string]string{"x": strings.Repeat("x", 1000)}
			w.bind(create(t, w.admin(), pod), "n1")
		}
		a := followAssignments(t, w.agent("n1"))
		synctest.Wait()
		if n := len(a.updates); n < 3 {
			t.Fatalf("%d messages", n)
		}
		for n := len(a.updates); n > 0; n-- {
			res := <-a.updates
			if size := proto.Size(res); size > 5000 {
				t.Fatalf("a message of %d bytes", size)
			}
			if res.GetSynced() != (n == 1) {
				t.Fatalf("message %d from the end is synced: %v", n, res.GetSynced())
			}
			a.updates <- res
		}
		a.check(t, w, "n1")
	}, func(c *Config) { c.Limits.StepBytes = 4000 })
}

// Property: an agent's set equals the dumb twin after any history.
func TestAssignmentsEqualTwin(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		type op struct{ What, Name, Node, Config, Secret string }
		ops := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) op {
			return op{
				What:   rapid.SampledFrom([]string{"pod", "pod", "config", "secret", "service", "delete"}).Draw(t, "what"),
				Name:   rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "name"),
				Node:   rapid.SampledFrom([]string{"n1", "n1", "n2"}).Draw(t, "node"),
				Config: rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "config"),
				Secret: rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "secret"),
			}
		}), 1, 25).Draw(rt, "ops")
		start := rapid.IntRange(0, len(ops)).Draw(rt, "start")
		good := t.Run("", func(t *testing.T) {
			run(t, func(t *testing.T, w *world) {
				w.register("n1")
				var a *agentSet
				for i, o := range ops {
					if i == start {
						a = followAssignments(t, w.agent("n1"))
					}
					switch o.What {
					case "pod":
						pod := inNS("default", podUsing(o.Name, o.Config, o.Secret))
						pod.Spec.NodeName = o.Node
						w.direct(pod)
					case "config":
						apply(t, w.admin(), newConfigMap(o.Name, map[string]string{"i": strconv.Itoa(i)}), "m")
					case "secret":
						apply(t, w.admin(), newSecret(o.Name, map[string][]byte{"k": {byte(i)}}), "m")
					case "service":
						apply(t, w.admin(), newService(o.Name, ""), "m")
					case "delete":
						w.directDelete("pods/default/" + o.Name)
						w.directDelete("configmaps/default/" + o.Config)
						w.directDelete("secrets/default/" + o.Secret)
					}
				}
				if a == nil {
					a = followAssignments(t, w.agent("n1"))
				}
				a.check(t, w, "n1")
			})
		})
		if !good {
			rt.Fatal("see the subtest")
		}
	})
}

// report sends one and returns the reason of its rejection, if any.
func (w *world) report(r *balsav1.PodReport) string {
	w.t.Helper()
	res, err := w.agent("n1").nodes.ReportStatus(w.t.Context(), &balsav1.ReportStatusRequest{NodeName: "n1", Pods: []*balsav1.PodReport{r}})
	must(w.t, err)
	if len(res.GetRejected()) == 0 {
		return ""
	}
	return res.GetRejected()[0].GetReason()
}

func reportOf(pod *balsav1.Pod, phase string, observed int64) *balsav1.PodReport {
	meta := pod.GetMetadata()
	return &balsav1.PodReport{
		Namespace: meta.GetNamespace(), Name: meta.GetName(), Uid: meta.GetUid(), ObservedRevision: observed,
		Status: &balsav1.PodStatus{Phase: phase, ObservedGeneration: meta.GetGeneration()},
	}
}

func TestReportStatus(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.admin()
		w.register("n1")
		pod := create(t, c, newPod("p", nil))
		if got := w.report(reportOf(pod, "Running", 5)); got != rejectNode {
			t.Fatalf("a pod that is on no node: %q", got)
		}
		w.bind(pod, "n1")
		bound := get[*balsav1.Pod](t, c, "", "p")
		bound.Status.Conditions = []*balsav1.Condition{{Type: "PodScheduled", Status: "True"}}
		w.direct(bound)
		running := reportOf(pod, "Running", 10)
		running.Status.PodIp = "10.244.0.7"
		running.Status.Conditions = []*balsav1.Condition{{Type: "Ready", Status: "True"}}
		if got := w.report(running); got != "" {
			t.Fatalf("rejected: %q", got)
		}
		live := get[*balsav1.Pod](t, c, "", "p")
		if live.GetStatus().GetPodIp() != "10.244.0.7" || !object.PodReady(live) || !object.IsConditionTrue(live.GetStatus().GetConditions(), "PodScheduled") {
			t.Fatalf("status: %v", live.GetStatus())
		}
		at := w.revision()
		if got := w.report(running); got != "" || w.revision() != at {
			t.Fatalf("the same again: %q, revision %d after %d", got, w.revision(), at)
		}
		if got := w.report(reportOf(pod, "Pending", 9)); got != rejectOlder {
			t.Fatalf("older: %q", got)
		}
		other := reportOf(pod, "Running", 11)
		other.Uid = "another"
		if got := w.report(other); got != rejectOther {
			t.Fatalf("another uid: %q", got)
		}
		removed := reportOf(pod, "", 11)
		removed.Removed, removed.Status = true, nil
		if got := w.report(removed); got != rejectKept {
			t.Fatalf("removed, but nobody asked: %q", got)
		}
		if got := w.report(reportOf(pod, "Succeeded", 12)); got != "" {
			t.Fatalf("ends: %q", got)
		}
		if got := w.report(reportOf(pod, "Running", 13)); got != rejectFinal {
			t.Fatalf("rises again: %q", got)
		}
	})
}

func TestReportRemoved(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.admin()
		w.register("n1")
		pod := create(t, c, newPod("p", nil))
		w.bind(pod, "n1")
		_, err := c.objects.Delete(t.Context(), &balsav1.DeleteRequest{Kind: "Pod", Name: "p"})
		must(t, err)
		removed := &balsav1.PodReport{Namespace: "default", Name: "p", Uid: pod.GetMetadata().GetUid(), Removed: true}
		if got := w.report(removed); got != "" {
			t.Fatalf("rejected: %q", got)
		}
		gone(t, c, "Pod", "default", "p")
		if got := w.report(removed); got != "" {
			t.Fatalf("twice: %q", got)
		}
		if got := w.report(reportOf(pod, "Running", 99)); got != rejectGone {
			t.Fatalf("a report about a pod that is gone: %q", got)
		}
		gone(t, c, "Pod", "default", "p")
		// A successor of the same name is not touched by the old one's reports.
		next := create(t, c, newPod("p", nil))
		w.bind(next, "n1")
		if got := w.report(removed); got != "" {
			t.Fatalf("the old one is gone, as it should: %q", got)
		}
		get[*balsav1.Pod](t, c, "", "p")
	})
}

func TestReportLimits(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.register("n1")
		req := &balsav1.ReportStatusRequest{NodeName: "n1", Pods: make([]*balsav1.PodReport, 513)}
		for i := range req.Pods {
			req.Pods[i] = &balsav1.PodReport{Uid: strconv.Itoa(i)}
		}
		_, err := w.agent("n1").nodes.ReportStatus(t.Context(), req)
		refused(t, err, connect.CodeResourceExhausted, "LimitReached")
		req.Pods = req.Pods[:200]
		res, err := w.agent("n1").nodes.ReportStatus(t.Context(), req)
		must(t, err)
		if len(res.GetRejected()) != 200 {
			t.Fatalf("%d rejected", len(res.GetRejected()))
		}
	})
}

func TestReportEvents(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.admin()
		w.register("n1")
		pod := create(t, c, newPod("p", nil))
		w.bind(pod, "n1")
		elsewhere := create(t, c, newPod("q", nil))
		event := func(p *balsav1.Pod, message string) *balsav1.Event {
			return &balsav1.Event{InvolvedObject: object.Reference(p), Reason: "Pulled", Message: message, Type: "Normal"}
		}
		send := func(events ...*balsav1.Event) []*balsav1.RejectedReport {
			t.Helper()
			res, err := w.agent("n1").nodes.ReportStatus(t.Context(), &balsav1.ReportStatusRequest{NodeName: "n1", Events: events})
			must(t, err)
			return res.GetRejected()
		}
		if rejected := send(event(pod, "m1"), event(pod, "m1"), event(pod, "m2"), event(elsewhere, "m1")); len(rejected) != 1 || rejected[0].GetReason() != rejectNode {
			t.Fatalf("rejected: %v", rejected)
		}
		if rejected := send(event(pod, "m1")); len(rejected) != 0 {
			t.Fatalf("rejected: %v", rejected)
		}
		res, err := c.objects.List(t.Context(), &balsav1.ListRequest{Kind: "Event", FieldSelector: "involvedObject.uid=" + pod.GetMetadata().GetUid()})
		must(t, err)
		counts := map[string]int32{}
		for _, item := range res.GetItems() {
			e := item.GetEvent()
			counts[e.GetMessage()] = e.GetCount()
			if e.GetSource().GetHost() != "n1" || e.GetFirstTimestamp() == nil {
				t.Fatalf("event: %v", e)
			}
		}
		if counts["m1"] != 3 || counts["m2"] != 1 || len(counts) != 2 {
			t.Fatalf("counts: %v", counts)
		}
	})
}
