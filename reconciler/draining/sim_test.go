package draining_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/reconciler/control"
	"github.com/balsa-run/balsa/reconciler/draining"
	"github.com/balsa-run/balsa/reconciler/endpoints"
	"github.com/balsa-run/balsa/reconciler/nodes"
	rt "github.com/balsa-run/balsa/reconciler/reconcilertest"
)

// sim is a cluster whose parts run in any order: the real endpoints and draining
// concerns over a real store, and nodes whose proxies have what the slices said at
// some revision.
type sim struct {
	*rt.World
	t         *rapid.T
	leases    *nodes.Leases
	endpoints control.Concern
	draining  control.Concern
	proxies   map[string]*proxy
	// history is the ready addresses of every Service at each revision, by name of
	// the Service and uid of the pod.
	history map[int64]map[string]map[string]bool
	made    int
	drained atomic.Int64
	// hold keeps the next command of a reconciler from being applied, before the
	// next one is; held is that command. So it is planned before what happens
	// meanwhile, and written after.
	hold bool
	held *internalv1.Command
}

// proxy is a node's: the revision that it has applied and the one that it has said.
type proxy struct {
	applied int64
	dead    bool // nobody hears of it any more
}

func newSim(t *rapid.T) *sim {
	s := &sim{World: rt.New(t), t: t, proxies: map[string]*proxy{}, history: map[int64]map[string]map[string]bool{}}
	s.Before = s.before
	s.Put(&balsav1.Namespace{Metadata: &balsav1.ObjectMeta{Name: "default"}})
	s.lead()
	for range 3 {
		s.join()
	}
	s.service("web", "web")
	return s
}

// lead makes a new leader, who knows nothing of what was said to the one before.
func (s *sim) lead() {
	s.leases = nodes.NewLeases(s.Clock, 0, time.Hour)
	s.endpoints = endpoints.New(s.Kit())
	s.draining = draining.New(s.Kit(), s.leases, func(string, time.Duration) { s.drained.Add(1) })
}

// join is a node that is new: it begins with all that there is.
func (s *sim) join() {
	name := fmt.Sprint("n", len(s.proxies)+1)
	s.Put(&balsav1.Node{Metadata: &balsav1.ObjectMeta{Name: name}})
	s.proxies[name] = &proxy{applied: int64(s.View().Revision())}
	s.note()
}

