package endpoints

import (
	"flag"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
	rt "github.com/balsa-run/balsa/reconciler/reconcilertest"
)

var _ = flag.Bool("update", false, "rewrite the golden files")

// A service is "service web headless noselector port:http=80/named port:=53/5353",
// a node out of reach "unreachable n1", a slice that is there already "slice name".
func TestGolden(t *testing.T) {
	rt.Golden(t, func(t *testing.T, lines []rt.Line) string {
		v := View{}
		unreachable := map[string]bool{}
		v.Unreachable = func(node string) bool { return unreachable[node] }
		for _, l := range lines {
			switch l.Kind {
			case "service":
				v.Service = parseService(t, l)
			case "unreachable":
				unreachable[l.Name] = true
			case "slice":
				v.Slices = append(v.Slices, &balsav1.EndpointSlice{Metadata: l.Meta(t)})
			default:
				v.Pods = append(v.Pods, l.Pod(t))
			}
		}
		a := Plan(v)
		return a.String()
	})
}

func parseService(t *testing.T, l rt.Line) *balsav1.Service {
	svc := &balsav1.Service{Metadata: l.Meta(t), Spec: &balsav1.ServiceSpec{Selector: map[string]string{"app": "web"}, ClusterIp: "10.96.0.7"}}
	if l.Has("noselector") {
		svc.Spec.Selector = nil
	}
	if l.Has("headless") {
		svc.Spec.ClusterIp = object.ClusterIPNone
	}
	for k, v := range l.Words {
		key, name, _ := strings.Cut(k, ":")
		if key != "port" {
			continue
		}
		number, target, _ := strings.Cut(v, "/")
		p := &balsav1.ServicePort{Name: name, Port: rt.Line{Words: map[string]string{"n": number}}.Int(t, "n")}
		switch {
		case strings.Trim(target, "0123456789") != "":
			p.TargetPort = object.StringValue(target)
		case target != "":
			p.TargetPort = object.IntValue(rt.Line{Words: map[string]string{"n": target}}.Int(t, "n"))
		}
		svc.Spec.Ports = append(svc.Spec.Ports, p)
	}
	return svc
}

// dumbEndpoints lists, for each address, "port ready serving terminating", pod by
// pod, as the definition says.
func dumbEndpoints(v View) map[string]string {
	out := map[string]string{}
	for _, pod := range v.Pods {
		st := pod.GetStatus()
		if st.GetPodIp() == "" || st.GetPhase() == "Failed" || st.GetPhase() == "Succeeded" || v.Unreachable(pod.GetSpec().GetNodeName()) {
			continue
		}
		port := int32(0)
		for _, p := range pod.GetSpec().GetContainers()[0].GetPorts() {
			if p.GetName() == "http" {
				port = p.GetContainerPort()
			}
		}
		ready, going := object.PodReady(pod), pod.GetMetadata().GetDeletionTimestamp() != nil
		out[st.GetPodIp()] = fmt.Sprint(port, ready && !going, ready, going)
	}
	return out
}

// TestPlanIsTheDefinition compares with the dumb twin, whatever the pods and
// whatever slices are there before, and expects nothing to do after the plan.
func TestPlanIsTheDefinition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := genView(t)
		var there []*balsav1.EndpointSlice
		for range 2 { // from nothing, then from the slices of other pods
			next := genView(t)
			next.Service, next.Slices = v.Service, there
			there = applied(next, Plan(next))
			got := map[string]string{}
			for _, s := range there {
				port := int32(0)
				for _, p := range s.GetPorts() {
					port = p.GetPort()
				}
				for _, e := range s.GetEndpoints() {
					c := e.GetConditions()
					got[e.GetAddresses()[0]] = fmt.Sprint(port, c.GetReady(), c.GetServing(), c.GetTerminating())
				}
			}
			if want := dumbEndpoints(next); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Fatalf("got  %v\nwant %v", got, want)
			}
			next.Slices = there
			if again := Plan(next); !again.Empty() {
				t.Fatalf("planning again does:\n%s", again.String())
			}
		}
	})
}

func applied(v View, a Actions) (out []*balsav1.EndpointSlice) {
	byName := map[string]*balsav1.EndpointSlice{}
	for _, s := range v.Slices {
		byName[s.GetMetadata().GetName()] = s
	}
	for _, s := range a.Delete {
		delete(byName, s.GetMetadata().GetName())
	}
	for _, s := range append(a.Create, a.Update...) {
		byName[s.GetMetadata().GetName()] = s
	}
	for _, name := range sortedNames(byName) {
		out = append(out, byName[name])
	}
	return out
}

