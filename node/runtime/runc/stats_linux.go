package runc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/internal/hostcgroup"
	"github.com/balsa-run/balsa/node/runtime"
)

const (
	// diskFresh is how old figures about disk space may be before they are made
	// anew beside the call, diskStale before the call waits for new ones.
	diskFresh = 30 * time.Second
	diskStale = time.Minute
	// maxWalkEntries bounds one look at a folder: what is beyond it does not count.
	maxWalkEntries = 200_000
	// maxWalkDepth bounds the folders that are open at once.
	maxWalkDepth   = 128
	readNames      = 512
	maxCgroupFile  = 16 << 10
	unlimitedBytes = math.MaxInt64 / 2 // version 1 says "no limit" with a number
	statBlock      = 512
)

// Stats implements runtime.Observer. It reads files and starts nothing.
func (r *Runtime) Stats(_ context.Context, uid runtime.PodUID) (runtime.PodStats, error) {
	p, ok := r.find(uid)
	if !ok {
		return runtime.PodStats{}, fmt.Errorf("pod %s: %w", uid, runtime.ErrPodNotFound)
	}
	state, ok := p.state()
	if !ok {
		return runtime.PodStats{}, fmt.Errorf("pod %s: %w", uid, runtime.ErrPodNotFound)
	}
	stats := runtime.PodStats{Time: time.Now().UTC()}
	for i, c := range state.Containers {
		newest := i+1 == len(state.Containers) || state.Containers[i+1].Name != c.Name
		if !newest || c.Status != runtime.ContainerRunning {
			continue
		}
		id := containerID(c.Name, c.Attempt)
		usage, err := readUsage(r.cgroups, filepath.Join(p.cgroup, id))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			continue // it has ended meanwhile
		}
		if err != nil {
			return runtime.PodStats{}, fmt.Errorf("pod %s: container %s: %w", uid, c.Name, err)
		}
		usage.Name, usage.Attempt = c.Name, c.Attempt
		disk := p.disk.get(id, func() diskUsage { return p.measure(id, c.Name) })
		usage.WritableBytes, usage.LogBytes = disk.writable, disk.logs
		stats.Containers = append(stats.Containers, usage)
	}
	return stats, nil
}

// readUsage reads a cgroup of version 2 or, where a controller is not there, the
// hierarchies of version 1.
func readUsage(tree *hostcgroup.Tree, path string) (runtime.ContainerStats, error) {
	var s runtime.ContainerStats
	var dirs cgroupDirs
	for _, procs := range tree.ProcsFiles(path) {
		dirs = append(dirs, filepath.Dir(procs))
	}
	if err := dirs.cpu(&s); err != nil {
		return s, err
	}
	if err := dirs.memory(&s); err != nil {
		return s, err
	}
	pids, _, err := dirs.number("pids.current")
	s.Pids = pids
	return s, err
}

// cgroupDirs are one cgroup in all hierarchies.
type cgroupDirs []string

func (d cgroupDirs) cpu(s *runtime.ContainerStats) error {
	nanos, ok, err := d.number("cpuacct.usage")
	if ok || err != nil {
		s.CPUNanos = nanos
		return err
	}
	text, ok, err := d.read("cpu.stat")
	if !ok || err != nil {
		return errors.Join(err, absentUnless(ok, "cpu.stat"))
	}
	s.CPUNanos = keyed(text, "usage_usec") * int64(time.Microsecond)
	return nil
}

func (d cgroupDirs) memory(s *runtime.ContainerStats) error {
	usage, limit, inactive := "memory.current", "memory.max", "inactive_file"
	n, ok, err := d.number(usage)
	if !ok && err == nil {
		usage, limit, inactive = "memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file"
		n, ok, err = d.number(usage)
	}
	if !ok || err != nil {
		return errors.Join(err, absentUnless(ok, usage))
	}
	text, _, err := d.read("memory.stat")
	if err != nil {
		return err
	}
	s.MemoryBytes = n
	s.WorkingSetBytes = max(0, n-keyed(text, inactive))
	most, _, err := d.number(limit)
	if most < unlimitedBytes {
		s.MemoryLimitBytes = most
	}
	return err
}

func absentUnless(ok bool, file string) error {
	if ok {
		return nil
	}
	return fmt.Errorf("read %s: %w", file, fs.ErrNotExist)
}

