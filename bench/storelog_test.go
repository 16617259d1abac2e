package bench

import (
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The peer's own test writes this file, so that both mean the same.
func logFixture(t *testing.T) logReport {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "raftwal.json"))
	if err != nil {
		t.Fatal(err)
	}
	report, err := parseLogs(text)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func logDocument(t *testing.T) LogDocument {
	t.Helper()
	report := logFixture(t)
	plain := report.Appends[0]
	plain.Shape, plain.Entries, plain.Truncated = "1", 1, 0
	appends := logReport{Appends: []logAppends{plain}}
	d := LogDocument{Versions: "raft-wal v1", Kills: report.Kills}
	for _, taken := range []struct {
		report logReport
		part   string
		err    error
	}{{appends, "append-1", nil}, {report, "truncating-16", nil}, {report, openPart, nil}, {report, sizePart, nil}, {logReport{}, "append-64", errors.New("no luck")}} {
		d.Results = append(d.Results, taken.report.comparisons(partOf(t, taken.part), taken.err)...)
	}
	return d
}

func partOf(t *testing.T, name string) logPart {
	t.Helper()
	for _, part := range logParts() {
		if part.name == name {
			return part
		}
	}
	t.Fatalf("there is no part %s", name)
	return logPart{}
}

func TestLogDocument(t *testing.T) {
	d := storeDocument()
	d.Results = append(d.Results[:1:1], Comparison{Name: "puts-1", Question: "How many by one?", Unit: perSecond(), Pairs: []Pair{{200, 100}, {250, 100}, {200, 100}}})
	d.Log = logDocument(t)
	golden(t, "store-log.md", d.Markdown())
	err := d.Missed()
	for _, name := range []string{"log-append-64 was not measured: no luck", "log-append-bytes-64 was"} {
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("missed: %v; want %s in it", err, name)
		}
	}
	if err != nil && strings.Contains(err.Error(), "log-append-1 ") {
		t.Errorf("missed: %v", err)
	}
}

// TestLogDecision: the rule is applied to all of its figures, and not without one.
func TestLogDecision(t *testing.T) {
	put := []Comparison{{Name: "puts-1", Pairs: []Pair{{100, 1}, {100, 1}, {100, 1}}}} // 10 ms
	quick := []Pair{{500, 5000}, {500, 5000}, {500, 5000}}                             // saves 3.6 ms
	slow := []Pair{{500, 510}, {500, 510}, {500, 510}}
	for what, c := range map[string]struct {
		appends []Pair
		wal     LogSurvival
		sealed  string
		want    string
	}{
		"better in all":    {quick, LogSurvival{Kills: 20}, "", "raft-wal should take the place"},
		"loses":            {quick, LogSurvival{Kills: 20, Lost: 1}, "", "raft-boltdb stays**: raft-wal lost 1 acknowledged entries."},
		"of no use":        {quick, LogSurvival{Kills: 20, Unusable: 1}, "", "raft-boltdb stays**: raft-wal is of no use after some kills."},
		"refuses for good": {quick, LogSurvival{Kills: 20}, "sealed", "raft-boltdb stays**: raft-wal is of no use after some kills."},
		"no quicker":       {slow, LogSurvival{Kills: 20}, "", "not 1.2 with the whole interval."},
	} {
		d := LogDocument{Kills: &LogKills{Wal: c.wal, Sealed: c.sealed}, Results: []LogComparison{{Comparison: Comparison{Name: appendName + "1", Pairs: c.appends}}}}
		if got := d.decision(put); !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, expected %q in it", what, got, c.want)
		}
		if d.Kills = nil; d.decision(put) != "" {
			t.Errorf("%s: decided without kills", what)
		}
	}
}

