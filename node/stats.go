package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/node/volume"
)

const (
	// rateMin is the shortest time over which a use of the processor is told: the
	// kernel counts in steps. A sample older than rateMax says nothing of now.
	rateMin = 250 * time.Millisecond
	rateMax = time.Minute
	// parallelStats bounds the pods that are looked at at once.
	parallelStats = 8
)

// MachineUsage is what a machine uses as a whole.
type MachineUsage struct {
	// CPUNanos is the time that all its processors were busy since it started.
	CPUNanos int64
	// MemoryWorkingSet cannot be reclaimed at once, MemoryAvailable can be had.
	MemoryWorkingSet, MemoryAvailable int64
	// DiskUsed and DiskAvailable are those of the file system of images, logs and
	// volumes.
	DiskUsed, DiskAvailable int64
	// Capacities are 0 where they were not measured. What is reserved for root does
	// not count at all.
	MemoryBytes, DiskBytes  int64
	Inodes, InodesAvailable int64
	Pids, PidsAvailable     int64
}

// Meter is a Machine that tells what it uses.
type Meter interface {
	Usage(ctx context.Context) (MachineUsage, error)
}

// cpuRates turns processor times into rates, by what was read before.
type cpuRates struct {
	mu      sync.Mutex
	samples map[string]cpuSample // guarded by mu
}

type cpuSample struct {
	at    time.Time
	nanos int64
	rate  int64
	known bool
}

func newCPURates() *cpuRates { return &cpuRates{samples: map[string]cpuSample{}} }

// rate is in billionths of a core; false when there is nothing to compare with
// yet.
func (r *cpuRates) rate(key string, at time.Time, nanos int64) (int64, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before, ok := r.samples[key]
	age := at.Sub(before.at)
	switch {
	case !ok || age > rateMax || nanos < before.nanos:
		r.samples[key] = cpuSample{at: at, nanos: nanos}
		return 0, false
	case age < rateMin:
		return before.rate, before.known
	}
	rate := int64(float64(nanos-before.nanos) / age.Seconds())
	r.samples[key] = cpuSample{at: at, nanos: nanos, rate: rate, known: true}
	return rate, true
}

// forget drops samples that are too old to say anything.
func (r *cpuRates) forget(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, s := range r.samples {
		if now.Sub(s.at) > rateMax {
			delete(r.samples, key)
		}
	}
}

// Stats implements internalv1connect.AgentServiceHandler. What was never looked
// at before is looked at twice, since a rate needs two moments.
func (s agentService) Stats(ctx context.Context, req *internalv1.StatsRequest) (*internalv1.StatsResponse, error) {
	leave, err := s.enter(s.st, "requests for stats")
	if err != nil {
		return nil, err
	}
	defer leave()
	now := s.a.cfg.Clock.Now()
	s.rates.forget(now)
	s.volumes.forget(now)
	stats, whole, err := s.measure(ctx, req)
	if err == nil && !whole {
		if err := sleep(ctx, s.a.cfg.Clock, rateMin+rateMin/10); err != nil {
			return nil, err
		}
		stats, _, err = s.measure(ctx, req)
	}
	if err != nil {
		return nil, s.streamFailed("stats", "", "", err)
	}
	return &internalv1.StatsResponse{Node: stats}, nil
}

