package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/client"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/object/manifest"
)

func (a *app) applyCommand() *cobra.Command {
	var files []string
	var dryRun bool
	command := &cobra.Command{
		Use: "apply -f FILE", Short: "Make the cluster agree with manifests", Args: cobra.NoArgs,
		Long: `Apply merges what manifests mention into the cluster's objects, or makes them.
Fields that an earlier apply mentioned and this one does not are removed; those
of others, such as replicas set by balsa scale, stay.

Every manifest is read and checked before the first is applied. A directory
stands for its .yaml, .yml and .json files in the order of their names, "-" for
standard input.

What balsa get -o yaml printed can be edited and applied: it replaces its object,
unless that was changed in between.`,
		Example: "  balsa apply -f examples/hello.yaml\n  balsa apply -f manifests/ --dry-run\n  balsa get deployment/hello -o yaml | sed s/echo:1/echo:2/ | balsa apply -f -",
		RunE: func(command *cobra.Command, _ []string) error {
			documents, err := a.read(files)
			if err != nil {
				return err
			}
			a.warnWhole(documents)
			c, err := a.connect()
			if err != nil {
				return err
			}
			return a.applyAll(command.Context(), c, documents, dryRun)
		},
	}
	command.Flags().StringArrayVarP(&files, "filename", "f", nil, "file, directory or - (may be repeated)")
	command.Flags().BoolVar(&dryRun, "dry-run", false, "do everything but write")
	return command
}

// read parses and checks all manifests; one mistake refuses them all.
func (a *app) read(files []string) ([]manifest.Document, error) {
	if len(files) == 0 {
		return nil, &usageError{errors.New("give manifests with -f FILE")}
	}
	var all []manifest.Document
	var wrong []error
	for _, file := range files {
		documents, err := a.readOne(file)
		all, wrong = append(all, documents...), append(wrong, err)
	}
	for _, document := range all {
		meta := object.EnsureMetadata(document.Message)
		if meta.Namespace == "" && object.KindOf(document.Message).Namespaced {
			meta.Namespace = a.namespace
		}
		checked := document.Message
		if isWhole(checked) {
			leaveOut(checked)
			checked = object.Clone(checked)
			checked.GetMetadata().Generation = 0
		}
		wrong = append(wrong, document.Invalid(object.ValidateInput(checked)))
	}
	return all, errors.Join(wrong...)
}

func (a *app) readOne(file string) ([]manifest.Document, error) {
	if file == "-" {
		return manifest.Parse("stdin", a.in)
	}
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return parseFile(file)
	}
	entries, err := os.ReadDir(file)
	if err != nil {
		return nil, err
	}
	var all []manifest.Document
	var wrong []error
	for _, entry := range entries {
		if slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(entry.Name())) {
			documents, err := parseFile(filepath.Join(file, entry.Name()))
			all, wrong = append(all, documents...), append(wrong, err)
		}
	}
	return all, errors.Join(wrong...)
}

func parseFile(path string) (documents []manifest.Document, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return manifest.Parse(path, io.Reader(file))
}

// warnWhole says what is not taken from manifests that were read from a cluster.
func (a *app) warnWhole(documents []manifest.Document) {
	var whole []string
	for _, document := range documents {
		if isWhole(document.Message) {
			whole = append(whole, short(document.Message))
		}
	}
	if len(whole) > 0 {
		fmt.Fprintf(a.errOut, "warning: %s: read from a cluster (metadata.uid is set), so status and what else servers write is left out\n", strings.Join(whole, ", "))
	}
}

func (a *app) applyAll(ctx context.Context, c *client.Client, documents []manifest.Document, dryRun bool) error {
	for _, document := range documents {
		result, err := a.applyOne(ctx, c, document.Message, dryRun)
		if err != nil {
			return fmt.Errorf("%s:%d: %s: %w", document.File, lineOf(document, err), short(document.Message), err)
		}
		fmt.Fprintf(a.out, "%s %s%s\n", short(document.Message), result, dryRunMark(dryRun))
	}
	return nil
}

func (a *app) applyOne(ctx context.Context, c *client.Client, m object.Message, dryRun bool) (result string, err error) {
	if isWhole(m) {
		return a.update(ctx, c, m, dryRun)
	}
	response, err := c.Objects.Apply(ctx, &balsav1.ApplyRequest{Object: object.Wrap(m), Manager: manager, DryRun: dryRun})
	return response.GetResult(), err
}

// lineOf is the line of the first field that the server refused.
func lineOf(document manifest.Document, err error) int {
	for _, violation := range client.Detail(err).GetViolations() {
		if line := document.LineOf(violation.GetField()); line > 0 {
			return line
		}
	}
	return document.Line
}

func dryRunMark(dryRun bool) string {
	if dryRun {
		return " (dry run)"
	}
	return ""
}

func (a *app) scaleCommand() *cobra.Command {
	var replicas int32
	command := &cobra.Command{
		Use: "scale KIND/NAME --replicas N", Short: "Set how many pods a Deployment or ReplicaSet has",
		Example: "  balsa scale deployment/hello --replicas 6",
		RunE: func(command *cobra.Command, args []string) error {
			kind, name, err := one(args)
			if err != nil {
				return err
			}
			if !command.Flags().Changed("replicas") {
				return &usageError{errors.New("give --replicas N")}
			}
			scaled, err := withReplicas(kind, a.namespace, name, replicas)
			if err != nil {
				return err
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			// The object must be there: an Apply would make one.
			if _, err := c.Objects.Get(command.Context(), &balsav1.GetRequest{Kind: kind.Name, Namespace: a.namespace, Name: name}); err != nil {
				return err
			}
			if _, err := c.Objects.Apply(command.Context(), &balsav1.ApplyRequest{Object: object.Wrap(scaled), Manager: manager + "-scale"}); err != nil {
				return err
			}
			fmt.Fprintf(a.out, "%s/%s scaled to %d\n", kind.Singular, name, replicas)
			return nil
		},
	}
	command.Flags().Int32Var(&replicas, "replicas", 0, "number of pods")
	return command
}

func withReplicas(kind object.Kind, namespace, name string, replicas int32) (object.Message, error) {
	meta := &balsav1.ObjectMeta{Namespace: namespace, Name: name}
	switch kind.Name {
	case "Deployment":
		return &balsav1.Deployment{ApiVersion: kind.APIVersion, Kind: kind.Name, Metadata: meta, Spec: &balsav1.DeploymentSpec{Replicas: &replicas}}, nil
	case "ReplicaSet":
		return &balsav1.ReplicaSet{ApiVersion: kind.APIVersion, Kind: kind.Name, Metadata: meta, Spec: &balsav1.ReplicaSetSpec{Replicas: &replicas}}, nil
	}
	return nil, &usageError{fmt.Errorf("a %s cannot be scaled; a Deployment or a ReplicaSet can", strings.ToLower(kind.Name))}
}
