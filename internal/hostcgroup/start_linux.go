package hostcgroup

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/balsa-run/balsa/internal/hostmount"
)

// Start starts a command that is born in the cgroup. To move a process waits
// for a grace period of the kernel's (some 10 ms, percpu-rwsem.rst); to move a
// thread that moves itself does not, and a child is born where its parent
// thread is. So a thread joins the hierarchies of version 1, forks and dies,
// and clone3(2) puts the child into the unified hierarchy.
func (t *Tree) Start(path string, cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	for _, h := range t.hierarchies {
		if !h.unified {
			continue
		}
		dir, err := os.Open(filepath.Join(h.mount, path))
		if err != nil {
			return fmt.Errorf("start in cgroup %s: %w", path, err)
		}
		defer func() { _ = dir.Close() }()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	return hostmount.OnThread(func() error {
		for _, h := range t.hierarchies {
			if h.unified {
				continue
			}
			if err := writeFile(filepath.Join(h.mount, path, "tasks"), "0"); err != nil {
				return fmt.Errorf("start in cgroup %s: %w", path, err)
			}
		}
		return cmd.Start()
	})
}

// Warm makes the moves of the next moments quick, by anybody: only the first
// one after a pause waits for the kernel's grace period. It moves this process
// to where it is.
func (t *Tree) Warm() error {
	content, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return fmt.Errorf("warm cgroups: %w", err)
	}
	for _, h := range t.hierarchies {
		path, ok := h.memberPath(content)
		if !ok {
			continue
		}
		if err := writeFile(filepath.Join(h.mount, path, "cgroup.procs"), "0"); err != nil {
			return fmt.Errorf("warm cgroups: %w", err)
		}
		return nil
	}
	return errors.New("warm cgroups: this process's own cgroup is not in sight")
}

// memberPath finds the hierarchy's line in /proc/self/cgroup.
func (h hierarchy) memberPath(content []byte) (string, bool) {
	for line := range bytes.Lines(content) {
		fields := strings.SplitN(strings.TrimSpace(string(line)), ":", 3)
		if len(fields) != 3 || strings.Contains(fields[2], "..") {
			continue
		}
		first, _, _ := strings.Cut(fields[1], ",")
		if h.unified && fields[0] == "0" || first != "" && slices.Contains(h.controllers, first) {
			return fields[2], true
		}
	}
	return "", false
}
