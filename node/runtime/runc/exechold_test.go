package runc

//balsa:real-processes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/internal/runcwire"
	"github.com/balsa-run/balsa/node/runtime"
)

// helperScript replaces balsa-runc for execs, from before the runtime is opened.
func (m *machine) helperScript(t *testing.T, forExec string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "balsa-runc")
	script := fmt.Sprintf("#!/bin/sh\nif [ \"$1\" = exec ]; then\n%s\nfi\nexec %s \"$@\"\n", forExec, m.opt.Helpers.Runc)
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	m.opt.Helpers.Runc = path
}

// loseReports has the helper work as ever, but what it reports goes nowhere: as if
// it were killed before its report, however late that is. The report's pipe stays
// open for as long as the helper lives.
func (m *machine) loseReports(t *testing.T) {
	t.Helper()
	m.helperScript(t, fmt.Sprintf("exec %s \"$@\" 6>&4 4>/dev/null", m.opt.Helpers.Runc))
}

// commands are those of the container's processes.
func (m *machine) commands(t *testing.T) []string {
	t.Helper()
	pids, err := m.rt.cgroups.PIDs(filepath.Join(m.opt.CgroupPrefix, podsCgroup, "a", "c-0"))
	if err != nil {
		t.Fatal(err)
	}
	var commands []string
	for _, pid := range pids {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // it may just end
		commands = append(commands, strings.TrimSuffix(strings.ReplaceAll(string(line), "\x00", " "), " "))
	}
	slices.Sort(commands)
	return commands
}

func (m *machine) runC(t *testing.T, change func(*runtime.PodConfig), command ...string) {
	t.Helper()
	cfg := runtime.PodConfig{UID: "a", Hostname: "h"}
	change(&cfg)
	if _, err := m.open().RunPod(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if err := m.rt.RunContainer(t.Context(), "a", runtime.ContainerConfig{Name: "c", Image: m.image, Command: command}); err != nil {
		t.Fatal(err)
	}
}

// TestExecHelperKilledBeforeReport: its process goes, and only its: neither another
// exec's that runs at the same time nor those of the container's own which began
// later, one of them a daemon with a session of its own.
func TestExecHelperKilledBeforeReport(t *testing.T) {
	for name, change := range map[string]func(*runtime.PodConfig){
		"own process namespace": func(*runtime.PodConfig) {},
		"the node's":            func(c *runtime.PodConfig) { c.HostPID = true },
		"user namespace":        withUsers,
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			m.loseReports(t)
			m.runC(t, change, "/bin/sh", "-c", "/bin/busybox mkfifo /tmp/f; read x </tmp/f; /bin/busybox setsid /bin/busybox sleep 8888 & wait")
			one := m.execs(t, "until [ -p /tmp/f ]; do :; done; echo up; exec /bin/busybox sleep 6666")
			<-one.up
			helper := helperOf(t, os.Getpid())
			other := m.execs(t, "echo x >/tmp/f; echo up; exec /bin/busybox sleep 7777")
			<-other.up
			left := func(seconds string) bool {
				return slices.ContainsFunc(m.commands(t), func(c string) bool { return strings.HasSuffix(c, "sleep "+seconds) })
			}
			poll(t, "all to run", func() bool { return left("6666") && left("7777") && left("8888") && m.inContainer(t) == 4 })
			if n := m.notes(t); n != 2 {
				t.Errorf("%d notes of two execs", n)
			}
			if err := unix.Kill(helper, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if err := <-one.over; err == nil || !strings.Contains(err.Error(), "its process was killed") {
				t.Errorf("the exec ends with %v", err)
			}
			poll(t, "its process to be gone", func() bool { return m.inContainer(t) == 3 })
			if !left("7777") || !left("8888") || m.notes(t) != 1 {
				t.Errorf("left: %q, %d notes", m.commands(t), m.notes(t))
			}
			other.cancel()
			<-other.over
			poll(t, "the other's to be gone", func() bool { return m.inContainer(t) == 2 && m.notes(t) == 0 })
		})
	}
}

// shellExec runs in the background.
type shellExec struct {
	up     chan struct{} // once its program has printed
	over   chan error
	cancel context.CancelFunc
}

