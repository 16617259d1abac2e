package main

import (
	"errors"
	"fmt"
	"testing"

	"github.com/balsa-run/balsa/chaos/world/sim"
	"github.com/balsa-run/balsa/chaos/world/sim/guest/verdict"
)

// A run with a planted bug that does not come to its end counts by what it said.
func TestFirstWrong(t *testing.T) {
	said := []string{"    1.0 s1   started", "   16.1      WRONG: s2 lost its disk and is Running", "   27.0 WRONG: more"}
	bad := verdict.Summary{Violations: []verdict.Violation{{Checker: "etcd/watch", Rule: "reliable"}}}
	for name, test := range map[string]struct {
		f    sim.Finished
		want string
	}{
		"judged":           {finished(1, verdict.Broken, bad), "etcd/watch"},
		"clean":            {finished(1, verdict.Good, verdict.Summary{}), ""},
		"cut off, wrong":   {sim.Finished{Err: fmt.Errorf("seed 1: %w", sim.ErrWallLimit), Result: sim.Result{Lines: said}}, "world"},
		"cut off, clean":   {sim.Finished{Err: sim.ErrWallLimit, Result: sim.Result{Lines: said[:1]}}, ""},
		"died":             {sim.Finished{Err: errors.New("out of memory"), Result: sim.Result{Lines: said}}, ""},
		"nothing was said": {sim.Finished{Err: sim.ErrWallLimit}, ""},
	} {
		if v, wrong := firstWrong(test.f); wrong != (test.want != "") || v.Checker != test.want {
			t.Errorf("%s: %+v, %t", name, v, wrong)
		}
	}
}
