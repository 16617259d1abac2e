package check_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/balsa-run/balsa/chaos/check"
)

func TestZZProbe(t *testing.T) {
	n := 30
	fmt.Sscan(os.Getenv("ZZ"), &n)
	bad := 0
	rules := map[string]int{}
	for seed := range n {
		records, members := mixture(seeded(seed), 10)
		v := judged(check.NewLinearizable(check.LinearizableOptions{Foreign: true}), records, members)
		if len(v.Violations) > 0 {
			bad++
			for _, x := range v.Violations {
				rules[x.Rule]++
			}
			if bad <= 4 {
				t.Logf("seed %d: %v", seed, v.Violations[0])
			}
		}
	}
	t.Logf("bad %d of %d: %v", bad, n, rules)
}
