package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/client"
	"github.com/balsa-run/balsa/internal/codec"
	"github.com/balsa-run/balsa/internal/revisions"
	"github.com/balsa-run/balsa/object"
)

// undoing is one run of balsa rollout undo.
type undoing struct {
	to     int64
	dryRun bool
}

func (a *app) rolloutUndo() *cobra.Command {
	u := &undoing{}
	command := a.onDeployment(&cobra.Command{
		Use: "undo deployment/NAME", Short: "Go back to an earlier revision, its configuration included",
		Long: `Undo gives the Deployment the pod template of an earlier revision and has the
contents of ConfigMaps and Secrets used that this revision had, byte for byte. The
live objects are not written: each is used again as soon as somebody changes it, or
when the annotation ` + revisions.AnnotationPinned + ` of the Deployment is removed.

Without --to-revision it goes to the revision that runs in the place of a failed
one, or else to the one before the current.`,
		Example: "  balsa rollout undo deployment/hello\n  balsa rollout undo deployment/hello --to-revision 3 --dry-run",
	}, func(ctx context.Context, c *client.Client, name string) error {
		if u.to < 0 {
			return &usageError{fmt.Errorf("--to-revision %d is negative; balsa rollout history deployment/%s lists the revisions", u.to, name)}
		}
		return a.undo(ctx, c, name, u)
	})
	command.Flags().Int64Var(&u.to, "to-revision", 0, "the revision to go back to; 0: the one before")
	command.Flags().BoolVar(&u.dryRun, "dry-run", false, "say what would change")
	return command
}

func (a *app) undo(ctx context.Context, c *client.Client, name string, u *undoing) error {
	r, err := a.readRollout(ctx, c, name)
	if err != nil {
		return err
	}
	if r.deployment.GetSpec().GetPaused() {
		return fmt.Errorf("deployment/%s is paused: balsa rollout resume deployment/%s comes first", name, name)
	}
	to, err := r.before()
	if u.to > 0 {
		to, err = r.find(u.to)
	}
	if err != nil {
		return err
	}
	live, err := a.liveOf(ctx, c, to)
	if err != nil {
		return err
	}
	undone, err := revisions.Undo(r.deployment, to, live)
	if err != nil {
		return err
	}
	if u.dryRun && undone.Changed {
		if err := a.showUndo(ctx, c, r, to, undone); err != nil {
			return err
		}
	}
	if undone.Changed {
		if err := a.writeUndone(ctx, c, undone.Deployment, u.dryRun); err != nil {
			return err
		}
	}
	if undone.Already || !undone.Changed {
		fmt.Fprintf(a.out, "deployment/%s is at revision %d already%s\n", name, revisions.Of(to), dryRunMark(u.dryRun))
		return nil
	}
	fmt.Fprintf(a.out, "deployment/%s rolled back to revision %d%s\n", name, revisions.Of(to), dryRunMark(u.dryRun))
	for _, ref := range undone.Pinned {
		fmt.Fprintf(a.out, "  %s: as in revision %d, until the live object is changed\n", ref, revisions.Of(to))
	}
	for _, ref := range undone.Missing {
		fmt.Fprintf(a.errOut, "warning: %s was not there in revision %d; what is there now is used\n", ref, revisions.Of(to))
	}
	return nil
}

// writeUndone writes at the revision that was read: what was changed meanwhile
// may be what a person wants, and is not undone unseen. Status does not count.
func (a *app) writeUndone(ctx context.Context, c *client.Client, next *balsav1.Deployment, dryRun bool) error {
	read := next.GetMetadata().GetGeneration()
	leaveOut(next)
	next.GetMetadata().Generation = 0
	for attempt := 1; ; attempt++ {
		_, err := client.Update(ctx, c, next, client.WriteOptions{DryRun: dryRun})
		if !client.IsConflict(err) || attempt == updateAttempts {
			return err
		}
		now, err := client.Get[*balsav1.Deployment](ctx, c, a.namespace, next.GetMetadata().GetName(), client.GetOptions{})
		if err != nil {
			return err
		}
		if now.GetMetadata().GetUid() != next.GetMetadata().GetUid() || now.GetMetadata().GetGeneration() != read {
			return fmt.Errorf("deployment/%s was changed by somebody else meanwhile: look at it, and undo again if it is still wanted", next.GetMetadata().GetName())
		}
		next.Metadata.ResourceVersion = now.GetMetadata().GetResourceVersion()
	}
}

