package scheduler

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/balsa-run/balsa/object"
	"pgregory.net/rapid"
)

// labelSelector is the simplest Selector: one label.
type labelSelector struct{ key, value string }

func (s labelSelector) Matches(l map[string]string) bool { return l[s.key] == s.value }
func (s labelSelector) String() string                   { return s.key + "=" + s.value }

// dumbPlan is Plan without any memory: every question is answered by walking
// over everything.
func dumbPlan(v View) (bound []Binding, left []int) {
	placed := slices.Clone(v.Placed)
	nodes := slices.Clone(v.Nodes)
	slices.SortFunc(nodes, func(a, b Node) int { return strings.Compare(a.Name, b.Name) })
	left = inOrder(v.Pending)
	for again := true; again; {
		again = false
		var still []int
		for _, i := range left {
			pod := v.Pending[i]
			node := dumbChoose(nodes, placed, &pod)
			if node == "" {
				still = append(still, i)
				continue
			}
			pod.Node, again = node, true
			placed = append(placed, pod)
			bound = append(bound, Binding{pod.Namespace, pod.Name, pod.UID, node})
		}
		left = still
	}
	return bound, left
}

func dumbChoose(nodes []Node, placed []Pod, pod *Pod) string {
	best, bestScore := "", score{}
	for i := range nodes {
		if !dumbFits(nodes, placed, &nodes[i], pod) {
			continue
		}
		s := dumbScore(nodes, placed, &nodes[i], pod)
		if best == "" || s.better(bestScore) {
			best, bestScore = nodes[i].Name, s
		}
	}
	return best
}

func dumbUsed(placed []Pod, node string) (r Resources) {
	for i := range placed {
		if placed[i].Node == node {
			r = r.Add(placed[i].Requests)
		}
	}
	return r
}

func dumbFits(nodes []Node, placed []Pod, n *Node, pod *Pod) bool {
	if !n.Ready || n.Cordoned || pod.Blocked != "" {
		return false
	}
	for _, t := range n.Taints {
		if t.Hard() && !pod.Tolerates(t) {
			return false
		}
	}
	for _, node := range pod.Volumes {
		if node != n.Name {
			return false
		}
	}
	for k, want := range pod.NodeSelector {
		if got, ok := n.Labels[k]; !ok || got != want {
			return false
		}
	}
	used := dumbUsed(placed, n.Name).Add(pod.Requests)
	for _, d := range [][3]int64{
		{pod.Requests.MilliCPU, used.MilliCPU, n.Allocatable.MilliCPU},
		{pod.Requests.Memory, used.Memory, n.Allocatable.Memory},
		{pod.Requests.Storage, used.Storage, n.Allocatable.Storage},
		{pod.Requests.Pods, used.Pods, n.Allocatable.Pods},
	} {
		if d[0] > 0 && d[1] > d[2] {
			return false
		}
	}
	for _, q := range placed {
		for _, mine := range pod.HostPorts {
			if q.Node == n.Name && slices.ContainsFunc(q.HostPorts, mine.Clashes) {
				return false
			}
		}
	}
	for _, c := range pod.Spread {
		if _, labelled := n.Labels[c.TopologyKey]; c.Hard && (!labelled || dumbSkew(nodes, placed, n, pod, c) > c.MaxSkew) {
			return false
		}
	}
	return true
}

// dumbSkew is the skew with the pod on node n, which has the topology label.
func dumbSkew(nodes []Node, placed []Pod, n *Node, pod *Pod, c Constraint) int64 {
	domains := map[string]int64{}
	for i := range nodes {
		value, ok := nodes[i].Labels[c.TopologyKey]
		if !ok || !eligible(&nodes[i], pod) {
			continue
		}
		domains[value] += 0
		for j := range placed {
			q := &placed[j]
			if q.Node == nodes[i].Name && q.Namespace == pod.Namespace && !q.Terminating && c.Selector.Matches(q.Labels) {
				domains[value]++
			}
		}
	}
	least := int64(1 << 40)
	for _, count := range domains {
		least = min(least, count)
	}
	skew := domains[n.Labels[c.TopologyKey]] - least
	if c.Selector.Matches(pod.Labels) {
		skew++
	}
	return skew
}

