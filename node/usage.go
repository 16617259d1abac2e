package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/node/pressure"
	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/node/volume"
	"github.com/balsa-run/balsa/object"
)

// Paces of measuring. The machine as a whole is a handful of small files; a pod's
// memory is some files of its cgroup, read only when it matters; what lies on
// disk takes walks through folders, which are counted out.
const (
	// usageEvery is how often the machine is measured.
	usageEvery = 10 * time.Second
	// surveyEvery is how often at most the volumes of one pod are walked through,
	// and how often pods with limits are compared with them.
	surveyEvery = time.Minute
	// surveyTimeout bounds one such walk; surveyRest times as long as it took
	// nothing is walked through, so that walks take 2% of a core at most.
	surveyTimeout = 10 * time.Second
	surveyRest    = 49
)

// survey keeps what the volumes of pods take on disk.
type survey struct {
	mu   sync.Mutex
	pods map[string]surveyed // guarded by mu; by uid
}

type surveyed struct {
	at      time.Time
	volumes map[string]volume.Usage
}

func (s *survey) of(uid string) (surveyed, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	found, ok := s.pods[uid]
	return found, ok
}

// put keeps figures, and says whether they are the first of a pod.
func (s *survey) put(uid string, found surveyed) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pods[uid] = found
}

// keep drops the figures of all others.
func (s *survey) keep(uids map[string]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for uid := range s.pods {
		if !uids[uid] {
			delete(s.pods, uid)
		}
	}
}

// surveyLoop walks through the volumes of pods, one pod at a time.
func (g *guard) surveyLoop(ctx context.Context) error {
	if g.off() || g.a.cfg.Volumes == nil {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	for {
		if err := sleep(ctx, g.a.cfg.Clock, usageEvery); err != nil {
			return err
		}
		here := map[string]bool{}
		for _, p := range g.a.set.allPods() {
			here[p.GetMetadata().GetUid()] = true
			if err := g.surveyPod(ctx, p); err != nil {
				return err
			}
		}
		g.survey.keep(here)
	}
}

// surveyPod measures a pod if that is due, and rests. Its error is that of the
// context.
func (g *guard) surveyPod(ctx context.Context, p *balsav1.Pod) error {
	uid, now := p.GetMetadata().GetUid(), g.a.cfg.Clock.Now()
	before, known := g.survey.of(uid)
	if object.PodFinished(p) || !hasScratch(p.GetSpec()) || known && now.Sub(before.at) < surveyEvery && !before.at.After(now) {
		return nil
	}
	walk, cancel := context.WithTimeout(ctx, surveyTimeout)
	defer cancel()
	volumes, err := g.a.cfg.Volumes.Usage(walk, runtime.PodUID(uid))
	took := g.a.cfg.Clock.Now().Sub(now)
	g.metrics.surveys.Observe(took.Seconds())
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		// What was known stays; a walk that takes too long is not begun again soon.
		g.a.log.Warn("the volumes of a pod cannot be measured", "uid", uid, "error", err)
		volumes = before.volumes
	}
	g.survey.put(uid, surveyed{at: g.a.cfg.Clock.Now(), volumes: volumes})
	if overLimit(p.GetSpec(), volumes) {
		g.wake.raise()
	}
	return sleep(ctx, g.a.cfg.Clock, surveyRest*max(took, 0))
}

// hasScratch tells whether a pod has an emptyDir on disk.
func hasScratch(spec *balsav1.PodSpec) bool {
	return slices.ContainsFunc(spec.GetVolumes(), onDisk)
}

func onDisk(v *balsav1.Volume) bool {
	return v.GetEmptyDir() != nil && v.GetEmptyDir().GetMedium() != object.MediumMemory
}

func overLimit(spec *balsav1.PodSpec, used map[string]volume.Usage) bool {
	return slices.ContainsFunc(spec.GetVolumes(), func(v *balsav1.Volume) bool {
		limit := bytesOf(v.GetEmptyDir().GetSizeLimit())
		return onDisk(v) && limit > 0 && used[v.GetName()].UsedBytes > limit
	})
}

// bytesOf is a quantity that was validated; others count as none.
func bytesOf(q *balsav1.Quantity) int64 {
	n, err := object.Bytes(q)
	if err != nil {
		return 0
	}
	return n
}

