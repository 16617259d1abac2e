package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/object"
)

// tainting is one run of balsa node taint.
type tainting struct {
	choice
	set, remove []*balsav1.Taint // an effect of "" removes all of the key's
	overwrite   bool
	dryRun      bool
}

func (a *app) nodeTaint() *cobra.Command {
	t := &tainting{choice: choice{kind: nodeKind()}}
	command := &cobra.Command{
		Use: "taint NODE... KEY=VALUE:EFFECT... KEY:EFFECT-... KEY-...", Short: "Keep pods away from nodes, but for those that tolerate it",
		Long: `Taint puts a taint on nodes, or takes it away. Effects are NoSchedule (no new
pods), PreferNoSchedule (none while others have room) and NoExecute (those that
are there end as well). A pod that tolerates a taint is not kept away by it.`,
		Example: "  balsa node taint n1 disk=slow:NoSchedule\n  balsa node taint n1 n2 disk:NoSchedule-\n  balsa node taint -l zone=a maintenance:NoExecute",
		RunE: func(command *cobra.Command, args []string) (err error) {
			var changes []string
			t.names, changes = cut(args, isTaint)
			if t.set, t.remove, err = readTaints(changes); err != nil {
				return err
			}
			return a.eachNode(command.Context(), &t.choice, func(n nodeIn) error { return a.taint(n, t) })
		},
	}
	t.choice.flags(command)
	command.Flags().BoolVar(&t.overwrite, "overwrite", false, "change values that are set already")
	command.Flags().BoolVar(&t.dryRun, "dry-run", false, "do everything but write")
	return command
}

func isTaint(arg string) bool { return isPair(arg) || strings.Contains(arg, ":") }

// readTaints takes KEY=VALUE:EFFECT, KEY:EFFECT, KEY:EFFECT- and KEY-.
func readTaints(changes []string) (set, remove []*balsav1.Taint, err error) {
	if len(changes) == 0 {
		return nil, nil, &usageError{errors.New("say what to change: KEY=VALUE:EFFECT or KEY:EFFECT adds a taint, KEY:EFFECT- or KEY- removes it")}
	}
	for _, change := range changes {
		text, away := strings.CutSuffix(change, "-")
		pair, effect, _ := strings.Cut(text, ":")
		key, value, _ := strings.Cut(pair, "=")
		effects := []string{object.TaintNoSchedule, object.TaintPreferNoSchedule, object.TaintNoExecute}
		if key == "" || !slices.Contains(effects, effect) && !(away && effect == "") {
			return nil, nil, &usageError{fmt.Errorf("%q is no change of a taint; allowed: KEY=VALUE:EFFECT, KEY:EFFECT, KEY:EFFECT- and KEY-, where EFFECT is one of %s", change, strings.Join(effects, ", "))}
		}
		taint := &balsav1.Taint{Key: key, Value: value, Effect: effect}
		if away {
			remove = append(remove, taint)
		} else {
			set = append(set, taint)
		}
	}
	return set, remove, nil
}

func (a *app) taint(n nodeIn, t *tainting) error {
	changed, err := a.edit(n.ctx, n.client, t.kind, n.name, t.dryRun, func(m object.Message) (bool, error) { return t.apply(m) })
	if err != nil {
		return err
	}
	done := "tainted"
	switch {
	case !changed:
		done = "not tainted: it is so already"
	case len(t.set) == 0:
		done = "untainted"
	}
	fmt.Fprintf(a.out, "node/%s %s%s\n", n.name, done, dryRunMark(t.dryRun))
	return nil
}

func (t *tainting) apply(m object.Message) (changed bool, err error) {
	taints := taintsOf(m)
	before := len(*taints)
	*taints = slices.DeleteFunc(*taints, func(has *balsav1.Taint) bool {
		return slices.ContainsFunc(t.remove, func(r *balsav1.Taint) bool {
			return r.GetKey() == has.GetKey() && (r.GetEffect() == "" || r.GetEffect() == has.GetEffect())
		})
	})
	changed = len(*taints) != before
	for _, taint := range t.set {
		at := slices.IndexFunc(*taints, func(has *balsav1.Taint) bool {
			return has.GetKey() == taint.GetKey() && has.GetEffect() == taint.GetEffect()
		})
		switch {
		case at < 0:
			*taints, changed = append(*taints, taint), true
		case (*taints)[at].GetValue() == taint.GetValue():
		case !t.overwrite:
			return false, fmt.Errorf("%s has the taint %s: --overwrite changes it", short(m), taintText((*taints)[at]))
		default:
			(*taints)[at], changed = taint, true
		}
	}
	return changed, nil
}

// taintText is a taint as kubectl and balsa node taint write it.
func taintText(t *balsav1.Taint) string {
	text := t.GetKey()
	if t.GetValue() != "" {
		text += "=" + t.GetValue()
	}
	return text + ":" + t.GetEffect()
}

// eachNode does something to every node that is meant, until one fails.
func (a *app) eachNode(ctx context.Context, w *choice, do func(nodeIn) error) error {
	if err := w.check(); err != nil {
		return err
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	names, err := w.find(ctx, a, c)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := do(nodeIn{ctx, c, name}); err != nil {
			return err
		}
	}
	return nil
}
