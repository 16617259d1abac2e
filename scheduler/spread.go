package scheduler

import "math"

// matches counts, a node, the pods of a namespace that a selector chooses. All
// constraints with the same namespace and selector share one.
type matches struct {
	namespace string
	selector  Selector
	perNode   []int32
}

// topology is how one label divides the nodes into domains.
type topology struct {
	// domain is the index of the node's domain, or -1 without the label.
	domain []int32
	values []string
}

// constraint is a Constraint of one class of pods, counted.
type constraint struct {
	Constraint
	topology *topology
	matches  *matches
	// self is 1 if the pod matches its own selector.
	self int64
	// counts holds the matching pods of each domain on eligible nodes; -1 for a
	// domain that has no eligible node.
	counts []int64
	min    int64
}

// recount sets counts and min from what is placed now.
func (c *constraint) recount(eligible []bool) {
	for d := range c.counts {
		c.counts[d] = -1
	}
	for i, ok := range eligible {
		d := c.topology.domain[i]
		if !ok || d < 0 {
			continue
		}
		c.counts[d] = max(c.counts[d], 0) + int64(c.matches.perNode[i])
	}
	c.min = math.MaxInt64
	for _, n := range c.counts {
		if n >= 0 {
			c.min = min(c.min, n)
		}
	}
}

// over tells by how much the pod on node i would exceed maxSkew; 0 or less:
// it would not. A node without the label is over without a measure.
func (c *constraint) over(i int) (over int64, labelled bool) {
	d := c.topology.domain[i]
	if d < 0 || c.counts[d] < 0 {
		return 0, d >= 0
	}
	return c.counts[d] + c.self - c.min - c.MaxSkew, true
}

// skew is what a ScheduleAnyway constraint wants small; a node without the label
// is worse than any domain.
func (c *constraint) skew(i int) int64 {
	d := c.topology.domain[i]
	if d < 0 || c.counts[d] < 0 {
		return math.MaxInt32
	}
	return c.counts[d] + c.self - c.min
}

// reason is the refusal of a hard constraint on node i, if it refuses.
func (c *constraint) reason(i int) (Reason, bool) {
	over, labelled := c.over(i)
	if !labelled {
		return Reason{Filter: Spread, Detail: c.TopologyKey}, true
	}
	if over <= 0 {
		return Reason{}, false
	}
	domain := c.topology.values[c.topology.domain[i]]
	return Reason{Filter: Spread, Short: over, Detail: c.TopologyKey + "=" + domain}, true
}

func newTopology(nodes []Node, key string) *topology {
	t := &topology{domain: make([]int32, len(nodes))}
	index := map[string]int32{}
	for i := range nodes {
		value, ok := nodes[i].Labels[key]
		if !ok {
			t.domain[i] = -1
			continue
		}
		d, seen := index[value]
		if !seen {
			d = int32(len(t.values))
			index[value] = d
			t.values = append(t.values, value)
		}
		t.domain[i] = d
	}
	return t
}
