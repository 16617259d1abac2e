package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/client"
)

// copyChunk is how much of an archive one message carries.
const copyChunk = 64 << 10

func (a *app) cpCommand() *cobra.Command {
	var container string
	var preserve bool
	command := &cobra.Command{
		Use: "cp [NAMESPACE/]POD:PATH LOCAL | LOCAL [NAMESPACE/]POD:PATH", Short: "Copy files and folders from and to a container", Args: cobra.ExactArgs(2),
		Long: `Copy files and folders from and to a container; it needs no program for that.
What is copied into a folder that exists gets its old name there, else it gets
the new name. "-" stands for a tar stream on standard input or output. Copied to
a container, files belong to its root unless --preserve is given; copied from
one, devices, pipes and links that lead out of the folder are left out.`,
		Example: "  balsa cp web-0:/var/log/app ./logs\n  balsa cp site.conf prod/web-0:/etc/app/\n  balsa cp web-0:/data - | tar t\n  tar c . | balsa cp - web-0:/data",
		RunE: func(command *cobra.Command, args []string) error {
			from, fromPod := a.remotePath(args[0], container)
			to, toPod := a.remotePath(args[1], container)
			if fromPod == toPod {
				return &usageError{errors.New("give one path here and one in a pod, for example: balsa cp my-pod:/etc/hosts hosts")}
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			if fromPod {
				return a.copyFrom(command.Context(), c, from, args[1])
			}
			return a.copyTo(command.Context(), c, args[0], to, preserve)
		},
	}
	command.Flags().StringVarP(&container, "container", "c", "", "container; may be left out when there is one")
	command.Flags().BoolVar(&preserve, "preserve", false, "keep the numbers of owners and groups")
	return command
}

// remotePath is a path in a container.
type remotePath struct{ namespace, pod, container, path string }

// remotePath reads NAMESPACE/POD:PATH; a path that begins with a dot or a slash is
// local whatever it holds.
func (a *app) remotePath(text, container string) (remotePath, bool) {
	name, p, ok := strings.Cut(text, ":")
	if !ok || name == "" || strings.HasPrefix(text, ".") || strings.HasPrefix(text, "/") {
		return remotePath{}, false
	}
	r := remotePath{namespace: a.namespace, pod: name, container: container, path: p}
	if namespace, pod, ok := strings.Cut(name, "/"); ok {
		r.namespace, r.pod = namespace, pod
	}
	if !path.IsAbs(r.path) {
		r.path = "/" + r.path
	}
	return r, true
}

func (r remotePath) String() string { return r.pod + ":" + r.path }

// copyFrom brings a file or folder here.
func (a *app) copyFrom(ctx context.Context, c *client.Client, from remotePath, to string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.Pods.CopyOut(ctx, &balsav1.CopyOutRequest{Namespace: from.namespace, Name: from.pod, Container: from.container, Path: from.path})
	if err != nil {
		return err
	}
	defer stream.Close()
	archive := bufio.NewReaderSize(&chunks{next: func() ([]byte, error) {
		if stream.Receive() {
			return stream.Msg().GetTar(), nil
		}
		if err := stream.Err(); err != nil {
			return nil, err
		}
		return nil, io.EOF
	}}, copyChunk)
	if to == "-" {
		_, err := io.Copy(a.out, archive)
		return err
	}
	// Before anything is made here: the path may not exist there.
	if _, err := archive.Peek(1); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	parent, name := filepath.Split(filepath.Clean(to))
	if info, err := os.Stat(to); err == nil && info.IsDir() {
		parent, name = to, path.Base(path.Clean(from.path))
	} else if strings.HasSuffix(to, string(filepath.Separator)) {
		return fmt.Errorf("%s is no folder: make it first", to)
	}
	if name == "/" || name == "." {
		name = "root"
	}
	if parent == "" {
		parent = "."
	}
	x := &extraction{warn: a.errOut, top: name}
	if err := x.into(parent, archive); err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	return nil
}

// chunks reads messages as bytes.
type chunks struct {
	next func() ([]byte, error)
	have []byte
}

func (r *chunks) Read(p []byte) (int, error) {
	for len(r.have) == 0 {
		var err error
		if r.have, err = r.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.have)
	r.have = r.have[n:]
	return n, nil
}

// copyTo sends a file or folder to a container.
func (a *app) copyTo(ctx context.Context, c *client.Client, from string, to remotePath, preserve bool) error {
	if from == "-" {
		return a.sendArchive(ctx, c, to, func(w io.Writer) error {
			_, err := io.Copy(w, a.in)
			return err
		})
	}
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	from, err = filepath.Abs(from)
	if err != nil {
		return err
	}
	name := filepath.Base(from)
	if isFolder, err := a.isRemoteFolder(ctx, c, to); err != nil {
		return err
	} else if !isFolder {
		if strings.HasSuffix(to.path, "/") {
			return fmt.Errorf("%s is no folder: make it first", to)
		}
		name = path.Base(to.path)
		to.path = path.Dir(to.path)
	}
	p := &packing{warn: a.errOut, preserve: preserve}
	err = a.sendArchive(ctx, c, to, func(w io.Writer) error { return p.pack(w, from, name, info) })
	if err != nil {
		return fmt.Errorf("copy to %s: %w", to, err)
	}
	return nil
}

// isRemoteFolder asks by unpacking nothing there.
func (a *app) isRemoteFolder(ctx context.Context, c *client.Client, to remotePath) (bool, error) {
	err := a.sendArchive(ctx, c, to, func(w io.Writer) error { return emptyArchive(w) })
	if client.IsNotFound(err) || isNoFolder(err) {
		// The pod may be what is missing: its parent tells.
		parent := to
		parent.path = path.Dir(path.Clean(to.path))
		return false, a.sendArchive(ctx, c, parent, func(w io.Writer) error { return emptyArchive(w) })
	}
	return err == nil, err
}

func isNoFolder(err error) bool {
	return err != nil && strings.Contains(err.Error(), "want a folder that exists")
}

// sendArchive sends what write writes, and waits until it is unpacked.
func (a *app) sendArchive(ctx context.Context, c *client.Client, to remotePath, write func(io.Writer) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.Pods.CopyIn(ctx)
	if err != nil {
		return err
	}
	start := &balsav1.CopyInStart{Namespace: to.namespace, Name: to.pod, Container: to.container, Path: to.path}
	if err := stream.Send(&balsav1.CopyInRequest{Message: &balsav1.CopyInRequest_Start{Start: start}}); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	refused := false
	w := bufio.NewWriterSize(sender(func(p []byte) error {
		err := stream.Send(&balsav1.CopyInRequest{Message: &balsav1.CopyInRequest_Tar{Tar: p}})
		refused = refused || errors.Is(err, io.EOF)
		return err
	}), copyChunk)
	if err = write(w); err == nil {
		err = w.Flush()
	}
	if err != nil && !refused {
		cancel() // what was sent is not the whole
		_, _ = stream.CloseAndReceive()
		return err
	}
	_, err = stream.CloseAndReceive()
	return err
}

type sender func(p []byte) error

func (s sender) Write(p []byte) (int, error) {
	for done := 0; done < len(p); done += copyChunk {
		if err := s(p[done:min(done+copyChunk, len(p))]); err != nil {
			return done, err
		}
	}
	return len(p), nil
}
