package image

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Blobs and layers get their names as soon as they are right, and are used. They
// become safe against a crash of the machine later, all at once, by one syncfs;
// then their meta files say so. Open drops what no meta file calls safe, if the
// machine was booted since: a crash of the agent alone loses nothing.

const bootFile = "boot"

// bootIDPath names the file in which the kernel tells one boot from another.
const bootIDPath = "/proc/sys/kernel/random/boot_id"

const (
	unsafeMark = "unsafe"
	safeMark   = "safe"
)

func (s *Store) metaPath(kind, hex string) string {
	return filepath.Join(s.opt.Dir, metaDir, kind+"-"+hex)
}

// keep gives a file or directory its final name.
func (s *Store) keep(from, kind, digest string, size int64) error {
	hex := hexOf(digest)
	if err := s.writeMeta(kind, hex, size, unsafeMark); err != nil {
		return err
	}
	if err := os.Rename(from, filepath.Join(s.opt.Dir, kind, hex)); err != nil {
		return err
	}
	s.flush.want(kind, hex, size)
	return nil
}

func (s *Store) writeMeta(kind, hex string, size int64, mark string) error {
	return s.writeSmall(s.metaPath(kind, hex), fmt.Appendf(nil, "%d %s", size, mark))
}

// meta tells the size of a blob or layer; what an earlier version of the agent
// left has none and counts as safe, since that version synced.
func (s *Store) meta(kind, hex string) (size int64, safe bool) {
	content, err := os.ReadFile(s.metaPath(kind, hex))
	if err != nil {
		return 0, errors.Is(err, fs.ErrNotExist)
	}
	var mark string
	if _, err := fmt.Sscanf(string(content), "%d %s", &size, &mark); err != nil {
		return 0, false
	}
	return size, mark == safeMark
}

// recover removes what a crash of the machine may have damaged, and what belongs
// to nothing.
func (s *Store) recover() error {
	boot, err := os.ReadFile(bootIDPath)
	if err != nil {
		return err
	}
	last, err := os.ReadFile(filepath.Join(s.opt.Dir, bootFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	same := err == nil && bytes.Equal(boot, last)
	for _, kind := range []string{blobsDir, layersDir} {
		if err := s.recoverKind(kind, same); err != nil {
			return err
		}
	}
	if err := s.dropStrayMeta(); err != nil {
		return err
	}
	if same {
		return nil
	}
	return s.writeSmall(filepath.Join(s.opt.Dir, bootFile), boot)
}

func (s *Store) recoverKind(kind string, same bool) error {
	entries, err := os.ReadDir(filepath.Join(s.opt.Dir, kind))
	if err != nil {
		return err
	}
	for _, e := range entries {
		size, safe := s.meta(kind, e.Name())
		switch {
		case safe:
		case same:
			s.flush.want(kind, e.Name(), size)
		default:
			s.opt.Log.Warn("dropped a part of an image that was not yet safe on disk when the machine stopped", "kind", kind, "digest", e.Name())
			if _, err := s.discard(kind, e.Name()); err != nil {
				return err
			}
		}
	}
	return nil
}

// dropStrayMeta: a meta file is written before what it describes is there.
func (s *Store) dropStrayMeta() error {
	entries, err := os.ReadDir(filepath.Join(s.opt.Dir, metaDir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		kind, hex, _ := strings.Cut(e.Name(), "-")
		if exists(filepath.Join(s.opt.Dir, kind, hex)) {
			continue
		}
		if err := os.Remove(filepath.Join(s.opt.Dir, metaDir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// flusher makes what is wanted safe in the background; what comes while it
// works waits for its next round.
type flusher struct {
	store *Store

	mu      sync.Mutex
	pending map[string]int64 // guarded by mu; sizes by KIND/HEX
	running chan struct{}    // guarded by mu; nil while there is nothing to do
}

func (f *flusher) want(kind, hex string, size int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pending == nil {
		f.pending = map[string]int64{}
	}
	f.pending[kind+"/"+hex] = size
}

func (f *flusher) wants(kind, hex string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.pending[kind+"/"+hex]
	return ok
}

// start begins to work off what is pending, unless that is being done.
func (f *flusher) start() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.running == nil && len(f.pending) > 0 {
		f.running = make(chan struct{})
		go f.run(f.running)
	}
}

func (f *flusher) wait() {
	f.start()
	f.mu.Lock()
	running := f.running
	f.mu.Unlock()
	if running != nil {
		<-running
	}
}

func (f *flusher) run(done chan struct{}) {
	defer close(done)
	for {
		batch := f.take()
		if len(batch) == 0 {
			return
		}
		if err := f.store.makeSafe(batch); err != nil {
			f.store.opt.Log.Warn("images are not yet safe on disk: should the machine stop now, they are fetched again", "error", err)
		}
	}
}

func (f *flusher) take() map[string]int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	batch := f.pending
	f.pending = nil
	if len(batch) == 0 {
		f.running = nil
	}
	return batch
}

func (s *Store) makeSafe(batch map[string]int64) error {
	if err := syncFileSystem(s.opt.Dir); err != nil {
		return err
	}
	for key, size := range batch {
		kind, hex, _ := strings.Cut(key, "/")
		if err := s.markSafe(kind, hex, size); err != nil {
			return err
		}
	}
	return nil
}

// markSafe leaves out what was removed, or removed and fetched anew, in the
// meantime.
func (s *Store) markSafe(kind, hex string, size int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !exists(s.metaPath(kind, hex)) || s.flush.wants(kind, hex) {
		return nil
	}
	return s.writeMeta(kind, hex, size, safeMark)
}

func syncFileSystem(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}

// noSpace gives the kernel's error our meaning.
func noSpace(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}
