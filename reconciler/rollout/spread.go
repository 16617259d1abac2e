package rollout

import (
	"math"
	"slices"
	"strconv"
)

// scale follows the Deployment's replicas while nothing is rolled out: one
// ReplicaSet gets them all; several get their shares, when replicas were changed.
func (p *planner) scale(recreate bool) {
	active := p.active()
	switch {
	case len(active) > 1 && recreate:
		// Which of them would get what? Kubernetes leaves them alone, too.
	case len(active) > 1 && p.saturated():
		for _, c := range p.old {
			c.spec = 0
		}
	case len(active) > 1:
		if p.rescaled {
			p.spread()
		}
	case len(active) == 1:
		p.scaleOne(active[0], recreate)
	case p.fresh != nil:
		p.scaleOne(p.fresh, recreate)
	case len(p.old) > 0:
		p.scaleOne(p.old[len(p.old)-1], recreate)
	}
}

// scaleOne gives one ReplicaSet all replicas, as far as pods of the others, which
// may still be there, leave room.
func (p *planner) scaleOne(c *counts, recreate bool) {
	others := int32(0)
	for _, o := range p.sets {
		if o == c {
			continue
		}
		if others += o.total(); recreate {
			others += o.running
		}
	}
	if recreate && others > 0 {
		c.spec = min(c.spec, p.replicas)
		return
	}
	c.spec = min(p.replicas, max(c.spec, p.replicas+p.surge-others))
}

// active are the ReplicaSets that have replicas, the oldest first.
func (p *planner) active() (active []*counts) {
	for _, c := range p.sets {
		if c.spec > 0 {
			active = append(active, c)
		}
	}
	return active
}

// saturated tells whether the new ReplicaSet has, available, all that the
// Deployment wants.
func (p *planner) saturated() bool {
	return p.fresh != nil && p.fresh.spec == p.replicas && p.fresh.available == p.replicas
}

// wasRescaled tells whether the Deployment's replicas are others than those for
// which a ReplicaSet was scaled.
func (p *planner) wasRescaled() bool {
	return slices.ContainsFunc(p.active(), func(c *counts) bool {
		desired, ok := annotated(c, annotationDesired)
		return ok && desired != p.replicas
	})
}

// spread changes the ReplicaSets in proportion to their sizes, so that a change of
// replicas in the middle of a rollout does not hasten it: the arithmetic is that
// of Kubernetes' deployment controller (getReplicaSetFraction).
//
// It makes no more pods than there is room for at its worst. What did not fit is
// tried again when pods have gone.
func (p *planner) spread() {
	active := p.active()
	if len(active) < 2 {
		return
	}
	most := int32(0)
	if p.replicas > 0 {
		most = p.replicas + p.surge
	}
	change := most - sum(active, func(c *counts) int32 { return c.spec })
	room := max(0, most-sum(p.sets, (*counts).total))
	if change > room {
		change = room
		for _, c := range active {
			c.keepScale = true
		}
	}
	if change == 0 {
		return
	}
	slices.SortStableFunc(active, func(a, b *counts) int {
		if a.spec != b.spec {
			return int(b.spec - a.spec) // the largest first
		}
		if change > 0 {
			return oldestFirst(b, a)
		}
		return oldestFirst(a, b)
	})
	left := change
	for _, c := range active {
		n := p.share(c, most)
		if change > 0 {
			n = min(max(n, 0), left)
		} else {
			n = max(min(n, 0), left)
		}
		c.spec += n
		left -= n
	}
	active[0].spec = max(0, active[0].spec+left)
}

// share is by how many replicas a ReplicaSet would change to keep its part of the
// whole.
func (p *planner) share(c *counts, most int32) int32 {
	if p.replicas == 0 {
		return -c.spec
	}
	before, ok := annotated(c, annotationMax)
	if !ok || before <= 0 {
		before = p.Deployment.GetStatus().GetReplicas()
	}
	if before <= 0 {
		return 0
	}
	return int32(math.Round(float64(c.spec)*float64(most)/float64(before))) - c.spec
}

func annotated(c *counts, key string) (int32, bool) {
	n, err := strconv.ParseInt(c.rs.GetMetadata().GetAnnotations()[key], 10, 32)
	return int32(n), err == nil
}
