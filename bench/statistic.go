package bench

import "slices"

// Statistic is one figure made of many values, by its name.
type Statistic string

// The statistics. Percentiles are nearest-rank: values that were measured, and
// nothing between them.
const (
	Minimum  Statistic = "min"
	Quartile Statistic = "p25"
	Median   Statistic = "p50"
	Upper    Statistic = "p75"
	P99      Statistic = "p99"
	Maximum  Statistic = "max"
)

// Of computes the statistic. There must be a value.
func (s Statistic) Of(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	rank := (len(sorted)*s.percent() + 99) / 100
	return sorted[max(rank, 1)-1]
}

func (s Statistic) percent() int {
	switch s {
	case Minimum:
		return 0
	case Quartile:
		return 25
	case Median:
		return 50
	case Upper:
		return 75
	case P99:
		return 99
	case Maximum:
		return 100
	}
	panic("bench: no statistic " + string(s))
}