// What fails says so, and the cause, which holds paths, stays out.
func TestLogDocumentOfFailures(t *testing.T) {
	d := LogDocument{Versions: "raft-wal v1", KillsErr: errors.New("in /a/folder")}
	text := d.Markdown(nil)
	if !strings.Contains(text, "log-kills was not measured") || strings.Contains(text, "/a/folder") {
		t.Errorf("the section is %s", text)
	}
	if err := d.Missed(); err == nil || !strings.Contains(err.Error(), "log-kills was not measured: in /a/folder") {
		t.Errorf("missed: %v", err)
	}
	if text := (LogDocument{Versions: "raft-wal v1"}).Markdown(nil); text != "" {
		t.Errorf("of nothing: %q", text)
	}
}

func TestLogReportIsRead(t *testing.T) {
	report := logFixture(t)
	all := report.comparisons(partOf(t, "truncating-16"), nil)
	if len(all) != 1 || all[0].Name != "log-append-truncating-16" || all[0].Less {
		t.Fatalf("comparisons are %+v", all)
	}
	if diff := cmp.Diff([]Pair{{1000, 2000}, {1250, 2500}, {800, 2000}}, all[0].Pairs); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]Pair{{8, 4}, {8, 4}, {8, 4}}, report.comparisons(partOf(t, sizePart), nil)[0].Pairs); diff != "" {
		t.Error(diff)
	}
	for _, text := range []string{"", "{", `{"appends":[{"sync":true}]}`} {
		if _, err := parseLogs([]byte(text)); err == nil {
			t.Errorf("%q was read", text)
		}
	}
	// A report of something else is no figure.
	for _, part := range logParts() {
		for _, c := range (logReport{Appends: []logAppends{{Shape: "2"}}}).comparisons(part, nil) {
			if c.Err == nil {
				t.Errorf("%s was taken from a report without it", c.Name)
			}
		}
	}
}

func TestBetterNeedsTheWholeInterval(t *testing.T) {
	twice, even, half := []Pair{{2, 1}, {2.1, 1}, {1.9, 1}}, []Pair{{2, 1}, {1, 2}, {1, 1}}, []Pair{{1, 2}, {1, 2.1}, {1, 1.9}}
	for _, test := range []struct {
		pairs []Pair
		less  bool
		want  string
	}{
		{twice, false, logOurs}, {twice, true, logTheirs}, {half, false, logTheirs}, {half, true, logOurs}, {even, false, "not decided"}, {even, true, "not decided"},
		{twice[:2], false, "too few rounds to tell"},
	} {
		if got := (LogComparison{Less: test.less, Comparison: Comparison{Pairs: test.pairs}}).Better(); got != test.want {
			t.Errorf("of %v, less is better %t: %s, want %s", test.pairs, test.less, got, test.want)
		}
	}
	if got := (LogComparison{Comparison: Comparison{Pairs: twice, Err: io.EOF}}).Better(); got != "not measured" {
		t.Errorf("of a failure: %s", got)
	}
}

func TestSavedOf(t *testing.T) {
	// Twice the differences of 1, 2 and 3 ms: mean 4, deviation 2.
	saved, err := savedOf([]Pair{{500, 1000}, {250, 500}, {200, 500}})
	if err != nil {
		t.Fatal(err)
	}
	half := 4.303 * 2 / math.Sqrt(3)
	for name, got := range map[string][2]float64{"mean": {saved.Mean, 4}, "low": {saved.Low, 4 - half}, "high": {saved.High, 4 + half}} {
		if math.Abs(got[0]-got[1]) > 1e-9 {
			t.Errorf("%s is %g, want %g", name, got[0], got[1])
		}
	}
	for _, pairs := range [][]Pair{nil, {{1, 1}, {1, 1}}, {{1, 1}, {1, 0}, {1, 1}}} {
		if _, err := savedOf(pairs); err == nil {
			t.Errorf("%v saves something", pairs)
		}
	}
}

