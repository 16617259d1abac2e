package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/node"
)

// clockTick is the unit of /proc/stat: USER_HZ, the same on every architecture
// that Linux runs on today.
const clockTick = 10 * time.Millisecond

var _ node.Meter = thisMachine{}

// Usage implements node.Meter. It reads a handful of small files.
func (m thisMachine) Usage(context.Context) (node.MachineUsage, error) {
	var u node.MachineUsage
	disk, err := diskOf(m.dirs)
	errs := []error{err}
	u.DiskBytes, u.DiskAvailable, u.DiskUsed = disk.bytes, disk.available, disk.used
	u.Inodes, u.InodesAvailable = disk.inodes, disk.inodesAvailable
	read := func(to *int64, from func() (int64, error)) {
		n, err := from()
		*to = n
		errs = append(errs, err)
	}
	var free, inactive, threads int64
	read(&u.CPUNanos, cpuNanos)
	read(&u.MemoryBytes, func() (int64, error) { return memInfo("MemTotal") })
	read(&u.MemoryAvailable, func() (int64, error) { return memInfo("MemAvailable") })
	read(&free, func() (int64, error) { return memInfo("MemFree") })
	read(&inactive, func() (int64, error) { return memInfo("Inactive(file)") })
	read(&u.Pids, mostThreads)
	read(&threads, func() (int64, error) { return threadsNow("/proc/loadavg") })
	// What is inactive in the page cache can be had at once, as in a cgroup.
	u.MemoryWorkingSet = max(0, u.MemoryBytes-free-inactive)
	u.PidsAvailable = max(0, u.Pids-threads)
	return u, errors.Join(errs...)
}

// space is what a file system has.
type space struct {
	bytes, available, used  int64
	inodes, inodesAvailable int64
}

// tightness is the greater part of bytes or inodes that is taken.
func (s space) tightness() float64 {
	most := 0.0
	if s.bytes > 0 {
		most = 1 - float64(s.available)/float64(s.bytes)
	}
	if s.inodes > 0 {
		most = max(most, 1-float64(s.inodesAvailable)/float64(s.inodes))
	}
	return most
}

// diskOf measures the file systems of some folders; the fullest counts.
func diskOf(dirs []string) (fullest space, err error) {
	for _, dir := range dirs {
		s, err := spaceOf(dir)
		if err != nil {
			return fullest, err
		}
		if fullest.bytes == 0 || s.tightness() > fullest.tightness() {
			fullest = s
		}
	}
	return fullest, nil
}

// spaceOf asks for the folder's file system, or for that of the folder where it
// will be made.
func spaceOf(dir string) (space, error) {
	var st unix.Statfs_t
	err := unix.Statfs(dir, &st)
	for errors.Is(err, unix.ENOENT) && dir != "/" && dir != "." {
		dir = filepath.Dir(dir)
		err = unix.Statfs(dir, &st)
	}
	if err != nil {
		return space{}, fmt.Errorf("room on the disk of %s: %w", dir, err)
	}
	return space{
		// As df(1) counts: what is reserved for root is neither used nor available.
		bytes:     int64(st.Blocks-st.Bfree+st.Bavail) * st.Bsize,
		available: int64(st.Bavail) * st.Bsize, used: int64(st.Blocks-st.Bfree) * st.Bsize,
		inodes: int64(st.Files), inodesAvailable: int64(st.Ffree),
	}, nil
}

func cpuNanos() (int64, error) {
	line, err := firstLine("/proc/stat")
	if err != nil {
		return 0, err
	}
	return busyNanos(line)
}

// busyNanos adds up the first line of /proc/stat, without idle time and waits
// (fields 4 and 5) and without guests (9 and 10), which user time has already.
func busyNanos(line string) (int64, error) {
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return 0, fmt.Errorf("/proc/stat begins with %q", line)
	}
	var ticks int64
	for i, field := range fields[1:9] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		if i != 3 && i != 4 {
			ticks += n
		}
	}
	return ticks * int64(clockTick), nil
}

// mostThreads is how many processes and threads the kernel can have.
func mostThreads() (int64, error) {
	most := int64(0)
	for _, path := range []string{"/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"} {
		text, err := firstLine(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
		if most == 0 || n < most {
			most = n
		}
	}
	return most, nil
}

// threadsNow is the number after the slash of /proc/loadavg.
func threadsNow(path string) (int64, error) {
	line, err := firstLine(path)
	if err != nil {
		return 0, err
	}
	if fields := strings.Fields(line); len(fields) > 3 {
		if _, all, ok := strings.Cut(fields[3], "/"); ok {
			return strconv.ParseInt(all, 10, 64)
		}
	}
	return 0, fmt.Errorf("%s reads %q, want a fourth field like 1/200", path, line)
}
