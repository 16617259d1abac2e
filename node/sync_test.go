package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/balsa-run/balsa/dns"
	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/netproxy"
	netfake "github.com/balsa-run/balsa/node/podnet/fake"
	"github.com/balsa-run/balsa/object"
)

// sink takes everything at once.
type sink struct {
	syncs int
	fails bool
}

func (s *sink) Sync(context.Context, netproxy.Ruleset) (netproxy.Result, error) {
	s.syncs++
	if s.fails {
		return netproxy.Result{}, errors.New("injected")
	}
	return netproxy.Result{}, nil
}
func (*sink) Scrub(context.Context) (netproxy.ScrubReport, error) {
	return netproxy.ScrubReport{}, nil
}
func (*sink) Forget(context.Context, []netip.Addr) (int, error) { return 0, nil }
func (*sink) Watch(ctx context.Context, _ func()) error         { <-ctx.Done(); return nil }
func (*sink) SetZone(*dns.Zone)                                 {}
func (*sink) SetClients(*dns.Clients)                           {}

// syncLab is an agent's sync without the agent.
func syncLab(t testing.TB) (*Agent, *syncer, *sink) {
	t.Helper()
	network, err := netfake.New(netip.MustParsePrefix("10.244.1.0/24"), "")
	if err != nil {
		t.Fatal(err)
	}
	m, err := newMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	a := &Agent{
		cfg: Config{Name: "n1", NodeIP: netip.MustParseAddr("10.0.0.11"), Clock: clock.Real{}}, log: slog.New(slog.DiscardHandler), metrics: m,
		set: newSet(), journal: journal{disk: Dir(t.TempDir()), run: Dir(t.TempDir())}, toBeat: newSignal(), toAnnounce: newSignal(), toSync: newSignal(), rules: newKnownPods(), departed: newDeparted(),
		facts: ClusterFacts{PodCIDR: netip.MustParsePrefix("10.244.1.0/24"), ClusterCIDR: netip.MustParsePrefix("10.244.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.96.0.0/12"), DNSDomain: "cluster.local"},
	}
	a.notices, a.reports = newNotices(a), newReporter(a)
	proxy := &sink{}
	a.plant = Plant{Network: network, Proxy: proxy, Resolver: proxy}
	return a, newSyncer(a), proxy
}

func endpoints(i, version int) *balsav1.EndpointSlice {
	slice := &balsav1.EndpointSlice{Metadata: &balsav1.ObjectMeta{Name: fmt.Sprintf("s%d-1", i), Namespace: "default", ResourceVersion: fmt.Sprint(version),
		Labels: map[string]string{object.LabelServiceName: fmt.Sprintf("s%d", i)}}, AddressType: "IPv4", Ports: []*balsav1.EndpointPort{{Port: 8080, Protocol: "TCP"}}}
	for e := range 3 {
		slice.Endpoints = append(slice.Endpoints, &balsav1.Endpoint{Addresses: []string{netip.AddrFrom4([4]byte{10, 244, byte(2 + (i+version)%200), byte(2 + e)}).String()}})
	}
	return slice
}

func commit(t testing.TB, s *set, full bool, revision int64, objects ...object.Message) {
	t.Helper()
	next := &step{}
	m := &balsav1.AssignmentsResponse{Full: full, Synced: true, Revision: revision}
	for _, o := range objects {
		m.Upserts = append(m.Upserts, object.Wrap(o))
	}
	next.add(m)
	if _, err := s.commit(next, true, func(*set, effect) {}); err != nil {
		t.Fatal(err)
	}
}

func manyServices(t testing.TB, s *set, services, pods int) {
	t.Helper()
	var all []object.Message
	for i := range services {
		all = append(all, &balsav1.Service{Metadata: &balsav1.ObjectMeta{Name: fmt.Sprintf("s%d", i), Namespace: "default"},
			Spec: &balsav1.ServiceSpec{ClusterIp: netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}).String(), Ports: []*balsav1.ServicePort{{Port: 80, Protocol: "TCP"}}}}, endpoints(i, 0))
	}
	for i := range pods {
		all = append(all, &balsav1.Pod{Metadata: &balsav1.ObjectMeta{Name: fmt.Sprint("p", i), Namespace: "default", Uid: fmt.Sprint("uid-p", i), Labels: map[string]string{"app": "x", "i": fmt.Sprint(i)}},
			Spec: &balsav1.PodSpec{Containers: []*balsav1.Container{{Name: "c", Ports: []*balsav1.ContainerPort{{Name: "http", ContainerPort: 80}}}}}})
	}
	commit(t, s, true, 1, all...)
}

