package bench

import (
	"fmt"
	"math"
)

// Pair is one round in which both took their turn, one right after the other.
type Pair struct{ Ours, Theirs float64 }

// Ratio is how ours relates to theirs: the geometric mean of the rounds' ratios,
// and the interval that holds the true one in 95 of 100 such series.
type Ratio struct {
	Mean, Low, High float64
	Pairs           int
}

// studentT are the 97.5% quantiles of Student's t distribution for 1 to 30 degrees
// of freedom (NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2).
var studentT = [...]float64{
	12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
	2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
}

// RatioOf compares round by round, so that what the machine does meanwhile hits
// both. Ratios are multiplied, not added, hence the logarithms: their mean has a
// t distribution. It needs three rounds and positive values.
func RatioOf(pairs []Pair) (Ratio, error) {
	if len(pairs) < 3 {
		return Ratio{}, fmt.Errorf("%d rounds: an interval needs three", len(pairs))
	}
	n := float64(len(pairs))
	var logs []float64
	sum := 0.0
	for i, p := range pairs {
		if p.Ours <= 0 || p.Theirs <= 0 {
			return Ratio{}, fmt.Errorf("round %d: %g and %g have no ratio", i+1, p.Ours, p.Theirs)
		}
		logs = append(logs, math.Log(p.Ours/p.Theirs))
		sum += logs[i]
	}
	mean, squares := sum/n, 0.0
	for _, l := range logs {
		squares += (l - mean) * (l - mean)
	}
	half := studentT[min(len(pairs)-1, len(studentT))-1] * math.Sqrt(squares/(n-1)) / math.Sqrt(n)
	return Ratio{Mean: math.Exp(mean), Low: math.Exp(mean - half), High: math.Exp(mean + half), Pairs: len(pairs)}, nil
}

func (r Ratio) String() string {
	return fmt.Sprintf("%.2f (%.2f to %.2f)", r.Mean, r.Low, r.High)
}

// Floor is what a ratio must not fall short of. It is broken only when the whole
// interval lies on the wrong side: else the rounds do not tell.
type Floor struct {
	Ratio float64
	// AtMost: less is better.
	AtMost bool
}

// Broken tells whether the rounds show that the floor is missed.
func (f Floor) Broken(r Ratio) bool {
	if f.AtMost {
		return r.Low > f.Ratio
	}
	return r.High < f.Ratio
}

// Held tells whether the rounds show that the floor is kept.
func (f Floor) Held(r Ratio) bool {
	if f.AtMost {
		return r.High <= f.Ratio
	}
	return r.Low >= f.Ratio
}

func (f Floor) String() string {
	if f.AtMost {
		return fmt.Sprintf("at most %.1f", f.Ratio)
	}
	return fmt.Sprintf("at least %.1f", f.Ratio)
}