func diskLimitOf(c *balsav1.Container) int64 {
	return bytesOf(c.GetResources().GetLimits()[object.ResourceEphemeralStorage])
}

// hasDiskLimit tells whether a pod, a container or a volume of it is bounded.
func hasDiskLimit(spec *balsav1.PodSpec) bool {
	for _, v := range spec.GetVolumes() {
		if onDisk(v) && bytesOf(v.GetEmptyDir().GetSizeLimit()) > 0 {
			return true
		}
	}
	for _, c := range object.AllContainers(spec) {
		if diskLimitOf(c) > 0 {
			return true
		}
	}
	return false
}

// podDiskLimit is that of the pod as a whole, as the kubelet counts it: the sum of
// the limits that there are; 0 if there are none.
func podDiskLimit(spec *balsav1.PodSpec) int64 {
	var sidecars, initial, together int64
	for role, c := range object.AllContainers(spec) {
		switch own := diskLimitOf(c); role {
		case object.RoleEphemeral:
		case object.RoleSidecar:
			sidecars += own
			initial = max(initial, sidecars)
		case object.RoleInit:
			initial = max(initial, sidecars+own)
		default:
			together += own
		}
	}
	return max(together+sidecars, initial)
}

// podUsage is what a pod uses and may use; ok is false for one of which the
// runtime knows nothing.
func (g *guard) podUsage(ctx context.Context, p *balsav1.Pod) (_ pressure.Pod, ok bool, err error) {
	meta, spec := p.GetMetadata(), p.GetSpec()
	stats, err := g.a.cfg.Runtime.Stats(ctx, runtime.PodUID(meta.GetUid()))
	if errors.Is(err, runtime.ErrPodNotFound) {
		return pressure.Pod{}, false, nil
	}
	if err != nil {
		return pressure.Pod{}, false, fmt.Errorf("what pod %s/%s uses: %w", meta.GetNamespace(), meta.GetName(), err)
	}
	out := pressure.Pod{
		UID: meta.GetUid(), Namespace: meta.GetNamespace(), Name: meta.GetName(), Priority: spec.GetPriority(), DiskLimit: podDiskLimit(spec),
	}
	if want, err := object.PodRequests(spec); err == nil {
		out.MemoryRequest, out.DiskRequest = want.MemoryBytes, want.EphemeralBytes
	}
	limits := map[string]int64{}
	for _, c := range object.AllContainers(spec) {
		limits[c.GetName()] = diskLimitOf(c)
	}
	for _, c := range stats.Containers {
		disk := c.WritableBytes + c.LogBytes
		out.Memory += c.WorkingSetBytes
		out.Disk += disk
		out.Parts = append(out.Parts, pressure.Part{What: fmt.Sprintf("container %q", c.Name), Used: disk, Limit: limits[c.Name]})
	}
	found, _ := g.survey.of(meta.GetUid())
	for _, v := range spec.GetVolumes() {
		if used, known := found.volumes[v.GetName()]; known && onDisk(v) {
			out.Disk += used.UsedBytes
			out.Parts = append(out.Parts, pressure.Part{
				What: fmt.Sprintf("volume %q", v.GetName()), Used: used.UsedBytes, Limit: bytesOf(v.GetEmptyDir().GetSizeLimit()),
			})
		}
	}
	return out, true, nil
}

// podUsages measures the pods that have not ended, or those with limits only.
func (g *guard) podUsages(ctx context.Context, limitedOnly bool) ([]pressure.Pod, error) {
	ctx, cancel := context.WithTimeout(ctx, actionTimeout)
	defer cancel()
	var pods []*balsav1.Pod
	for _, p := range g.a.set.allPods() {
		if !object.PodFinished(p) && (!limitedOnly || hasDiskLimit(p.GetSpec())) {
			pods = append(pods, p)
		}
	}
	found, there := make([]pressure.Pod, len(pods)), make([]bool, len(pods))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallelStats)
	for i, p := range pods {
		group.Go(func() (err error) {
			found[i], there[i], err = g.podUsage(ctx, p)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	var out []pressure.Pod
	for i, p := range found {
		if there[i] && g.mayCount(&p, object.IsTerminating(pods[i])) {
			out = append(out, p)
		}
	}
	return out, nil
}
