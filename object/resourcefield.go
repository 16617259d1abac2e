package object

import (
	"fmt"
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

func resourceFields() []string {
	return []string{
		"limits.cpu", "limits.memory", "limits.ephemeral-storage", "requests.cpu", "requests.memory", "requests.ephemeral-storage",
	}
}

// SplitResourceField takes "limits.cpu" apart.
func SplitResourceField(name string) (list, resource string) {
	list, resource, _ = strings.Cut(name, ".")
	return list, resource
}

func divisors(resource string) []string {
	if _, r := SplitResourceField(resource); r == ResourceCPU {
		return []string{"1m", "1"}
	}
	return []string{"1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"}
}

func allowedDivisors(resource string) string { return strings.Join(divisors(resource), ", ") }

// isDivisor tells whether a divisor is one of those of a resource, however it is
// written. 0 stands for the default.
func isDivisor(resource string, d *balsav1.Quantity) bool {
	v, err := ParseQuantity(d)
	if err != nil {
		return false
	}
	if v.Sign() == 0 {
		return true
	}
	for _, text := range divisors(resource) {
		if order, err := CompareQuantity(d, NewQuantity(text)); err == nil && order == 0 {
			return true
		}
	}
	return false
}

// ResourceFieldValue is a container's request or limit in units of the divisor,
// rounded up, as programs get it. What is not limited is what the node has,
// allocatable; a request that is not given is the limit, or else 0.
func ResourceFieldValue(c *balsav1.Container, ref *balsav1.ResourceFieldSelector, allocatable map[string]*balsav1.Quantity) (int64, error) {
	list, resource := SplitResourceField(ref.GetResource())
	q := requestOrLimit(c, resource)
	if list == "limits" {
		q = c.GetResources().GetLimits()[resource]
		if !isPositive(q) {
			q = allocatable[resource]
		}
	}
	n, err := divide(q, ref.GetDivisor(), resource)
	if err != nil {
		return 0, fmt.Errorf("%s of container %q: %w", ref.GetResource(), c.GetName(), err)
	}
	return n, nil
}

func divide(q, divisor *balsav1.Quantity, resource string) (int64, error) {
	scale := Bytes
	if resource == ResourceCPU {
		scale = MilliCPU
	}
	if !isPositive(divisor) {
		divisor = NewQuantity("1")
	}
	value, err := scale(q)
	if err != nil {
		return 0, err
	}
	unit, err := scale(divisor)
	if err != nil {
		return 0, err
	}
	n := value / unit
	if value%unit > 0 {
		n++
	}
	return n, nil
}
