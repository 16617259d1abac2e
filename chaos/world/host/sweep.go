package host

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	cgroupRoot  = "/sys/fs/cgroup"
	sweepPasses = 20 // a killed process may need a moment to leave
	sweepPause  = 100 * time.Millisecond
)

// CgroupPrefix is what the cgroups of a host's pods lie below.
func (h *Host) CgroupPrefix() string { return "/" + h.namespace }

// Close ends the lab's processes and removes all that it made but its folder.
// It may be called more than once.
func (l *Lab) Close() error {
	l.mu.Lock()
	processes := append([]*Process(nil), l.processes...)
	l.mu.Unlock()
	var failed []error
	for _, p := range processes {
		if p.Running() {
			failed = append(failed, p.Kill())
		}
	}
	return errors.Join(errors.Join(failed...), l.sweep())
}

// sweep removes whatever carries the lab's prefix, whoever made it.
func (l *Lab) sweep() error {
	var last error
	for range sweepPasses {
		if last = l.sweepOnce(); last == nil {
			if leaks := l.Leaks(); len(leaks) == 0 {
				return nil
			}
		}
		time.Sleep(sweepPause)
	}
	return errors.Join(last, fmt.Errorf("lab: still there: %s", strings.Join(l.Leaks(), "; ")))
}

func (l *Lab) sweepOnce() error {
	for _, pid := range l.leakedProcesses() {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("kill %d: %w", pid, err)
		}
	}
	for _, mount := range l.leakedMounts() {
		if err := syscall.Unmount(mount, syscall.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) {
			return fmt.Errorf("unmount %s: %w", mount, err)
		}
	}
	for _, group := range l.leakedCgroups() {
		if err := os.Remove(group); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.EBUSY) {
			return fmt.Errorf("remove cgroup %s: %w", group, err)
		}
	}
	for _, namespace := range l.leakedNamespaces() {
		if err := run("ip", "netns", "del", namespace); err != nil {
			return err
		}
	}
	return nil
}

// Leaks names everything of the lab that exists: nothing after Close.
func (l *Lab) Leaks() []string {
	var leaks []string
	for _, pid := range l.leakedProcesses() {
		leaks = append(leaks, fmt.Sprintf("process %d (%s)", pid, commandOf(pid)))
	}
	for _, mount := range l.leakedMounts() {
		leaks = append(leaks, "mount "+mount)
	}
	for _, group := range l.leakedCgroups() {
		leaks = append(leaks, "cgroup "+group)
	}
	for _, namespace := range l.leakedNamespaces() {
		leaks = append(leaks, "network namespace "+namespace)
	}
	return leaks
}

func (l *Lab) leakedNamespaces() []string {
	entries, err := os.ReadDir("/run/netns")
	if err != nil {
		return nil
	}
	var names []string
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), l.Prefix+"-") {
			names = append(names, entry.Name())
		}
	}
	return names
}

// leakedMounts returns mount points below the lab's folder, the deepest first.
func (l *Lab) leakedMounts() []string {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	defer file.Close()
	var mounts []string
	for lines := bufio.NewScanner(file); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) > 4 && strings.HasPrefix(fields[4], l.Dir+"/") {
			mounts = append(mounts, fields[4])
		}
	}
	sort.Sort(sort.Reverse(sort.StringSlice(mounts)))
	return mounts
}

// leakedCgroups returns the cgroups of the lab's hosts in every hierarchy, the
// deepest first.
func (l *Lab) leakedCgroups() []string {
	hierarchies, err := os.ReadDir(cgroupRoot)
	if err != nil {
		return nil
	}
	var groups []string
	for _, hierarchy := range hierarchies {
		tops, err := filepath.Glob(filepath.Join(cgroupRoot, hierarchy.Name(), l.Prefix+"-*"))
		if err != nil {
			continue
		}
		for _, top := range tops {
			groups = append(groups, below(top)...)
		}
	}
	direct, err := filepath.Glob(filepath.Join(cgroupRoot, l.Prefix+"-*"))
	if err == nil {
		for _, top := range direct {
			groups = append(groups, below(top)...)
		}
	}
	sort.Sort(sort.Reverse(sort.StringSlice(groups)))
	return groups
}

func below(top string) []string {
	var found []string
	err := filepath.WalkDir(top, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			found = append(found, path)
		}
		return nil
	})
	if err != nil {
		return nil
	}
	return found
}

// leakedProcesses returns processes in a cgroup or a network namespace of the
// lab. This process itself never counts.
func (l *Lab) leakedProcesses() []int {
	inodes := l.namespaceInodes()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if l.ownsProcess(pid, inodes) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func (l *Lab) ownsProcess(pid int, inodes map[string]bool) bool {
	if state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err != nil || isZombie(string(state)) {
		return false
	}
	if namespace, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid)); err == nil && inodes[namespace] {
		return true
	}
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	return err == nil && strings.Contains(string(groups), ":/"+l.Prefix+"-")
}

// isZombie reads the state out of /proc/PID/stat, behind the name in brackets.
func isZombie(stat string) bool {
	_, rest, found := strings.Cut(stat, ") ")
	return found && strings.HasPrefix(rest, "Z")
}

func (l *Lab) namespaceInodes() map[string]bool {
	inodes := map[string]bool{}
	for _, name := range l.leakedNamespaces() {
		var stat syscall.Stat_t
		if err := syscall.Stat("/run/netns/"+name, &stat); err == nil {
			inodes[fmt.Sprintf("net:[%d]", stat.Ino)] = true
		}
	}
	return inodes
}

func commandOf(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return "?"
	}
	return strings.TrimSpace(strings.ReplaceAll(string(text), "\x00", " "))
}