func dumbScore(nodes []Node, placed []Pod, n *Node, pod *Pod) (s score) {
	for _, t := range n.Taints {
		if !t.Hard() && !pod.Tolerates(t) {
			s.taints++
		}
	}
	var used Resources
	for i := range placed {
		q := &placed[i]
		if q.Node != n.Name {
			continue
		}
		s.pods += q.Requests.Pods
		used = used.Add(scoredRequests(q))
		if pod.Owner != "" && q.Owner == pod.Owner && !q.Terminating {
			s.owner++
		}
	}
	s.free = freePerMille(n.Allocatable, used.Add(scoredRequests(pod)))
	for _, c := range pod.Spread {
		if c.Hard {
			continue
		}
		if _, labelled := n.Labels[c.TopologyKey]; !labelled {
			s.skew += 1<<31 - 1
			continue
		}
		s.skew += dumbSkew(nodes, placed, n, pod, c)
	}
	return s
}

func genView() *rapid.Generator[View] {
	return rapid.Custom(func(t *rapid.T) View {
		var v View
		labels := func(keys ...string) map[string]string {
			m := map[string]string{}
			for _, k := range keys {
				if x := rapid.SampledFrom([]string{"", "a", "b", "c"}).Draw(t, k); x != "" {
					m[k] = x
				}
			}
			return m
		}
		for i := range rapid.IntRange(0, 6).Draw(t, "nodes") {
			v.Nodes = append(v.Nodes, Node{
				Name: fmt.Sprintf("n%d", i), Labels: labels("zone", "disk"),
				Ready: rapid.IntRange(0, 4).Draw(t, "ready") > 0, Cordoned: rapid.IntRange(0, 4).Draw(t, "cordoned") == 0,
				Allocatable: Resources{
					MilliCPU: rapid.Int64Range(0, 20).Draw(t, "cpu") * 100,
					Memory:   rapid.Int64Range(0, 20).Draw(t, "memory") * (100 << 20), Pods: rapid.Int64Range(0, 10).Draw(t, "slots"),
					Storage: rapid.Int64Range(0, 20).Draw(t, "storage") * (100 << 20),
				},
				Taints: drawTaints(t),
			})
		}
		pod := func(name string) Pod { return drawPod(t, name, labels) }
		for i := range rapid.IntRange(0, 8).Draw(t, "placed") {
			p := pod(fmt.Sprintf("old%d", i))
			p.Node = fmt.Sprintf("n%d", rapid.IntRange(0, 7).Draw(t, "on"))
			p.Terminating = rapid.IntRange(0, 3).Draw(t, "terminating") == 0
			v.Placed = append(v.Placed, p)
		}
		for i := range rapid.IntRange(0, 12).Draw(t, "pending") {
			v.Pending = append(v.Pending, pod(fmt.Sprintf("new%d", i)))
		}
		return v
	})
}

func drawTaints(t *rapid.T) (taints []Taint) {
	for _, name := range []string{"a", "b"} {
		if x := rapid.IntRange(0, 7).Draw(t, "taint "+name); x < 2 {
			taints = append(taints, Taint{Key: name, Effect: []string{object.TaintNoSchedule, object.TaintPreferNoSchedule}[x]})
		}
	}
	return taints
}

func drawPod(t *rapid.T, name string, labels func(...string) map[string]string) Pod {
	p := Pod{
		Namespace: rapid.SampledFrom([]string{"x", "y"}).Draw(t, "namespace"), Name: name, UID: "uid-" + name,
		Owner: rapid.SampledFrom([]string{"", "o1", "o2"}).Draw(t, "owner"), Labels: labels("app"),
		Requests: Resources{
			MilliCPU: rapid.Int64Range(0, 5).Draw(t, "cpu") * 100,
			Memory:   rapid.Int64Range(0, 5).Draw(t, "memory") * (100 << 20), Pods: 1,
			Storage: max(0, rapid.Int64Range(-3, 3).Draw(t, "storage")) * (100 << 20),
		},
		Priority:  rapid.SampledFrom([]int32{0, 0, 0, -1, 7}).Draw(t, "priority"),
		Tolerates: func(Taint) bool { return false },
		Created:   time.Unix(rapid.Int64Range(0, 3).Draw(t, "created"), 0),
	}
	if tolerated := rapid.SampledFrom([]string{"", "", "a", "b"}).Draw(t, "tolerates"); tolerated != "" {
		p.Tolerates, p.Tolerations = func(x Taint) bool { return x.Key == tolerated }, tolerated
	}
	if rapid.IntRange(0, 5).Draw(t, "volume") == 0 {
		p.Volumes = []string{fmt.Sprintf("n%d", rapid.IntRange(0, 6).Draw(t, "volume on"))}
	}
	if rapid.IntRange(0, 9).Draw(t, "blocked") == 0 {
		p.Blocked = "its claim is absent"
	}
	if rapid.IntRange(0, 3).Draw(t, "select") == 0 {
		p.NodeSelector = labels("disk")
	}
	for i := range rapid.SampledFrom([]int32{0, 0, 1, 2}).Draw(t, "ports") { // never two that clash with each other
		p.HostPorts = append(p.HostPorts, object.HostPort{
			IP: rapid.SampledFrom([]string{"", "", "10.0.0.1", "10.0.0.2"}).Draw(t, "host IP"), Port: 80 + 2*i + rapid.Int32Range(0, 1).Draw(t, "port"),
			Protocol: rapid.SampledFrom([]string{"TCP", "UDP"}).Draw(t, "protocol"),
		})
	}
	for range rapid.SampledFrom([]int{0, 0, 1, 2}).Draw(t, "constraints") {
		p.Spread = append(p.Spread, Constraint{
			MaxSkew: rapid.Int64Range(1, 2).Draw(t, "maxSkew"), TopologyKey: rapid.SampledFrom([]string{"zone", "disk"}).Draw(t, "topology"),
			Hard: rapid.Bool().Draw(t, "hard"), Selector: labelSelector{"app", rapid.SampledFrom([]string{"a", "b"}).Draw(t, "selects")},
		})
	}
	return p
}

