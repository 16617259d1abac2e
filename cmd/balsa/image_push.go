package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/spf13/cobra"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/ociarchive"

	"github.com/balsa-run/balsa/client"
	"github.com/balsa-run/balsa/daemon"
)

const (
	// pushParallel blobs travel at once; each is tried pushAttempts times.
	pushParallel = 3
	pushAttempts = 4
	pushPause    = time.Second
	// progressEvery is the time between two looks of the progress line.
	progressEvery = 200 * time.Millisecond
	// maxDockerConfig bounds what docker login has left.
	maxDockerConfig = 1 << 20
)

type pushOptions struct {
	arch, credentials, registries string
}

func (a *app) imagePush() *cobra.Command {
	var opt pushOptions
	command := &cobra.Command{
		Use: "push REF|ARCHIVE|LAYOUT-DIR [NAME]", Short: "Push an image to the servers, without a registry", Args: cobra.RangeArgs(1, 2),
		Long: `Push brings an image from where it is to the servers: from an archive (tar or tar.gz,
OCI or Docker), from a directory in OCI layout, or from a registry by its name. Only blobs
that no server has travel. What a push that broke has sent is not sent again.

NAME is what pods call the image; without it the image keeps its own name.`,
		Example: `  balsa image push build/oci shop/web:7
  balsa image push web.tar
  balsa image push docker.io/library/nginx:1.29`,
		RunE: func(command *cobra.Command, args []string) error {
			name := ""
			if len(args) == 2 {
				name = args[1]
			}
			images, done, err := openPush(command.Context(), args[0], name, opt)
			if err != nil {
				return err
			}
			defer done()
			c, err := a.connect()
			if err != nil {
				return err
			}
			for _, image := range images {
				if err := a.push(command.Context(), c, image); err != nil {
					return err
				}
			}
			return nil
		},
	}
	flags := command.Flags()
	flags.StringVar(&opt.arch, "arch", runtime.GOARCH, "which of the platforms of an image, by its architecture")
	flags.StringVar(&opt.credentials, "credentials", "", "what docker login keeps (default ~/.docker/config.json, if it is there)")
	flags.StringVar(&opt.registries, "registries", "", "a node's registry configuration, for mirrors and authorities")
	return command
}

// pushImage is an image that is to be pushed, wherever it is.
type pushImage struct {
	names     []string
	manifest  []byte
	mediaType string
	open      func(ctx context.Context, digest string) (io.ReadCloser, error)
}

// openPush finds out what an argument is: a file or directory comes before a
// name.
func openPush(ctx context.Context, from, name string, opt pushOptions) ([]pushImage, func(), error) {
	info, err := os.Stat(from)
	switch {
	case err == nil && info.IsDir():
		images, err := openLayout(from, name, opt.arch)
		return images, func() {}, err
	case err == nil:
		return openArchive(ctx, from, name, opt.arch)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, nil, err
	}
	normal, err := ociarchive.NormalizeName(from)
	if err != nil {
		return nil, nil, &usageError{fmt.Errorf("%q is no file, no directory and no name of an image: %w", from, err)}
	}
	return openRemote(ctx, normal, name, opt)
}

func openRemote(ctx context.Context, from, name string, opt pushOptions) ([]pushImage, func(), error) {
	login, err := dockerConfig(opt.credentials)
	if err != nil {
		return nil, nil, err
	}
	remote, err := daemon.OpenRegistryImage(ctx, from, opt.arch, opt.registries, login)
	if err != nil {
		return nil, nil, err
	}
	if name == "" {
		name = from
	}
	image := pushImage{names: []string{name}, manifest: remote.Manifest, open: remote.Open}
	return []pushImage{image}, func() { _ = remote.Close() }, nil
}

// dockerConfig is only looked for where docker puts it if it was not named.
func dockerConfig(path string) ([]byte, error) {
	named := path != ""
	if !named {
		home, err := os.UserHomeDir()
		if err != nil {
			return nil, nil // nobody is logged in
		}
		path = filepath.Join(home, ".docker", "config.json")
	}
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) && !named {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, maxDockerConfig))
}