func (s *sim) beat(name string) {
	if _, err := s.leases.Beat(context.Background(), &balsav1.HeartbeatRequest{NodeName: name, BootId: name, AppliedRevision: s.proxies[name].applied}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *sim) service(name, app string) {
	s.Put(&balsav1.Service{Metadata: &balsav1.ObjectMeta{Name: name, Namespace: "default"}, Spec: &balsav1.ServiceSpec{
		Selector: map[string]string{"app": app}, Ports: []*balsav1.ServicePort{{Port: 80}}}})
}

func (s *sim) pod(app string, ready bool) {
	s.made++
	status := object.ConditionFalse
	if ready {
		status = object.ConditionTrue
	}
	s.Put(&balsav1.Pod{
		Metadata: &balsav1.ObjectMeta{Name: fmt.Sprint("p", s.made), Namespace: "default", Labels: map[string]string{"app": app}},
		Spec:     &balsav1.PodSpec{NodeName: "n1", Containers: []*balsav1.Container{{Name: "c", Image: "i"}}},
		Status: &balsav1.PodStatus{Phase: object.PodRunning, PodIp: fmt.Sprintf("10.244.0.%d", s.made),
			Conditions: []*balsav1.Condition{{Type: object.ConditionReady, Status: status}}},
	})
}

// note keeps what the slices say now, for proxies that are late.
func (s *sim) note() {
	now := map[string]map[string]bool{}
	for _, slice := range rt.All[*balsav1.EndpointSlice](s.World, "EndpointSlice") {
		name := slice.GetMetadata().GetLabels()[object.LabelServiceName]
		if now[name] == nil {
			now[name] = map[string]bool{}
		}
		for _, e := range slice.GetEndpoints() {
			if e.GetConditions().GetReady() {
				now[name][e.GetTargetRef().GetUid()] = true
			}
		}
	}
	s.history[int64(s.View().Revision())] = now
}

// at is what a proxy has that has applied a revision.
func (s *sim) at(revision int64) map[string]map[string]bool {
	for ; revision > 0; revision-- {
		if state, ok := s.history[revision]; ok {
			return state
		}
	}
	return nil
}

// check is the property: of a pod that is drained by acknowledgement no living
// node's proxy sends new connections to it, through any Service that is there.
func (s *sim) check() {
	s.note()
	services := map[string]bool{}
	for _, svc := range rt.All[*balsav1.Service](s.World, "Service") {
		services[svc.GetMetadata().GetName()] = true
	}
	for _, pod := range rt.All[*balsav1.Pod](s.World, "Pod") {
		c := object.FindCondition(pod.GetStatus().GetConditions(), object.ConditionDrained)
		if c.GetReason() != draining.ReasonAcknowledged && c.GetReason() != draining.ReasonNotServed {
			continue
		}
		for node, p := range s.proxies {
			if p.dead {
				continue
			}
			for name, ready := range s.at(p.applied) {
				if services[name] && ready[pod.GetMetadata().GetUid()] {
					s.t.Fatalf("%s is Drained (%s: %s), but node %s, which has applied revision %d of %d, sends it connections of service %s",
						pod.GetMetadata().GetName(), c.GetReason(), c.GetMessage(), node, p.applied, s.View().Revision(), name)
				}
			}
		}
	}
}

// remove asks for a pod's end.
func (s *sim) remove() {
	var going []string
	for _, pod := range rt.All[*balsav1.Pod](s.World, "Pod") {
		if !object.IsTerminating(pod) {
			going = append(going, object.KeyOf(pod))
		}
	}
	if len(going) == 0 {
		return
	}
	rt.Edit(s.World, rapid.SampledFrom(going).Draw(s.t, "pod"), func(p *balsav1.Pod) {
		p.Metadata.DeletionTimestamp, p.Metadata.DeletionGracePeriodSeconds = timestamppb.New(s.Clock.Now()), proto.Int64(30)
	})
}

// turn makes a pod ready that is not, or the other way round.
func (s *sim) turn() {
	if s.made == 0 {
		return
	}
	key := fmt.Sprint("pods/default/p", rapid.IntRange(1, s.made).Draw(s.t, "pod"))
	rt.Edit(s.World, key, func(p *balsav1.Pod) {
		c := &balsav1.Condition{Type: object.ConditionReady, Status: object.ConditionTrue}
		if object.PodReady(p) {
			c.Status = object.ConditionFalse
		}
		p.Status.Conditions, _ = object.SetCondition(p.Status.Conditions, c, s.Clock.Now())
	})
}

var errLate = errors.New("not yet")

func (s *sim) before(cmd *internalv1.Command) (apply bool, err error) {
	s.note()
	if cmd.GetEpoch() == 0 {
		return true, nil
	}
	if late := s.held; late != nil {
		s.held = nil
		s.ApplyLocked(late)
		s.note()
	}
	if s.hold {
		s.hold, s.held = false, cmd
		return false, errLate
	}
	return true, nil
}

// writeLate plans endpoints, which are written when the next reconciler writes.
func (s *sim) writeLate() {
	s.hold = true
	s.Step(s.endpoints)
	s.hold = false
}

func (s *sim) happen() {
	app := func() string { return rapid.SampledFrom([]string{"web", "db"}).Draw(s.t, "app") }
	node := func() string {
		return "n" + strconv.Itoa(rapid.IntRange(1, len(s.proxies)).Draw(s.t, "node"))
	}
	switch rapid.IntRange(0, 19).Draw(s.t, "what") {
	case 0, 1:
		s.pod(app(), rapid.IntRange(0, 3).Draw(s.t, "ready") > 0)
	case 2, 3:
		s.remove()
	case 4, 5:
		s.writeLate()
	case 6, 7:
		s.Step(s.endpoints)
	case 8, 9, 10:
		s.step()
	case 11, 12:
		p := s.proxies[node()]
		p.applied = rapid.Int64Range(p.applied, int64(s.View().Revision())).Draw(s.t, "applied")
	case 13, 14:
		if name := node(); !s.proxies[name].dead {
			s.beat(name)
		}
	case 15:
		s.SetTerm(s.Term + 1)
		s.lead()
	case 16:
		switch rapid.IntRange(0, 2).Draw(s.t, "change") {
		case 0:
			s.service(rapid.SampledFrom([]string{"web", "all", "db"}).Draw(s.t, "service"), app())
		case 1:
			if len(s.proxies) < 6 {
				s.join()
			}
		case 2: // it is lost: nobody waits for it, nor may it count
			p := s.proxies[node()]
			p.dead = true
		}
	case 18, 19:
		s.turn()
	case 17:
		s.Clock.Advance(time.Duration(rapid.IntRange(0, 3000).Draw(s.t, "ms")) * time.Millisecond)
	}
}

// step lets the draining concern look at what it looks at when anything happens.
func (s *sim) step() {
	keys := append(s.draining.List(s.View()), "")
	for _, a := range s.draining.Step(context.Background(), keys) {
		if a.Err != nil && !errors.Is(a.Err, control.ErrConflict) {
			s.t.Fatal(a.Err)
		}
	}
}

// TestNobodySendsToWhatIsDrained plays endpoints, proxies, heartbeats, deletions,
// new leaders and new nodes in any order.
func TestNobodySendsToWhatIsDrained(t *testing.T) {
	drained := int64(0)
	rapid.Check(t, func(t *rapid.T) {
		s := newSim(t)
		for range rapid.IntRange(1, 80).Draw(t, "length") {
			s.happen()
			s.check()
		}
		s.finish()
		drained += s.drained.Load()
	})
	if drained == 0 {
		t.Error("no pod was ever drained")
	}
}

// finish: once every node has all and says so, and the leader stays, every pod
// that ends is drained without a time-out.
func (s *sim) finish() {
	before := map[string]bool{}
	for _, pod := range rt.All[*balsav1.Pod](s.World, "Pod") {
		before[pod.GetMetadata().GetName()] = draining.Ends(pod)
	}
	s.SetTerm(s.Term + 1)
	s.lead()
	for range 3 {
		s.Step(s.endpoints)
	}
	for name, p := range s.proxies {
		p.applied = int64(s.View().Revision())
		s.beat(name)
	}
	s.step()
	s.check()
	for _, pod := range rt.All[*balsav1.Pod](s.World, "Pod") {
		c := object.FindCondition(pod.GetStatus().GetConditions(), object.ConditionDrained)
		if before[pod.GetMetadata().GetName()] && (c == nil || c.GetReason() == draining.ReasonTimedOut) {
			s.t.Fatalf("%s is not drained although every node has said so: %v", pod.GetMetadata().GetName(), c)
		}
	}
}

// TestNewLeaderWaitsForTheNodes: a leader that has heard nothing assumes nothing,
// and gives the nodes the whole time from when it began to look.
func TestNewLeaderWaitsForTheNodes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newSim(t)
		s.pod("web", true)
		s.Step(s.endpoints)
		for name, p := range s.proxies {
			p.applied = int64(s.View().Revision())
			s.beat(name)
		}
		s.remove()
		s.Step(s.endpoints)
		s.Clock.Advance(time.Duration(rapid.IntRange(0, 20).Draw(t, "seconds")) * time.Second)
		s.SetTerm(s.Term + 1)
		s.lead()
		s.step()
		condition := func() *balsav1.Condition {
			return object.FindCondition(rt.Get[*balsav1.Pod](s.World, "pods/default/p1").GetStatus().GetConditions(), object.ConditionDrained)
		}
		if c := condition(); c != nil {
			t.Fatalf("a leader that has heard of nobody says %v", c)
		}
		silent := fmt.Sprint("n", rapid.IntRange(1, 3).Draw(t, "silent"))
		for name, p := range s.proxies {
			p.applied = int64(s.View().Revision())
			if name != silent {
				s.beat(name)
			}
		}
		s.step()
		if c := condition(); c != nil {
			t.Fatalf("one node has said nothing, and the leader says %v", c)
		}
		s.Clock.Advance(draining.DefaultAcknowledge)
		s.step()
		if c := condition(); c.GetReason() != draining.ReasonTimedOut || c.GetMessage() != fmt.Sprintf("after 5s not acknowledged by node %s (revision %d); requests may meet the pod while it stops", silent, slice(s)) {
			t.Fatalf("the time is over, and the leader says %v", c)
		}
	})
}

func slice(s *sim) int64 {
	return control.ModRevision(rt.Get[*balsav1.EndpointSlice](s.World, "endpointslices/default/web"))
}

// TestEndpointsThatAreUnderWay: a pod that is not ready in the endpoints, or not in
// them yet, may be ready in those that are being written when its end is asked
// for.
func TestEndpointsThatAreUnderWay(t *testing.T) {
	for what, ready := range map[string]bool{"not there yet": true, "not ready yet": false} {
		t.Run(what, rapid.MakeCheck(func(t *rapid.T) {
			s := newSim(t)
			s.Step(s.endpoints)
			s.pod("web", ready)
			if !ready {
				s.Step(s.endpoints)
				s.turn()
			}
			for name, p := range s.proxies {
				p.applied = int64(s.View().Revision())
				s.beat(name)
			}
			s.writeLate()
			if s.held == nil {
				t.Fatal("nothing is under way")
			}
			s.remove()
			s.step()
			for name, p := range s.proxies { // they apply what has been written meanwhile
				p.applied = int64(s.View().Revision())
				s.beat(name)
			}
			s.check()
			s.finish()
		}))
	}
}
