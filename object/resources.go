package object

import (
	"fmt"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// Requests is what a pod asks for, as placement counts it.
type Requests struct {
	MilliCPU    int64
	MemoryBytes int64
	// EphemeralBytes is disk that lives as long as the pod.
	EphemeralBytes int64
}

func (r Requests) plus(o Requests) Requests {
	return Requests{r.MilliCPU + o.MilliCPU, r.MemoryBytes + o.MemoryBytes, r.EphemeralBytes + o.EphemeralBytes}
}

func (r Requests) max(o Requests) Requests {
	return Requests{max(r.MilliCPU, o.MilliCPU), max(r.MemoryBytes, o.MemoryBytes), max(r.EphemeralBytes, o.EphemeralBytes)}
}

// PodRequests is what a pod asks for at the most demanding moment of its life:
// its main containers with all sidecars, or one init container with the sidecars
// that began before it. A container without a request counts with its limit, as
// in Kubernetes.
func PodRequests(spec *balsav1.PodSpec) (Requests, error) {
	var sidecars, initial, together Requests
	for role, c := range AllContainers(spec) {
		if role == RoleEphemeral {
			continue
		}
		own, err := containerRequests(c)
		if err != nil {
			return Requests{}, err
		}
		switch role {
		case RoleSidecar:
			sidecars = sidecars.plus(own)
			initial = initial.max(sidecars)
		case RoleInit:
			initial = initial.max(sidecars.plus(own))
		default:
			together = together.plus(own)
		}
	}
	return together.plus(sidecars).max(initial), nil
}

func containerRequests(c *balsav1.Container) (Requests, error) {
	cpu, err := MilliCPU(requestOrLimit(c, ResourceCPU))
	if err != nil {
		return Requests{}, fmt.Errorf("cpu of container %q: %w", c.GetName(), err)
	}
	memory, err := Bytes(requestOrLimit(c, ResourceMemory))
	if err != nil {
		return Requests{}, fmt.Errorf("memory of container %q: %w", c.GetName(), err)
	}
	disk, err := Bytes(requestOrLimit(c, ResourceEphemeralStorage))
	if err != nil {
		return Requests{}, fmt.Errorf("ephemeral-storage of container %q: %w", c.GetName(), err)
	}
	return Requests{MilliCPU: cpu, MemoryBytes: memory, EphemeralBytes: disk}, nil
}

func requestOrLimit(c *balsav1.Container, resource string) *balsav1.Quantity {
	if q, ok := c.GetResources().GetRequests()[resource]; ok {
		return q
	}
	return c.GetResources().GetLimits()[resource]
}

// QOSClass tells how well a pod's resources are promised, from cpu and memory of
// its init and main containers: Guaranteed when each of them has both limits and
// requests as much, BestEffort when none has anything, Burstable otherwise. A
// request that is not given is the limit.
func QOSClass(spec *balsav1.PodSpec) string {
	guaranteed, promised := true, false
	for role, c := range AllContainers(spec) {
		if role == RoleEphemeral {
			continue
		}
		for _, resource := range []string{ResourceCPU, ResourceMemory} {
			limit, request := c.GetResources().GetLimits()[resource], requestOrLimit(c, resource)
			limited, requested := isPositive(limit), isPositive(request)
			promised = promised || limited || requested
			if order, err := CompareQuantity(limit, request); !limited || err != nil || order != 0 {
				guaranteed = false
			}
		}
	}
	switch {
	case !promised:
		return QOSBestEffort
	case guaranteed:
		return QOSGuaranteed
	}
	return QOSBurstable
}

func isPositive(q *balsav1.Quantity) bool {
	v, err := ParseQuantity(q)
	return err == nil && v.Sign() > 0
}