// openArchive unpacks an archive to a directory for the time of the push.
func openArchive(ctx context.Context, path, name, arch string) ([]pushImage, func(), error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer file.Close()
	dir, err := os.MkdirTemp("", "balsa-push-")
	if err != nil {
		return nil, nil, err
	}
	done := func() { _ = os.RemoveAll(dir) }
	blobs := blobDir(dir)
	found, err := ociarchive.Import(ctx, file, blobs, ociarchive.Options{Name: name, Architecture: arch})
	if err != nil {
		done()
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	var images []pushImage
	for _, image := range found {
		manifest, err := blobs.document(image.Manifest.Digest)
		if err != nil {
			done()
			return nil, nil, err
		}
		images = append(images, pushImage{names: image.Names, manifest: manifest, mediaType: image.Manifest.MediaType, open: blobs.Open})
	}
	return images, done, nil
}

// push sends what is missing of an image and names it.
func (a *app) push(ctx context.Context, c *client.Client, image pushImage) error {
	manifest, err := ociarchive.ParseManifest(image.manifest)
	if err != nil {
		return err
	}
	if image.mediaType == "" {
		image.mediaType = string(manifest.MediaType)
	}
	sizes := map[string]int64{}
	for _, d := range append(manifest.Layers, manifest.Config) {
		sizes[d.Digest.String()] = d.Size
	}
	sent, err := a.pushBlobs(ctx, c, image, sizes)
	if err != nil {
		return fmt.Errorf("push %s: %w", image.names[0], err)
	}
	for _, name := range image.names {
		response, err := c.Images.PushImage(ctx, &balsav1.PushImageRequest{Name: name, Manifest: image.manifest, MediaType: image.mediaType})
		if err != nil {
			return err
		}
		pushed := response.GetImage()
		fmt.Fprintf(a.out, "image %s pushed, %s, %d of %d blobs were new, %.19s\n", pushed.GetName(), size(pushed.GetSize()), sent, len(sizes), pushed.GetDigest())
	}
	return nil
}

func (a *app) pushBlobs(ctx context.Context, c *client.Client, image pushImage, sizes map[string]int64) (sent int, err error) {
	request := &balsav1.MissingBlobsRequest{}
	for digest := range sizes {
		request.Digests = append(request.Digests, digest)
	}
	missing, err := c.Images.MissingBlobs(ctx, request)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	line := a.progress(missing.GetDigests(), sizes)
	defer line.end()
	places := make(chan struct{}, pushParallel)
	var wg sync.WaitGroup
	for _, digest := range missing.GetDigests() {
		wg.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			if err := pushBlob(ctx, c, image, digest, sizes[digest], line); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	return len(missing.GetDigests()), nil
}

// pushBlob tries again what broke, not what was refused.
func pushBlob(ctx context.Context, c *client.Client, image pushImage, digest string, bytes int64, line *progressLine) error {
	for attempt := 1; ; attempt++ {
		sent, err := sendBlob(ctx, c, image, digest, bytes, line)
		if err == nil || ctx.Err() != nil || attempt >= pushAttempts || !client.IsUnavailable(err) {
			return err
		}
		line.add(-sent)
		select {
		case <-time.After(pushPause * time.Duration(attempt)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func sendBlob(ctx context.Context, c *client.Client, image pushImage, digest string, bytes int64, line *progressLine) (sent int64, err error) {
	blob, err := image.open(ctx, digest)
	if err != nil {
		return 0, err
	}
	defer blob.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.Images.PushBlob(ctx)
	if err != nil {
		return 0, err
	}
	request := &balsav1.PushBlobRequest{Digest: digest, Size: bytes}
	buffer := make([]byte, importChunk)
	for {
		n, readErr := io.ReadFull(blob, buffer)
		if n > 0 || request.GetDigest() != "" {
			request.Data = buffer[:n]
			// A refusal shows as io.EOF here, and in full when the stream is closed.
			if err := stream.Send(request); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				return sent, err
			}
			request = &balsav1.PushBlobRequest{}
			sent += int64(n)
			line.add(int64(n))
		}
		if errors.Is(readErr, io.EOF) || errors.Is(readErr, io.ErrUnexpectedEOF) {
			break
		}
		if readErr != nil {
			return sent, fmt.Errorf("read blob %s: %w", digest, readErr)
		}
	}
	_, err = stream.CloseAndReceive()
	return sent, err
}

// progressLine tells, on a terminal, how far a push is.
type progressLine struct {
	out         io.Writer // nil: nowhere
	mu          sync.Mutex
	done, total int64     // guarded by mu
	told        time.Time // guarded by mu
}

func (a *app) progress(digests []string, sizes map[string]int64) *progressLine {
	p := &progressLine{}
	for _, digest := range digests {
		p.total += sizes[digest]
	}
	if file, ok := a.errOut.(*os.File); ok && p.total > 0 {
		if info, err := file.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
			p.out = file
		}
	}
	return p
}

func (p *progressLine) add(bytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done += bytes
	if p.out != nil && time.Since(p.told) >= progressEvery {
		p.told = time.Now()
		fmt.Fprintf(p.out, "\r\x1b[Kpushing: %s of %s", size(p.done), size(p.total))
	}
}

func (p *progressLine) end() {
	if p.out != nil {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
}
