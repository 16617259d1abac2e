// Package hostcgroup makes, empties and removes control groups by their path,
// in every hierarchy at once: the unified one (version 2), the eleven of
// version 1, or both side by side. It limits pods; those of a container are
// balsa-runc's to set, but for the CPU quota.
package hostcgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Tree is the set of mounted hierarchies. It is immutable.
type Tree struct {
	hierarchies []hierarchy
}

type hierarchy struct {
	mount       string
	unified     bool
	delegates   bool     // version 2 alone: controllers have to be handed down
	controllers []string // version 1 only
}

const (
	// pollMin and pollMax space the looks at a cgroup that is dying.
	pollMin = time.Millisecond
	pollMax = 50 * time.Millisecond
	// makeAttempts bounds the races with whoever removes an empty parent.
	makeAttempts = 16
)

// Discover reads which hierarchies are mounted here.
func Discover() (*Tree, error) {
	content, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("find cgroup mounts: %w", err)
	}
	t := &Tree{hierarchies: parseMountInfo(string(content))}
	if len(t.hierarchies) == 0 {
		return nil, errors.New("find cgroup mounts: none in /proc/self/mountinfo " +
			"(\"ip netns exec\" hides them: start the agent with nsenter --net=FILE)")
	}
	for i := range t.hierarchies {
		t.hierarchies[i].delegates = t.hierarchies[i].unified && t.Unified()
	}
	return t, nil
}

// parseMountInfo keeps the first mount of each hierarchy (proc_pid_mountinfo(5)):
//
//	36 35 0:31 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
func parseMountInfo(content string) []hierarchy {
	var found []hierarchy
	seen := map[string]bool{}
	for line := range strings.Lines(content) {
		before, after, ok := strings.Cut(strings.TrimSpace(line), " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 6 || len(right) < 3 || left[3] != "/" || seen[left[2]] {
			continue
		}
		switch right[0] {
		case "cgroup2":
			found = append(found, hierarchy{mount: left[4], unified: true})
		case "cgroup":
			found = append(found, hierarchy{mount: left[4], controllers: strings.Split(right[2], ",")})
		default:
			continue
		}
		seen[left[2]] = true
	}
	return found
}

// Make creates the cgroup and its parents in every hierarchy.
func (t *Tree) Make(path string) error {
	for _, h := range t.hierarchies {
		if err := h.make(path); err != nil {
			return fmt.Errorf("make cgroup %s: %w", path, err)
		}
	}
	return nil
}

// make repeats what a concurrent removal of an empty parent undid.
func (h hierarchy) make(path string) error {
	for range makeAttempts - 1 {
		err := h.makeOnce(path)
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
			return err
		}
	}
	return h.makeOnce(path)
}

