package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/client"
	"github.com/balsa-run/balsa/object"
)

// deletion is one run of balsa delete.
type deletion struct {
	files  []string
	grace  int64
	orphan bool
	dryRun bool
	wait   bool
	within time.Duration
}

func (a *app) deleteCommand() *cobra.Command {
	var d deletion
	command := &cobra.Command{
		Use: "delete (-f FILE | KIND NAME... | KIND/NAME...)", Short: "Delete objects and what they own",
		Example: "  balsa delete -f examples/hello.yaml\n  balsa delete pod hello-7d9f-x2k4j --grace-period 0\n  balsa delete deployment/hello --orphan",
		RunE: func(command *cobra.Command, args []string) error {
			requests, err := a.deletions(args, &d)
			if err != nil {
				return err
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			for _, request := range requests {
				if command.Flags().Changed("grace-period") {
					request.GracePeriodSeconds = &d.grace
				}
				if err := a.deleteOne(command.Context(), c, request, &d); err != nil {
					return err
				}
			}
			return nil
		},
	}
	flags := command.Flags()
	flags.StringArrayVarP(&d.files, "filename", "f", nil, "manifests of what to delete (may be repeated)")
	flags.Int64Var(&d.grace, "grace-period", 0, "seconds a pod gets to end, instead of its own; 0: do not wait for its node")
	flags.BoolVar(&d.orphan, "orphan", false, "keep what the objects own")
	flags.BoolVar(&d.dryRun, "dry-run", false, "do everything but delete")
	flags.BoolVar(&d.wait, "wait", true, "wait until the objects are gone")
	flags.DurationVar(&d.within, "timeout", 2*time.Minute, "how long to wait")
	return command
}

// deletions lists what to delete: of manifests in reverse, so that what others
// refer to goes last.
func (a *app) deletions(args []string, d *deletion) ([]*balsav1.DeleteRequest, error) {
	var requests []*balsav1.DeleteRequest
	add := func(kind object.Kind, namespace, name string) {
		request := &balsav1.DeleteRequest{Kind: kind.Name, Namespace: namespace, Name: name, DryRun: d.dryRun}
		if d.orphan {
			request.PropagationPolicy = "Orphan"
		}
		requests = append(requests, request)
	}
	if len(d.files) > 0 {
		documents, err := a.read(d.files)
		if err != nil {
			return nil, err
		}
		for _, document := range slices.Backward(documents) {
			meta := document.Message.GetMetadata()
			add(object.KindOf(document.Message), meta.GetNamespace(), meta.GetName())
		}
		return requests, nil
	}
	found, err := targets(args)
	if err != nil {
		return nil, err
	}
	for _, t := range found {
		for _, name := range t.names {
			add(t.kind, a.namespaceOf(t.kind), name)
		}
	}
	if len(requests) == 0 {
		return nil, &usageError{errors.New("name what to delete: KIND NAME, KIND/NAME or -f FILE")}
	}
	return requests, nil
}

func (a *app) deleteOne(ctx context.Context, c *client.Client, request *balsav1.DeleteRequest, d *deletion) error {
	kind, err := kindNamed(request.GetKind())
	if err != nil {
		return err
	}
	response, err := c.Objects.Delete(ctx, request)
	if client.IsNotFound(err) && len(d.files) > 0 {
		fmt.Fprintf(a.out, "%s/%s is not there\n", kind.Singular, request.GetName())
		return nil
	}
	if err != nil {
		return err
	}
	if !response.GetDeleted() && d.wait && !d.dryRun {
		if err := a.waitGone(ctx, c, kind, response.GetObject(), d.within); err != nil {
			return err
		}
	}
	fmt.Fprintf(a.out, "%s/%s deleted%s\n", kind.Singular, request.GetName(), dryRunMark(d.dryRun))
	return nil
}

// waitGone watches until the very object that was marked is gone.
func (a *app) waitGone(ctx context.Context, c *client.Client, kind object.Kind, marked *balsav1.Object, within time.Duration) error {
	message, err := object.Unwrap(marked)
	if err != nil {
		return err
	}
	meta := message.GetMetadata()
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	for {
		response, err := c.Objects.Get(ctx, &balsav1.GetRequest{Kind: kind.Name, Namespace: meta.GetNamespace(), Name: meta.GetName()})
		if client.IsNotFound(err) {
			return nil
		}
		if err == nil {
			if now, err := object.Unwrap(response.GetObject()); err == nil && now.GetMetadata().GetUid() != meta.GetUid() {
				return nil
			}
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("%s is marked for deletion and was not gone within %v: balsa describe %s tells what it waits for", short(message), within, short(message))
		}
	}
}
