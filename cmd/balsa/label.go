package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/client"
	"github.com/balsa-run/balsa/object"
)

// marking is one run of balsa label or balsa annotate.
type marking struct {
	choice
	noun      string // what is changed: label, annotation
	done      string // what has become of the object: labeled, annotated
	pairs     pairs
	overwrite bool
	dryRun    bool
}

func labelMarking() *marking    { return &marking{noun: "label", done: "labeled"} }
func annotateMarking() *marking { return &marking{noun: "annotation", done: "annotated"} }

func (a *app) labelCommand() *cobra.Command {
	m := labelMarking()
	return a.markCommand(m, nil, &cobra.Command{
		Use: "label (KIND NAME... | KIND/NAME...) KEY=VALUE... KEY-...", Short: "Set and remove labels",
		Example: "  balsa label pod hello-7d9f-x2k4j tier=web\n  balsa label deployment/hello tier=api --overwrite\n  balsa label pods -l app=hello tier-",
	})
}

func (a *app) annotateCommand() *cobra.Command {
	m := annotateMarking()
	return a.markCommand(m, nil, &cobra.Command{
		Use: "annotate (KIND NAME... | KIND/NAME...) KEY=VALUE... KEY-...", Short: "Set and remove annotations",
		Example: "  balsa annotate deployment/hello owner=\"team a\"\n  balsa annotate pods --all owner-",
	})
}

// markCommand completes a command that changes labels or annotations: of any
// kind, or of the one that it is for.
func (a *app) markCommand(m *marking, only *object.Kind, command *cobra.Command) *cobra.Command {
	command.RunE = func(command *cobra.Command, args []string) (err error) {
		what, changes := cut(args, isPair)
		if m.pairs, err = readPairs(m.noun, changes); err != nil {
			return err
		}
		if only != nil {
			m.kind, m.names = *only, what
			return a.mark(command.Context(), []choice{m.choice}, m)
		}
		found, err := targets(what)
		if err != nil {
			return err
		}
		var choices []choice
		for _, t := range found {
			choices = append(choices, choice{kind: t.kind, names: t.names, selector: m.selector, all: m.all})
		}
		return a.mark(command.Context(), choices, m)
	}
	flags := command.Flags()
	flags.StringVarP(&m.selector, "selector", "l", "", "the objects that have these labels")
	flags.BoolVar(&m.all, "all", false, "all objects of the kind")
	flags.BoolVar(&m.overwrite, "overwrite", false, "change values that are set already")
	flags.BoolVar(&m.dryRun, "dry-run", false, "do everything but write")
	return command
}

func (a *app) mark(ctx context.Context, choices []choice, m *marking) error {
	for _, w := range choices {
		if err := w.check(); err != nil {
			return err
		}
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	for _, w := range choices {
		names, err := w.find(ctx, a, c)
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := a.markOne(ctx, c, w.kind, name, m); err != nil {
				return err
			}
		}
	}
	return nil
}

func (a *app) markOne(ctx context.Context, c *client.Client, kind object.Kind, name string, m *marking) error {
	changed, err := a.edit(ctx, c, kind, name, m.dryRun, func(o object.Message) (bool, error) {
		meta := object.EnsureMetadata(o)
		values := &meta.Labels
		if m.noun == "annotation" {
			values = &meta.Annotations
		}
		return m.apply(short(o), values)
	})
	if err != nil {
		return err
	}
	done := m.done
	switch {
	case !changed:
		done = "not " + done + ": it is so already"
	case len(m.pairs.set) == 0:
		done = "un" + done
	}
	fmt.Fprintf(a.out, "%s/%s %s%s\n", kind.Singular, name, done, dryRunMark(m.dryRun))
	return nil
}

// apply makes the change to the labels or annotations of an object.
func (m *marking) apply(of string, values *map[string]string) (changed bool, err error) {
	for _, key := range slices.Sorted(maps.Keys(m.pairs.set)) {
		old, has := (*values)[key]
		value := m.pairs.set[key]
		if has && old != value && !m.overwrite {
			return false, fmt.Errorf("%s has the %s %s=%s: --overwrite changes it", of, m.noun, key, old)
		}
		if !has || old != value {
			*values, changed = setKey(*values, key, value), true
		}
	}
	for _, key := range m.pairs.remove {
		if _, has := (*values)[key]; has {
			delete(*values, key)
			changed = true
		}
	}
	return changed, nil
}

// pairs are changes of labels or annotations.
type pairs struct {
	set    map[string]string
	remove []string
}

// cut divides arguments into what is to be changed and the changes.
func cut(args []string, isChange func(string) bool) (what, changes []string) {
	for _, arg := range args {
		if isChange(arg) {
			changes = append(changes, arg)
		} else {
			what = append(what, arg)
		}
	}
	return what, changes
}

// isPair: no name of an object has a "=" or ends with a "-".
func isPair(arg string) bool { return strings.Contains(arg, "=") || strings.HasSuffix(arg, "-") }

func readPairs(noun string, changes []string) (pairs, error) {
	p := pairs{set: map[string]string{}}
	if len(changes) == 0 {
		return p, &usageError{errors.New("say what to change: KEY=VALUE sets a " + noun + ", KEY- removes it")}
	}
	for _, change := range changes {
		key, value, set := strings.Cut(change, "=")
		if !set {
			key = strings.TrimSuffix(change, "-")
		}
		_, twice := p.set[key]
		switch {
		case key == "":
			return p, &usageError{fmt.Errorf("%q has no key; allowed: KEY=VALUE and KEY-", change)}
		case twice || slices.Contains(p.remove, key):
			return p, &usageError{fmt.Errorf("%s is named twice", key)}
		case set:
			p.set[key] = value
		default:
			p.remove = append(p.remove, key)
		}
	}
	return p, nil
}

// taintsOf gives the taints of a node for a change.
func taintsOf(m object.Message) *[]*balsav1.Taint {
	node := m.(*balsav1.Node)
	if node.Spec == nil {
		node.Spec = &balsav1.NodeSpec{}
	}
	return &node.Spec.Taints
}
