package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/balsa-run/balsa/chaos/world/sim"
	"github.com/balsa-run/balsa/chaos/world/sim/guest/verdict"
	"github.com/balsa-run/balsa/chaos/world/sim/inside"
	"github.com/balsa-run/balsa/internal/mutate"
)

func TestSeedRange(t *testing.T) {
	for text, want := range map[string][2]uint64{"1:50": {1, 50}, "7": {7, 7}, "0:0": {0, 0}} {
		if first, last, err := seedRange(text); err != nil || first != want[0] || last != want[1] {
			t.Errorf("%s: %d to %d, %v", text, first, last, err)
		}
	}
	for _, text := range []string{"", "5:1", "a:b", "1:", ":3", "-1", "1:2:3"} {
		if _, _, err := seedRange(text); err == nil {
			t.Errorf("%q was taken for seeds", text)
		}
	}
}

// A recipe is the same after it was made into the guest's arguments and back, and
// every script can be one.
func TestRecipeThereAndBack(t *testing.T) {
	for name, schedule := range directed() {
		r := recipe{Length: 90 * time.Second, Servers: 5, Clients: 2, Pace: 2.5, Workloads: "api,txn", Bugs: "no-fsync", Schedule: &schedule}
		args, err := r.args()
		if err != nil {
			t.Fatal(err)
		}
		var back recipe
		if err := back.read(args); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(r, back); diff != "" {
			t.Errorf("script %s: %s", name, diff)
		}
	}
	if err := new(recipe).read([]string{"-speed=3"}); err == nil {
		t.Error("an argument that no guest has was read")
	}
}

