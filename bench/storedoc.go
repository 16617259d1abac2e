package bench

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// The marks between which the comparison with etcd stands in a document that has
// other parts as well.
const (
	storeBegins = "<!-- bench-store begins -->"
	storeEnds   = "<!-- bench-store ends -->"
)

// StoreDocument is the comparison of the store with etcd.
type StoreDocument struct {
	Machine Machine
	Version string
	Peers   string
	Date    time.Time
	Quick   bool
	// Some: not all measures were asked for.
	Some    bool
	Results []Comparison
	Log     LogDocument
}

// Markdown renders the part; equal documents give equal bytes.
func (d StoreDocument) Markdown() string {
	var text strings.Builder
	fmt.Fprintf(&text, "%s\n## The store beside etcd\n\nWritten by `make bench-store`; do not edit. Balsa %s beside %s: three members each, mutual TLS for clients and peers on both,\n"+
		"all on one disk (%s) with fsync on, load by etcd's own benchmark tool against all endpoints. Both clusters run all the time and take turns; what is compared\n"+
		"is round by round. A ratio is the geometric mean of the rounds' ratios with its 95%% interval (Student's t, of logarithms). A floor is missed when the\n"+
		"whole interval lies on its wrong side. %s, %d cores, Linux %s, %s.\n\n",
		storeBegins, d.Version, d.Peers, d.Machine.Disk, d.Machine.CPU, d.Machine.Cores, d.Machine.Kernel, d.Date.UTC().Format(time.DateOnly))
	if d.Quick {
		text.WriteString("**This was a quick run of few values, for development.**\n\n")
	}
	if d.Some {
		text.WriteString("**These are some of the measures.**\n\n")
	}
	text.WriteString("| measure | Balsa | etcd | Balsa / etcd | floor | verdict |\n|---|---|---|---|---|---|\n")
	for _, c := range d.Results {
		text.WriteString(c.row())
	}
	text.WriteString("\nWhere the time goes, by profile: [Where the store's time goes](internals/store-profile.md).\n\n")
	for _, c := range d.Results {
		text.WriteString(c.section())
	}
	text.WriteString(d.Log.Markdown(d.Results))
	text.WriteString(storeEnds + "\n")
	return text.String()
}

func (c Comparison) sides() (ours, theirs []float64) {
	for _, p := range c.Pairs {
		ours, theirs = append(ours, p.Ours), append(theirs, p.Theirs)
	}
	return ours, theirs
}

func (c Comparison) row() string {
	if c.Err != nil || len(c.Pairs) == 0 {
		return fmt.Sprintf("| %s | | | | %s | not measured |\n", c.Name, c.floor())
	}
	ours, theirs := c.sides()
	ratio := "-"
	if r, err := RatioOf(c.Pairs); err == nil {
		ratio = r.String()
	}
	verdict := c.Verdict()
	if verdict == "below floor" {
		verdict = "**below floor**"
	}
	return fmt.Sprintf("| %s | %s | %s | %s | %s | %s |\n", c.Name, c.Unit.show(Median.Of(ours)), c.Unit.show(Median.Of(theirs)), ratio, c.floor(), verdict)
}

func (c Comparison) floor() string {
	switch {
	case c.Limit > 0:
		return "under " + c.Unit.show(c.Limit)
	case c.Floor != nil:
		return c.Floor.String()
	}
	return "-"
}

// section publishes every round.
func (c Comparison) section() string {
	var text strings.Builder
	fmt.Fprintf(&text, "### %s\n\n%s\n\n", c.Name, c.Question)
	if c.Err != nil {
		text.WriteString("* not measured: it failed, and the run said why\n\n")
		return text.String()
	}
	for _, note := range c.Notes {
		fmt.Fprintf(&text, "* %s\n", note)
	}
	var rounds []string
	for _, p := range c.Pairs {
		rounds = append(rounds, fmt.Sprintf("%.*f / %.*f", c.Unit.Decimals, p.Ours, c.Unit.Decimals, p.Theirs))
	}
	fmt.Fprintf(&text, "* every round, Balsa / etcd in %s: %s\n\n", c.Unit.Name, strings.Join(rounds, ", "))
	return text.String()
}

// summary is the comparison in a line.
func (c Comparison) summary() string {
	if c.Err != nil {
		return "NOT MEASURED: " + c.Err.Error()
	}
	return strings.TrimSpace(strings.ReplaceAll(c.row(), "|", " "))
}

// Missed is an error that names what is below its floor, and what was not
// measured.
func (d StoreDocument) Missed() error {
	var all []error
	for _, c := range d.Results {
		switch {
		case c.Err != nil:
			all = append(all, fmt.Errorf("%s was not measured: %w", c.Name, c.Err))
		case c.Verdict() == "below floor":
			all = append(all, fmt.Errorf("%s is below its floor", c.Name))
		}
	}
	return errors.Join(append(all, d.Log.Missed())...)
}

// WriteStore puts the part into a document in place of the one before, or at its
// end.
func WriteStore(path, part string) error {
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	before, _, after := cutStore(string(old))
	return os.WriteFile(path, []byte(before+part+after), 0o644)
}

// KeepStore puts the part that a document has into its next version.
func KeepStore(path, next string) string {
	old, err := os.ReadFile(path)
	if err != nil {
		return next
	}
	_, part, _ := cutStore(string(old))
	return next + part
}

func cutStore(text string) (before, part, after string) {
	begins, ends := strings.Index(text, storeBegins), strings.Index(text, storeEnds+"\n")
	if begins < 0 || ends < begins {
		return text, "", ""
	}
	ends += len(storeEnds) + 1
	return text[:begins], text[begins:ends], text[ends:]
}
