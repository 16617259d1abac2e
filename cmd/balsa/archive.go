package main

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// maxFolderTimes bounds the folders whose time is set once they are full.
const maxFolderTimes = 100_000

func emptyArchive(w io.Writer) error { return tar.NewWriter(w).Close() }

// extraction unpacks what a container has sent. Nothing it holds is trusted:
// every name is opened below the target (os.Root), no link that leads out is
// made, and no file gets set-uid bits.
type extraction struct {
	warn  io.Writer
	top   string // the name that the first element of every entry gets
	root  *os.Root
	times []folderTime
}

type folderTime struct {
	name string
	at   time.Time
}

func (x *extraction) into(dir string, archive io.Reader) (err error) {
	if x.root, err = os.OpenRoot(dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, x.root.Close()) }()
	r := tar.NewReader(archive)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return x.finish()
		}
		if err != nil {
			return err
		}
		name, err := x.rename(h.Name)
		if err != nil {
			return err
		}
		if err := x.entry(name, h, r); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
}

// rename puts an entry under the target's name.
func (x *extraction) rename(name string) (string, error) {
	clean := path.Clean(name)
	_, rest, _ := strings.Cut(clean, "/")
	local := path.Join(x.top, rest)
	if path.IsAbs(clean) || clean == ".." || strings.HasPrefix(clean, "../") || !filepath.IsLocal(local) {
		return "", fmt.Errorf("the container sent an entry %q that leads out of the folder: nothing more is copied", name)
	}
	return filepath.FromSlash(local), nil
}

func (x *extraction) entry(name string, h *tar.Header, content io.Reader) error {
	mode := fs.FileMode(h.Mode & 0o777)
	switch h.Typeflag {
	case tar.TypeDir:
		if len(x.times) < maxFolderTimes {
			x.times = append(x.times, folderTime{name, h.ModTime})
		}
		return x.root.MkdirAll(name, mode|0o700)
	case tar.TypeReg:
		return x.file(name, mode, h, content)
	case tar.TypeLink:
		old, err := x.rename(h.Linkname)
		if err != nil {
			return err
		}
		if err := x.clear(name); err != nil {
			return err
		}
		return x.root.Link(old, name)
	case tar.TypeSymlink:
		to := filepath.FromSlash(h.Linkname)
		if filepath.IsAbs(to) || !staysBelow(x.top, filepath.Join(filepath.Dir(name), to)) {
			fmt.Fprintf(x.warn, "left out: %s is a link to %s, which is not below what is copied\n", h.Name, h.Linkname)
			return nil
		}
		if err := x.clear(name); err != nil {
			return err
		}
		return x.root.Symlink(to, name)
	}
	fmt.Fprintf(x.warn, "left out: %s is neither a file, a folder nor a link\n", h.Name)
	return nil
}

func staysBelow(top, name string) bool {
	return name == top || strings.HasPrefix(name, top+string(filepath.Separator))
}

// clear makes room for an entry: what has its name is replaced, not followed.
func (x *extraction) clear(name string) error {
	if err := x.root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	info, err := x.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.IsDir() {
		return fmt.Errorf("%s is a folder here: remove it first", name)
	}
	return x.root.Remove(name)
}

func (x *extraction) file(name string, mode fs.FileMode, h *tar.Header, content io.Reader) error {
	if err := x.clear(name); err != nil {
		return err
	}
	f, err := x.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode|0o200)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	if err = errors.Join(err, f.Chmod(mode), f.Close()); err != nil {
		return err
	}
	return x.root.Chtimes(name, h.ModTime, h.ModTime)
}

// finish sets the times of folders, which filling them has changed.
func (x *extraction) finish() error {
	for i := len(x.times) - 1; i >= 0; i-- {
		if err := x.root.Chtimes(x.times[i].name, x.times[i].at, x.times[i].at); err != nil {
			return err
		}
	}
	return nil
}

// packing makes an archive of files here.
type packing struct {
	warn     io.Writer
	preserve bool
}

func (p *packing) pack(w io.Writer, from, name string, info fs.FileInfo) error {
	archive := tar.NewWriter(w)
	if !info.IsDir() {
		if err := p.add(archive, from, name, info); err != nil {
			return err
		}
		return archive.Close()
	}
	err := filepath.WalkDir(from, func(at string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rest, err := filepath.Rel(from, at)
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if at == from {
			info, err = os.Stat(from)
		}
		if err != nil {
			return err
		}
		return p.add(archive, at, path.Join(name, filepath.ToSlash(rest)), info)
	})
	if err != nil {
		return err
	}
	return archive.Close()
}

func (p *packing) add(archive *tar.Writer, from, name string, info fs.FileInfo) error {
	link := ""
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		var err error
		if link, err = os.Readlink(from); err != nil {
			return err
		}
	case !info.IsDir() && !info.Mode().IsRegular():
		fmt.Fprintf(p.warn, "left out: %s is neither a file, a folder nor a link\n", from)
		return nil
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	h.Name, h.Format, h.Uname, h.Gname = name, tar.FormatPAX, "", ""
	if info.IsDir() {
		h.Name += "/"
	}
	if !p.preserve {
		h.Uid, h.Gid = 0, 0
	}
	if err := archive.WriteHeader(h); err != nil || !info.Mode().IsRegular() {
		return err
	}
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	_, err = io.CopyN(archive, f, h.Size)
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("%s became shorter while it was read: copy it again", from)
	}
	return errors.Join(err, f.Close())
}
