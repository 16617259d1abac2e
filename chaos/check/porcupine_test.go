package check_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/balsa-run/balsa/chaos/check"
	"github.com/balsa-run/balsa/chaos/history"
	"pgregory.net/rapid"
)

func judgePorcupine(records []history.Record, opts check.PorcupineOptions) check.Verdict {
	c := check.NewPorcupine(opts)
	for _, r := range records {
		c.Add(r)
	}
	return c.Verdict(nil)
}

func TestPorcupineAcceptsWhatIsRight(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := linConfig{
			steps: rapid.IntRange(10, 600).Draw(t, "steps"), keys: rapid.IntRange(1, 4).Draw(t, "keys"),
			procs: rapid.IntRange(1, 6).Draw(t, "procs"), unknown: rapid.SampledFrom([]int{0, 2, 5}).Draw(t, "unknown"),
			refused: rapid.SampledFrom([]int{0, 10, 40}).Draw(t, "refused"), duplicates: rapid.Bool().Draw(t, "duplicates"), ats: 50,
		}
		records, _ := newLinSim(rapid.Uint64().Draw(t, "seed"), cfg, plantNone).run()
		// Small windows: many begin in the middle.
		v := judgePorcupine(records, check.PorcupineOptions{Window: rapid.IntRange(5, 60).Draw(t, "window"), Limit: time.Second})
		if len(v.Violations) > 0 {
			t.Fatalf("%v", v.Violations[0])
		}
		if cfg.unknown == 0 && cfg.steps > 100 && v.Checked == 0 {
			t.Fatalf("nothing was judged: left %v", v.Left)
		}
	})
}

// The two opinions agree: what Porcupine calls wrong, the revision order does too.
func TestPorcupineFindsWhatSingleKeysShow(t *testing.T) {
	for _, plant := range []linPlant{plantPhantom, plantStaleRead, plantValue, plantBasisCAS} {
		t.Run(string(plant), func(t *testing.T) {
			found := 0
			for planted, seed := 0, uint64(1); planted < 20; seed++ {
				if seed > 400 {
					t.Fatalf("planted %d of 20 in %d histories", planted, seed-1)
				}
				cfg := linConfig{steps: 250, keys: 1, procs: 4, refused: 5, ats: 0, plantAfter: int(seed*7) % 100}
				s := newLinSim(seed, cfg, plant)
				records, members := s.run()
				if !s.planted {
					continue
				}
				planted++
				v := judgePorcupine(records, check.PorcupineOptions{})
				if len(v.Left) > 0 {
					t.Fatalf("seed %d: %v", seed, v.Left)
				}
				if len(v.Violations) == 0 {
					continue
				}
				found++
				if len(v.Violations[0].Proof) == 0 {
					t.Errorf("seed %d: no proof: %v", seed, v.Violations[0])
				}
				if revisions := judgeLin(records, members); len(revisions.Violations) == 0 {
					t.Errorf("seed %d: only Porcupine finds %v", seed, v.Violations[0])
				}
			}
			// A register cannot show what nobody read again.
			if found < 15 {
				t.Errorf("found %d of 20", found)
			}
		})
	}
}

func TestPorcupineSaysWhatItDidNotJudge(t *testing.T) {
	cfg := linConfig{steps: 3000, keys: 1, procs: 8, ats: 50}
	records, _ := newLinSim(1, cfg, plantNone).run()
	v := judgePorcupine(records, check.PorcupineOptions{Limit: time.Nanosecond})
	if v.Checked != 0 || len(v.Left) == 0 || !strings.Contains(v.Left[0], "time") {
		t.Errorf("no time: got %d checked, left %v", v.Checked, v.Left)
	}
	cfg.unknown = 60
	many, _ := newLinSim(1, cfg, plantNone).run() // its members are not Porcupine's
	v = judgePorcupine(many, check.PorcupineOptions{Window: 1000})
	if len(v.Left) != 1 || !strings.Contains(v.Left[0], "unknown") {
		t.Errorf("many unknown: left %v", v.Left)
	}
}

func TestWritePorcupineHTML(t *testing.T) {
	records, _ := newLinSim(3, linConfig{steps: 200, keys: 2, procs: 4, unknown: 5}, plantNone).run()
	pairs := func(yield func(history.Record, error) bool) {
		for _, r := range records {
			if r.F != history.Deliver && !yield(r, nil) {
				return
			}
		}
	}
	var page bytes.Buffer
	if err := check.WritePorcupineHTML(&page, history.Pair(pairs), "k000", time.Second); err != nil {
		t.Fatal(err)
	}
	put := slices.IndexFunc(records, func(r history.Record) bool {
		return r.F == history.Put && r.Type == history.OK && r.Key == "k000"
	})
	if text := page.String(); !strings.Contains(text, "<html") || !strings.Contains(text, records[put].Value) || strings.Contains(text, "k001") {
		t.Errorf("the page does not show %v", records[put])
	}
	bad := errors.New("bad disk")
	err := check.WritePorcupineHTML(&page, func(yield func(history.Operation, error) bool) { yield(history.Operation{}, bad) }, "k000", 0)
	if !errors.Is(err, bad) {
		t.Errorf("an error of the history: got %v", err)
	}
	many := func(yield func(history.Operation, error) bool) {
		for i := range int64(check.MaxPorcupineHTML + 1) {
			r := history.Record{Index: i, Type: history.OK, F: history.Put, Key: "k", Value: fmt.Sprint(i), Revision: i + 2}
			if !yield(history.Operation{Invoke: r, End: r}, nil) {
				return
			}
		}
	}
	if err := check.WritePorcupineHTML(&page, many, "k", 0); !errors.Is(err, check.ErrTooManyOperations) {
		t.Errorf("too many: got %v", err)
	}
}
