package pod

import (
	"fmt"
	"math"
	"strconv"
	"strings"

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

// containerResources turns a container's requests and limits into cgroup numbers.
func containerResources(spec *balsav1.PodSpec, c *container, nodeMemory int64) (runtime.Resources, error) {
	n, err := numbersOf(c.spec)
	if err != nil {
		return runtime.Resources{}, err
	}
	score, err := oomScore(spec, c, n, nodeMemory)
	if err != nil {
		return runtime.Resources{}, err
	}
	r := n.resources()
	r.OOMScoreAdj = score
	return r, nil
}

// numbers are requests and limits; 0: none.
type numbers struct{ cpuRequest, cpuLimit, memoryRequest, memoryLimit int64 }

func (n numbers) resources() runtime.Resources {
	r := runtime.Resources{CPUShares: minShares, MemoryLimitBytes: n.memoryLimit}
	if n.cpuRequest > 0 {
		r.CPUShares = uint64(min(max(n.cpuRequest*sharesPerCPU/1000, minShares), maxShares))
	}
	if n.cpuLimit > 0 {
		r.CPUPeriodMicros = runtime.DefaultCPUPeriodMicros
		r.CPUQuotaMicros = max(n.cpuLimit*runtime.DefaultCPUPeriodMicros/1000, runtime.MinCPUQuotaMicros)
	}
	return r
}

// plus adds what runs at the same time; a limit that one of them lacks is none.
func (n numbers) plus(o numbers) numbers {
	return numbers{n.cpuRequest + o.cpuRequest, sum(n.cpuLimit, o.cpuLimit), n.memoryRequest + o.memoryRequest, sum(n.memoryLimit, o.memoryLimit)}
}

// most is for what runs at different times.
func (n numbers) most(o numbers) numbers {
	return numbers{max(n.cpuRequest, o.cpuRequest), most(n.cpuLimit, o.cpuLimit), max(n.memoryRequest, o.memoryRequest), most(n.memoryLimit, o.memoryLimit)}
}

func sum(a, b int64) int64 {
	if a == 0 || b == 0 {
		return 0
	}
	return a + b
}

func most(a, b int64) int64 {
	if a == 0 || b == 0 {
		return 0
	}
	return max(a, b)
}

// podResources bound a pod as a whole, as the kubelet's ResourceConfigForPod
// does: by the sum of its containers' limits, where all of them have one.
func podResources(spec *balsav1.PodSpec) (runtime.Resources, error) {
	var sidecars, initial, together []numbers
	for role, c := range object.AllContainers(spec) {
		own, err := numbersOf(c)
		if err != nil {
			return runtime.Resources{}, err
		}
		switch role {
		case object.RoleEphemeral:
		case object.RoleSidecar:
			sidecars = append(sidecars, own)
			initial = append(initial, total(sidecars))
		case object.RoleInit:
			initial = append(initial, total(append(append([]numbers{}, sidecars...), own)))
		default:
			together = append(together, own)
		}
	}
	if len(together) == 0 {
		return runtime.Resources{}, nil
	}
	out := total(append(together, sidecars...))
	for _, n := range initial {
		out = out.most(n)
	}
	return out.resources(), nil
}

// total is the sum of at least one.
func total(list []numbers) numbers {
	out := list[0]
	for _, n := range list[1:] {
		out = out.plus(n)
	}
	return out
}

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
// for. A sidecar is as safe as the safest container it serves.
func oomScore(spec *balsav1.PodSpec, c *container, own numbers, nodeMemory int64) (int, error) {
	switch object.QOSClass(spec) {
	case object.QOSBestEffort:
		return oomBestEffort, nil
	case object.QOSGuaranteed:
		return oomGuaranteed, nil
	}
	score := burstableScore(own.memoryRequest, nodeMemory)
	if c.kind != sidecar {
		return score, nil
	}
	for _, served := range spec.GetContainers() {
		n, err := numbersOf(served)
		if err != nil {
			return 0, err
		}
		score = min(score, burstableScore(n.memoryRequest, nodeMemory))
	}
	return score, nil
}

func burstableScore(request, nodeMemory int64) int {
	if nodeMemory <= 0 {
		return oomMax
	}
	return min(max(1000-int(float64(request)/float64(nodeMemory)*1000), oomMin), oomMax)
}

// resourceField is a request or limit as text, in units of the divisor, rounded
// up. A limit that is not given is what the node has to give. own is the
// container that asks, for references without a name.
func resourceField(spec *balsav1.PodSpec, ref *balsav1.ResourceFieldSelector, own *balsav1.Container, node Node) (string, error) {
	c := own
	for role, other := range object.AllContainers(spec) {
		if role != object.RoleEphemeral && other.GetName() == ref.GetContainerName() {
			c = other
		}
	}
	if c == nil || ref.GetContainerName() != "" && c.GetName() != ref.GetContainerName() {
		return "", fmt.Errorf("resourceFieldRef: the pod has no container %q", ref.GetContainerName())
	}
	kind, name, _ := strings.Cut(ref.GetResource(), ".")
	of := object.Bytes
	all := node.Allocatable.MemoryBytes
	switch name {
	case object.ResourceCPU:
		of, all = object.MilliCPU, node.Allocatable.MilliCPU
	case object.ResourceEphemeralStorage:
		all = node.Allocatable.EphemeralBytes
	case object.ResourceMemory:
	default:
		return "", fmt.Errorf("resourceFieldRef: resource %q is not known", ref.GetResource())
	}
	q := c.GetResources().GetLimits()[name]
	if kind == "requests" {
		all = 0
		if r, given := c.GetResources().GetRequests()[name]; given || q == nil {
			q = r
		}
	}
	value, err := of(q)
	if err != nil {
		return "", fmt.Errorf("resourceFieldRef: %s: %w", ref.GetResource(), err)
	}
	if value == 0 {
		value = all
	}
	return divide(value, ref.GetDivisor(), of)
}

func divide(value int64, divisor *balsav1.Quantity, of func(*balsav1.Quantity) (int64, error)) (string, error) {
	by, err := of(divisor)
	if err != nil {
		return "", fmt.Errorf("resourceFieldRef: divisor: %w", err)
	}
	if by <= 0 {
		if by, err = of(object.NewQuantity("1")); err != nil {
			return "", err
		}
	}
	return strconv.FormatInt(int64(math.Ceil(float64(value)/float64(by))), 10), nil
}
