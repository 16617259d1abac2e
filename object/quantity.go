package object

import (
	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object/quantity"
)

// Names of the resources that pods ask for and nodes have.
const (
	ResourceCPU    = "cpu"
	ResourceMemory = "memory"
	ResourcePods   = "pods"
	// ResourceEphemeralStorage is disk that lives as long as a pod: writable layers,
	// logs and emptyDir volumes.
	ResourceEphemeralStorage = "ephemeral-storage"
	// ResourceStorage is what claims ask for and volumes have.
	ResourceStorage = "storage"
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