// A put of 10 ms, of which 4 ms would go, would be 1.67 times as fast.
func TestSavesIsOfAPut(t *testing.T) {
	appends := LogComparison{Comparison: Comparison{Name: "log-append-1", Pairs: []Pair{{250, 500}, {250, 500}, {250, 500}}}}
	puts := []Comparison{{Name: "puts-64", Pairs: []Pair{{1, 1}}}, {Name: "puts-1", Pairs: []Pair{{100, 50}, {100, 50}, {100, 50}}}}
	d := LogDocument{Results: []LogComparison{appends}}
	if got := d.saves(puts); !strings.Contains(got, "2.000 ms less (2.000 to 2.000)") || !strings.Contains(got, "of the 10.00 ms") && !strings.Contains(got, "Of the 10.00 ms") || !strings.Contains(got, "1.67 times as fast (1.67 to 1.67)") {
		t.Errorf("it says %q", got)
	}
	for name, none := range map[string]string{
		"no puts":        d.saves(nil),
		"no appends":     LogDocument{}.saves(puts),
		"failed puts":    d.saves([]Comparison{{Name: "puts-1", Err: io.EOF, Pairs: puts[1].Pairs}}),
		"more than puts": d.saves([]Comparison{{Name: "puts-1", Pairs: []Pair{{1000, 1}}}}),
	} {
		if none != "" {
			t.Errorf("%s: it says %q", name, none)
		}
	}
}

// fakePeer writes the fixture whatever it is asked for.
func fakePeer(t *testing.T) LogSuite {
	t.Helper()
	dir := t.TempDir()
	fixture, err := filepath.Abs(filepath.Join("testdata", "raftwal.json"))
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "raftwal")
	script := "#!/bin/sh\necho \"$@\" >>" + filepath.Join(dir, "asked") + "\ncp " + fixture + " \"$4\"\n"
	if err := errors.Join(os.WriteFile(program, []byte(script), 0o700), os.WriteFile(program+"-versions", []byte("wal v1\nbolt v2\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	return LogSuite{Program: program, Dir: filepath.Join(dir, "logs"), Progress: io.Discard}
}

func TestLogSuiteTakesWhatWasAskedFor(t *testing.T) {
	s := fakePeer(t)
	s.Only, s.Quick = []string{"log-append-truncating-16", "log-open-cold", "log-kills"}, true
	d, err := s.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(d.Results) != 2 || d.Results[0].Name != s.Only[0] || d.Results[1].Name != s.Only[1] || d.Results[0].Err != nil || d.Results[1].Err != nil || d.Kills == nil || d.Versions != "wal v1, bolt v2" {
		t.Errorf("results are %+v", d)
	}
	asked, err := os.ReadFile(filepath.Join(filepath.Dir(s.Program), "asked"))
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"-only truncating-16 -quick\n", "-only open -quick\n", "-only kills -quick\n"} {
		if strings.Count(string(asked), "-only") != 3 || !strings.Contains(string(asked), part) {
			t.Errorf("the peer was asked for %s; want %s in it", asked, part)
		}
	}
	s.Only = []string{"log-append-2"}
	if _, err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "log-append-16") {
		t.Errorf("of an unknown name: %v", err)
	}
}

// A peer that is missing or fails costs figures, not the run; all names are
// different and the log's.
func TestLogSuiteGoesOnWithoutItsPeer(t *testing.T) {
	for name, change := range map[string]func(*LogSuite){
		"missing": func(s *LogSuite) { s.Missing = errors.New("no network") },
		"failing": func(s *LogSuite) { s.Program = "/bin/false" },
	} {
		s := fakePeer(t)
		change(&s)
		d, err := s.Run(t.Context())
		if err != nil || d.KillsErr == nil || d.Missed() == nil {
			t.Errorf("%s: %v, %+v", name, err, d.KillsErr)
		}
		seen := map[string]bool{killsName: true}
		for _, c := range d.Results {
			if c.Err == nil || seen[c.Name] || !IsOfLog(c.Name) {
				t.Errorf("%s: %s: %v", name, c.Name, c.Err)
			}
			seen[c.Name] = true
		}
		if len(seen) != 20 {
			t.Errorf("%s: %d measures", name, len(seen))
		}
	}
}
