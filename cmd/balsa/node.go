package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/client"
	"github.com/balsa-run/balsa/object"
)

func (a *app) nodeCommand() *cobra.Command {
	command := &cobra.Command{Use: "node", Short: "Look after nodes"}
	kind := nodeKind()
	command.AddCommand(a.nodeList(), a.nodeCordon(), a.nodeUncordon(), a.nodeDrain(), a.nodeTaint(),
		a.markCommand(labelMarking(), &kind, &cobra.Command{
			Use: "label NODE... KEY=VALUE... KEY-...", Short: "Set and remove labels of nodes",
			Example: "  balsa node label n1 n2 disk=ssd\n  balsa node label n1 disk-",
		}),
		a.markCommand(annotateMarking(), &kind, &cobra.Command{
			Use: "annotate NODE... KEY=VALUE... KEY-...", Short: "Set and remove annotations of nodes",
			Example: "  balsa node annotate n1 rack=\"7, upper half\"\n  balsa node annotate n1 rack-",
		}),
		a.nodeRemove())
	return command
}

func nodeKind() object.Kind { return object.KindOf(&balsav1.Node{}) }

// nodeIn is one node that a command is about.
type nodeIn struct {
	ctx    context.Context
	client *client.Client
	name   string
}

func (w *choice) flags(command *cobra.Command) {
	command.Flags().StringVarP(&w.selector, "selector", "l", "", "the nodes that have these labels")
	command.Flags().BoolVar(&w.all, "all", false, "all nodes")
}

func (a *app) nodeList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the nodes", Args: cobra.NoArgs, Aliases: []string{"ls"}, Example: "  balsa node list",
		RunE: func(command *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			return a.get(command.Context(), c, []target{{kind: nodeKind()}}, &query{output: "wide"})
		},
	}
}

func (a *app) nodeRemove() *cobra.Command {
	return &cobra.Command{
		Use: "remove NODE", Short: "Remove a node: its pods go elsewhere, its certificate is refused", Args: cobra.ExactArgs(1),
		Long: `Remove a node for good. Its certificate is refused within seconds and its Node object is
deleted; controllers make its pods anew elsewhere at once, without waiting for the new
ones to be ready: drain it first if they should.

An agent that runs and reaches a server is told. It then ends its containers, each with
its grace period, and stops; that takes some seconds more than the grace periods. An agent
that is down or cut off is told when it is back, and until then its containers run on.
The contents of persistent volumes stay on the node's disk.

To let the node in again, start its agent with a new token (balsa token create --role agent).`,
		Example: "  balsa node drain n2 && balsa node remove n2",
		RunE: func(command *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			if err := known(command.Context(), c, "agent", args[0]); err != nil {
				return err
			}
			// The identity first: a node that still had it would register again.
			if _, err := c.Cluster.RemoveIdentity(command.Context(), &balsav1.RemoveIdentityRequest{Role: "agent", Name: args[0]}); err != nil {
				return err
			}
			if _, err := client.Delete[*balsav1.Node](command.Context(), c, "", args[0], client.DeleteOptions{}); err != nil && !client.IsNotFound(err) {
				return err
			}
			fmt.Fprintf(a.out, "node %s removed\n", args[0])
			fmt.Fprintf(a.errOut, "Its agent ends its containers, each with its grace period, when a server tells it: within seconds if it runs.\n")
			return nil
		},
	}
}

func (a *app) nodeCordon() *cobra.Command {
	return a.cordonCommand(true, &cobra.Command{
		Use: "cordon NODE...", Short: "Place no new pods on nodes",
		Example: "  balsa node cordon n1\n  balsa node cordon -l zone=a",
	})
}

func (a *app) nodeUncordon() *cobra.Command {
	return a.cordonCommand(false, &cobra.Command{
		Use: "uncordon NODE...", Short: "Place pods on nodes again",
		Example: "  balsa node uncordon n1\n  balsa node uncordon --all",
	})
}

func (a *app) cordonCommand(cordon bool, command *cobra.Command) *cobra.Command {
	w, dryRun := &choice{kind: nodeKind()}, false
	command.RunE = func(command *cobra.Command, args []string) error {
		w.names = args
		return a.eachNode(command.Context(), w, func(n nodeIn) error { return a.cordon(n, cordon, dryRun) })
	}
	w.flags(command)
	command.Flags().BoolVar(&dryRun, "dry-run", false, "do everything but write")
	return command
}

// cordon keeps new pods from a node, or lets them come again. Those that are
// there stay.
func (a *app) cordon(n nodeIn, cordon, dryRun bool) error {
	changed, err := a.edit(n.ctx, n.client, nodeKind(), n.name, dryRun, func(m object.Message) (bool, error) {
		node := m.(*balsav1.Node)
		if node.GetSpec().GetUnschedulable() == cordon {
			return false, nil
		}
		if node.Spec == nil {
			node.Spec = &balsav1.NodeSpec{}
		}
		node.Spec.Unschedulable = nil
		if cordon {
			node.Spec.Unschedulable = &cordon
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	done := "cordoned"
	if !cordon {
		done = "uncordoned"
	}
	if !changed {
		done = "already " + done
	}
	fmt.Fprintf(a.out, "node/%s %s%s\n", n.name, done, dryRunMark(dryRun))
	return nil
}
