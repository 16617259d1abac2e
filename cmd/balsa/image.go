package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/codec"

	"github.com/balsa-run/balsa/client"
)

// importChunk is how much of an archive one message carries.
const importChunk = 512 << 10

// pruneMinAge keeps what was just imported, before a pod is made of it.
const pruneMinAge = time.Hour

func (a *app) imageCommand() *cobra.Command {
	command := &cobra.Command{
		Use: "image", Short: "Bring images into the cluster, and see and remove them",
		Long: `The servers keep the images that are imported or pushed, and nodes fetch them from
there and from one another. An image that the servers keep under the exact name that a
pod has comes before one of a registry.`,
		Example: `  balsa image import echo.tar
  balsa image push ghcr.io/example/web:7
  balsa image list -o wide
  balsa image prune --dry-run`,
	}
	command.AddCommand(a.imageImport(), a.imagePush(), a.imageList(), a.imagePrune())
	return command
}

func (a *app) imageImport() *cobra.Command {
	var name string
	command := &cobra.Command{
		Use: "import FILE", Short: "Give an OCI or Docker archive to the servers", Args: cobra.ExactArgs(1),
		Long: `Import reads an archive of one or more images, tar or tar.gz, "-" for standard
input. It is done once a majority of the servers keep the images; nodes fetch them
from there when a pod needs one.`,
		Example: "  balsa image import echo.tar\n  balsa image import --name shop/web:7 web.tar.gz",
		RunE: func(command *cobra.Command, args []string) error {
			archive := a.in
			if args[0] != "-" {
				file, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer file.Close()
				archive = file
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			return a.importImage(command.Context(), c, archive, name)
		},
	}
	command.Flags().StringVar(&name, "name", "", "name for an archive that has none, or instead of its own")
	return command
}

func (a *app) importImage(ctx context.Context, c *client.Client, archive io.Reader, name string) error {
	stream, err := c.Images.Import(ctx)
	if err != nil {
		return err
	}
	buffer := make([]byte, importChunk)
	for {
		n, err := io.ReadFull(archive, buffer)
		if n > 0 {
			// A refusal shows as io.EOF here, and in full when the stream is closed.
			if err := stream.Send(&balsav1.ImportRequest{Name: name, Data: buffer[:n]}); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				return err
			}
			name = ""
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read the archive: %w", err)
		}
	}
	response, err := stream.CloseAndReceive()
	if err != nil {
		return err
	}
	for _, image := range response.GetImages() {
		fmt.Fprintf(a.out, "image %s imported, %s, %.19s\n", image.GetName(), size(image.GetSize()), image.GetDigest())
	}
	return nil
}

func (a *app) imageList() *cobra.Command {
	var output string
	command := &cobra.Command{
		Use: "list", Short: "List the images that the servers keep and nodes have", Args: cobra.NoArgs, Aliases: []string{"ls"},
		Long: `List tells of the images that the servers keep, and of those that nodes have told of:
each tells of its 50 largest. An image without a time of import is of a registry.`,
		Example: "  balsa image list\n  balsa image list -o wide\n  balsa image list -o json",
		RunE: func(command *cobra.Command, _ []string) error {
			if output != "" && output != "wide" && output != "json" && output != "yaml" {
				return &usageError{fmt.Errorf("-o %q: it can be wide, yaml or json", output)}
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			response, err := c.Images.ListImages(command.Context(), &balsav1.ListImagesRequest{})
			if err != nil {
				return err
			}
			return a.printImages(response, output)
		},
	}
	command.Flags().StringVarP(&output, "output", "o", "", "wide, yaml or json")
	return command
}

func (a *app) printImages(response *balsav1.ListImagesResponse, output string) error {
	switch output {
	case "json", "yaml":
		encode := codec.IndentedJSON
		if output == "yaml" {
			encode = codec.MarshalYAML
		}
		text, err := encode(response)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(a.out, "%s\n", bytes.TrimSpace(text))
		return err
	}
	writer := tabwriter.NewWriter(a.out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(writer, "NAME\tDIGEST\tSIZE\tIMPORTED\tNODES")
	for _, image := range response.GetImages() {
		digest, nodes, imported := image.GetDigest(), count(len(image.GetNodes())), "-"
		if output == "wide" {
			nodes = cmp.Or(strings.Join(image.GetNodes(), ","), "<none>")
		} else {
			digest = fmt.Sprintf("%.19s", digest)
		}
		if image.GetKept() {
			imported = age(image.GetImported(), time.Now()) + " ago"
		}
		fmt.Fprintf(writer, "%s\t%s\t%s\t%s\t%s\n", image.GetName(), digest, size(image.GetSize()), imported, nodes)
	}
	return writer.Flush()
}

func (a *app) imagePrune() *cobra.Command {
	var dryRun bool
	var minAge time.Duration
	command := &cobra.Command{
		Use: "prune", Short: "Remove images that no pod and no template names", Args: cobra.NoArgs,
		Long: `Prune removes from the servers what no pod, Deployment or ReplicaSet names, and from
each node what its pods do not use. What was imported less than --min-age ago stays.
A node that does not answer is told of, and prunes by itself when its disk fills.`,
		Example: "  balsa image prune --dry-run\n  balsa image prune --min-age 168h",
		RunE: func(command *cobra.Command, _ []string) error {
			if minAge < 0 {
				return &usageError{fmt.Errorf("--min-age %s: it cannot be negative", minAge)}
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			response, err := c.Images.PruneImages(command.Context(), &balsav1.PruneImagesRequest{
				DryRun: dryRun, MinAgeSeconds: int64(minAge / time.Second),
			})
			if err != nil {
				return err
			}
			return a.printPruned(response, dryRun)
		},
	}
	command.Flags().BoolVar(&dryRun, "dry-run", false, "tell what would go, and remove nothing")
	command.Flags().DurationVar(&minAge, "min-age", pruneMinAge, "keep what was imported less than this ago")
	return command
}

func (a *app) printPruned(response *balsav1.PruneImagesResponse, dryRun bool) error {
	removed, total := "removed", int64(0)
	if dryRun {
		removed = "would be removed"
	}
	for _, image := range response.GetImages() {
		where := "the servers"
		if image.GetNode() != "" {
			where = "node " + image.GetNode()
		}
		fmt.Fprintf(a.out, "image %s %s from %s\n", image.GetName(), removed, where)
		total += image.GetBytes()
	}
	noun := "images"
	if len(response.GetImages()) == 1 {
		noun = "image"
	}
	fmt.Fprintf(a.out, "%d %s, %s\n", len(response.GetImages()), noun, size(total))
	if n := len(response.GetUnavailable()); n > 0 {
		return fmt.Errorf("%d nodes did not answer: %s", n, strings.Join(response.GetUnavailable(), "; "))
	}
	return nil
}

func size(bytes int64) string {
	const unit = 1024
	if bytes < unit {
		return fmt.Sprintf("%d B", bytes)
	}
	value, suffixes := float64(bytes), "KMGT"
	i := -1
	for value >= unit && i < len(suffixes)-1 {
		value /= unit
		i++
	}
	return fmt.Sprintf("%.1f %ciB", value, suffixes[i])
}
