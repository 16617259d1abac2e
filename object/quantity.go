package object

import (
	"fmt"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object/quantity"
)

// Names of the resources that pods ask for and nodes have.
const (
	ResourceCPU    = "cpu"
	ResourceMemory = "memory"
	ResourcePods   = "pods"
)

// ParseQuantity reads a quantity exactly. An absent one is zero.
func ParseQuantity(q *balsav1.Quantity) (quantity.Quantity, error) {
	if q == nil {
		return quantity.Quantity{}, nil
	}
	return quantity.Parse(q.GetString_())
}

// NewQuantity makes the message of a quantity's text.
func NewQuantity(s string) *balsav1.Quantity { return &balsav1.Quantity{String_: s} }

// CompareQuantity is -1, 0 or 1 as a is less than, equal to or greater than b.
func CompareQuantity(a, b *balsav1.Quantity) (int, error) {
	x, err := ParseQuantity(a)
	if err != nil {
		return 0, err
	}
	y, err := ParseQuantity(b)
	if err != nil {
		return 0, err
	}
	return x.Compare(y), nil
}

// MilliCPU is a quantity of cpu in thousandths of a core, rounded up; 0 when
// absent. A validated object never gives an error.
func MilliCPU(q *balsav1.Quantity) (int64, error) {
	v, err := ParseQuantity(q)
	if err != nil {
		return 0, err
	}
	return v.Milli()
}

// Bytes is a quantity of memory in bytes, or a count of pods, rounded up; 0 when
// absent. A validated object never gives an error.
func Bytes(q *balsav1.Quantity) (int64, error) {
	v, err := ParseQuantity(q)
	if err != nil {
		return 0, err
	}
	return v.Units()
}

// Requests is what a pod's containers ask for together, as placement counts it.
type Requests struct {
	MilliCPU    int64
	MemoryBytes int64
}

// PodRequests adds up the requests of a pod's containers. A container without a
// request counts with its limit, as in Kubernetes.
func PodRequests(spec *balsav1.PodSpec) (Requests, error) {
	var sum Requests
	for _, c := range spec.GetContainers() {
		cpu, err := MilliCPU(requestOrLimit(c, ResourceCPU))
		if err != nil {
			return Requests{}, fmt.Errorf("cpu of container %q: %w", c.GetName(), err)
		}
		memory, err := Bytes(requestOrLimit(c, ResourceMemory))
		if err != nil {
			return Requests{}, fmt.Errorf("memory of container %q: %w", c.GetName(), err)
		}
		sum.MilliCPU += cpu
		sum.MemoryBytes += memory
	}
	return sum, nil
}

func requestOrLimit(c *balsav1.Container, resource string) *balsav1.Quantity {
	if q, ok := c.GetResources().GetRequests()[resource]; ok {
		return q
	}
	return c.GetResources().GetLimits()[resource]
}