func (m *machine) execs(t *testing.T, script string) shellExec {
	ctx, cancel := context.WithCancel(t.Context())
	x := shellExec{up: make(chan struct{}, 8), over: make(chan error, 1), cancel: cancel}
	go func() {
		_, err := m.rt.Exec(ctx, "a", "c", runtime.ExecConfig{
			Args: []string{"/bin/sh", "-c", script}, Stdout: writerFunc(func([]byte) { x.up <- struct{}{} }),
		})
		x.over <- err
	}()
	return x
}

// TestExecOutlivesBothBeforeReport: the next agent knows it all the same.
func TestExecOutlivesBothBeforeReport(t *testing.T) {
	m := newMachine(t)
	m.loseReports(t)
	m.killAgentAndHelper(t)
}

// heldExec is an exec whose agent is the test itself.
type heldExec struct {
	*execution
	cmd *exec.Cmd
	out *os.File // what the program prints
}

func (m *machine) startHeld(t *testing.T, request runcwire.ExecRequest) heldExec {
	t.Helper()
	x := &execution{dir: m.podDir("a"), helper: m.opt.Helpers.Runc, id: containerID("c", 0), log: m.opt.Log}
	cmd, children, err := x.command(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !request.Hold { // an agent from before that has no such descriptor
		cmd.ExtraFiles = cmd.ExtraFiles[:2]
	}
	out, printed, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout = printed
	line, err := runcwire.Line(request)
	// A program that runs although it should not would never end.
	if err := errors.Join(err, out.SetReadDeadline(time.Now().Add(patience)), cmd.Start()); err != nil {
		t.Fatal(err)
	}
	for _, f := range append(children, printed) {
		_ = f.Close()
	}
	t.Cleanup(func() {
		_ = errors.Join(x.control.Close(), x.hold.conn.Close(), cmd.Process.Kill(), cmd.Wait(), x.report.Close(), out.Close())
	})
	if _, err := x.control.Write(line); err != nil {
		t.Fatal(err)
	}
	return heldExec{x, cmd, out}
}

func printing() runcwire.ExecRequest {
	return runcwire.ExecRequest{Args: []string{"/bin/sh", "-c", "echo here; exec /bin/busybox sleep 7777"}, Hold: true}
}

// atHello is the process that waits, before it is answered.
func (x heldExec) atHello(t *testing.T) int {
	t.Helper()
	err := x.hold.conn.SetReadDeadline(time.Now().Add(patience))
	pid, helloErr := x.hold.hello()
	if err := errors.Join(err, helloErr); err != nil {
		t.Fatal(err)
	}
	if p, err := childOf(x.cmd.Process.Pid, pid); err != nil || p.pid != pid || p.ticks == 0 {
		t.Errorf("%v, %v, want the helper's child", p, err)
	}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !strings.Contains(string(line), "balsa-runc\x00init") {
		t.Errorf("it runs %q, %v already", line, err)
	}
	if session, err := unix.Getsid(pid); err != nil || session != pid {
		t.Errorf("its session is %d, %v, want its own, %d: it is killed with its group", session, err, pid)
	}
	return pid
}

// checkNothingRan: the program's output ends without a word.
func (x heldExec) checkNothingRan(t *testing.T, m *machine) {
	t.Helper()
	if printed, err := io.ReadAll(x.out); err != nil || len(printed) > 0 {
		t.Errorf("it printed %q, %v", printed, err)
	}
	poll(t, "the process to be gone", func() bool { return m.inContainer(t) == 1 })
}

// TestExecAgentGoneBeforeNote: the process ends by itself, the program never began.
func TestExecAgentGoneBeforeNote(t *testing.T) {
	m, _ := copyLab(t, "/bin/sim", "forever")
	x := m.startHeld(t, printing())
	x.atHello(t)
	_ = x.hold.conn.Close()
	x.checkNothingRan(t, m)
	_ = x.report.SetReadDeadline(time.Now().Add(patience))
	report, err := io.ReadAll(x.report)
	if _, _, perr := runcwire.ParseExecReport(string(report)); err != nil || perr == nil || errors.Is(perr, runcwire.ErrNoReport) {
		t.Errorf("the helper reports %q, %v, want an error", report, err)
	}
}

// TestExecBothGoneBeforeNote: likewise. Nobody else could end it.
func TestExecBothGoneBeforeNote(t *testing.T) {
	m, _ := copyLab(t, "/bin/sim", "forever")
	x := m.startHeld(t, printing())
	pid := x.atHello(t)
	if err := x.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = x.cmd.Wait()
	// An agent that lives does not let it go any more: its id is not vouched for.
	if p, err := childOf(x.cmd.Process.Pid, pid); err == nil {
		t.Errorf("%v is a child of a helper that is gone", p)
	}
	_ = x.hold.conn.Close()
	x.checkNothingRan(t, m)
}

// TestExecHoldRefusesStrangers: who is no child of the helper is neither noted nor
// let go.
func TestExecHoldRefusesStrangers(t *testing.T) {
	h, theirs, err := newExecHold()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	if _, err := theirs.Write([]byte{runcwire.ExecHello}); err != nil {
		t.Fatal(err)
	}
	b := &begun{dir: t.TempDir()}
	h.serve(b, os.Getpid())
	if err := h.end(); err == nil || !strings.Contains(err.Error(), "its parent is") || b.known() {
		t.Errorf("%v, known: %v", err, b.known())
	}
	if n, err := theirs.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("it is told %d bytes, %v; want the end", n, err)
	}
}

