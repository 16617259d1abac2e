package scheduler

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestGolden reads testdata/*.txtar: a view, one node or pod a line, and what
// Plan makes of it, with the compact verdicts.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) { checkGolden(t, file) })
	}
}

func checkGolden(t *testing.T, file string) {
	a, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Files) != 2 || a.Files[0].Name != "view" || a.Files[1].Name != "plan" {
		t.Fatalf("%s: want the parts view and plan", file)
	}
	d := Plan(parseView(t, string(a.Files[0].Data)))
	got := d.String()
	for _, u := range d.Unplaced {
		got += u.Name + ": " + u.Why.Compact() + "\n"
	}
	if *update {
		a.Files[1].Data = []byte(got)
		if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(string(a.Files[1].Data), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

// parseView reads lines such as
//
//	node n1 cpu=2 memory=4Gi pods=10 zone=a notready
//	node n2 taint=a=b:NoSchedule taint=c:PreferNoSchedule
//	pod web-1 on=n1 cpu=500m owner=web app=web select:disk=ssd spread:zone=1 prefer:zone=1
//
// A pod without on= is pending; its line number is its age. spread: and prefer:
// select the pods with the pod's own app label.
func parseView(t *testing.T, text string) (v View) {
	t.Helper()
	for i, line := range strings.Split(strings.TrimSpace(text), "\n") {
		words := strings.Fields(line)
		switch words[0] {
		case "node":
			v.Nodes = append(v.Nodes, parseNode(t, words[1], words[2:]))
		case "pod":
			p := parsePod(t, words[1], words[2:])
			p.Created = time.Unix(int64(i), 0)
			if p.Node == "" {
				v.Pending = append(v.Pending, p)
			} else {
				v.Placed = append(v.Placed, p)
			}
		default:
			t.Fatalf("line %d: %q is neither node nor pod", i+1, words[0])
		}
	}
	return v
}

func parseNode(t *testing.T, name string, words []string) Node {
	n := Node{Name: name, Ready: true, Labels: map[string]string{}}
	for _, w := range words {
		k, value, _ := strings.Cut(w, "=")
		switch k {
		case "notready":
			n.Ready = false
		case "cordoned":
			n.Cordoned = true
		case "taint":
			rest, effect, _ := strings.Cut(value, ":")
			key, x, _ := strings.Cut(rest, "=")
			n.Taints = append(n.Taints, Taint{key, x, effect})
		default:
			if !parseResource(t, &n.Allocatable, k, value) {
				n.Labels[k] = value
			}
		}
	}
	return n
}

func parsePod(t *testing.T, name string, words []string) Pod {
	p := Pod{Namespace: "default", Name: name, UID: name, Labels: map[string]string{}, Requests: Resources{Pods: 1}, NodeSelector: map[string]string{}}
	for _, w := range words {
		k, value, _ := strings.Cut(w, "=")
		prefix, key, _ := strings.Cut(k, ":")
		switch {
		case k == "on":
			p.Node = value
		case k == "owner":
			p.Owner = value
		case k == "terminating":
			p.Terminating = true
		case k == "tolerates":
			p.Tolerates, p.Tolerations = func(x Taint) bool { return x.String() == value }, value
		case k == "volume":
			p.Volumes = append(p.Volumes, value)
		case k == "port":
			p.HostPorts = append(p.HostPorts, parsePort(value))
		case k == "blocked":
			p.Blocked = value
		case k == "priority":
			n, err := strconv.Atoi(value)
			if err != nil {
				t.Fatal(err)
			}
			p.Priority = int32(n)
		case prefix == "select":
			p.NodeSelector[key] = value
		case prefix == "spread", prefix == "prefer":
			skew, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			app := object.SelectorFromLabels(map[string]string{"app": p.Labels["app"]})
			p.Spread = append(p.Spread, Constraint{MaxSkew: skew, TopologyKey: key, Hard: prefix == "spread", Selector: app})
		case !parseResource(t, &p.Requests, k, value):
			p.Labels[k] = value
		}
	}
	return p
}

func parseResource(t *testing.T, r *Resources, name, value string) bool {
	t.Helper()
	var err error
	q := object.NewQuantity(value)
	switch name {
	case "cpu":
		r.MilliCPU, err = object.MilliCPU(q)
	case "memory":
		r.Memory, err = object.Bytes(q)
	case "storage":
		r.Storage, err = object.Bytes(q)
	case "pods":
		r.Pods, err = object.Bytes(q)
	default:
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	return true
}

func TestFromPodAndNode(t *testing.T) {
	truth, port := true, int32(8080)
	pod := &balsav1.Pod{
		Metadata: &balsav1.ObjectMeta{
			Namespace: "a", Name: "b", Uid: "u", Labels: map[string]string{"app": "b"},
			OwnerReferences: []*balsav1.OwnerReference{{Uid: "other"}, {Uid: "rs", Controller: &truth}},
		},
		Spec: &balsav1.PodSpec{
			NodeName: "n1",
			Containers: []*balsav1.Container{
				{Name: "x", Resources: &balsav1.ResourceRequirements{Requests: quantities("cpu", "250m", "memory", "1Gi")}},
				{Name: "y", Resources: &balsav1.ResourceRequirements{Limits: quantities("cpu", "1")}, Ports: []*balsav1.ContainerPort{
					{ContainerPort: 80, HostPort: &port, HostIp: "10.0.0.1"}, {ContainerPort: 81},
				}},
			},
			TopologySpreadConstraints: []*balsav1.TopologySpreadConstraint{{MaxSkew: 2, TopologyKey: "zone", WhenUnsatisfiable: "ScheduleAnyway"}},
		},
	}
	p, err := FromPod(pod)
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintf("%s %s %s %s %+v %s %v %v", p.Key(), p.UID, p.Owner, p.Node, p.Requests, p.Spread[0].TopologyKey, p.Spread[0].Hard, p.HostPorts)
	if want := "a/b u rs n1 {MilliCPU:1250 Memory:1073741824 Storage:0 Pods:1} zone false [10.0.0.1:8080/TCP]"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	node := &balsav1.Node{
		Metadata: &balsav1.ObjectMeta{Name: "n1"}, Spec: &balsav1.NodeSpec{Unschedulable: &truth},
		Status: &balsav1.NodeStatus{
			Allocatable: quantities("cpu", "2", "memory", "4Gi", "pods", "110"),
			Conditions:  []*balsav1.Condition{{Type: "Ready", Status: "True"}},
		},
	}
	n, err := FromNode(node)
	if err != nil {
		t.Fatal(err)
	}
	if want := (Node{Name: "n1", Ready: true, Cordoned: true, Allocatable: Resources{MilliCPU: 2000, Memory: 4 << 30, Pods: 110}}); cmp.Diff(want, n) != "" {
		t.Errorf("%s", cmp.Diff(want, n))
	}
	node.Status.Allocatable["cpu"] = object.NewQuantity("two")
	if _, err := FromNode(node); err == nil || !strings.Contains(err.Error(), `node "n1": allocatable cpu`) {
		t.Errorf("a bad quantity gives %v", err)
	}
}

func quantities(pairs ...string) map[string]*balsav1.Quantity {
	m := map[string]*balsav1.Quantity{}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = object.NewQuantity(pairs[i+1])
	}
	return m
}