func (h hierarchy) makeOnce(path string) error {
	dir := filepath.Join(h.mount, path)
	cpuset := slices.Contains(h.controllers, "cpuset")
	if !cpuset && !h.delegates {
		return mkdirAll(dir)
	}
	dir = h.mount
	for part := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		parent := dir
		dir = filepath.Join(dir, part)
		if h.delegates {
			if err := delegate(parent); err != nil {
				return err
			}
		}
		err := os.Mkdir(dir, 0o755)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if cpuset {
			if err := inheritCPUSet(parent, dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// mkdirAll tries the last directory first: mostly it is the only one missing.
func mkdirAll(dir string) error {
	err := os.Mkdir(dir, 0o755)
	if err == nil || errors.Is(err, fs.ErrExist) {
		return nil
	}
	return os.MkdirAll(dir, 0o755)
}

// inheritCPUSet: a new cpuset of version 1 is empty and takes no process.
func inheritCPUSet(parent, dir string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		have, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			return err
		}
		if len(bytes.TrimSpace(have)) > 0 {
			continue
		}
		value, err := os.ReadFile(filepath.Join(parent, file))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, file), value, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// ProcsFiles are the files that a process writes 0 to, to move into the cgroup.
func (t *Tree) ProcsFiles(path string) []string {
	var files []string
	for _, h := range t.hierarchies {
		files = append(files, filepath.Join(h.mount, path, "cgroup.procs"))
	}
	return files
}

// Bounds of CPU shares (the kernel's own for version 1).
const (
	MinCPUShares = 2
	MaxCPUShares = 262144
)

// SetCPUShares sets the cgroup's weight against its siblings. In version 2 the
// file exists only once somebody has enabled the cpu controller; until then
// there is nothing to weigh.
func (t *Tree) SetCPUShares(path string, shares uint64) error {
	shares = min(max(shares, MinCPUShares), MaxCPUShares)
	for _, h := range t.hierarchies {
		var file string
		var value uint64
		switch {
		case slices.Contains(h.controllers, "cpu"):
			file, value = "cpu.shares", shares
		case h.unified:
			// 2..262144 onto 1..10000, as runc and Kubernetes map them.
			file, value = "cpu.weight", 1+(shares-2)*9999/262142
		default:
			continue
		}
		f, err := os.OpenFile(filepath.Join(h.mount, path, file), os.O_WRONLY|os.O_TRUNC, 0)
		if errors.Is(err, fs.ErrNotExist) && h.unified {
			continue
		}
		if err == nil {
			_, err = f.WriteString(strconv.FormatUint(value, 10))
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			return fmt.Errorf("cpu shares of cgroup %s: %w", path, err)
		}
	}
	return nil
}

// OOMFile is the file whose "oom_kill" line counts the kernel's kills for want
// of memory in the cgroup.
func (t *Tree) OOMFile(path string) string {
	unified := ""
	for _, h := range t.hierarchies {
		if slices.Contains(h.controllers, "memory") {
			return filepath.Join(h.mount, path, "memory.oom_control")
		}
		if h.unified {
			unified = filepath.Join(h.mount, path, "memory.events")
		}
	}
	return unified
}

// Children lists the names of the cgroups directly below path, of all hierarchies.
func (t *Tree) Children(path string) ([]string, error) {
	var names []string
	for _, h := range t.hierarchies {
		entries, err := os.ReadDir(filepath.Join(h.mount, path))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("list cgroup %s: %w", path, err)
		}
		for _, e := range entries {
			if e.IsDir() {
				names = append(names, e.Name())
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// PIDs lists the processes in the cgroup and below, of all hierarchies.
func (t *Tree) PIDs(path string) ([]int, error) {
	var pids []int
	for _, h := range t.hierarchies {
		err := filepath.WalkDir(filepath.Join(h.mount, path), func(dir string, e fs.DirEntry, err error) error {
			if err != nil || !e.IsDir() {
				return ignoreGone(err)
			}
			more, err := readPIDs(filepath.Join(dir, "cgroup.procs"))
			pids = append(pids, more...)
			return ignoreGone(err)
		})
		if err != nil {
			return nil, fmt.Errorf("processes of cgroup %s: %w", path, err)
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

func readPIDs(file string) ([]int, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var pids []int
	for field := range strings.FieldsSeq(string(content)) {
		if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// Kill kills every process in the cgroup and below, and returns once none is
// left. Processes that fork meanwhile are killed in the next round.
func (t *Tree) Kill(ctx context.Context, path string) error {
	for wait := pollMin; ; wait = min(2*wait, pollMax) {
		pids, err := t.PIDs(path)
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			if err := t.killMember(path, pid); err != nil {
				return fmt.Errorf("kill process %d of cgroup %s: %w", pid, path, err)
			}
		}
		if err := pause(ctx, wait); err != nil {
			return fmt.Errorf("kill cgroup %s: %d processes are left, such as %d: %w", path, len(pids), pids[0], err)
		}
	}
}

// killMember holds the process by a pidfd before it looks once more whether it
// is a member: its number may have gone to a stranger meanwhile.
func (t *Tree) killMember(path string, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil || !isMember(string(content), path) {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

// isMember reads /proc/PID/cgroup (cgroups(7)): "4:memory:/node/pod/container".
func isMember(content, path string) bool {
	path = filepath.Clean(path)
	for line := range strings.Lines(content) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) == 3 && (fields[2] == path || strings.HasPrefix(fields[2], path+"/")) {
			return true
		}
	}
	return false
}

// Remove removes the cgroup and those below it, from every hierarchy. The
// processes must be gone; a cgroup that is still dying is waited for.
func (t *Tree) Remove(ctx context.Context, path string) error {
	for _, h := range t.hierarchies {
		if err := removeTree(ctx, filepath.Join(h.mount, path)); err != nil {
			return fmt.Errorf("remove cgroup %s: %w", path, err)
		}
	}
	return nil
}

func removeTree(ctx context.Context, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return ignoreGone(err)
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		if err := removeTree(ctx, filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	for wait := pollMin; ; wait = min(2*wait, pollMax) {
		err := unix.Rmdir(dir)
		if !errors.Is(err, unix.EBUSY) {
			return ignoreGone(err)
		}
		if cause := pause(ctx, wait); cause != nil {
			return fmt.Errorf("%s: %w: %w", dir, err, cause)
		}
	}
}

// Lock makes the cgroup and locks it, so that no other Lock of it succeeds
// (EWOULDBLOCK) as long as the file is open, by whatever process. The cgroup
// must not be removed meanwhile.
func (t *Tree) Lock(path string) (*os.File, error) {
	if err := t.Make(path); err != nil {
		return nil, err
	}
	f, err := os.Open(filepath.Join(t.hierarchies[0].mount, path))
	if err != nil {
		return nil, fmt.Errorf("lock cgroup %s: %w", path, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock cgroup %s: %w", path, err), f.Close())
	}
	return f, nil
}

// RemoveIfEmpty removes the cgroup, then its parents, as long as they hold
// neither processes nor other cgroups.
func (t *Tree) RemoveIfEmpty(path string) {
	for p := filepath.Clean(path); p != "/" && p != "."; p = filepath.Dir(p) {
		if !t.removeOne(p) {
			return
		}
	}
}

func (t *Tree) removeOne(path string) bool {
	gone := true
	for _, h := range t.hierarchies {
		err := unix.Rmdir(filepath.Join(h.mount, path))
		gone = gone && (err == nil || errors.Is(err, fs.ErrNotExist))
	}
	return gone
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}
