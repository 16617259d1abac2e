package runc

//balsa:real-processes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/internal/runcwire"
	"github.com/balsa-run/balsa/node/runtime"
)

// helperOf finds the helper of the one exec that an agent process has.
func helperOf(t *testing.T, agent int) int {
	t.Helper()
	found := 0
	poll(t, "the exec's helper", func() bool {
		paths, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", agent))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			children, _ := os.ReadFile(path) // a thread may just end
			for child := range strings.FieldsSeq(string(children)) {
				command, _ := os.ReadFile("/proc/" + child + "/cmdline")
				if strings.Contains(string(command), "balsa-runc\x00exec\x00") {
					found, err = strconv.Atoi(child)
				}
			}
		}
		return found != 0 && err == nil
	})
	return found
}

func (m *machine) inContainer(t *testing.T) int {
	t.Helper()
	pids, err := m.rt.cgroups.PIDs(filepath.Join(m.opt.CgroupPrefix, podsCgroup, "a", "c-0"))
	if err != nil {
		t.Fatal(err)
	}
	return len(pids)
}

func (m *machine) notes(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(m.podDir("a"), execsDir))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return len(entries)
}

// TestExecHelperKilled: what it has begun goes with it, the container stays.
func TestExecHelperKilled(t *testing.T) {
	m, _ := copyLab(t, "/bin/sim", "forever")
	begun, over := make(chan struct{}, 8), make(chan error, 1)
	go func() {
		_, err := m.rt.Exec(t.Context(), "a", "c", runtime.ExecConfig{
			Args:   []string{"/bin/sh", "-c", "trap '' TERM HUP; /bin/busybox sleep 7777 & echo up; wait"},
			Stdout: writerFunc(func([]byte) { begun <- struct{}{} }),
		})
		over <- err
	}()
	<-begun
	if n := m.inContainer(t); n != 3 || m.notes(t) != 1 {
		t.Fatalf("%d processes in the container, want its own, the exec's and its child; %d notes", n, m.notes(t))
	}
	if err := unix.Kill(helperOf(t, os.Getpid()), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-over; err == nil || errors.Is(err, runtime.ErrStartFailed) || !strings.Contains(err.Error(), "its process was killed") {
		t.Errorf("the exec ends with %v", err)
	}
	poll(t, "what the exec began to be gone", func() bool { return m.inContainer(t) == 1 })
	if n := m.notes(t); n != 0 {
		t.Errorf("%d notes are left", n)
	}
	if exit, err := m.rt.Exec(t.Context(), "a", "c", runtime.ExecConfig{Args: []string{"/bin/busybox", "true"}}); err != nil || exit.Code != 0 || m.notes(t) != 0 {
		t.Errorf("the next exec: %v, %v, %d notes", exit, err, m.notes(t))
	}
}

// TestExecOutlivesAgentAndHelper killed at the same moment, until the next agent
// opens the runtime.
func TestExecOutlivesAgentAndHelper(t *testing.T) {
	newMachine(t).killAgentAndHelper(t)
}

func (m *machine) killAgentAndHelper(t *testing.T) {
	t.Helper()
	a := m.startAgent(agentOrder{Containers: map[string][]string{"c": {"forever"}}, Exec: []string{"/bin/sim", "out=here", "term=ignore", "forever"}})
	a.begin(t)
	a.line(t, "here")
	helper := helperOf(t, a.cmd.Process.Pid)
	if err := unix.Kill(helper, unix.SIGSTOP); err != nil { // it cannot see that the agent dies
		t.Fatal(err)
	}
	a.kill(t)
	if err := unix.Kill(helper, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	m.open()
	poll(t, "what the exec began to be gone", func() bool { return m.inContainer(t) == 1 && m.notes(t) == 0 })
	if c := m.attempt("c"); c.Status != runtime.ContainerRunning {
		t.Errorf("the container is %v", c)
	}
}

// TestExecNotesOfOthers: a process that has the id now, but began at another
// moment, is left alone, and so is everything after a reboot.
func TestExecNotesOfOthers(t *testing.T) {
	m, _ := copyLab(t, "/bin/sim", "forever")
	state, err := m.rt.Pod(context.Background(), "a")
	if err != nil {
		t.Fatal(err)
	}
	c, _ := state.Container("c")
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.PID))
	if err != nil {
		t.Fatal(err)
	}
	ticks, err := runcwire.ParseStartTicks(string(stat))
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), execsDir)
	leave := func(names ...string) {
		t.Helper()
		for _, name := range names {
			if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, name), nil, 0o600)); err != nil {
				t.Fatal(err)
			}
		}
	}
	leave(fmt.Sprintf("%d-%d", c.PID, ticks+1), "1-1", "not a note", fmt.Sprintf("%d-%d", 1<<22-1, ticks))
	if err := endExecs(dir, true); err != nil {
		t.Error(err)
	}
	leave(fmt.Sprintf("%d-%d", c.PID, ticks))
	if err := endExecs(dir, false); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
	if n := m.inContainer(t); n != 1 {
		t.Errorf("%d processes in the container", n)
	}
	leave(fmt.Sprintf("%d-%d", c.PID, ticks))
	if err := endExecs(dir, true); err != nil {
		t.Error(err)
	}
	poll(t, "its end, when the note is right", func() bool { return m.inContainer(t) == 0 })
}
