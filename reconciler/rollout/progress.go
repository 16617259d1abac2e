package rollout

import "fmt"

// mark is how far a rollout has come: pods of the new ReplicaSet that are there,
// ready and available, and old ones that are left. These are the four things by
// which Kubernetes knows progress. But here progress is to be better than ever
// before in the rollout, not than at the last look: a container that is ready for
// a second each time before it crashes would else keep a rollout alive for ever.
type mark struct {
	revision                    int64
	live, ready, available, old int32
}

// String is what annotationProgress holds.
func (m mark) String() string {
	return fmt.Sprintf("revision=%d pods=%d ready=%d available=%d old=%d", m.revision, m.live, m.ready, m.available, m.old)
}

func parseMark(text string) (m mark, ok bool) {
	n, err := fmt.Sscanf(text, "revision=%d pods=%d ready=%d available=%d old=%d", &m.revision, &m.live, &m.ready, &m.available, &m.old)
	return m, err == nil && n == 5
}

// reached is where the rollout stands now.
func (p *planner) reached() mark {
	return mark{
		revision: p.revisionNow(), live: p.fresh.live, ready: p.fresh.ready, available: p.fresh.available,
		old: sum(p.old, func(c *counts) int32 { return c.live }),
	}
}

// progressed tells whether the rollout is further than ever before, and notes how
// far. When nothing is noted of it, that is where it begins.
func (p *planner) progressed() bool {
	now := p.reached()
	best, ok := parseMark(p.Deployment.GetMetadata().GetAnnotations()[annotationProgress])
	if !ok || best.revision != now.revision {
		p.annotateProgress(now.String())
		return false
	}
	next := mark{now.revision, max(best.live, now.live), max(best.ready, now.ready), max(best.available, now.available), min(best.old, now.old)}
	if next == best {
		return false
	}
	p.annotateProgress(next.String())
	return true
}

func (p *planner) annotateProgress(text string) {
	if p.Deployment.GetMetadata().GetAnnotations()[annotationProgress] != text {
		p.annotate(annotationProgress, text)
	}
}
