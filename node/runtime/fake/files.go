package fake

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/balsa-run/balsa/node/runtime"
)

// maxFileBytes bounds the files of one simulated container.
const maxFileBytes = 64 << 20

// files are a container's, by absolute path. Guarded by the machine's lock.
type files map[string]*file

type file struct {
	header  tar.Header
	content []byte
}

func newFiles() files {
	f := files{}
	for _, dir := range []string{"/", "/bin", "/data", "/etc", "/tmp"} {
		f[dir] = &file{header: tar.Header{Typeflag: tar.TypeDir, Mode: 0o755}}
	}
	return f
}

func (f files) bytes() int64 {
	n := int64(0)
	for _, each := range f {
		n += int64(len(each.content))
	}
	return n
}

func (f files) content(name string) string {
	if found := f[path.Clean(name)]; found != nil {
		return string(found.content)
	}
	return ""
}

// CopyOut implements runtime.Streams.
func (r *Runtime) CopyOut(ctx context.Context, uid runtime.PodUID, container, name string, w io.Writer) error {
	found, err := r.collect(ctx, uid, container, name)
	if err != nil {
		return err
	}
	archive := tar.NewWriter(w)
	for _, each := range found {
		if err := archive.WriteHeader(&each.header); err != nil {
			return err
		}
		if _, err := archive.Write(each.content); err != nil {
			return err
		}
	}
	return archive.Close()
}

// collect takes a picture of the files, so that a slow reader holds up nobody.
func (r *Runtime) collect(ctx context.Context, uid runtime.PodUID, container, name string) ([]file, error) {
	if !path.IsAbs(name) {
		return nil, fmt.Errorf("path %q: want an absolute path: %w", name, runtime.ErrInvalid)
	}
	if err := r.enter(ctx); err != nil {
		return nil, err
	}
	defer r.m.mu.Unlock()
	c, err := r.runningLocked(uid, container)
	if err != nil {
		return nil, err
	}
	top := path.Clean(name)
	if c.files[top] == nil {
		return nil, fmt.Errorf("path %s: %w", name, fs.ErrNotExist)
	}
	as := path.Base(top)
	if top == "/" {
		as = "."
	}
	var found []file
	for _, p := range slices.Sorted(maps.Keys(c.files)) {
		rest, below := strings.CutPrefix(p, strings.TrimSuffix(top, "/")+"/")
		if p != top && !below {
			continue
		}
		each := *c.files[p]
		each.header.Name = path.Join(as, rest)
		if p == top {
			each.header.Name = as
		}
		if each.header.Typeflag == tar.TypeDir {
			each.header.Name += "/"
		}
		each.header.Size = int64(len(each.content))
		found = append(found, each)
	}
	return found, nil
}

// CopyIn implements runtime.Streams.
func (r *Runtime) CopyIn(ctx context.Context, uid runtime.PodUID, container, name string, from io.Reader) (runtime.CopyResult, error) {
	var result runtime.CopyResult
	if err := r.checkFolder(ctx, uid, container, name); err != nil {
		return result, err
	}
	archive := tar.NewReader(from)
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return result, nil
		}
		if err != nil {
			return result, fmt.Errorf("read the archive after %d entries: %w", result.Entries, err)
		}
		content, err := io.ReadAll(io.LimitReader(archive, maxFileBytes))
		if err != nil {
			return result, fmt.Errorf("entry %q: %w", h.Name, err)
		}
		if err := r.putFile(ctx, uid, container, name, h, content); err != nil {
			return result, fmt.Errorf("entry %q: %w", h.Name, err)
		}
		result.Entries, result.Bytes = result.Entries+1, result.Bytes+int64(len(content))
	}
}

func (r *Runtime) checkFolder(ctx context.Context, uid runtime.PodUID, container, name string) error {
	if !path.IsAbs(name) {
		return fmt.Errorf("path %q: want an absolute path: %w", name, runtime.ErrInvalid)
	}
	if err := r.enter(ctx); err != nil {
		return err
	}
	defer r.m.mu.Unlock()
	c, err := r.runningLocked(uid, container)
	if err != nil {
		return err
	}
	if dir := c.files[path.Clean(name)]; dir == nil || dir.header.Typeflag != tar.TypeDir {
		return fmt.Errorf("path %s: %w", name, fs.ErrNotExist)
	}
	return nil
}

func (r *Runtime) putFile(ctx context.Context, uid runtime.PodUID, container, below string, h *tar.Header, content []byte) error {
	clean := path.Clean(strings.TrimLeft(h.Name, "/"))
	if clean == ".." || strings.HasPrefix(clean, "../") {
		return fmt.Errorf("the name leads out of the folder: %w", runtime.ErrInvalid)
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeDir, tar.TypeSymlink:
	default:
		return fmt.Errorf("type %q: %w", h.Typeflag, runtime.ErrInvalid)
	}
	if err := r.enter(ctx); err != nil {
		return err
	}
	defer r.m.mu.Unlock()
	c, err := r.runningLocked(uid, container)
	if err != nil {
		return err
	}
	if c.files.bytes()+int64(len(content)) > maxFileBytes {
		return fmt.Errorf("at most %d bytes of files are allowed in a simulated container", maxFileBytes)
	}
	at := path.Join(below, clean)
	if h.Typeflag == tar.TypeDir && c.files[at] != nil {
		return nil
	}
	c.files[at] = &file{header: *h, content: content}
	return nil
}
