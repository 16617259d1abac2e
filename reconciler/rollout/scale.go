package rollout

import "slices"

// recreate ends every old pod, waits until none runs, then makes the new ones.
func (p *planner) recreate() {
	for _, c := range p.old {
		c.spec = 0
	}
	if p.fresh == nil {
		return
	}
	if p.incomplete || sum(p.old, func(c *counts) int32 { return c.running }) > 0 {
		p.fresh.spec = min(p.fresh.spec, p.replicas)
		return
	}
	p.fresh.spec = p.replicas
}

// roll moves replicas from the old ReplicaSets to the new one, as far as both
// bounds allow now. All amounts are of one view; what was ordered and has not
// happened yet counts at its worst.
func (p *planner) roll() {
	if p.fresh != nil {
		p.growFresh()
	}
	p.reclaim()
	p.shrinkUnhealthy()
	p.shrinkOld()
	p.shrinkExcess()
}

func (p *planner) growFresh() {
	if p.fresh.spec >= p.replicas {
		p.fresh.spec = p.replicas
		return
	}
	if p.incomplete {
		return
	}
	room := p.replicas + p.surge - sum(p.old, (*counts).total)
	p.fresh.spec = max(p.fresh.spec, min(room, p.replicas))
}

// reclaim lets old ReplicaSets keep available pods that they were to end and that
// the budget holds back: pods that were not available when that was decided, and
// are now. As long as they are there uncounted, others, which never become
// available, would count as needed in their place and take the room of new ones.
func (p *planner) reclaim() {
	missing := p.least() - sum(p.sets, (*counts).staying)
	for _, c := range slices.Backward(p.old) {
		n := max(0, min(missing, c.available-c.spec))
		c.spec += n
		missing -= n
	}
}

// shrinkUnhealthy takes away what is not available among the old. It leaves as
// many pods, available or not, as must be available: those that only stumbled
// may come back before the new ones are there.
func (p *planner) shrinkUnhealthy() {
	all := sum(p.sets, func(c *counts) int32 { return c.spec })
	spare := all - p.least()
	if p.fresh != nil {
		spare -= p.fresh.unhealthy()
	}
	for _, c := range p.old {
		n := max(0, min(spare, c.unhealthy()))
		c.spec -= n
		spare -= n
	}
}

// shrinkOld takes away available pods of the old, as far as enough stay.
func (p *planner) shrinkOld() {
	spare := sum(p.sets, (*counts).staying) - p.least()
	for _, c := range p.old {
		n := max(0, min(spare, c.staying()))
		c.spec -= n
		spare -= n
	}
}

// shrinkExcess brings the sum back under the upper bound after a user scaled the
// Deployment down in the middle of an update. Only pods that are not available
// can be too many here; the old ones go first.
func (p *planner) shrinkExcess() {
	excess := sum(p.sets, func(c *counts) int32 { return c.spec }) - p.replicas - p.surge
	sets := p.old
	if p.fresh != nil {
		sets = append(sets[:len(sets):len(sets)], p.fresh)
	}
	for _, c := range sets {
		n := max(0, min(excess, c.unhealthy()))
		c.spec -= n
		excess -= n
	}
}

// least is how many pods must be available.
func (p *planner) least() int32 { return p.replicas - p.unavailable }
