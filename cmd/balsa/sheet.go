package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// sheet prints what describe tells: names and values in two columns, one inside
// the other by indentation.
type sheet struct {
	writer *tabwriter.Writer
	depth  int
}

func newSheet(out io.Writer) *sheet { return &sheet{writer: tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)} }

func (s *sheet) flush() error { return s.writer.Flush() }

func (s *sheet) indent() string { return strings.Repeat("  ", s.depth) }

// row is a name with its value, "<none>" for none.
func (s *sheet) row(name, value string) {
	if value == "" {
		value = "<none>"
	}
	fmt.Fprintf(s.writer, "%s%s:\t%s\n", s.indent(), name, value)
}

// some is a row that is left out without a value.
func (s *sheet) some(name, value string) {
	if value != "" {
		s.row(name, value)
	}
}

// part is a title with what belongs to it.
func (s *sheet) part(title string, inside func()) {
	fmt.Fprintf(s.writer, "%s%s:\n", s.indent(), title)
	s.depth++
	inside()
	s.depth--
}

// list is a row of several values, the first beside the name and the others
// below it.
func (s *sheet) list(name string, values []string) {
	if len(values) == 0 {
		s.row(name, "")
		return
	}
	for i, value := range values {
		title := name + ":"
		if i > 0 {
			title = ""
		}
		fmt.Fprintf(s.writer, "%s%s\t%s\n", s.indent(), title, value)
	}
}

// table is a title with rows of cells, whose columns are its own: what is above
// and below is not aligned with them.
func (s *sheet) table(title string, rows ...[]string) {
	if len(rows) < 2 {
		s.row(title, "")
		return
	}
	_ = s.flush() // its errors are those of the last flush too
	s.part(title, func() {
		for _, row := range rows {
			for i := range row {
				if row[i] == "" {
					row[i] = "-"
				}
			}
			fmt.Fprintln(s.writer, s.indent()+strings.Join(row, "\t"))
		}
	})
	_ = s.flush()
}

// pairsOf are labels and the like, in their order.
func pairsOf(m map[string]string, between string) []string {
	var pairs []string
	for _, key := range slices.Sorted(maps.Keys(m)) {
		pairs = append(pairs, key+between+m[key])
	}
	return pairs
}

func quantities(m map[string]*balsav1.Quantity) []string {
	texts := map[string]string{}
	for name, q := range m {
		texts[name] = q.GetString_()
	}
	return pairsOf(texts, " ")
}

// identity is what every sheet begins with.
func (s *sheet) identity(meta *balsav1.ObjectMeta) {
	s.row("Name", meta.GetName())
	s.some("Namespace", meta.GetNamespace())
}

func (s *sheet) marks(meta *balsav1.ObjectMeta) {
	s.list("Labels", pairsOf(meta.GetLabels(), "="))
	s.list("Annotations", pairsOf(meta.GetAnnotations(), ": "))
}

func (s *sheet) conditions(conditions []*balsav1.Condition) {
	rows := [][]string{{"TYPE", "STATUS", "SINCE", "REASON", "MESSAGE"}}
	for _, c := range conditions {
		rows = append(rows, []string{c.GetType(), c.GetStatus(), timeText(c.GetLastTransitionTime()), c.GetReason(), c.GetMessage()})
	}
	s.table("Conditions", rows...)
}
