package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/internal/hostmount"
	"github.com/balsa-run/balsa/node/runtime"
)

// Options of a Store; all are required.
type Options struct {
	// Dir survives reboots: scratch space on disk, persistent volumes.
	Dir string
	// RunDir does not: what lies in memory only. A tmpfs is mounted there if it
	// is not one already.
	RunDir string
	Log    *slog.Logger
}

// Store is the volumes of a node on its disk.
//
//	Dir/pods/<uid>/scratch/<volume>/         emptyDir
//	Dir/pods/<uid>/files/<volume>/           see files_linux.go
//	Dir/persistent/<name>/data/              a folder
//	                     /image, /mount/data a file system of its own
//	                     /users/<uid>        who has it
//	Dir/removing-<…>/                        finished by the next Open
//	RunDir/pods/<uid>/memory/<volume>/       a tmpfs each
//	RunDir/pods/<uid>/files/<volume>/        secrets
type Store struct {
	dir, runDir string
	log         *slog.Logger
	turns       turns
}

var _ Volumes = (*Store)(nil)

const (
	folderPods       = "pods"
	folderPersistent = "persistent"
	folderScratch    = "scratch"
	folderMemory     = "memory"
	folderFiles      = "files"
	prefixRemoving   = "removing-"

	// maxNameBytes is what ext4 and most others take for one name.
	maxNameBytes = 255
	dirMode      = 0o700
	// openMode lets every user of a pod write, as in Kubernetes.
	openMode = 0o777
)

// Open returns the store below the options' folders and finishes what an earlier
// process had begun to remove.
func Open(o Options) (*Store, error) {
	s := &Store{dir: o.Dir, runDir: o.RunDir, log: o.Log, turns: turns{held: map[string]*turn{}}}
	for _, dir := range []string{filepath.Join(s.dir, folderPods), filepath.Join(s.dir, folderPersistent), s.runDir} {
		if err := os.MkdirAll(dir, dirMode); err != nil {
			return nil, fmt.Errorf("volumes: %w", err)
		}
	}
	if err := hostmount.InMemory(s.runDir); err != nil {
		return nil, fmt.Errorf("volumes: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(s.runDir, folderPods), dirMode); err != nil {
		return nil, fmt.Errorf("volumes: %w", err)
	}
	return s, s.finishRemovals()
}

func (s *Store) finishRemovals() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("volumes: %w", err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), prefixRemoving) {
			continue
		}
		if err := s.destroy(filepath.Join(s.dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) podDir(uid runtime.PodUID) string {
	return filepath.Join(s.dir, folderPods, string(uid))
}
func (s *Store) podRunDir(uid runtime.PodUID) string {
	return filepath.Join(s.runDir, folderPods, string(uid))
}

// Prepare implements Volumes.
func (s *Store) Prepare(ctx context.Context, pod Pod) (map[string]string, error) {
	if err := checkName(string(pod.UID)); err != nil {
		return nil, fmt.Errorf("volumes of pod %q: %w", pod.UID, err)
	}
	defer s.turns.take("pod/" + string(pod.UID))()
	paths := make(map[string]string, len(pod.Volumes))
	for _, v := range pod.Volumes {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := checkName(v.Name); err != nil {
			return nil, fmt.Errorf("volume %q: %w", v.Name, err)
		}
		path, err := s.prepare(ctx, pod, v)
		if err != nil {
			return nil, fmt.Errorf("volume %q: %w", v.Name, plain(err))
		}
		paths[v.Name] = path
	}
	return paths, nil
}

func (s *Store) prepare(ctx context.Context, pod Pod, v Volume) (string, error) {
	switch {
	case v.Scratch != nil:
		return s.scratch(pod, v.Name, *v.Scratch)
	case v.Files != nil:
		return s.files(pod, v.Name, *v.Files)
	case v.HostPath != nil:
		return v.HostPath.Path, v.HostPath.check()
	case v.Persistent != nil:
		return s.persistent(ctx, pod, *v.Persistent)
	}
	return "", errors.New("has no source")
}

// scratch makes an emptyDir. One that exists is left as it is: its files are the
// pod's.
func (s *Store) scratch(pod Pod, name string, want Scratch) (string, error) {
	path := filepath.Join(s.podDir(pod.UID), folderScratch, name)
	if want.Memory {
		path = filepath.Join(s.podRunDir(pod.UID), folderMemory, name)
	}
	if want.Memory {
		return path, s.memoryScratch(pod, path, want)
	}
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	// Under another name until it is as it should be, so that it exists whole.
	fresh := path + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return "", err
	}
	if err := os.MkdirAll(fresh, dirMode); err != nil {
		return "", err
	}
	if err := own(fresh, pod, openMode); err != nil {
		return "", err
	}
	return path, os.Rename(fresh, path)
}

func (s *Store) memoryScratch(pod Pod, path string, want Scratch) error {
	if err := os.MkdirAll(path, dirMode); err != nil {
		return err
	}
	mounted, err := hostmount.IsMounted(path)
	if err != nil || mounted {
		return err
	}
	options := fmt.Sprintf("mode=%o", openMode)
	if want.SizeBytes > 0 {
		options += fmt.Sprintf(",size=%d", want.SizeBytes)
	}
	uid, gid := owner(pod)
	options += fmt.Sprintf(",uid=%d,gid=%d", uid, gid)
	if err := unix.Mount("balsa", path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mount a tmpfs at %s: %w", path, err)
	}
	return own(path, pod, openMode)
}