// apply is the view once the bindings are in place.
func apply(v View, bindings []Binding) View {
	out := View{Nodes: v.Nodes, Placed: slices.Clone(v.Placed)}
	for _, p := range v.Pending {
		i := slices.IndexFunc(bindings, func(b Binding) bool { return b.UID == p.UID })
		if i < 0 {
			out.Pending = append(out.Pending, p)
			continue
		}
		p.Node = bindings[i].Node
		out.Placed = append(out.Placed, p)
	}
	return out
}

func TestPlanIsTheDumbPlan(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := genView().Draw(t, "view")
		got := Plan(v)
		bound, left := dumbPlan(v)
		if diff := cmp.Diff(bound, got.Bindings); diff != "" {
			t.Fatalf("bindings (-dumb +got):\n%s", diff)
		}
		var names, gotNames []string
		for _, i := range left {
			names = append(names, v.Pending[i].Key())
		}
		for _, u := range got.Unplaced {
			gotNames = append(gotNames, u.Namespace+"/"+u.Name)
		}
		if diff := cmp.Diff(names, gotNames); diff != "" {
			t.Fatalf("unplaced (-dumb +got):\n%s", diff)
		}
	})
}

func TestPlanPromises(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := genView().Draw(t, "view")
		d := Plan(v)
		if len(d.Bindings)+len(d.Unplaced) != len(v.Pending) {
			t.Fatalf("%d bound and %d unplaced of %d", len(d.Bindings), len(d.Unplaced), len(v.Pending))
		}
		// No node that took a pod is over what it offers, in anything that the pod
		// asks for; and each one took pods as a ready, schedulable node.
		for n := range d.Bindings {
			before := apply(v, d.Bindings[:n])
			i := slices.IndexFunc(before.Pending, func(p Pod) bool { return p.UID == d.Bindings[n].UID })
			j := slices.IndexFunc(v.Nodes, func(x Node) bool { return x.Name == d.Bindings[n].Node })
			if !dumbFits(v.Nodes, before.Placed, &v.Nodes[j], &before.Pending[i]) {
				t.Fatalf("binding %d, %+v, puts a pod where it does not fit", n, d.Bindings[n])
			}
		}
		if again := Plan(apply(v, d.Bindings)); len(again.Bindings) > 0 {
			t.Fatalf("planning again binds %+v", again.Bindings)
		}
	})
}

func TestPlanDoesNotDependOnTheOrderOfItsInput(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := genView().Draw(t, "view")
		shuffled := View{
			Nodes:   rapid.Permutation(v.Nodes).Draw(t, "nodes"),
			Placed:  rapid.Permutation(v.Placed).Draw(t, "placed"),
			Pending: rapid.Permutation(v.Pending).Draw(t, "pending"),
		}
		if diff := cmp.Diff(Plan(v).String(), Plan(shuffled).String()); diff != "" {
			t.Fatal(diff)
		}
	})
}

// TestExplanationsAreTrue mends, on a copy, exactly what a verdict says is
// missing, and expects the dumb filter to agree; mending less must not do.
func TestExplanationsAreTrue(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := genView().Draw(t, "view")
		d := Plan(v)
		after := apply(v, d.Bindings)
		for _, u := range d.Unplaced {
			i := slices.IndexFunc(after.Pending, func(p Pod) bool { return p.UID == u.UID })
			checkExplanation(t, after, &after.Pending[i], u.Why)
		}
	})
}

