package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/client"
)

// importChunk is how much of an archive one message carries.
const importChunk = 512 << 10

func (a *app) imageCommand() *cobra.Command {
	command := &cobra.Command{Use: "image", Short: "Bring images into the cluster"}
	var name string
	imports := &cobra.Command{
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
	imports.Flags().StringVar(&name, "name", "", "name for an archive that has none, or instead of its own")
	list := &cobra.Command{
		Use: "list", Short: "List the images that the servers keep", Args: cobra.NoArgs, Aliases: []string{"ls"},
		Example: "  balsa image list",
		RunE: func(command *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			response, err := c.Images.ListImages(command.Context(), &balsav1.ListImagesRequest{})
			if err != nil {
				return err
			}
			writer := tabwriter.NewWriter(a.out, 0, 8, 3, ' ', 0)
			fmt.Fprintln(writer, "NAME\tDIGEST\tSIZE\tIMPORTED")
			for _, image := range response.GetImages() {
				fmt.Fprintf(writer, "%s\t%.19s\t%s\t%s ago\n", image.GetName(), image.GetDigest(), size(image.GetSize()), age(image.GetImported(), time.Now()))
			}
			return writer.Flush()
		},
	}
	command.AddCommand(imports, list)
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