// What sim writes down is what replay and shrink read.
func TestRecordFile(t *testing.T) {
	args, err := recipe{Length: time.Minute, Servers: 3, Clients: 3, Pace: 1}.args()
	if err != nil {
		t.Fatal(err)
	}
	drawn := inside.Schedule{{At: time.Second, Fault: inside.Fault{Kind: inside.Kill, Target: inside.Leader, For: time.Second}}}
	text, err := json.Marshal(drawn)
	if err != nil {
		t.Fatal(err)
	}
	f := sim.Finished{Options: sim.Options{Seed: 9, Args: args}, Result: sim.Result{Digest: "d"}}
	path := filepath.Join(t.TempDir(), "run.json")
	if err := writeRecord(path, f, verdict.Summary{Schedule: text}); err != nil {
		t.Fatal(err)
	}
	r, err := readRecord(path)
	if err != nil || r.Seed != 9 || r.Digest != "d" || r.Servers != 3 || !cmp.Equal(r.Args, args) {
		t.Errorf("%+v, %v", r, err)
	}
	if got, err := readSchedule(path); err != nil || !cmp.Equal(got, drawn) {
		t.Errorf("%v, %v", got, err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := readSchedule(path); err != nil || !cmp.Equal(got, drawn) {
		t.Errorf("a schedule alone: %v, %v", got, err)
	}
	for _, bad := range []string{"", "{}", `{"seed": 3}`, `[{"at": "1s", "kind": "flood"}]`} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readRecord(path); err == nil {
			t.Errorf("%q was read as a run", bad)
		}
	}
}

func TestFlagsThatMakeNoSense(t *testing.T) {
	for want, f := range map[string]simFlags{
		"exclude each other":  {script: "late answers", schedule: "x.json"},
		`there is no "sleep"`: {script: "sleep"},
		"no such file":        {schedule: filepath.Join(t.TempDir(), "nothing.json")},
		"late answers":        {script: "typo"}, // it tells what there is
	} {
		if _, err := f.args(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("expected %q: %v", want, err)
		}
	}
}

func finished(seed uint64, code int, s verdict.Summary) sim.Finished {
	return sim.Finished{
		Options: sim.Options{Seed: seed, Args: []string{"-servers=3"}},
		Result:  sim.Result{Digest: "d", ExitCode: code, Lines: []string{s.Line()}, VirtualElapsed: time.Hour, WallElapsed: time.Minute, Processor: time.Minute},
	}
}

// A campaign ends with the code of the worst that happened, and says what that was.
func TestCampaignEndsWithTheWorst(t *testing.T) {
	good := finished(1, verdict.Good, verdict.Summary{Faults: map[string]int{"kill": 3}, Reached: map[string]int{"a": 1, "b": 0}})
	little := finished(2, verdict.TooLittle, verdict.Summary{Missing: []string{"no failover"}})
	bad := finished(3, verdict.Broken, verdict.Summary{Violations: []verdict.Violation{{Checker: "etcd/watch", Rule: "reliable", Text: "reliable: left out"}}})
	died := finished(4, 2, verdict.Summary{})
	for _, test := range []struct {
		runs []sim.Finished
		code int
		says string
	}{
		{[]sim.Finished{good}, 0, "states not reached: b"},
		{[]sim.Finished{good, little}, exitTooLittle, "seed 2 did too little: no failover"},
		{[]sim.Finished{good, little, bad}, 1, "balsa-chaos replay"},
		{[]sim.Finished{died}, 1, "digest 4 d"},
	} {
		var out bytes.Buffer
		c := newSeries(&out, t.TempDir())
		for _, f := range test.runs {
			c.add(f)
		}
		err := c.end(t.Context())
		if (err != nil) != (test.code != 0) || err != nil && code(err) != test.code || !strings.Contains(out.String(), test.says) {
			t.Errorf("%v; expected code %d and %q in\n%s", err, test.code, test.says, out.String())
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := newSeries(new(bytes.Buffer), t.TempDir()).end(ctx); err == nil || code(err) != exitInterrupted {
		t.Errorf("an interrupted campaign ends with %v", err)
	}
}

// Each bug has a plan, and each plan's scripts exist.
func TestPlans(t *testing.T) {
	scripts, planned := directed(), map[mutate.Bug]bool{}
	for _, p := range plans() {
		planned[p.bug] = true
		for _, name := range p.scripts {
			if _, known := scripts[name]; !known {
				t.Errorf("%s is looked for with the script %q, which does not exist", p.bug, name)
			}
		}
	}
	for _, bug := range mutate.Bugs() {
		if !planned[bug] {
			t.Errorf("nobody looks for %s", bug)
		}
	}
}

// The command ends with 1 when a bug is not found: with no time nothing is.
func TestMatrixFailsWhenABugIsNotFound(t *testing.T) {
	x := &matrix{print: new(bytes.Buffer), lost: []mutate.Bug{mutate.NoFsync}}
	if err := x.verdict(0, 0); err == nil || code(err) != 1 || !strings.Contains(err.Error(), "no-fsync") {
		t.Errorf("%v", err)
	}
	x = &matrix{print: new(bytes.Buffer), found: make([]finding, 2)}
	if err := x.verdict(1, 1); err == nil || code(err) != 1 {
		t.Errorf("a bug that is not there was found, and the command ends with %v", err)
	}
	if err := x.verdict(2, 0); err != nil {
		t.Error(err)
	}
}

func TestExitCodes(t *testing.T) {
	if got := code(errors.New("plain")); got != 1 {
		t.Errorf("a plain error ends with %d", got)
	}
	if got := code(&exitError{code: 3}); got != 3 {
		t.Errorf("too little ends with %d", got)
	}
}

// Three bugs that are found soon are found, and the real program passes what found
// them; balsa-chaos matrix does so with all twelve.
func TestMatrixFindsThreeBugs(t *testing.T) {
	command := matrixCommand()
	var out bytes.Buffer
	command.SetOut(&out)
	command.SetArgs([]string{"--bugs=random-apply,watch-one-late,vote-in-two-writes", "--length=20s"})
	if err := command.ExecuteContext(t.Context()); err != nil || !strings.Contains(out.String(), "3 of 3 planted bugs found") {
		t.Errorf("%v\n%s", err, out.String())
	}
	t.Log(out.String())
}