// read returns a file of whichever hierarchy has it.
func (d cgroupDirs) read(name string) (text string, ok bool, err error) {
	for _, dir := range d {
		content, err := readBounded(filepath.Join(dir, name), maxCgroupFile)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", false, fmt.Errorf("read %s: %w", name, err)
		}
		return string(content), true, nil
	}
	return "", false, nil
}

func readBounded(path string, limit int) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	buf := make([]byte, limit)
	n, err := f.Read(buf)
	if n == 0 && err != nil {
		return nil, err
	}
	return buf[:n], nil
}

// number reads a file that holds one; "max" is as good as no limit.
func (d cgroupDirs) number(name string) (int64, bool, error) {
	text, ok, err := d.read(name)
	if !ok || err != nil {
		return 0, ok, err
	}
	text = strings.TrimSpace(text)
	if text == "max" {
		return math.MaxInt64, true, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, true, fmt.Errorf("read %s: %w", name, err)
	}
	return int64(min(n, math.MaxInt64)), true, nil
}

// keyed finds "key number" among lines; absent is zero.
func keyed(text, key string) int64 {
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && name == key {
			n, _ := strconv.ParseInt(value, 10, 64)
			return n
		}
	}
	return 0
}

// diskUsage is what a container holds on disk.
type diskUsage struct{ writable, logs int64 }

// diskCache keeps figures that take a walk through folders.
type diskCache struct {
	mu      sync.Mutex
	entries map[string]*diskEntry // guarded by mu; by container id
}

type diskEntry struct {
	usage   diskUsage
	at      time.Time
	walking bool
}

// get returns figures of at most diskStale.
func (d *diskCache) get(id string, measure func() diskUsage) diskUsage {
	d.mu.Lock()
	if d.entries == nil {
		d.entries = map[string]*diskEntry{}
	}
	e, ok := d.entries[id]
	if !ok {
		e = &diskEntry{}
		d.entries[id] = e
	}
	age := time.Since(e.at)
	refresh := age > diskFresh && !e.walking && age <= diskStale
	e.walking = e.walking || refresh
	have := e.usage
	d.mu.Unlock()
	switch {
	case age > diskStale:
		have = measure()
		d.put(e, have)
	case refresh:
		go func() { d.put(e, measure()) }()
	}
	return have
}

func (d *diskCache) put(e *diskEntry, usage diskUsage) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e.usage, e.at, e.walking = usage, time.Now(), false
}

// forget drops the figures of an attempt that is over.
func (d *diskCache) forget(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.entries, id)
}

// measure walks the writable layer of an attempt, and the logs of all attempts.
func (p *pod) measure(id, name string) diskUsage {
	var u diskUsage
	w := walk{left: maxWalkEntries}
	if dir, err := os.Open(filepath.Join(p.dir, containersDir, id, upperDir)); err == nil {
		w.sum(dir, 0)
		u.writable = w.bytes
	}
	entries, err := os.ReadDir(filepath.Join(p.dir, logsDir))
	if err != nil {
		return u
	}
	for _, e := range entries {
		rest, ours := strings.CutPrefix(e.Name(), name+"-")
		number, isLog := cutAttempt(rest)
		info, err := e.Info()
		if ours && isLog && number >= 0 && err == nil {
			u.logs += blocksOf(info)
		}
	}
	return u
}

// cutAttempt reads "3.log" and "3.log.1".
func cutAttempt(s string) (int, bool) {
	digits, _, ok := strings.Cut(s, ".log")
	n, err := strconv.Atoi(digits)
	return n, ok && err == nil
}

func blocksOf(info fs.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * statBlock
	}
	return info.Size()
}

// walk adds up a folder by descriptors: a link that a container puts in the
// place of a folder meanwhile leads nowhere.
type walk struct {
	left  int
	bytes int64
}

// sum closes dir.
func (w *walk) sum(dir *os.File, depth int) {
	defer func() { _ = dir.Close() }()
	for w.left > 0 {
		names, err := dir.Readdirnames(readNames)
		for _, name := range names {
			if w.left--; w.left < 0 {
				return
			}
			w.one(dir, name, depth)
		}
		if err != nil {
			return
		}
	}
}

func (w *walk) one(dir *os.File, name string, depth int) {
	var st unix.Stat_t
	if unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return
	}
	// A file of several names counts in parts.
	w.bytes += st.Blocks * statBlock / max(1, linksOf(&st))
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || depth >= maxWalkDepth {
		return
	}
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == nil {
		w.sum(os.NewFile(uintptr(fd), name), depth+1)
	}
}

func linksOf(st *unix.Stat_t) int64 {
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return 1
	}
	return int64(st.Nlink)
}