// measure tells also whether every rate is known.
func (s agentService) measure(ctx context.Context, req *internalv1.StatsRequest) (*balsav1.NodeStats, bool, error) {
	now := s.a.cfg.Clock.Now()
	out := &balsav1.NodeStats{Node: s.a.cfg.Name, Time: timestamppb.New(now)}
	whole, err := s.machine(ctx, out, now)
	if err != nil || req.GetNodeOnly() {
		return out, whole, err
	}
	pods, err := s.chosen(ctx, req.GetPodUids())
	if err != nil {
		return nil, false, err
	}
	found, all := make([]*balsav1.PodStats, len(pods)), make([]bool, len(pods))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallelStats)
	for i, p := range pods {
		group.Go(func() (err error) {
			found[i], all[i], err = s.pod(ctx, p)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, false, err
	}
	for i, p := range found {
		if p != nil {
			out.Pods = append(out.Pods, p)
			whole = whole && all[i]
		}
	}
	return out, whole, nil
}

func (s agentService) machine(ctx context.Context, out *balsav1.NodeStats, now time.Time) (bool, error) {
	meter, ok := s.a.cfg.Machine.(Meter)
	if !ok {
		return true, nil
	}
	u, err := meter.Usage(ctx)
	if err != nil {
		return false, fmt.Errorf("what the node uses: %w", err)
	}
	rate, known := s.rates.rate("", now, u.CPUNanos)
	out.CpuNanoCores, out.MemoryWorkingSetBytes, out.MemoryAvailableBytes = rate, u.MemoryWorkingSet, u.MemoryAvailable
	out.DiskUsedBytes, out.DiskAvailableBytes = u.DiskUsed, u.DiskAvailable
	return known, nil
}

// chosen are the pods of the given uids that exist, or all.
func (s agentService) chosen(ctx context.Context, uids []string) ([]runtime.PodState, error) {
	pods, err := s.a.cfg.Runtime.Pods(ctx)
	if err != nil || len(uids) == 0 {
		return pods, err
	}
	wanted := map[runtime.PodUID]bool{}
	for _, uid := range uids {
		wanted[runtime.PodUID(uid)] = true
	}
	kept := pods[:0]
	for _, p := range pods {
		if wanted[p.UID] {
			kept = append(kept, p)
		}
	}
	return kept, nil
}

// pod is nil for one that has gone meanwhile.
func (s agentService) pod(ctx context.Context, state runtime.PodState) (*balsav1.PodStats, bool, error) {
	stats, err := s.a.cfg.Runtime.Stats(ctx, state.UID)
	if errors.Is(err, runtime.ErrPodNotFound) {
		return nil, true, nil
	}
	if err != nil {
		return nil, false, err
	}
	out := &balsav1.PodStats{Namespace: state.Namespace, Name: state.Name, Uid: string(state.UID)}
	whole := true
	for _, c := range stats.Containers {
		rate, known := s.rates.rate(fmt.Sprintf("%s/%s/%d", state.UID, c.Name, c.Attempt), stats.Time, c.CPUNanos)
		whole = whole && known
		out.EphemeralStorageBytes += c.WritableBytes + c.LogBytes
		out.Containers = append(out.Containers, &balsav1.ContainerStats{
			Name: c.Name, CpuNanoCores: rate, CpuUsageCoreNanos: c.CPUNanos, MemoryWorkingSetBytes: c.WorkingSetBytes,
			MemoryUsageBytes: c.MemoryBytes, MemoryLimitBytes: c.MemoryLimitBytes, Pids: c.Pids,
			WritableLayerBytes: c.WritableBytes, LogBytes: c.LogBytes,
		})
	}
	out.EphemeralStorageBytes += s.volumes.bytes(ctx, s.a.cfg.Volumes, state.UID, stats.Time)
	return out, whole, nil
}

const (
	// volumesFresh is how old the size of a pod's volumes may be.
	volumesFresh = time.Minute
	// volumesWalk bounds one look at them; a look that takes longer leaves the size
	// as it was known before.
	volumesWalk = 500 * time.Millisecond
)

// volumeSizes keeps the disk space of pods' emptyDir volumes, which takes a walk.
type volumeSizes struct {
	mu    sync.Mutex
	sizes map[runtime.PodUID]volumeSize // guarded by mu
}

type volumeSize struct {
	bytes int64
	at    time.Time
}

func newVolumeSizes() *volumeSizes { return &volumeSizes{sizes: map[runtime.PodUID]volumeSize{}} }

func (v *volumeSizes) bytes(ctx context.Context, volumes volume.Volumes, uid runtime.PodUID, now time.Time) int64 {
	if volumes == nil {
		return 0
	}
	v.mu.Lock()
	have := v.sizes[uid]
	v.mu.Unlock()
	if now.Sub(have.at) < volumesFresh {
		return have.bytes
	}
	ctx, cancel := context.WithTimeout(ctx, volumesWalk)
	defer cancel()
	usage, err := volumes.Usage(ctx, uid)
	if err == nil {
		have.bytes = 0
		for _, u := range usage {
			if !u.Memory {
				have.bytes += u.UsedBytes
			}
		}
	}
	have.at = now
	v.mu.Lock()
	defer v.mu.Unlock()
	v.sizes[uid] = have
	return have.bytes
}

// forget drops the sizes of pods that nobody has asked for in a long time.
func (v *volumeSizes) forget(now time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for uid, size := range v.sizes {
		if now.Sub(size.at) > 2*volumesFresh {
			delete(v.sizes, uid)
		}
	}
}
