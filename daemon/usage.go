package daemon

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/balsa-run/balsa/node"
)

// clockTick is the unit of /proc/stat: USER_HZ, the same on every architecture
// that Linux runs on today.
const clockTick = 10 * time.Millisecond

// meteredMachine is node.Machine and node.Meter; dir is where images, logs and
// volumes are kept.
type meteredMachine struct {
	thisMachine
	dir string
}

// Usage implements node.Meter.
func (m meteredMachine) Usage(context.Context) (node.MachineUsage, error) {
	var u node.MachineUsage
	stat, err := firstLine("/proc/stat")
	if err != nil {
		return u, err
	}
	if u.CPUNanos, err = busyNanos(stat); err != nil {
		return u, err
	}
	info, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return u, err
	}
	u.MemoryAvailable = memoryField(string(info), "MemAvailable:")
	// What is inactive in the page cache can be had at once, as in a cgroup.
	u.MemoryWorkingSet = max(0, memoryField(string(info), "MemTotal:")-memoryField(string(info), "MemFree:")-memoryField(string(info), "Inactive(file):"))
	var fs syscall.Statfs_t
	if err := syscall.Statfs(m.dir, &fs); err != nil {
		return u, fmt.Errorf("file system of %s: %w", m.dir, err)
	}
	size := fs.Bsize
	u.DiskUsed, u.DiskAvailable = int64(fs.Blocks-fs.Bfree)*size, int64(fs.Bavail)*size
	return u, nil
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

// memoryField is a line of /proc/meminfo in bytes.
func memoryField(text, name string) int64 {
	for line := range strings.Lines(text) {
		if fields := strings.Fields(line); len(fields) >= 2 && fields[0] == name {
			n, _ := strconv.ParseInt(fields[1], 10, 64)
			return n << 10
		}
	}
	return 0
}