// liveOf compares what a revision has pinned with what is there now.
func (a *app) liveOf(ctx context.Context, c *client.Client, rs *balsav1.ReplicaSet) (map[revisions.Ref]revisions.Live, error) {
	pins, err := pinsOf(rs)
	if err != nil {
		return nil, err
	}
	live := map[revisions.Ref]revisions.Live{}
	for ref, name := range pins {
		now, err := a.readConfig(ctx, c, ref, ref.Name)
		if err != nil {
			return nil, err
		}
		l := revisions.Live{}
		if now != nil {
			l.Version = now.GetMetadata().GetResourceVersion()
		}
		if name != "" && name != revisions.AbsentName(ref.Name) {
			kept, err := a.readConfig(ctx, c, ref, name)
			if err != nil {
				return nil, err
			}
			l.Lost, l.Same = kept == nil, kept != nil && now != nil && string(bytesOf(kept)) == string(bytesOf(now))
		}
		live[ref] = l
	}
	return live, nil
}

func bytesOf(m object.Message) []byte {
	if secret, ok := m.(*balsav1.Secret); ok {
		return revisions.SecretContent(secret)
	}
	return revisions.ConfigMapContent(m.(*balsav1.ConfigMap))
}

// showUndo prints what an undo would change of the template and of contents.
func (a *app) showUndo(ctx context.Context, c *client.Client, r rollout, to *balsav1.ReplicaSet, u revisions.Undone) error {
	before, err := codec.MarshalYAML(r.deployment.GetSpec().GetTemplate())
	if err != nil {
		return err
	}
	after, err := codec.MarshalYAML(u.Deployment.GetSpec().GetTemplate())
	if err != nil {
		return err
	}
	lines := diffLines(strings.Split(strings.TrimSpace(string(before)), "\n"), strings.Split(strings.TrimSpace(string(after)), "\n"))
	if len(lines) > 0 {
		fmt.Fprintf(a.out, "template:\n%s\n", indent(strings.Join(lines, "\n")))
	}
	current, err := r.find(revisions.Of(r.deployment))
	if err != nil {
		return nil //nolint:nilerr // nothing of the current template was rolled out yet: there is nothing to compare with
	}
	changes, err := a.contentsDiff(ctx, c, current, to)
	if err == nil && len(changes) > 0 {
		fmt.Fprintf(a.out, "contents:\n%s\n", indent(strings.Join(changes, "\n")))
	}
	return err
}

// maxDiffLines bounds the lines that are compared with each other.
const maxDiffLines = 2000

// diffLines lists lines that only one of two texts has, "-" the first and "+" the
// second, around a longest common subsequence.
func diffLines(a, b []string) (out []string) {
	if len(a) > maxDiffLines || len(b) > maxDiffLines {
		return []string{fmt.Sprintf("(%d and %d lines are too many to compare)", len(a), len(b))}
	}
	longest := make([][]int, len(a)+1)
	for i := range longest {
		longest[i] = make([]int, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] {
				longest[i][j] = longest[i+1][j+1] + 1
			} else {
				longest[i][j] = max(longest[i+1][j], longest[i][j+1])
			}
		}
	}
	i, j := 0, 0
	for i < len(a) || j < len(b) {
		switch {
		case i < len(a) && j < len(b) && a[i] == b[j]:
			i, j = i+1, j+1
		case j == len(b) || i < len(a) && longest[i+1][j] >= longest[i][j+1]:
			out = append(out, "- "+a[i])
			i++
		default:
			out = append(out, "+ "+b[j])
			j++
		}
	}
	return slices.Clip(out)
}
