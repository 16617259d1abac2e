package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/client"
	"github.com/balsa-run/balsa/internal/codec"
	"github.com/balsa-run/balsa/internal/revisions"
	"github.com/balsa-run/balsa/object"
)

func (a *app) rolloutHistory() *cobra.Command {
	var revision int64
	command := a.onDeployment(&cobra.Command{
		Use: "history deployment/NAME", Short: "List the revisions of a Deployment, or show one",
		Long: `History lists the revisions that are kept. With --revision it shows one: its pod
template as it was written, and how the ConfigMaps and Secrets that it refers to
differ from those of the revision before. Values of Secrets are never shown.

The cause of a revision is the Deployment's annotation
` + revisions.AnnotationChangeCause + ` at that time.`,
		Example: "  balsa rollout history deployment/hello\n  balsa rollout history deployment/hello --revision 3",
	}, func(ctx context.Context, c *client.Client, name string) error {
		r, err := a.readRollout(ctx, c, name)
		if err != nil {
			return err
		}
		if revision == 0 {
			a.printHistory(r)
			return nil
		}
		return a.printRevision(ctx, c, r, revision)
	})
	command.Flags().Int64Var(&revision, "revision", 0, "the revision to show; 0: list all")
	return command
}

func (a *app) printHistory(r rollout) {
	writer := tabwriter.NewWriter(a.out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(writer, "REVISION\tREPLICASET\tPODS\tSTATE\tAGE\tCHANGE-CAUSE")
	for _, rs := range r.sets {
		cause := rs.GetMetadata().GetAnnotations()[revisions.AnnotationChangeCause]
		fmt.Fprintf(writer, "%d\t%s\t%d\t%s\t%s\t%s\n", revisions.Of(rs), rs.GetMetadata().GetName(), rs.GetStatus().GetReplicas(),
			strings.Join(r.state(rs), ", "), age(rs.GetMetadata().GetCreationTimestamp(), time.Now()), or(oneLine(cause), "<none>"))
	}
	_ = writer.Flush() // its errors are those of a.out
}

func or(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

// state is what there is to say of a revision in a few words.
func (r rollout) state(rs *balsav1.ReplicaSet) (words []string) {
	failed := r.deployment.GetStatus().GetFailedRollout()
	revision := revisions.Of(rs)
	switch {
	case failed.GetReplicaSet() == rs.GetMetadata().GetName():
		words = append(words, "failed: "+failed.GetReason())
	case failed != nil && failed.GetRunningRevision() == revision:
		words = append(words, "runs instead")
	case revision == revisions.Of(r.deployment):
		words = append(words, "current")
	}
	if rs.GetMetadata().GetAnnotations()[revisions.AnnotationComplete] == "" && len(words) == 0 {
		words = append(words, "never complete")
	}
	if len(words) == 0 {
		return []string{"kept"}
	}
	return words
}

func (a *app) printRevision(ctx context.Context, c *client.Client, r rollout, revision int64) error {
	rs, err := r.find(revision)
	if err != nil {
		return err
	}
	pins, err := pinsOf(rs)
	if err != nil {
		return err
	}
	text, err := codec.MarshalYAML(revisions.UserTemplate(rs, pins))
	if err != nil {
		return err
	}
	fmt.Fprintf(a.out, "deployment/%s revision %d\ntemplate:\n%s\n", r.deployment.GetMetadata().GetName(), revision, indent(strings.TrimSpace(string(text))))
	if len(pins) == 0 {
		return nil
	}
	fmt.Fprintln(a.out, "contents:")
	for _, ref := range slices.SortedFunc(maps.Keys(pins), revisions.Compare) {
		fmt.Fprintf(a.out, "  %s: %s\n", ref, pinText(ref, pins[ref]))
	}
	i := slices.Index(r.sets, rs)
	if i == 0 {
		return nil
	}
	return a.printContentsDiff(ctx, c, r.sets[i-1], rs)
}

func pinsOf(rs *balsav1.ReplicaSet) (map[revisions.Ref]string, error) {
	pins, err := revisions.ParsePins(rs.GetMetadata().GetAnnotations()[revisions.AnnotationPins])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", short(rs), err)
	}
	return pins, nil
}

func pinText(ref revisions.Ref, name string) string {
	switch name {
	case "":
		return "was not there, and is needed: its pods wait"
	case revisions.AbsentName(ref.Name):
		return "was not there"
	}
	return "kept as " + name
}

// printContentsDiff tells how contents differ between two revisions.
func (a *app) printContentsDiff(ctx context.Context, c *client.Client, from, to *balsav1.ReplicaSet) error {
	lines, err := a.contentsDiff(ctx, c, from, to)
	if err != nil {
		return err
	}
	if len(lines) == 0 {
		fmt.Fprintf(a.out, "contents are those of revision %d\n", revisions.Of(from))
		return nil
	}
	fmt.Fprintf(a.out, "contents changed from revision %d:\n%s\n", revisions.Of(from), indent(strings.Join(lines, "\n")))
	return nil
}

func (a *app) contentsDiff(ctx context.Context, c *client.Client, from, to *balsav1.ReplicaSet) (lines []string, err error) {
	before, err := pinsOf(from)
	if err != nil {
		return nil, err
	}
	after, err := pinsOf(to)
	if err != nil {
		return nil, err
	}
	both := maps.Clone(before)
	if both == nil {
		both = map[revisions.Ref]string{}
	}
	maps.Copy(both, after)
	for _, ref := range slices.SortedFunc(maps.Keys(both), revisions.Compare) {
		if before[ref] == after[ref] {
			continue
		}
		x, err := a.readContent(ctx, c, ref, before[ref])
		if err != nil {
			return nil, err
		}
		y, err := a.readContent(ctx, c, ref, after[ref])
		if err != nil {
			return nil, err
		}
		if changes := diffContents(ref, x, y); len(changes) > 0 {
			lines = append(append(lines, ref.String()+":"), changes...)
		}
	}
	return lines, nil
}

// content is what a ConfigMap or Secret holds, by key. nil: it is not there.
type content map[string][]byte

// readContent reads an object by its name; "" is one that is not there.
func (a *app) readContent(ctx context.Context, c *client.Client, ref revisions.Ref, name string) (content, error) {
	if name == "" {
		return nil, nil
	}
	m, err := a.readConfig(ctx, c, ref, name)
	if err != nil || m == nil {
		return nil, err
	}
	return contentOf(m), nil
}

// readConfig is a ConfigMap or Secret; nil: there is none.
func (a *app) readConfig(ctx context.Context, c *client.Client, ref revisions.Ref, name string) (object.Message, error) {
	kind, err := kindNamed(ref.Kind)
	if err != nil {
		return nil, err
	}
	m, err := a.getOne(ctx, c, kind, name)
	if client.IsNotFound(err) {
		return nil, nil
	}
	if _, hidden := m.GetMetadata().GetAnnotations()[withheld]; err == nil && hidden {
		return nil, errWithheld
	}
	return m, err
}

func contentOf(m object.Message) content {
	out := content{}
	switch m := m.(type) {
	case *balsav1.ConfigMap:
		for key, value := range m.GetData() {
			out[key] = []byte(value)
		}
		maps.Copy(out, m.GetBinaryData())
	case *balsav1.Secret:
		maps.Copy(out, m.GetData())
	}
	return out
}

// diffContents lists keys that differ: "+" came, "-" went, "~" changed.
func diffContents(ref revisions.Ref, before, after content) (lines []string) {
	switch {
	case before == nil && after == nil:
		return nil
	case before == nil:
		lines = append(lines, "  was not there before")
	case after == nil:
		return []string{"  is not there"}
	}
	keys := maps.Clone(after)
	if keys == nil {
		keys = content{}
	}
	maps.Copy(keys, before)
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		x, had := before[key]
		y, has := after[key]
		switch {
		case !had:
			lines = append(lines, "  + "+key+valueText(ref, y))
		case !has:
			lines = append(lines, "  - "+key+valueText(ref, x))
		case string(x) != string(y) && ref.Kind == revisions.Secret:
			lines = append(lines, "  ~ "+key)
		case string(x) != string(y):
			lines = append(lines, "  ~ "+key+valueText(ref, x)+" ->"+strings.TrimPrefix(valueText(ref, y), ":"))
		}
	}
	return lines
}

// maxValueShown bounds how much of a value is shown.
const maxValueShown = 60

// valueText is a value after its key, nothing for Secrets.
func valueText(ref revisions.Ref, value []byte) string {
	if ref.Kind == revisions.Secret {
		return ""
	}
	if len(value) > maxValueShown {
		return fmt.Sprintf(": %q… (%d bytes)", value[:maxValueShown], len(value))
	}
	return fmt.Sprintf(": %q", value)
}

func indent(text string) string { return "  " + strings.ReplaceAll(text, "\n", "\n  ") }