// One endpoint changes among 10,000 services and 110 pods: all that the agent does
// but for the kernel's part. Its target is 1 ms.
func BenchmarkOneEndpointChanges(b *testing.B) {
	a, s, proxy := syncLab(b)
	manyServices(b, a.set, 10_000, 110)
	for i := range 110 {
		if _, err := a.plant.Network.Setup(context.Background(), fmt.Sprint("uid-p", i), "ns"); err != nil {
			b.Fatal(err)
		}
	}
	if err := s.sync(context.Background()); err != nil {
		b.Fatal(err)
	}
	var took []time.Duration
	for version := 1; b.Loop(); version++ {
		b.StopTimer()
		slice, before := endpoints(version%10_000, version), proxy.syncs
		b.StartTimer()
		began := time.Now()
		commit(b, a.set, false, int64(version+1), slice)
		if err := s.sync(context.Background()); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(began))
		if proxy.syncs != before+1 {
			b.Fatal("nothing was applied")
		}
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "median-us")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-us")
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	b.ReportMetric(float64(mem.HeapInuse>>20), "heap-MB")
}

// What costs the time is not how many there are: a change among ten thousand
// allocates about as much as one among a hundred.
func TestOneChangeCostsTheSame(t *testing.T) {
	cost := func(services int) float64 {
		a, s, _ := syncLab(t)
		manyServices(t, a.set, services, 0)
		if err := s.sync(context.Background()); err != nil {
			t.Fatal(err)
		}
		version := 0
		return testing.AllocsPerRun(50, func() {
			version++
			commit(t, a.set, false, int64(version+1), endpoints(7, version))
			if err := s.sync(context.Background()); err != nil {
				t.Fatal(err)
			}
		})
	}
	few, many := cost(100), cost(5_000)
	t.Logf("%.0f allocations among 100 services, %.0f among 5,000", few, many)
	if many > 3*few+100 {
		t.Errorf("a change allocates %.0f times among 5,000 services, %.0f times among 100", many, few)
	}
}

// Quiet steps move the revision and apply nothing; a change whose apply failed is
// applied by the next try; each part is touched only by what it is about.
func TestSyncTouchesWhatChanged(t *testing.T) {
	a, s, proxy := syncLab(t)
	manyServices(t, a.set, 3, 0)
	sync := func() int {
		t.Helper()
		before := proxy.syncs
		if err := s.sync(context.Background()); err != nil {
			t.Fatal(err)
		}
		return proxy.syncs - before
	}
	if sync() != 1 || a.applied.Load() != 1 {
		t.Errorf("the first set: revision %d", a.applied.Load())
	}
	commit(t, a.set, false, 5)
	if sync() != 0 || a.applied.Load() != 5 {
		t.Errorf("a quiet step: revision %d", a.applied.Load())
	}
	commit(t, a.set, false, 6, &balsav1.Namespace{Metadata: &balsav1.ObjectMeta{Name: "x"}},
		&balsav1.Node{Metadata: &balsav1.ObjectMeta{Name: "n2"}}, &balsav1.AddressPool{Metadata: &balsav1.ObjectMeta{Name: "p"}})
	if sync() != 0 || a.applied.Load() != 6 {
		t.Errorf("what is not about the proxy: revision %d", a.applied.Load())
	}
	commit(t, a.set, false, 7, endpoints(1, 9))
	if sync() != 1 || a.applied.Load() != 7 {
		t.Errorf("an endpoint: revision %d", a.applied.Load())
	}
	commit(t, a.set, true, 9)
	if sync() != 1 || a.applied.Load() != 9 || len(s.nodes) != 0 || len(s.pools) != 0 {
		t.Errorf("everything has gone: revision %d, %v, %v", a.applied.Load(), s.nodes, s.pools)
	}
}

// limits looks at what the pod's namespace has, and takes a selector that it cannot
// read for one that selects.
func TestLimits(t *testing.T) {
	s := newSet()
	pod := func(namespace string, labels map[string]string) *balsav1.Pod {
		return &balsav1.Pod{Metadata: &balsav1.ObjectMeta{Namespace: namespace, Labels: labels}}
	}
	policy := func(namespace string, selector *balsav1.LabelSelector) *balsav1.NetworkPolicy {
		return &balsav1.NetworkPolicy{Metadata: &balsav1.ObjectMeta{Name: "p", Namespace: namespace}, Spec: &balsav1.NetworkPolicySpec{PodSelector: selector}}
	}
	commit(t, s, true, 1, policy("a", nil), policy("b", &balsav1.LabelSelector{MatchLabels: map[string]string{"app": "x"}}),
		policy("c", &balsav1.LabelSelector{MatchExpressions: []*balsav1.LabelSelectorRequirement{{Key: "k", Operator: "Nonsense"}}}))
	for _, c := range []struct {
		pod  *balsav1.Pod
		want bool
	}{
		{pod("a", nil), true}, {pod("b", nil), false}, {pod("b", map[string]string{"app": "x"}), true}, {pod("c", nil), true}, {pod("d", nil), false},
	} {
		if got := s.limits(c.pod); got != c.want {
			t.Errorf("%v: %v", c.pod, got)
		}
	}
	commit(t, s, true, 2)
	if s.limits(pod("a", nil)) {
		t.Error("a policy that has gone limits")
	}
}