// Remove implements Volumes.
func (s *Store) Remove(_ context.Context, uid runtime.PodUID) error {
	if err := checkName(string(uid)); err != nil {
		return fmt.Errorf("volumes of pod %q: %w", uid, err)
	}
	defer s.turns.take("pod/" + string(uid))()
	if err := s.letGo(uid); err != nil {
		return fmt.Errorf("volumes of pod %s: %w", uid, err)
	}
	for _, dir := range []string{s.podRunDir(uid), s.podDir(uid)} {
		if err := hostmount.UnmountUnder(dir); err != nil {
			return fmt.Errorf("volumes of pod %s: %w", uid, err)
		}
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("volumes of pod %s: %w", uid, err)
		}
	}
	return nil
}

// Pods implements Volumes.
func (s *Store) Pods(context.Context) ([]runtime.PodUID, error) {
	found := map[runtime.PodUID]bool{}
	for _, dir := range []string{filepath.Join(s.dir, folderPods), filepath.Join(s.runDir, folderPods)} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, fmt.Errorf("volumes: %w", err)
		}
		for _, e := range entries {
			found[runtime.PodUID(e.Name())] = true
		}
	}
	stored, err := s.stored()
	if err != nil {
		return nil, err
	}
	for _, v := range stored {
		for _, uid := range v.UsedBy {
			found[uid] = true
		}
	}
	uids := make([]runtime.PodUID, 0, len(found))
	for uid := range found {
		uids = append(uids, uid)
	}
	slices.Sort(uids)
	return uids, nil
}

// Usage implements Volumes.
func (s *Store) Usage(ctx context.Context, uid runtime.PodUID) (map[string]Usage, error) {
	if err := checkName(string(uid)); err != nil {
		return nil, fmt.Errorf("volumes of pod %q: %w", uid, err)
	}
	out := map[string]Usage{}
	for folder, memory := range map[string]bool{
		filepath.Join(s.podDir(uid), folderScratch):   false,
		filepath.Join(s.podRunDir(uid), folderMemory): true,
	} {
		entries, err := os.ReadDir(folder)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("volumes of pod %s: %w", uid, err)
		}
		for _, e := range entries {
			u, err := usage(ctx, filepath.Join(folder, e.Name()), memory)
			if err != nil {
				return nil, fmt.Errorf("volume %q of pod %s: %w", e.Name(), uid, err)
			}
			out[e.Name()] = u
		}
	}
	return out, nil
}

func usage(ctx context.Context, dir string, memory bool) (Usage, error) {
	if !memory {
		used, err := diskUsage(ctx, dir)
		return Usage{UsedBytes: used}, err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return Usage{}, err
	}
	return Usage{
		Memory: true, UsedBytes: int64(st.Blocks-st.Bfree) * st.Bsize, LimitBytes: int64(st.Blocks) * st.Bsize,
	}, nil
}

// diskUsage is what a tree takes on disk. Files come and go while it looks;
// those that have gone count nothing. Links out of the tree are not followed.
func diskUsage(ctx context.Context, dir string) (int64, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return 0, err
	}
	defer root.Close()
	const blockBytes = 512 // of stat(2), whatever the file system's are
	total, linked := int64(0), map[uint64]bool{}
	err = fs.WalkDir(root.FS(), ".", func(_ string, e fs.DirEntry, err error) error {
		if err != nil || ctx.Err() != nil {
			return ctx.Err()
		}
		info, err := e.Info()
		if err != nil {
			return nil //nolint:nilerr // it has gone meanwhile
		}
		st, ok := info.Sys().(*unixStat)
		if !ok || st.Nlink > 1 && !info.IsDir() && linked[st.Ino] {
			return nil
		}
		if st.Nlink > 1 && !info.IsDir() {
			linked[st.Ino] = true
		}
		total += st.Blocks * blockBytes
		return nil
	})
	return total, err
}

// checkName refuses what cannot be one component of a path.
func checkName(name string) error {
	if name == "" || name == "." || name == ".." || len(name) > maxNameBytes || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("%q cannot be the name of a folder", name)
	}
	return nil
}

// plain adds what callers branch on to a full disk.
func plain(err error) error {
	if errors.Is(err, unix.ENOSPC) && !errors.Is(err, ErrNoSpace) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

// turns lets one call at a time work on a pod or a persistent volume.
type turns struct {
	mu   sync.Mutex
	held map[string]*turn // guarded by mu
}

type turn struct {
	mu      sync.Mutex
	waiting int // guarded by turns.mu
}

// take waits for the key's turn and returns how to give it back.
func (t *turns) take(key string) func() {
	t.mu.Lock()
	mine := t.held[key]
	if mine == nil {
		mine = &turn{}
		t.held[key] = mine
	}
	mine.waiting++
	t.mu.Unlock()
	mine.mu.Lock()
	return func() {
		mine.mu.Unlock()
		t.mu.Lock()
		defer t.mu.Unlock()
		if mine.waiting--; mine.waiting == 0 {
			delete(t.held, key)
		}
	}
}
