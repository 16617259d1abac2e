package bench

import (
	"math"
	"math/rand/v2"
	"testing"
)

func TestRatioOf(t *testing.T) {
	// ln 2 and ln 8 around ln 4, and ln 4 itself: mean ln 4, deviation ln 2.
	r, err := RatioOf([]Pair{{2, 1}, {8, 1}, {40, 10}})
	if err != nil {
		t.Fatal(err)
	}
	half := 4.303 * math.Ln2 / math.Sqrt(3)
	for name, got := range map[string][2]float64{"mean": {r.Mean, 4}, "low": {r.Low, 4 * math.Exp(-half)}, "high": {r.High, 4 * math.Exp(half)}} {
		if math.Abs(got[0]/got[1]-1) > 1e-9 {
			t.Errorf("%s is %g, want %g", name, got[0], got[1])
		}
	}
	for _, pairs := range [][]Pair{nil, {{1, 1}, {1, 1}}, {{1, 1}, {1, 0}, {1, 1}}, {{-1, 1}, {1, 1}, {1, 1}}} {
		if _, err := RatioOf(pairs); err == nil {
			t.Errorf("%v has a ratio", pairs)
		}
	}
}

// The interval holds the truth about 95 times of 100, also when rounds share what
// disturbs them.
func TestRatioCovers(t *testing.T) {
	chance := rand.New(rand.NewPCG(1, 2))
	const series, truth = 2000, 1.5
	for _, rounds := range []int{3, 7, 40} {
		held := 0
		for range series {
			var pairs []Pair
			for range rounds {
				shared := math.Exp(chance.NormFloat64())
				pairs = append(pairs, Pair{Ours: truth * shared * math.Exp(0.2*chance.NormFloat64()), Theirs: shared * math.Exp(0.1*chance.NormFloat64())})
			}
			r, err := RatioOf(pairs)
			if err != nil {
				t.Fatal(err)
			}
			if r.Low <= truth && truth <= r.High {
				held++
			}
		}
		if share := float64(held) / series; share < 0.93 || share > 0.97 {
			t.Errorf("of %d rounds the interval holds the truth in %.1f%% of the series", rounds, 100*share)
		}
	}
}

func TestFloorIsBrokenOnlyByAllOfTheInterval(t *testing.T) {
	for _, test := range []struct {
		floor  Floor
		ratio  Ratio
		broken bool
		held   bool
	}{
		{Floor{Ratio: 1.2}, Ratio{Mean: 1.1, Low: 1, High: 1.19}, true, false},
		{Floor{Ratio: 1.2}, Ratio{Mean: 1.1, Low: 1, High: 1.21}, false, false},
		{Floor{Ratio: 1.2}, Ratio{Mean: 1.3, Low: 1.25, High: 1.4}, false, true},
		{Floor{Ratio: 0.6, AtMost: true}, Ratio{Mean: 0.7, Low: 0.61, High: 0.8}, true, false},
		{Floor{Ratio: 0.6, AtMost: true}, Ratio{Mean: 0.7, Low: 0.59, High: 0.8}, false, false},
		{Floor{Ratio: 0.6, AtMost: true}, Ratio{Mean: 0.3, Low: 0.2, High: 0.4}, false, true},
	} {
		if got := test.floor.Broken(test.ratio); got != test.broken {
			t.Errorf("%v with %v: broken is %t", test.floor, test.ratio, got)
		}
		if got := test.floor.Held(test.ratio); got != test.held {
			t.Errorf("%v with %v: held is %t", test.floor, test.ratio, got)
		}
	}
}
