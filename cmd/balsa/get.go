package main

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/spf13/cobra"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/client"
	"github.com/balsa-run/balsa/object"
)

// query is one run of balsa get.
type query struct {
	all           bool
	output        string
	labels        string
	fields        string
	watch         bool
	managedFields bool
}

func (a *app) getCommand() *cobra.Command {
	var q query
	command := &cobra.Command{
		Use: "get (KIND[,KIND] [NAME...] | KIND/NAME...)", Short: "List objects, or show some",
		Example: "  balsa get pods -A -o wide\n  balsa get deployments,services -l app=hello\n  balsa get pod/hello-7d9f-x2k4j -o yaml\n  balsa get pods -w",
		RunE: func(command *cobra.Command, args []string) error {
			found, err := targets(args)
			if err != nil {
				return err
			}
			if err := q.check(found); err != nil {
				return err
			}
			if q.all {
				a.namespace = ""
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			if q.watch {
				return a.watch(command.Context(), c, found[0], &q)
			}
			return a.get(command.Context(), c, found, &q)
		},
	}
	flags := command.Flags()
	flags.BoolVarP(&q.all, "all-namespaces", "A", false, "look in all namespaces")
	flags.StringVarP(&q.output, "output", "o", "", "wide, yaml, json or name")
	flags.StringVarP(&q.labels, "selector", "l", "", `label selector, for example "app=hello,tier in (web,api)"`)
	flags.StringVar(&q.fields, "field-selector", "", `field selector, for example "spec.nodeName=n1"`)
	flags.BoolVarP(&q.watch, "watch", "w", false, "go on with changes")
	flags.BoolVar(&q.managedFields, "show-managed-fields", false, "show metadata.managedFields")
	return command
}

func (q *query) check(found []target) error {
	switch q.output {
	case "", "wide", "yaml", "json", "name":
	default:
		return &usageError{fmt.Errorf("-o %q: it can be wide, yaml, json or name", q.output)}
	}
	if q.watch && (len(found) != 1 || len(found[0].names) > 1) {
		return &usageError{errors.New("-w watches one kind, or one object")}
	}
	return nil
}

func (a *app) get(ctx context.Context, c *client.Client, found []target, q *query) error {
	var all []object.Message
	revision, single := "", len(found) == 1 && len(found[0].names) == 1
	for i, t := range found {
		messages, at, err := a.fetch(ctx, c, t, q)
		if err != nil {
			return err
		}
		revision = at
		if q.output != "" && q.output != "wide" {
			all = append(all, messages...)
			continue
		}
		if i > 0 {
			fmt.Fprintln(a.out)
		}
		a.table(t.kind, messages, q, len(found) > 1)
	}
	return a.structured(all, revision, q, single)
}

// fetch reads the named objects, or all of the kind.
func (a *app) fetch(ctx context.Context, c *client.Client, t target, q *query) (messages []object.Message, revision string, err error) {
	if len(t.names) > 0 {
		for _, name := range t.names {
			response, err := c.Objects.Get(ctx, &balsav1.GetRequest{Kind: t.kind.Name, Namespace: a.namespaceOf(t.kind), Name: name})
			if err != nil {
				return nil, "", err
			}
			message, err := object.Unwrap(response.GetObject())
			if err != nil {
				return nil, "", err
			}
			messages = append(messages, message)
		}
		return messages, "", nil
	}
	for page, err := range a.pages(ctx, c, t.kind, q) {
		if err != nil {
			return nil, "", err
		}
		more, err := unwrapAll(page.GetItems())
		if err != nil {
			return nil, "", err
		}
		messages, revision = append(messages, more...), page.GetMetadata().GetResourceVersion()
	}
	return messages, revision, nil
}

func (a *app) pages(ctx context.Context, c *client.Client, kind object.Kind, q *query) iter.Seq2[*balsav1.ListResponse, error] {
	request := &balsav1.ListRequest{Kind: kind.Name, Namespace: a.namespaceOf(kind), LabelSelector: q.labels, FieldSelector: q.fields}
	return func(yield func(*balsav1.ListResponse, error) bool) {
		for {
			page, err := c.Objects.List(ctx, request)
			request.Continue = page.GetMetadata().GetContinue()
			if !yield(page, err) || err != nil || request.Continue == "" {
				return
			}
		}
	}
}

// watch prints what there is, then every change, until it is stopped.
func (a *app) watch(ctx context.Context, c *client.Client, t target, q *query) error {
	if len(t.names) == 1 {
		q.fields = "metadata.name=" + t.names[0]
	}
	shown := a.newChanges(t.kind, q)
	for event, err := range client.WatchKind(ctx, c, t.kind, a.namespaceOf(t.kind), client.WatchOptions{LabelSelector: q.labels, FieldSelector: q.fields, Outage: a.outage()}) {
		if err == nil {
			err = shown.tell(event)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// changes prints what a watch tells.
type changes struct {
	app   *app
	query *query
	table *table // nil when whole objects are printed
	// first holds what there is, until it is complete and a table knows how wide
	// its columns are.
	first []object.Message
	begun bool
}

func (a *app) newChanges(kind object.Kind, q *query) *changes {
	c := &changes{app: a, query: q}
	if q.output == "" || q.output == "wide" {
		c.table = a.newTable(kind, q, false)
	}
	return c
}

func (c *changes) tell(event client.Event[object.Message]) error {
	switch {
	case event.Type == client.Synced && c.table != nil:
		c.table.begin(c.first)
		c.first, c.begun = nil, true
	case event.Type == client.Synced:
	case c.table == nil:
		return c.print(event.Object)
	case c.begun:
		c.table.row(event.Object, event.Type == client.Deleted)
	default:
		c.first = append(c.first, event.Object)
	}
	return nil
}

func (c *changes) print(message object.Message) error {
	if c.query.output == "yaml" {
		fmt.Fprintln(c.app.out, "---")
	}
	return c.app.structured([]object.Message{message}, "", c.query, true)
}
