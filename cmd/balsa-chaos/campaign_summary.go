package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/balsa-run/balsa/chaos/world/sim/guest/verdict"
)

// The marks between which the summary stands in a document.
const (
	campaignBegins = "<!-- campaign: from here on written by balsa-chaos campaign summary -->"
	campaignEnds   = "<!-- campaign: up to here -->"
)

// totals are runs in figures.
type totals struct {
	runs, little, bad, died int
	first, last             uint64
	virtual, busy, wall     time.Duration
	sittings                map[int]time.Duration
	summary                 verdict.Summary
}

func totalsOf(runs []played) totals {
	t := totals{sittings: map[int]time.Duration{}}
	for _, r := range runs {
		t.add(r)
	}
	for _, lasted := range t.sittings {
		t.wall += lasted
	}
	return t
}

func (t *totals) add(r played) {
	if t.runs == 0 || r.Seed < t.first {
		t.first = r.Seed
	}
	t.last = max(t.last, r.Seed)
	t.runs++
	t.virtual += seconds(r.SimulatedS)
	t.busy += seconds(r.ProcessorS)
	t.sittings[r.Sitting] = max(t.sittings[r.Sitting], seconds(r.SittingS))
	t.summary.Add(verdict.Summary{
		Workloads: map[string]verdict.Count{"all": r.Operations}, Faults: r.Faults, Reached: r.Reached, Failovers: r.Failovers, Violations: r.Violations,
	})
	switch {
	case r.Died != "":
		t.died++
	case len(r.Violations) > 0:
		t.bad++
	case len(r.Missing) > 0:
		t.little++
	}
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// campaignMarkdown is the record for people, between its marks. Every figure of it
// comes from the record; of known, the states that are looked for, it says which were
// never reached.
func campaignMarkdown(runs []played, known []string) string {
	var b strings.Builder
	t := totalsOf(runs)
	operations := t.summary.Operations()
	fmt.Fprintf(&b, "%s\n\n", campaignBegins)
	fmt.Fprintf(&b, "Seeds %d to %d, %d runs: **%.1f simulated hours in %.2f hours of wall time** and %s, %.1f simulated seconds in a second of processor time.\n",
		t.first, t.last, t.runs, t.virtual.Hours(), t.wall.Hours(), sittings(len(t.sittings)), ratio(t.virtual, t.busy))
	fmt.Fprintf(&b, "%s operations, of which %s were done, %s refused, and of %s nobody can say; %s faults; %s leaders elected.\n",
		grouped(operations.All()), grouped(operations.OK), grouped(operations.Refused), grouped(operations.Unknown),
		grouped(int64(sum(t.summary.Faults))), grouped(int64(t.summary.Failovers)))
	fmt.Fprintf(&b, "**Runs in which a promise was broken: %d.** Runs that died or took too long: %d; that did too little to prove anything: %d.\n\n", t.bad, t.died, t.little)
	builds(&b, runs)
	findings(&b, runs)
	counted(&b, "fault", t.summary.Faults)
	states(&b, t.summary.Reached, known)
	fmt.Fprintf(&b, "%s\n", campaignEnds)
	return b.String()
}

// builds is a row for each build, in the order in which they came.
func builds(b *strings.Builder, runs []played) {
	var order []build
	by := map[build][]played{}
	for _, r := range runs {
		if !slices.Contains(order, r.Build) {
			order = append(order, r.Build)
		}
		by[r.Build] = append(by[r.Build], r)
	}
	b.WriteString("| build | guest | runs | simulated hours | wall hours | operations | faults | promise broken | died | too little |\n")
	b.WriteString("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	for _, each := range order {
		t := totalsOf(by[each])
		fmt.Fprintf(b, "| `%s` | `%s` | %d | %.1f | %.2f | %s | %s | %d | %d | %d |\n", each.Commit, each.Guest, t.runs, t.virtual.Hours(), t.wall.Hours(),
			grouped(t.summary.Operations().All()), grouped(int64(sum(t.summary.Faults))), t.bad, t.died, t.little)
	}
	if slices.ContainsFunc(order, func(each build) bool { return strings.HasSuffix(each.Commit, "+") }) {
		b.WriteString("\n`+`: with changes that were committed later; the sum of the guest tells builds apart.\n")
	}
	b.WriteString("\n")
}

// findings are the seeds in which something was wrong, each with its first violation.
func findings(b *strings.Builder, runs []played) {
	heading := "| seed | build | who says so | what |\n|--:|---|---|---|\n"
	for _, r := range runs {
		who, what := "the program died", r.Died
		switch {
		case r.Died == "" && len(r.Violations) == 0:
			continue
		case r.Died == "":
			who, what = r.Violations[0].Checker, r.Violations[0].Text
		}
		if r.Script != "" {
			what = fmt.Sprintf("script %q: %s", r.Script, what)
		}
		fmt.Fprintf(b, "%s| %d | `%s` | %s | %s |\n", heading, r.Seed, r.Build.Guest, who, cell(what))
		heading = ""
	}
	if heading == "" {
		b.WriteString("\n")
	}
}

// cellRunes bounds what a table shows of a violation; the record has all.
const cellRunes = 200

// cell is text as it can stand in a table.
func cell(text string) string {
	text = strings.ReplaceAll(strings.Join(strings.Fields(text), " "), "|", `\|`)
	if runes := []rune(text); len(runes) > cellRunes {
		return string(runes[:cellRunes]) + " ..."
	}
	return text
}

// counted is a table of counts, the most first.
func counted(b *strings.Builder, name string, counts map[string]int) {
	fmt.Fprintf(b, "| %s | times |\n|---|--:|\n", name)
	names := slices.SortedFunc(maps.Keys(counts), func(x, y string) int {
		if counts[x] != counts[y] {
			return counts[y] - counts[x]
		}
		return strings.Compare(x, y)
	})
	for _, each := range names {
		if counts[each] > 0 {
			fmt.Fprintf(b, "| %s | %s |\n", each, grouped(int64(counts[each])))
		}
	}
	b.WriteString("\n")
}

// states are those that were reached, and those that were not.
func states(b *strings.Builder, reached map[string]int, known []string) {
	counted(b, "state reached", reached)
	var never []string
	for _, state := range known {
		if reached[state] == 0 {
			never = append(never, state)
		}
	}
	switch len(never) {
	case 0:
		b.WriteString("Never reached: none of those that are looked for.\n\n")
	default:
		fmt.Fprintf(b, "Never reached: %s.\n\n", strings.Join(never, ", "))
	}
}

// grouped is a number with commas between thousands.
func grouped(n int64) string {
	text := fmt.Sprint(n)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

func sittings(n int) string {
	if n == 1 {
		return "1 sitting"
	}
	return fmt.Sprintf("%d sittings", n)
}