// history is a node's services at each revision, in words.
type history struct {
	objects map[string]object.Message
	at      map[int64]string
}

func (h *history) now(revision int64) {
	var b strings.Builder
	for _, key := range sortedKeys(h.objects) {
		fmt.Fprintln(&b, key, h.objects[key].GetMetadata().GetResourceVersion())
	}
	h.at[revision] = b.String()
}

// were tells whether the services were such at a revision or after it.
func (h *history) were(words string, since int64) bool {
	for revision, then := range h.at {
		if revision >= since && then == words {
			return true
		}
	}
	return false
}

// wordsOf are the services that a set from disk has.
func wordsOf(s saved) string {
	h := history{objects: map[string]object.Message{}, at: map[int64]string{}}
	for key, m := range s.changes {
		if plural, _, _ := strings.Cut(key, "/"); partServices(plural) {
			h.objects[key] = m
		}
	}
	h.now(0)
	return h.at[0]
}

// Whatever changes, and whenever an agent is killed, also several in a row, with
// disks that fail and proxies that refuse: the next one finds the services of one
// revision, and that is not older than the newest of which servers were told.
func TestNothingAcknowledgedIsForgotten(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		h := history{objects: map[string]object.Message{}, at: map[int64]string{}}
		a, s, proxy := syncLab(t)
		revision, told := int64(1), int64(0)
		change := func() {
			key := endpoints(rapid.IntRange(0, 3).Draw(rt, "which"), int(revision+1))
			revision++
			if name := object.KeyOf(key); h.objects[name] != nil && rapid.IntRange(0, 2).Draw(rt, "gone") == 0 {
				delete(h.objects, name)
				commitDelete(t, a.set, revision, key)
			} else {
				h.objects[name] = key
				commit(t, a.set, false, revision, key)
			}
			h.now(revision)
		}
		begin := func() {
			var all []object.Message
			for _, key := range sortedKeys(h.objects) {
				all = append(all, h.objects[key])
			}
			commit(t, a.set, true, revision, all...)
			h.now(revision)
		}
		restart := func() {
			before := a.journal
			found, err := before.load()
			if err != nil || found.behind {
				rt.Fatalf("behind %v, %v", found.behind, err)
			}
			a, s, proxy = syncLab(t)
			a.journal = before
			if found.step == nil {
				if told > 0 {
					rt.Fatalf("nothing is on disk, and revision %d was acknowledged", told)
				}
				return
			}
			if got := wordsOf(found); !h.were(got, told) {
				rt.Fatalf("after a kill: revision %d, which is not the services since %d:\n%shistory %v", found.acknowledged, told, got, h.at)
			}
			a.acknowledged.Store(found.acknowledged)
			if _, err := a.set.commit(found.step, false, func(*set, effect) {}); err != nil {
				rt.Fatal(err)
			}
			if rapid.Bool().Draw(rt, "no server is there at first") {
				if err := s.sync(context.Background()); err != nil {
					rt.Fatal(err)
				}
				if got := a.applied.Load(); !h.were(wordsOf(found), got) {
					rt.Fatalf("revision %d is told as applied, and is not:\n%s", got, wordsOf(found))
				}
			}
		}
		begin()
		if err := a.journal.savePods(a.set); err != nil { // before any pod is acted on
			rt.Fatal(err)
		}
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			switch rapid.IntRange(0, 9).Draw(rt, "what") {
			case 0, 1, 2, 3:
				change()
			case 4, 5, 6:
				proxy.fails = rapid.IntRange(0, 3).Draw(rt, "refuses") == 0
				if err := s.sync(context.Background()); err == nil {
					told = max(told, a.applied.Load())
				}
				proxy.fails = false
			case 7:
				if err := a.journal.saveServices(a.set); err != nil {
					rt.Fatal(err)
				}
			case 8:
				if err := a.journal.mergeChanges(2); err != nil {
					rt.Fatal(err)
				}
			default:
				restart()
				begin()
			}
		}
		restart()
	})
}

func commitDelete(t testing.TB, s *set, revision int64, m object.Message) {
	t.Helper()
	next := &step{}
	next.add(&balsav1.AssignmentsResponse{Synced: true, Revision: revision, Deletes: []*balsav1.ObjectKey{
		{Kind: object.KindOf(m).Name, Namespace: m.GetMetadata().GetNamespace(), Name: m.GetMetadata().GetName()}}})
	if _, err := s.commit(next, true, func(*set, effect) {}); err != nil {
		t.Fatal(err)
	}
}
