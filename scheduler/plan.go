package scheduler

import (
	"slices"
	"strings"
)

// Plan places the pending pods, oldest first, each with the ones before it in
// place. A pod that only its spread constraints kept out is tried again once
// others have moved the skew; so no unplaced pod fits the final state, and
// planning again changes nothing.
func Plan(v View) Decisions {
	p := newPlanner(v)
	var d Decisions
	waiting := inOrder(v.Pending)
	for len(waiting) > 0 {
		before := len(waiting)
		waiting = p.pass(waiting, &d)
		if len(waiting) == before {
			break
		}
	}
	for _, i := range waiting {
		pod := &v.Pending[i]
		why := p.explain(p.classOf[i])
		d.Unplaced = append(d.Unplaced, Unplaced{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, Why: why})
	}
	return d
}

type planner struct {
	nodes  []Node
	used   []Resources
	scored []Resources
	// ports holds, a node, the host ports that are taken.
	ports      [][]heldPort
	pending    []Pod
	classOf    []*class
	owners     map[string][]int32
	topologies map[string]*topology
	// matches holds the counters a namespace; matchIndex finds one by selector.
	matches    map[string][]*matches
	matchIndex map[string]*matches
	// changed lists the node of each binding made so far.
	changed []int
}

// class is what all pods of one signature share.
type class struct {
	pod *Pod
	// owner counts, a node, the pods of the same owner; nil without one.
	owner      []int32
	hard, soft []*constraint
	// eligible, fits and free hold for bindings up to changed[:seen].
	seen     int
	eligible []bool
	fits     []bool
	free     []int64
	// failed is 1 + len(changed) when no node fitted; 0: not yet.
	failed int
	why    *Explanation
}

func newPlanner(v View) *planner {
	p := &planner{
		nodes: slices.Clone(v.Nodes), pending: v.Pending,
		used: make([]Resources, len(v.Nodes)), scored: make([]Resources, len(v.Nodes)), ports: make([][]heldPort, len(v.Nodes)),
		owners: map[string][]int32{}, topologies: map[string]*topology{},
		matches: map[string][]*matches{}, matchIndex: map[string]*matches{},
	}
	slices.SortFunc(p.nodes, func(a, b Node) int { return strings.Compare(a.Name, b.Name) })
	p.classify()
	index := make(map[string]int, len(p.nodes))
	for i := range p.nodes {
		index[p.nodes[i].Name] = i
	}
	for i := range v.Placed {
		if node, ok := index[v.Placed[i].Node]; ok {
			p.occupy(node, &v.Placed[i])
		}
	}
	return p
}

// classify groups the pending pods and makes the counters that they need.
func (p *planner) classify() {
	classes := map[string]*class{}
	p.classOf = make([]*class, len(p.pending))
	for i := range p.pending {
		pod := &p.pending[i]
		key := signature(pod)
		c := classes[key]
		if c == nil {
			c = p.newClass(pod)
			classes[key] = c
		}
		p.classOf[i] = c
	}
}

func (p *planner) newClass(pod *Pod) *class {
	c := &class{pod: pod}
	if pod.Owner != "" {
		if p.owners[pod.Owner] == nil {
			p.owners[pod.Owner] = make([]int32, len(p.nodes))
		}
		c.owner = p.owners[pod.Owner]
	}
	for _, spec := range pod.Spread {
		k := p.newConstraint(pod, spec)
		if spec.Hard {
			c.hard = append(c.hard, k)
		} else {
			c.soft = append(c.soft, k)
		}
	}
	return c
}

func (p *planner) newConstraint(pod *Pod, spec Constraint) *constraint {
	t := p.topologies[spec.TopologyKey]
	if t == nil {
		t = newTopology(p.nodes, spec.TopologyKey)
		p.topologies[spec.TopologyKey] = t
	}
	key := pod.Namespace + "\x00" + spec.Selector.String()
	m := p.matchIndex[key]
	if m == nil {
		m = &matches{namespace: pod.Namespace, selector: spec.Selector, perNode: make([]int32, len(p.nodes))}
		p.matchIndex[key] = m
		p.matches[pod.Namespace] = append(p.matches[pod.Namespace], m)
	}
	c := &constraint{Constraint: spec, topology: t, matches: m, counts: make([]int64, len(t.values))}
	if spec.Selector.Matches(pod.Labels) {
		c.self = 1
	}
	return c
}

// occupy counts a pod on a node.
func (p *planner) occupy(node int, pod *Pod) {
	p.used[node] = p.used[node].Add(pod.Requests)
	p.scored[node] = p.scored[node].Add(scoredRequests(pod))
	for _, port := range pod.HostPorts {
		p.ports[node] = append(p.ports[node], heldPort{port, pod.Key()})
	}
	if pod.Terminating {
		return
	}
	if counts := p.owners[pod.Owner]; counts != nil {
		counts[node]++
	}
	for _, m := range p.matches[pod.Namespace] {
		if m.selector.Matches(pod.Labels) {
			m.perNode[node]++
		}
	}
}

// pass tries each waiting pod once and returns those that still wait.
func (p *planner) pass(waiting []int, d *Decisions) []int {
	var left []int
	for _, i := range waiting {
		pod := &p.pending[i]
		node := p.choose(p.classOf[i])
		if node < 0 {
			left = append(left, i)
			continue
		}
		p.occupy(node, pod)
		p.changed = append(p.changed, node)
		d.Bindings = append(d.Bindings, Binding{pod.Namespace, pod.Name, pod.UID, p.nodes[node].Name})
	}
	return left
}

// choose returns the best node for the next pod of a class, or -1.
func (p *planner) choose(c *class) int {
	if c.failed > 0 && (len(c.hard) == 0 || c.failed == 1+len(p.changed)) {
		return -1 // resources only shrink during a plan; only skew can improve
	}
	p.refresh(c)
	best, bestScore := -1, score{}
	for i, ok := range c.fits {
		if !ok || c.refusesSpread(i) {
			continue
		}
		s := p.score(c, i)
		if best < 0 || s.better(bestScore) {
			best, bestScore = i, s
		}
	}
	if best < 0 {
		c.failed = 1 + len(p.changed)
	}
	return best
}

func (c *class) refusesSpread(i int) bool {
	for _, k := range c.hard {
		if over, labelled := k.over(i); !labelled || over > 0 {
			return true
		}
	}
	return false
}

// refresh judges the nodes that changed since the class was last looked at.
func (p *planner) refresh(c *class) {
	if c.fits == nil {
		c.eligible = make([]bool, len(p.nodes))
		c.fits = make([]bool, len(p.nodes))
		c.free = make([]int64, len(p.nodes))
		for i := range p.nodes {
			c.eligible[i] = eligible(&p.nodes[i], c.pod)
			p.judge(c, i)
		}
		c.seen = len(p.changed)
	}
	for _, i := range p.changed[c.seen:] {
		p.judge(c, i)
	}
	c.seen = len(p.changed)
	for _, k := range c.hard {
		k.recount(c.eligible)
	}
	for _, k := range c.soft {
		k.recount(c.eligible)
	}
}

func (p *planner) judge(c *class, i int) {
	c.fits[i] = fits(&p.nodes[i], p.used[i], c.pod) && portsFree(p.ports[i], c.pod)
	if c.fits[i] {
		c.free[i] = freePerMille(p.nodes[i].Allocatable, p.scored[i].Add(scoredRequests(c.pod)))
	}
}