// TestExecHoldEnds without a hello.
func TestExecHoldEnds(t *testing.T) {
	h, theirs, err := newExecHold()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	b := &begun{dir: t.TempDir()}
	go h.serve(b, os.Getpid())
	if err := h.end(); err != nil || b.known() {
		t.Errorf("%v, known: %v", err, b.known())
	}
	if _, err := h.conn.Write([]byte{runcwire.ExecGo}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after its end: %v", err)
	}
}

// onlyItsStreams prints which other descriptors it was handed. It asks for them by
// number: a listing would open one.
const onlyItsStreams = "for n in 3 4 5 6 7 8 9 10 11 12; do [ ! -e /proc/$$/fd/$n ] || echo $n; done; exit 3"

// TestExecHandsOnNoDescriptor: that of the wait is not the program's.
func TestExecHandsOnNoDescriptor(t *testing.T) {
	m, _ := copyLab(t, "/bin/sim", "forever")
	var printed bytes.Buffer
	exit, err := m.rt.Exec(t.Context(), "a", "c", runtime.ExecConfig{Args: []string{"/bin/sh", "-c", onlyItsStreams}, Stdout: &printed})
	if err != nil || exit.Code != 3 || printed.Len() > 0 {
		t.Errorf("%v, %v, its descriptors: %s", exit, err, printed.String())
	}
}

// TestExecOfOlderAgent: one that is not asked, and has no descriptor for it.
func TestExecOfOlderAgent(t *testing.T) {
	m, _ := copyLab(t, "/bin/sim", "forever")
	x := m.startHeld(t, runcwire.ExecRequest{Args: []string{"/bin/sh", "-c", onlyItsStreams}})
	if printed, err := io.ReadAll(x.out); err != nil || len(printed) > 0 {
		t.Errorf("its descriptors: %s, %v", printed, err)
	}
	report, err := io.ReadAll(x.report)
	line, _, _ := strings.Cut(string(report), "\n")
	if _, _, ok := runcwire.ParseStartedReport(line + "\n"); err != nil || !ok {
		t.Errorf("the helper reports %q, %v, want the start first", report, err)
	}
	if code, _, err := runcwire.ParseExecReport(string(report)); err != nil || code != 3 {
		t.Errorf("the helper reports %q, %v", report, err)
	}
}

// TestExecOfOlderHelper: one that only reports what has begun is believed.
func TestExecOfOlderHelper(t *testing.T) {
	m := newMachine(t)
	// It stands for its own process, which runs until its input ends.
	m.helperScript(t, `read -r request <&3
stat=$(cat /proc/$$/stat); set -- ${stat##*) }
echo "started pid=$$ ticks=${20}" >&4
read -r word
echo "exit code=5 signal=0" >&4
exit 0`)
	m.runC(t, func(*runtime.PodConfig) {}, "/bin/sim", "forever")
	in, end := io.Pipe()
	over := make(chan error, 1)
	go func() {
		exit, err := m.rt.Exec(t.Context(), "a", "c", runtime.ExecConfig{Args: []string{"any"}, Stdin: in})
		if exit.Code != 5 {
			err = errors.Join(err, fmt.Errorf("code %d", exit.Code))
		}
		over <- err
	}()
	poll(t, "its note", func() bool { return m.notes(t) == 1 })
	_ = end.Close()
	if err := <-over; err != nil || m.notes(t) != 0 {
		t.Errorf("%v, %d notes", err, m.notes(t))
	}
}
