package bench

import (
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestStatisticsOfAHundred(t *testing.T) {
	values := make([]float64, 0, 100)
	for i := range 100 {
		values = append(values, float64(i+1))
	}
	rand.Shuffle(len(values), func(i, j int) { values[i], values[j] = values[j], values[i] })
	before := slices.Clone(values)
	for statistic, want := range map[Statistic]float64{Minimum: 1, Quartile: 25, Median: 50, Upper: 75, P99: 99, Maximum: 100} {
		if got := statistic.Of(values); got != want {
			t.Errorf("%s of 1 to 100 is %v, want %v", statistic, got, want)
		}
	}
	if !slices.Equal(values, before) {
		t.Error("a statistic sorted the values it was given")
	}
}

// A percentile is a value that was measured, and as many as it says are not above
// it: counted, not computed.
func TestPercentilesCount(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(rapid.Float64Range(-1e6, 1e6), 1, 200).Draw(t, "values")
		statistic := rapid.SampledFrom([]Statistic{Minimum, Quartile, Median, Upper, P99, Maximum}).Draw(t, "statistic")
		got := statistic.Of(values)
		if !slices.Contains(values, got) {
			t.Fatalf("%s is %v, which nobody measured", statistic, got)
		}
		notAbove, below := 0, 0
		for _, value := range values {
			if value <= got {
				notAbove++
			}
			if value < got {
				below++
			}
		}
		if 100*notAbove < statistic.percent()*len(values) {
			t.Fatalf("%s: only %d of %d are not above", statistic, notAbove, len(values))
		}
		if below > 0 && 100*below >= statistic.percent()*len(values) {
			t.Fatalf("%s: %d of %d are below already", statistic, below, len(values))
		}
	})
}
