package hostcgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Limits bound a cgroup and everything below it. Zero fields are not touched.
type Limits struct {
	// CPUQuotaMicros is CPU time per CPUPeriodMicros; NoQuota lifts it.
	CPUQuotaMicros  int64
	CPUPeriodMicros uint64
	// MemoryBytes includes swap.
	MemoryBytes int64
	Pids        int64
}

// NoQuota in Limits.CPUQuotaMicros takes the quota away.
const NoQuota = -1

// Unified tells whether version 2 alone holds the resource controllers.
func (t *Tree) Unified() bool {
	return !slices.ContainsFunc(t.hierarchies, func(h hierarchy) bool { return slices.Contains(h.controllers, "memory") })
}

// SetLimits writes the limits that are set.
func (t *Tree) SetLimits(path string, l Limits) error {
	for _, h := range t.hierarchies {
		for _, w := range h.limitFiles(l, t.Unified()) {
			err := writeFile(filepath.Join(h.mount, path, w.file), w.value)
			if w.optional && errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return fmt.Errorf("limit cgroup %s to %s=%s: %w", path, w.file, w.value, err)
			}
		}
	}
	return nil
}

type limitFile struct {
	file, value string
	// optional: a kernel without swap accounting lacks the file.
	optional bool
}

func (h hierarchy) limitFiles(l Limits, pure bool) []limitFile {
	if h.unified {
		if pure {
			return unifiedFiles(l)
		}
		return nil
	}
	var files []limitFile
	if l.CPUQuotaMicros != 0 && slices.Contains(h.controllers, "cpu") {
		if l.CPUPeriodMicros != 0 {
			files = append(files, limitFile{"cpu.cfs_period_us", strconv.FormatUint(l.CPUPeriodMicros, 10), false})
		}
		files = append(files, limitFile{"cpu.cfs_quota_us", strconv.FormatInt(l.CPUQuotaMicros, 10), false})
	}
	if l.MemoryBytes != 0 && slices.Contains(h.controllers, "memory") {
		bytes := strconv.FormatInt(l.MemoryBytes, 10)
		files = append(files, limitFile{"memory.limit_in_bytes", bytes, false}, limitFile{"memory.memsw.limit_in_bytes", bytes, true})
	}
	if l.Pids != 0 && slices.Contains(h.controllers, "pids") {
		files = append(files, limitFile{"pids.max", strconv.FormatInt(l.Pids, 10), false})
	}
	return files
}

func unifiedFiles(l Limits) []limitFile {
	var files []limitFile
	if l.CPUQuotaMicros != 0 {
		value := "max"
		if l.CPUQuotaMicros > 0 {
			value = strconv.FormatInt(l.CPUQuotaMicros, 10)
		}
		if l.CPUPeriodMicros != 0 {
			value += " " + strconv.FormatUint(l.CPUPeriodMicros, 10)
		}
		files = append(files, limitFile{"cpu.max", value, false})
	}
	if l.MemoryBytes != 0 {
		files = append(files, limitFile{"memory.max", strconv.FormatInt(l.MemoryBytes, 10), false}, limitFile{"memory.swap.max", "0", true})
	}
	if l.Pids != 0 {
		files = append(files, limitFile{"pids.max", strconv.FormatInt(l.Pids, 10), false})
	}
	return files
}

// Holds tells whether a process is in the cgroup or below it.
func (t *Tree) Holds(path string, pid int) bool {
	content, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cgroup"))
	return err == nil && isMember(string(content), path)
}

func writeFile(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// The controllers of version 2 that containers are given, where the machine
// has them. Those of required cannot be done without.
const (
	wantedControllers   = "cpu memory pids cpuset io"
	requiredControllers = "cpu memory pids"
)

// delegate hands the controllers of version 2 down to the children of a
// cgroup. A cgroup that has processes of its own cannot do that, except the
// root ("no internal processes", cgroup-v2.rst).
func delegate(dir string) error {
	available, err := readFields(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	file := filepath.Join(dir, "cgroup.subtree_control")
	enabled, err := readFields(file)
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(wantedControllers) {
		if !slices.Contains(available, name) || slices.Contains(enabled, name) {
			continue
		}
		err := writeFile(file, "+"+name)
		if err != nil && slices.Contains(strings.Fields(requiredControllers), name) {
			return fmt.Errorf("hand the %s controller down from %s (it must have no processes of its own): %w", name, dir, err)
		}
	}
	return nil
}

func readFields(file string) ([]string, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return strings.Fields(string(content)), nil
}
