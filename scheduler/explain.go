package scheduler

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// maxVerdicts bounds the nodes that an Explanation names, nearest first.
const maxVerdicts = 100

// Explanation says why a pod fits no node. It speaks of the state with all
// bindings of its plan in place.
type Explanation struct {
	// Blocked, if not empty, is the whole reason: it has nothing to do with nodes.
	Blocked string
	// Nodes is how many nodes there are; each is counted once in Refused.
	Nodes int
	// Refused has one entry a filter, the one that refuses most nodes first.
	Refused []Refusal
	// Verdicts names the nodes, the one that lacks least first; at most
	// maxVerdicts. Each lists everything that its node fails.
	Verdicts []Verdict
}

// Refusal counts the nodes whose first reason was Filter.
type Refusal struct {
	Filter Filter
	Nodes  int
	// Short is the smallest shortage among them, in the filter's unit; 0 for
	// filters without a measure.
	Short int64
}

// Verdict is what one node fails.
type Verdict struct {
	Node    string
	Reasons []Reason
}

func (v Verdict) String() string {
	words := make([]string, len(v.Reasons))
	for i, r := range v.Reasons {
		words[i] = r.String()
	}
	return v.Node + " (" + strings.Join(words, ", ") + ")"
}

// Message is one sentence, like "0 of 3 nodes fit: 2 too little cpu (short by
// 200m at best), 1 not ready; nearest is n1 (200m cpu short)".
func (e *Explanation) Message() string {
	if e.Blocked != "" {
		return e.Blocked
	}
	if e.Nodes == 0 {
		return "0 of 0 nodes fit: no node has joined the cluster"
	}
	parts := make([]string, len(e.Refused))
	for i, r := range e.Refused {
		parts[i] = fmt.Sprintf("%d %s", r.Nodes, r.Filter.phrase())
		if r.Short > 0 && (r.Filter == CPU || r.Filter == Memory || r.Filter == Storage) {
			parts[i] += " (short by " + Reason{Filter: r.Filter, Short: r.Short}.amount() + " at best)"
		}
	}
	message := fmt.Sprintf("0 of %d nodes fit: %s", e.Nodes, strings.Join(parts, ", "))
	return message + "; nearest is " + e.Verdicts[0].String()
}

// Compact is the verdict on every named node, for example "n1 cpu-200m,memory-1Gi;
// n2 notready". It is meant for a program to show beside Message.
func (e *Explanation) Compact() string {
	parts := make([]string, len(e.Verdicts), len(e.Verdicts)+1)
	for i, v := range e.Verdicts {
		words := make([]string, len(v.Reasons))
		for j, r := range v.Reasons {
			words[j] = r.compact()
		}
		parts[i] = v.Node + " " + strings.Join(words, ",")
	}
	if more := e.Nodes - len(e.Verdicts); more > 0 {
		parts = append(parts, fmt.Sprintf("and %d nodes further off", more))
	}
	return strings.Join(parts, "; ")
}

// explain judges every node for a class that fits none. All bindings are made.
func (p *planner) explain(c *class) *Explanation {
	if c.why != nil {
		return c.why
	}
	if c.pod.Blocked != "" {
		c.why = &Explanation{Blocked: c.pod.Blocked}
		return c.why
	}
	p.refresh(c)
	e := &Explanation{Nodes: len(p.nodes)}
	var refused [filters]Refusal
	for i := range p.nodes {
		v := Verdict{Node: p.nodes[i].Name, Reasons: refusals(nil, &p.nodes[i], p.used[i], p.ports[i], c.pod)}
		for _, k := range c.hard {
			if r, bad := k.reason(i); bad {
				v.Reasons = append(v.Reasons, r)
			}
		}
		refused[v.Reasons[0].Filter].count(v.Reasons[0])
		e.Verdicts = append(e.Verdicts, v)
	}
	for f := range refused {
		if refused[f].Nodes > 0 {
			e.Refused = append(e.Refused, refused[f])
		}
	}
	slices.SortStableFunc(e.Refused, func(a, b Refusal) int { return cmp.Compare(b.Nodes, a.Nodes) })
	slices.SortStableFunc(e.Verdicts, nearer)
	e.Verdicts = slices.Clone(e.Verdicts[:min(len(e.Verdicts), maxVerdicts)])
	c.why = e
	return e
}

func (r *Refusal) count(why Reason) {
	if r.Nodes == 0 || why.Short < r.Short {
		r.Short = why.Short
	}
	r.Filter = why.Filter
	r.Nodes++
}

// nearer orders verdicts by how little is missing: fewer reasons first; then the
// filters that a user can do most about last in the list of filters; then the
// smaller shortage. Nodes stay in the order of their names otherwise.
func nearer(a, b Verdict) int {
	if c := cmp.Compare(len(a.Reasons), len(b.Reasons)); c != 0 {
		return c
	}
	for i := range a.Reasons {
		if c := cmp.Compare(b.Reasons[i].Filter, a.Reasons[i].Filter); c != 0 {
			return c
		}
		if c := cmp.Compare(a.Reasons[i].Short, b.Reasons[i].Short); c != 0 {
			return c
		}
	}
	return 0
}