func genView(t *rapid.T) View {
	v := View{Unreachable: func(node string) bool { return node == "n3" }}
	v.Service = &balsav1.Service{
		Metadata: &balsav1.ObjectMeta{Name: "web", Namespace: "default", Uid: "web"},
		Spec:     &balsav1.ServiceSpec{Selector: map[string]string{"app": "web"}, Ports: []*balsav1.ServicePort{{Name: "http", Port: 80, TargetPort: object.StringValue("http")}}},
	}
	for i := range rapid.IntRange(0, 8).Draw(t, "pods") {
		p := &balsav1.Pod{
			Metadata: &balsav1.ObjectMeta{Name: fmt.Sprintf("p%d", i), Namespace: "default", Uid: fmt.Sprint(i)},
			Spec:     &balsav1.PodSpec{NodeName: rapid.SampledFrom([]string{"n1", "n2", "n3"}).Draw(t, "node"), Containers: []*balsav1.Container{{Name: "c"}}},
			Status:   &balsav1.PodStatus{Phase: rapid.SampledFrom([]string{"Pending", "Running", "Running", "Failed"}).Draw(t, "phase")},
		}
		if rapid.IntRange(0, 4).Draw(t, "has an address") > 0 {
			p.Status.PodIp = fmt.Sprintf("10.0.0.%d", i)
		}
		if number := rapid.SampledFrom([]int32{0, 8080, 8080, 9090}).Draw(t, "port"); number > 0 {
			p.Spec.Containers[0].Ports = []*balsav1.ContainerPort{{Name: "http", ContainerPort: number}}
		}
		if rapid.Bool().Draw(t, "ready") {
			p.Status.Conditions, _ = object.SetCondition(nil, &balsav1.Condition{Type: object.ConditionReady, Status: object.ConditionTrue}, rt.Now())
		}
		if rapid.IntRange(0, 4).Draw(t, "terminating") == 0 {
			p.Metadata.DeletionTimestamp = timestamppb.New(rt.Now())
		}
		v.Pods = append(v.Pods, p)
	}
	return v
}

// TestNamesAndPublishing: a pod has a name of its own where it says so, and is
// published before it is ready where the Service says so.
func TestNamesAndPublishing(t *testing.T) {
	v := genService(t, 3)
	v.Service.Spec.PublishNotReadyAddresses = proto.Bool(true)
	v.Pods[0].Spec.Hostname, v.Pods[0].Spec.Subdomain = "first", "web"
	v.Pods[1].Spec.Hostname, v.Pods[1].Spec.Subdomain = "second", "other"
	v.Pods[1].Status.Conditions = nil
	v.Pods[2].Spec.Hostname = "third"
	v.Pods[2].Metadata.DeletionTimestamp = timestamppb.New(rt.Now())
	for i, want := range []string{"first true true", " true false", " true true"} {
		e := Plan(v).Create[0].GetEndpoints()[i]
		if got := fmt.Sprint(e.GetHostname(), " ", e.GetConditions().GetReady(), " ", e.GetConditions().GetServing()); got != want {
			t.Errorf("endpoint %d: %q, want %q", i, got, want)
		}
	}
	v.Service.Spec.PublishNotReadyAddresses = nil
	if e := Plan(v).Create[0].GetEndpoints()[1]; e.GetConditions().GetReady() {
		t.Error("a pod that is not ready is published although nobody asked for it")
	}
}

func TestTooManyEndpointsLeaveOutThoseThatAreNotReady(t *testing.T) {
	v := genService(t, MaxEndpoints+5)
	for _, p := range v.Pods[:3] {
		p.Status.Conditions = nil
	}
	a := Plan(v)
	slice := a.Create[0]
	if a.LeftOut != 5 || len(slice.GetEndpoints()) != MaxEndpoints {
		t.Fatalf("left out %d, has %d", a.LeftOut, len(slice.GetEndpoints()))
	}
	for _, e := range slice.GetEndpoints() {
		if !e.GetConditions().GetReady() {
			t.Errorf("%s is not ready and was kept", e.GetTargetRef().GetName())
		}
	}
}

func genService(t *testing.T, pods int) View {
	t.Helper()
	v := View{Service: parseService(t, rt.Line{Name: "web", Words: map[string]string{"port:": "80"}}), Unreachable: func(string) bool { return false }}
	for i := range pods {
		v.Pods = append(v.Pods, rt.Line{Name: fmt.Sprintf("p%05d", i), Words: map[string]string{"ip": fmt.Sprintf("10.0.%d.%d", i/250, i%250), "ready": "1m"}}.Pod(t))
	}
	return v
}

func TestTheConcernFollowsPodsAndMarks(t *testing.T) {
	w := rt.New(t)
	c := New(w.Kit())
	w.Put(&balsav1.Service{Metadata: &balsav1.ObjectMeta{Name: "web", Namespace: "default"}, Spec: &balsav1.ServiceSpec{
		Selector: map[string]string{"app": "web"}, Ports: []*balsav1.ServicePort{{Port: 80}},
	}})
	w.Put(&balsav1.Node{Metadata: &balsav1.ObjectMeta{Name: "n1"}})
	pod := rt.Line{Name: "p", Words: map[string]string{"label:app": "web", "ip": "10.0.0.1", "node": "n1", "ready": "1m"}}.Pod(t)
	pod.Metadata.ResourceVersion = ""
	w.Put(pod)
	w.Settle(c)
	slice := func() *balsav1.EndpointSlice {
		return rt.Get[*balsav1.EndpointSlice](w, "endpointslices/default/web")
	}
	if got := slice(); len(got.GetEndpoints()) != 1 || got.GetPorts()[0].GetPort() != 80 || got.GetAddressType() != object.AddressIPv4 ||
		object.ControllerOf(got).GetName() != "web" || got.GetMetadata().GetLabels()[object.LabelServiceName] != "web" {
		t.Fatalf("slice %v", got)
	}
	rt.Edit(w, "nodes/n1", func(n *balsav1.Node) {
		n.Status = &balsav1.NodeStatus{Conditions: []*balsav1.Condition{{Type: "HostReachable", Status: object.ConditionFalse}}}
	})
	w.Settle(c)
	if n := len(slice().GetEndpoints()); n != 0 {
		t.Errorf("%d endpoints on a host that is out of reach", n)
	}
}
