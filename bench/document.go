package bench

import (
	"fmt"
	"strings"
	"time"
)

// Document is what docs/benchmarks.md is made of.
type Document struct {
	// Title and Maker are the document's name and what writes it.
	Title, Maker string
	// Preface is what the reader has to know of all figures; empty: nothing.
	Preface string
	Machine Machine
	Version string // of the binary that was measured
	Date    time.Time
	// Quick marks figures of too few values to rely on.
	Quick   bool
	Results []Result
}

// Markdown renders the document; equal documents give equal bytes.
func (d Document) Markdown() string {
	var text strings.Builder
	fmt.Fprintf(&text, "# %s\n\nWritten by `%s`; do not edit. Every figure is of the real binary, run as processes that talk over\n"+
		"network namespaces of one machine, and shares the machine's cores with its own load. Percentiles are nearest-rank.\n\n", d.Title, d.Maker)
	if d.Preface != "" {
		text.WriteString(d.Preface + "\n\n")
	}
	if d.Quick {
		text.WriteString("**This was a quick run of few values, for development.**\n\n")
	}
	d.machine(&text)
	d.targets(&text)
	d.figures(&text)
	for _, r := range d.Results {
		section(&text, r)
	}
	return text.String()
}

func (d Document) machine(text *strings.Builder) {
	m := d.Machine
	fmt.Fprintf(text, "## The machine\n\n| | |\n|---|---|\n| CPU | %s, %d cores |\n| memory | %.1f GB |\n| kernel | Linux %s |\n| system | %s |\n| file system | %s |\n| balsa | %s |\n| date | %s |\n",
		m.CPU, m.Cores, m.MemoryGB, m.Kernel, m.System, m.Disk, d.Version, d.Date.UTC().Format(time.DateOnly))
	if load, ok := d.load(); ok {
		fmt.Fprintf(text, "| load average | %.1f before the first measure, %.1f to %.1f during them |\n", load.Before, load.Least, load.Most)
	}
	text.WriteString("\n")
	if load, ok := d.load(); ok && load.Before > float64(m.Cores)/2 {
		fmt.Fprintf(text, "**The machine was busy with other work**: its load average was %.1f on %d cores before anything was measured. Times and\n"+
			"rates are worse than those of an idle machine, by how much these figures do not tell.\n\n", load.Before, m.Cores)
	}
}

// load is that of all measures together.
func (d Document) load() (Load, bool) {
	if len(d.Results) == 0 {
		return Load{}, false
	}
	all := d.Results[0].Load
	for _, r := range d.Results {
		all.Least, all.Most = min(all.Least, r.Load.Least), max(all.Most, r.Load.Most)
	}
	return all, true
}

// targets says in words which are met.
func (d Document) targets(text *strings.Builder) {
	var met, missed, unknown []string
	for _, r := range d.Results {
		for _, target := range r.Targets {
			verdict := fmt.Sprintf("%s: %s", r.Name, target.words(r))
			switch {
			case r.Err != nil:
				unknown = append(unknown, verdict)
			case target.met(r):
				met = append(met, verdict)
			default:
				missed = append(missed, verdict)
			}
		}
	}
	text.WriteString("## Targets\n\n")
	list(text, "Met", met)
	list(text, "Missed", missed)
	list(text, "Not measured", unknown)
}

func (t Target) met(r Result) bool { return t.Of.Of(r.Samples.Values) < t.Under }

func (t Target) words(r Result) string {
	word := "target"
	if t.Aim {
		word = "aim"
	}
	if r.Err != nil {
		return fmt.Sprintf("%s under %s is the %s", t.Of, r.Unit.show(t.Under), word)
	}
	return fmt.Sprintf("%s is %s; the %s is under %s", t.Of, r.Unit.show(t.Of.Of(r.Samples.Values)), word, r.Unit.show(t.Under))
}

func list(text *strings.Builder, title string, items []string) {
	if len(items) == 0 {
		fmt.Fprintf(text, "%s: none.\n\n", title)
		return
	}
	fmt.Fprintf(text, "%s:\n\n", title)
	for _, item := range items {
		fmt.Fprintf(text, "* %s\n", item)
	}
	text.WriteString("\n")
}

func (d Document) figures(text *strings.Builder) {
	text.WriteString("## Figures\n\n| measure | p50 | p25 to p75 | min | p99 | max | values | load average |\n|---|---|---|---|---|---|---|---|\n")
	for _, r := range d.Results {
		if r.Err != nil {
			fmt.Fprintf(text, "| %s | not measured | | | | | | |\n", r.Name)
			continue
		}
		show := func(s Statistic) string { return fmt.Sprintf("%.*f", r.Unit.Decimals, s.Of(r.Samples.Values)) }
		fmt.Fprintf(text, "| %s | **%s** | %s to %s | %s | %s | %s | %d | %.1f to %.1f |\n", r.Name, r.Unit.show(Median.Of(r.Samples.Values)),
			show(Quartile), show(Upper), show(Minimum), show(P99), show(Maximum), len(r.Samples.Values), r.Load.Least, r.Load.Most)
	}
	text.WriteString("\n")
}

func section(text *strings.Builder, r Result) {
	fmt.Fprintf(text, "## %s\n\n%s\n\n", r.Name, r.Question)
	if r.Err != nil {
		text.WriteString("* not measured: it failed, and the run said why\n\n")
		return
	}
	fmt.Fprintf(text, "* %s\n", sentence(r))
	for _, note := range r.Samples.Notes {
		fmt.Fprintf(text, "* %s\n", note)
	}
	fmt.Fprintf(text, "* %s\n\n", r.Load)
}

func sentence(r Result) string {
	show := func(s Statistic) string { return r.Unit.show(s.Of(r.Samples.Values)) }
	return fmt.Sprintf("median %s, half of the values between %s and %s, all between %s and %s (%d values)",
		show(Median), show(Quartile), show(Upper), show(Minimum), show(Maximum), len(r.Samples.Values))
}
