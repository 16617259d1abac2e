package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/balsa-run/balsa/chaos/world/sim"
	"github.com/balsa-run/balsa/chaos/world/sim/guest/verdict"
	"github.com/balsa-run/balsa/chaos/world/sim/inside"
)

func someSweep() *sweepFlags {
	return &sweepFlags{
		simFlags: simFlags{length: 10 * time.Second, servers: 3, clients: 3, pace: 1, out: "."},
		seed:     7, target: "leader", at: time.Second, window: 2 * time.Second, most: 3,
	}
}

// Each run of a sweep crashes at one write, before and behind, beside what else goes wrong.
func TestSweepRuns(t *testing.T) {
	flags := someSweep()
	flags.script, flags.what = "late answers", "append"
	s, err := newSweep(flags, new(bytes.Buffer))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for o := range s.jobs() {
		var r recipe
		if err := r.read(o.Args); err != nil {
			t.Fatal(err)
		}
		if o.Seed != 7 || len(*r.Schedule) != len(directed()["late answers"])+1 {
			t.Errorf("seed %d, %d steps", o.Seed, len(*r.Schedule))
		}
		for i, step := range *r.Schedule {
			if i > 0 && step.At < (*r.Schedule)[i-1].At {
				t.Errorf("step %d is before the one in front of it", i)
			}
			if step.N != 0 {
				got = append(got, step.String())
			}
		}
	}
	want := "crash before write leader for 2s, number 1 append; crash after write leader for 2s, number 1 append; crash before write leader for 2s, number 2 append"
	if len(got) != 6 || !strings.HasPrefix(strings.Join(got, "; "), want) {
		t.Errorf("%q", got)
	}
}

// A sweep ends with the first write that is not made, with a run that dies, and says how
// far it came.
func TestSweepEnds(t *testing.T) {
	flags := someSweep()
	flags.out = t.TempDir()
	run := func(code int, words ...string) sim.Finished {
		f := finished(7, code, verdict.Summary{Violations: make([]verdict.Violation, code%2)})
		f.Result.Lines = append(words, f.Result.Lines...)
		return f
	}
	nothing := func(kind inside.Kind, n int) string {
		return "    1.000000 s1   " + inside.InVain(inside.Fault{Kind: kind, Target: "leader", For: 2 * time.Second, N: n})
	}
	good := run(verdict.Good)
	for name, test := range map[string]struct {
		runs        []sim.Finished
		goesOn      bool
		code        int
		says, says2 string
	}{
		"all were swept":          {[]sim.Finished{good, good, run(verdict.Good, nothing(inside.CrashBefore, 2))}, false, 0, "swept: 1 writes of leader in 2s, each of them", "digest after-1 d"},
		"another's fault in vain": {[]sim.Finished{good, run(verdict.Good, nothing(inside.CrashBefore, 1))}, true, 0, "swept: 1 writes of leader in 2s, the first of them", "digest before-1 d"},
		"a promise was broken":    {[]sim.Finished{good, run(verdict.Broken)}, true, 1, "VIOLATION in crash after write 1", "sim-after-1.json"},
		"too little":              {[]sim.Finished{run(verdict.TooLittle)}, true, exitTooLittle, "crash before write 1 did too little", "swept: 1"},
		"no write at all":         {[]sim.Finished{run(verdict.Good, nothing(inside.CrashBefore, 1))}, false, exitTooLittle, "swept: 0 writes", ""},
		"a run that died":         {[]sim.Finished{good, run(2)}, false, 1, "swept: 1", ""},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			s, err := newSweep(flags, &out)
			if err != nil {
				t.Fatal(err)
			}
			goesOn := true
			for _, f := range test.runs {
				goesOn = s.add(f)
			}
			err = s.end(t.Context())
			if goesOn != test.goesOn || (err != nil) != (test.code != 0) || err != nil && code(err) != test.code {
				t.Errorf("goes on: %v; %v", goesOn, err)
			}
			if !strings.Contains(out.String(), test.says) || !strings.Contains(out.String(), test.says2) {
				t.Errorf("%q and %q are not in\n%s", test.says, test.says2, out.String())
			}
		})
	}
}

func TestSweepRefuses(t *testing.T) {
	for want, change := range map[string]func(*sweepFlags){
		"at least one write":   func(f *sweepFlags) { f.most = 0 },
		"target is missing":    func(f *sweepFlags) { f.target = "" },
		"there is no \"typo\"": func(f *sweepFlags) { f.script = "typo" },
		"allowed is 0 to":      func(f *sweepFlags) { f.window = -time.Second },
	} {
		flags := someSweep()
		change(flags)
		if _, err := newSweep(flags, new(bytes.Buffer)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
