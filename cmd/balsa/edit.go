package main

import (
	"context"
	"errors"
	"fmt"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/client"
	"github.com/balsa-run/balsa/object"
)

// edit reads an object, lets change alter a copy of it, and writes that if it was
// altered: at the revision that was read, so that nothing of others is undone.
func (a *app) edit(ctx context.Context, c *client.Client, kind object.Kind, name string, dryRun bool, change func(object.Message) (bool, error)) (changed bool, err error) {
	for attempt := 1; ; attempt++ {
		next, err := a.getOne(ctx, c, kind, name)
		if err != nil {
			return false, err
		}
		if changed, err := change(next); err != nil || !changed {
			return false, err
		}
		leaveOut(next)
		next.GetMetadata().Generation = 0
		_, err = c.Objects.Update(ctx, &balsav1.UpdateRequest{Object: object.Wrap(next), DryRun: dryRun})
		if !client.IsConflict(err) || attempt == updateAttempts {
			return err == nil, err
		}
	}
}

// getOne is an object of which the caller may change its copy.
func (a *app) getOne(ctx context.Context, c *client.Client, kind object.Kind, name string) (object.Message, error) {
	response, err := c.Objects.Get(ctx, &balsav1.GetRequest{Kind: kind.Name, Namespace: a.namespaceOf(kind), Name: name})
	if err != nil {
		return nil, err
	}
	message, err := object.Unwrap(response.GetObject())
	if err != nil {
		return nil, err
	}
	return object.Clone(message), nil
}

// choice is how a command line says which objects of a kind it means.
type choice struct {
	kind     object.Kind
	names    []string
	selector string
	all      bool
}

func (w *choice) check() error {
	ways := 0
	for _, used := range []bool{len(w.names) > 0, w.selector != "", w.all} {
		if used {
			ways++
		}
	}
	if ways != 1 {
		return &usageError{fmt.Errorf("say which %s: by name, with -l SELECTOR or with --all, and by one of these only", w.kind.Plural)}
	}
	return nil
}

// find names the objects that are meant. That a selector meets none is an error:
// it is mostly misspelt.
func (w *choice) find(ctx context.Context, a *app, c *client.Client) ([]string, error) {
	if len(w.names) > 0 {
		return w.names, nil
	}
	var names []string
	for page, err := range a.pages(ctx, c, w.kind, &query{labels: w.selector}) {
		if err != nil {
			return nil, err
		}
		messages, err := unwrapAll(page.GetItems())
		if err != nil {
			return nil, err
		}
		for _, message := range messages {
			names = append(names, message.GetMetadata().GetName())
		}
	}
	switch {
	case len(names) > 0:
		return names, nil
	case w.selector != "":
		return nil, fmt.Errorf("no %s has labels that fit %q", w.kind.Singular, w.selector)
	}
	return nil, errors.New("there are no " + w.kind.Plural)
}
