package pod

import (
	"fmt"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/object"
)

// Numbers of cgroups and of the kernel's memory killer, as Kubernetes sets them
// (kubelet: MilliCPUToShares, MilliCPUToQuota, qos.GetContainerOOMScoreAdjust).
const (
	sharesPerCPU = 1024
	minShares    = 2
	maxShares    = 262144

	oomGuaranteed = -997
	oomBestEffort = 1000
	oomMin        = 3
	oomMax        = 999
)

// Resources turns a container's requests and limits into cgroup numbers.
func Resources(spec *balsav1.PodSpec, c *balsav1.Container, nodeMemory int64) (runtime.Resources, error) {
	n, err := numbersOf(c)
	if err != nil {
		return runtime.Resources{}, err
	}
	score, err := oomScore(spec, n, nodeMemory)
	if err != nil {
		return runtime.Resources{}, err
	}
	r := runtime.Resources{CPUShares: minShares, MemoryLimitBytes: n.memoryLimit, OOMScoreAdj: score}
	if n.cpuRequest > 0 {
		r.CPUShares = uint64(min(max(n.cpuRequest*sharesPerCPU/1000, minShares), maxShares))
	}
	if n.cpuLimit > 0 {
		r.CPUPeriodMicros = runtime.DefaultCPUPeriodMicros
		r.CPUQuotaMicros = max(n.cpuLimit*runtime.DefaultCPUPeriodMicros/1000, runtime.MinCPUQuotaMicros)
	}
	return r, nil
}

type numbers struct{ cpuRequest, cpuLimit, memoryRequest, memoryLimit int64 }

func numbersOf(c *balsav1.Container) (n numbers, err error) {
	requests, limits := c.GetResources().GetRequests(), c.GetResources().GetLimits()
	for _, read := range []struct {
		to   *int64
		from map[string]*balsav1.Quantity
		name string
		of   func(*balsav1.Quantity) (int64, error)
	}{
		{&n.cpuLimit, limits, object.ResourceCPU, object.MilliCPU},
		{&n.memoryLimit, limits, object.ResourceMemory, object.Bytes},
		{&n.cpuRequest, requests, object.ResourceCPU, object.MilliCPU},
		{&n.memoryRequest, requests, object.ResourceMemory, object.Bytes},
	} {
		if *read.to, err = read.of(read.from[read.name]); err != nil {
			return n, fmt.Errorf("resources.%s of container %q: %w", read.name, c.GetName(), err)
		}
	}
	if _, given := requests[object.ResourceCPU]; !given {
		n.cpuRequest = n.cpuLimit
	}
	if _, given := requests[object.ResourceMemory]; !given {
		n.memoryRequest = n.memoryLimit
	}
	return n, nil
}

// oomScore makes the kernel kill those first who use most beyond what they asked
// for.
func oomScore(spec *balsav1.PodSpec, own numbers, nodeMemory int64) (int, error) {
	guaranteed, bestEffort := true, true
	for _, c := range spec.GetContainers() {
		n, err := numbersOf(c)
		if err != nil {
			return 0, err
		}
		bestEffort = bestEffort && n == numbers{}
		guaranteed = guaranteed && n.cpuLimit > 0 && n.memoryLimit > 0 && n.cpuLimit == n.cpuRequest && n.memoryLimit == n.memoryRequest
	}
	switch {
	case bestEffort:
		return oomBestEffort, nil
	case guaranteed:
		return oomGuaranteed, nil
	case nodeMemory <= 0:
		return oomMax, nil
	}
	score := 1000 - int(float64(own.memoryRequest)/float64(nodeMemory)*1000)
	return min(max(score, oomMin), oomMax), nil
}
