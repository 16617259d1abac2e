package scheduler

// What a pod without requests counts as when nodes are compared, so that nodes
// full of such pods do not look empty. It never decides whether a pod fits. The
// figures are the Kubernetes scheduler's.
const (
	scoredMilliCPU = 100
	scoredMemory   = 200 << 20
)

// score ranks the nodes that fit. The fields are compared in order, so that a
// choice can be told in one sentence; a weighted sum could not.
type score struct {
	// taints counts those with PreferNoSchedule that the pod does not tolerate; less
	// is better.
	taints int
	// skew sums the ScheduleAnyway constraints; less is better.
	skew int64
	// owner counts the pods of the same owner on the node; less is better.
	owner int32
	// free is the mean free part of cpu and memory with the pod in place, in
	// thousandths; more is better.
	free int64
	// pods counts the pods on the node; less is better.
	pods int64
}

// better is a strict order; of equal nodes the first by name is taken.
func (s score) better(o score) bool {
	switch {
	case s.taints != o.taints:
		return s.taints < o.taints
	case s.skew != o.skew:
		return s.skew < o.skew
	case s.owner != o.owner:
		return s.owner < o.owner
	case s.free != o.free:
		return s.free > o.free
	default:
		return s.pods < o.pods
	}
}

func (p *planner) score(c *class, i int) score {
	s := score{taints: unwanted(&p.nodes[i], c.pod), free: c.free[i], pods: p.used[i].Pods}
	if c.owner != nil {
		s.owner = c.owner[i]
	}
	for _, k := range c.soft {
		s.skew += k.skew(i)
	}
	return s
}

func scoredRequests(p *Pod) Resources {
	r := p.Requests
	if r.MilliCPU == 0 {
		r.MilliCPU = scoredMilliCPU
	}
	if r.Memory == 0 {
		r.Memory = scoredMemory
	}
	return r
}

func freePerMille(have, used Resources) int64 {
	free := func(have, used int64) int64 {
		if have <= 0 || used >= have {
			return 0
		}
		// In floating point no product can overflow; the same inputs give the same
		// quotient on every platform that Go supports.
		return int64(float64(have-used) / float64(have) * 1000)
	}
	return (free(have.MilliCPU, used.MilliCPU) + free(have.Memory, used.Memory)) / 2
}