func checkExplanation(t *rapid.T, v View, pod *Pod, why *Explanation) {
	if pod.Blocked != "" {
		if why.Message() != pod.Blocked || why.Verdicts != nil {
			t.Fatalf("a blocked pod waits because %q, %v", why.Message(), why.Verdicts)
		}
		return
	}
	if why.Nodes != len(v.Nodes) || len(why.Verdicts) != len(v.Nodes) {
		t.Fatalf("speaks of %d nodes, %d verdicts, there are %d", why.Nodes, len(why.Verdicts), len(v.Nodes))
	}
	counted := 0
	for _, r := range why.Refused {
		counted += r.Nodes
		checkBest(t, why, r)
	}
	if counted != len(v.Nodes) {
		t.Fatalf("counts %d nodes of %d", counted, len(v.Nodes))
	}
	for _, verdict := range why.Verdicts {
		if len(verdict.Reasons) == 0 {
			t.Fatalf("no reason for %s", verdict.Node)
		}
		for skip := range verdict.Reasons {
			checkMended(t, v, pod, verdict, skip, false)
		}
		checkMended(t, v, pod, verdict, -1, true)
	}
}

func checkBest(t *rapid.T, why *Explanation, r Refusal) {
	best, nodes := int64(1<<62), 0
	for _, v := range why.Verdicts {
		if v.Reasons[0].Filter == r.Filter {
			best, nodes = min(best, v.Reasons[0].Short), nodes+1
		}
	}
	if best != r.Short || nodes != r.Nodes {
		t.Fatalf("%+v, but the verdicts say %d nodes, short by %d at best", r, nodes, best)
	}
}

// moved is the pod with its volumes on a node.
func moved(pod *Pod, node string) *Pod {
	next := *pod
	next.Volumes = []string{node}
	return &next
}

// portFreed is placed without the ports of a node that a refusal's detail speaks of:
// "80/TCP taken by x/y".
func portFreed(placed []Pod, node, detail string) []Pod {
	wanted, _, _ := strings.Cut(detail, " ")
	placed = slices.Clone(placed)
	for i := range placed {
		if p := &placed[i]; p.Node == node {
			p.HostPorts = slices.DeleteFunc(slices.Clone(p.HostPorts), func(h object.HostPort) bool {
				return h.Clashes(parsePort(wanted))
			})
		}
	}
	return placed
}

func parsePort(text string) (h object.HostPort) {
	ip, rest, found := strings.Cut(text, ":")
	if !found {
		ip, rest = "", text
	}
	number, protocol, _ := strings.Cut(rest, "/")
	n, err := strconv.Atoi(number)
	if err != nil {
		panic(err)
	}
	return object.HostPort{IP: ip, Port: int32(n), Protocol: protocol}
}

// checkMended gives the node what the verdict's reasons ask for, but for the one
// at skip, which it gets one too little of.
func checkMended(t *rapid.T, v View, pod *Pod, verdict Verdict, skip int, want bool) {
	if slices.ContainsFunc(verdict.Reasons, func(r Reason) bool {
		return r.Filter == Spread || r.Filter < CPU && len(pod.Spread) > 0
	}) {
		return // mending readiness or labels moves the domains too
	}
	nodes := slices.Clone(v.Nodes)
	i := slices.IndexFunc(nodes, func(n Node) bool { return n.Name == verdict.Node })
	n := &nodes[i]
	labels := map[string]string{}
	for k, x := range n.Labels {
		labels[k] = x
	}
	n.Labels = labels
	for j, r := range verdict.Reasons {
		missing := int64(0)
		if j == skip {
			missing = 1
		}
		switch r.Filter {
		case NotReady:
			n.Ready = missing == 0
		case Cordoned:
			n.Cordoned = missing == 1
		case NodeSelector:
			if k, x, _ := strings.Cut(r.Detail, "="); missing == 0 {
				labels[k] = x
			}
		case Tainted:
			if missing == 0 {
				n.Taints = slices.DeleteFunc(slices.Clone(n.Taints), func(x Taint) bool { return x.String() == r.Detail })
			}
		case Volume:
			if missing == 0 {
				pod = moved(pod, n.Name)
			}
		case Storage:
			n.Allocatable.Storage += r.Short - missing
		case CPU:
			n.Allocatable.MilliCPU += r.Short - missing
		case Memory:
			n.Allocatable.Memory += r.Short - missing
		case HostPort:
			if missing == 0 {
				v.Placed = portFreed(v.Placed, n.Name, r.Detail)
			}
		case PodSlots:
			n.Allocatable.Pods += r.Short - missing
		}
	}
	if got := dumbFits(nodes, v.Placed, n, pod); got != want {
		t.Fatalf("%s: with reason %d left out, fits = %v, want %v", verdict, skip, got, want)
	}
}
