package main

import (
	"bytes"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/balsa-run/balsa/internal/codec"
	"github.com/balsa-run/balsa/object"
)

// structured prints objects as YAML, JSON or names; for tables it does nothing.
func (a *app) structured(messages []object.Message, revision string, q *query, single bool) error {
	for i, message := range messages {
		if !q.managedFields {
			messages[i] = object.Clone(message)
			messages[i].GetMetadata().ManagedFields = nil
		}
	}
	switch q.output {
	case "name":
		for _, message := range messages {
			fmt.Fprintln(a.out, short(message))
		}
		return nil
	case "json":
		return a.json(messages, revision, single)
	case "yaml":
		return a.yaml(messages, single)
	}
	return nil
}

// json prints one object as it is, several as a List.
func (a *app) json(messages []object.Message, revision string, single bool) error {
	if single {
		text, err := codec.IndentedJSON(messages[0])
		if err != nil {
			return err
		}
		fmt.Fprintf(a.out, "%s\n", bytes.TrimSpace(text))
		return nil
	}
	var list bytes.Buffer
	fmt.Fprintf(&list, "{\n  \"apiVersion\": \"v1\",\n  \"kind\": \"List\",\n  \"metadata\": {\"resourceVersion\": %q},\n  \"items\": [", revision)
	for i, message := range messages {
		text, err := codec.IndentedJSON(message)
		if err != nil {
			return err
		}
		if i > 0 {
			list.WriteByte(',')
		}
		fmt.Fprintf(&list, "\n    %s", bytes.ReplaceAll(bytes.TrimSpace(text), []byte("\n"), []byte("\n    ")))
	}
	list.WriteString("\n  ]\n}\n")
	_, err := a.out.Write(list.Bytes())
	return err
}

// yaml prints objects as documents that balsa apply takes.
func (a *app) yaml(messages []object.Message, single bool) error {
	for _, message := range messages {
		text, err := codec.MarshalYAML(message)
		if err != nil {
			return err
		}
		if !single {
			fmt.Fprintln(a.out, "---")
		}
		fmt.Fprintf(a.out, "%s\n", bytes.TrimSpace(text))
	}
	return nil
}

// table prints objects of one kind, a row each.
type table struct {
	app        *app
	kind       object.Kind
	columns    []column
	namespaces bool // with a column for the namespace
	prefix     bool // names with their kind, where tables of several kinds follow
	widths     []int
	now        func() time.Time
}

func (a *app) newTable(kind object.Kind, q *query, prefix bool) *table {
	t := &table{app: a, kind: kind, namespaces: q.all && kind.Namespaced, prefix: prefix, now: time.Now}
	for _, c := range columnsOf(kind) {
		if !c.wide || q.output == "wide" {
			t.columns = append(t.columns, c)
		}
	}
	return t
}

// table prints a whole list, its columns as wide as they need to be.
func (a *app) table(kind object.Kind, messages []object.Message, q *query, prefix bool) {
	if len(messages) == 0 {
		where := ""
		if kind.Namespaced && !q.all {
			where = fmt.Sprintf(" in namespace %s", a.namespace)
		}
		fmt.Fprintf(a.errOut, "no %s found%s\n", kind.Plural, where)
		return
	}
	t := a.newTable(kind, q, prefix)
	writer := tabwriter.NewWriter(a.out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(writer, strings.Join(t.titles(), "\t"))
	for _, message := range messages {
		fmt.Fprintln(writer, strings.Join(t.cells(message), "\t"))
	}
	_ = writer.Flush() // its errors are those of a.out, which the next print meets
}

func (t *table) titles() []string {
	var titles []string
	if t.namespaces {
		titles = append(titles, "NAMESPACE")
	}
	titles = append(titles, "NAME")
	for _, c := range t.columns {
		titles = append(titles, c.title)
	}
	return append(titles, "AGE")
}

func (t *table) cells(message object.Message) []string {
	var cells []string
	meta := message.GetMetadata()
	if t.namespaces {
		cells = append(cells, meta.GetNamespace())
	}
	name := rowName(message)
	if t.prefix {
		name = t.kind.Singular + "/" + name
	}
	cells = append(cells, name)
	for _, c := range t.columns {
		value := c.value(message)
		if value == "" {
			value = "<none>"
		}
		cells = append(cells, value)
	}
	return append(cells, age(meta.GetCreationTimestamp(), t.now()))
}

// begin prints the head of a table that grows, and the rows that there are.
// Rows that follow keep to its widths as far as they can.
func (t *table) begin(messages []object.Message) {
	rows := [][]string{t.titles()}
	for _, message := range messages {
		rows = append(rows, t.cells(message))
	}
	for _, row := range rows {
		t.widen(row)
	}
	for _, row := range rows {
		t.line(row)
	}
}

func (t *table) row(message object.Message, deleted bool) {
	cells := t.cells(message)
	if deleted {
		cells[len(cells)-1] += " (deleted)"
	}
	t.widen(cells)
	t.line(cells)
}

func (t *table) widen(cells []string) {
	const padding = 3
	for len(t.widths) < len(cells) {
		t.widths = append(t.widths, 0)
	}
	for i, cell := range cells {
		t.widths[i] = max(t.widths[i], len(cell)+padding)
	}
}

func (t *table) line(cells []string) {
	var text strings.Builder
	for i, cell := range cells[:len(cells)-1] {
		fmt.Fprintf(&text, "%-*s", t.widths[i], cell)
	}
	fmt.Fprintln(t.app.out, text.String()+cells[len(cells)-1])
}

// age is the time since then.
func age(then *timestamppb.Timestamp, now time.Time) string {
	if then == nil {
		return "<unknown>"
	}
	return since(then.AsTime(), now)
}

// since is a duration in the two units that matter: 45s, 3m10s, 2h5m, 4d.
func since(then, now time.Time) string {
	passed := max(0, now.Sub(then))
	switch {
	case passed < 2*time.Minute:
		return fmt.Sprintf("%ds", int(passed.Seconds()))
	case passed < 10*time.Minute:
		return fmt.Sprintf("%dm%ds", int(passed.Minutes()), int(passed.Seconds())%60)
	case passed < 3*time.Hour:
		return fmt.Sprintf("%dm", int(passed.Minutes()))
	case passed < 48*time.Hour:
		return fmt.Sprintf("%dh%dm", int(passed.Hours()), int(passed.Minutes())%60)
	}
	return fmt.Sprintf("%dd", int(passed.Hours())/24)
}
