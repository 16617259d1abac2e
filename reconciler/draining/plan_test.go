package draining

import (
	"flag"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
	rt "github.com/balsa-run/balsa/reconciler/reconcilertest"
)

var _ = flag.Bool("update", false, "rewrite the golden files")

// A view is
//
//	node n1 applied=12 gone=why_not
//	service web app=web notready closing
//	slice web of=web rev=10 web-1=ready web-2=terminating web-3=unready
//	pod web-1 node=n1 ip=10.0.0.1 label:app=web terminating since=2s out=10 unreachable
//	namespace default closing
func TestGolden(t *testing.T) {
	rt.Golden(t, func(t *testing.T, lines []rt.Line) string {
		v := View{Namespaces: map[string]Namespace{}}
		for _, l := range lines {
			ns := v.Namespaces["default"]
			switch l.Kind {
			case "node":
				v.Nodes = append(v.Nodes, Node{Name: l.Name, Applied: int64(l.Int(t, "applied")), Gone: strings.ReplaceAll(l.Words["gone"], "_", " ")})
			case "service":
				ns.Services = append(ns.Services, parseService(t, l))
			case "slice":
				ns.Slices = append(ns.Slices, parseSlice(t, l))
			case "namespace":
				ns.Closing = l.Has("closing")
			case "pod":
				v.Pods = append(v.Pods, Pod{Pod: l.Pod(t), Since: l.Ago(t, "since"), Out: int64(l.Int(t, "out")), Unreachable: l.Has("unreachable")})
			}
			v.Namespaces["default"] = ns
		}
		a := Plan(v, rt.Now())
		return a.String()
	})
}

func parseService(t *testing.T, l rt.Line) *balsav1.Service {
	s := &balsav1.Service{Metadata: l.Meta(t), Spec: &balsav1.ServiceSpec{}}
	if l.Has("app") {
		s.Spec.Selector = map[string]string{"app": l.Words["app"]}
	}
	if l.Has("notready") {
		s.Spec.PublishNotReadyAddresses = proto.Bool(true)
	}
	return s
}

func parseSlice(t *testing.T, l rt.Line) *balsav1.EndpointSlice {
	s := &balsav1.EndpointSlice{Metadata: l.Meta(t)}
	s.Metadata.ResourceVersion = l.Words["rev"]
	s.Metadata.Labels[object.LabelServiceName] = l.Words["of"]
	for name, state := range l.Words {
		if name == "rev" || name == "of" {
			continue
		}
		s.Endpoints = append(s.Endpoints, &balsav1.Endpoint{Addresses: []string{"10.0.0.1"}, TargetRef: &balsav1.ObjectReference{Uid: name},
			Conditions: &balsav1.EndpointConditions{Ready: proto.Bool(state == "ready"), Serving: proto.Bool(state != "unready"), Terminating: proto.Bool(state == "terminating")}})
	}
	return s
}

func TestWhoIsDrained(t *testing.T) {
	mark := func(change func(*balsav1.Pod)) *balsav1.Pod {
		p := rt.Line{Kind: "pod", Name: "p", Words: map[string]string{"node": "n1", "terminating": "true", "ready": "1s"}}.Pod(t)
		p.Metadata.DeletionGracePeriodSeconds = proto.Int64(30)
		change(p)
		return p
	}
	for what, c := range map[string]struct {
		pod  *balsav1.Pod
		want bool
	}{
		"deleted":                   {mark(func(*balsav1.Pod) {}), true},
		"deleted with no grace":     {mark(func(p *balsav1.Pod) { p.Metadata.DeletionGracePeriodSeconds = proto.Int64(0) }), false},
		"not deleted":               {mark(func(p *balsav1.Pod) { p.Metadata.DeletionTimestamp = nil }), false},
		"its deadline is over":      {mark(func(p *balsav1.Pod) { p.Metadata.DeletionTimestamp, p.Status.Reason = nil, "DeadlineExceeded" }), true},
		"evicted by its node":       {mark(func(p *balsav1.Pod) { p.Metadata.DeletionTimestamp, p.Status.Reason = nil, "Evicted" }), false},
		"it has ended":              {mark(func(p *balsav1.Pod) { p.Status.Phase = object.PodFailed }), false},
		"on no node":                {mark(func(p *balsav1.Pod) { p.Spec.NodeName = "" }), false},
		"it is known to be drained": {mark(drainedPod), false},
	} {
		if got := Ends(c.pod); got != c.want {
			t.Errorf("%s: %v", what, got)
		}
	}
}

func drainedPod(p *balsav1.Pod) {
	p.Status.Conditions = append(p.Status.Conditions, &balsav1.Condition{Type: object.ConditionDrained, Status: object.ConditionTrue})
}
