//go:build linux && cgo

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/internal/runcwire"
)

// execInContainer runs one process in a running container, with the user, the
// capabilities and the limits of the container's own, and waits for it.
func execInContainer(dir string, control, report *os.File) error {
	commands := bufio.NewReaderSize(control, runcwire.MaxExecRequestBytes)
	request, err := readRequest(commands)
	if err != nil {
		return err
	}
	c, p, err := prepareExec(dir, request)
	if err != nil {
		return err
	}
	terminal, err := attach(p, request)
	if err != nil {
		return err
	}
	letGo, err := hold(p, request)
	if err != nil {
		return err
	}
	err = c.Run(p)
	letGo()
	if err != nil {
		return fmt.Errorf("execute %q: %w", request.Args[0], err)
	}
	pid, err := p.Pid()
	if err != nil {
		return fmt.Errorf("pid: %w", err)
	}
	if err := tellStarted(report, pid); err != nil {
		kill(pid)
		return err
	}
	if err := terminal.start(); err != nil {
		kill(pid)
		return err
	}
	go obey(commands, pid, terminal)
	code, signal, err := wait(p)
	if err != nil {
		return err
	}
	terminal.drain()
	_, err = report.WriteString(runcwire.ExitReport(code, signal))
	return err
}

// heldFD is where the process finds the descriptor on which it waits: the first
// behind its streams.
const heldFD = 3

// hold makes the process wait before it executes its program, until the agent has
// answered: see awaitGo. An agent from before that is not asked, its answer is there
// already. The function that is returned is for afterwards.
func hold(p *libcontainer.Process, request runcwire.ExecRequest) (after func(), err error) {
	if request.Hold {
		held := os.NewFile(runcwire.ExecHoldFD, "held")
		p.ExtraFiles = []*os.File{held}
		return func() { _ = held.Close() }, nil
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("hold: %w", err)
	}
	agent, held := os.NewFile(uintptr(fds[0]), "agent"), os.NewFile(uintptr(fds[1]), "held")
	after = func() { _, _ = agent.Close(), held.Close() }
	if _, err := agent.Write([]byte{runcwire.ExecGo}); err != nil {
		after()
		return nil, fmt.Errorf("hold: %w", err)
	}
	p.ExtraFiles = []*os.File{held}
	return after, nil
}

// awaitGo is for the process of an exec, in its namespaces and its session, before
// libcontainer executes its program: from the hello on the agent knows it, and notes
// it before it answers. An agent or a helper that is killed leaves nothing unknown.
func awaitGo() error {
	// Closed when the program is executed; until then the number must not become
	// that of a descriptor which libcontainer then takes for one to hand on.
	unix.CloseOnExec(heldFD)
	if err := unix.Sendto(heldFD, []byte{runcwire.ExecHello}, unix.MSG_NOSIGNAL, nil); err != nil {
		return fmt.Errorf("hello to the agent: %w", err)
	}
	word := make([]byte, 1)
	for {
		n, err := unix.Read(heldFD, word)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("the agent's answer: %w", err)
		case n != 1 || word[0] != runcwire.ExecGo:
			return errors.New("the agent does not let this process go")
		default:
			return nil
		}
	}
}

// tellStarted comes before anything else can go wrong: an agent that did not ask for
// Hold can end the process without this program from here on. It is our child, so
// its id is still its.
func tellStarted(report *os.File, pid int) error {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return fmt.Errorf("when the process began: %w", err)
	}
	ticks, err := runcwire.ParseStartTicks(string(stat))
	if err != nil {
		return err
	}
	_, err = report.WriteString(runcwire.StartedReport(pid, ticks))
	return err
}

func kill(pid int) {
	_ = unix.Kill(-pid, unix.SIGKILL)
	_ = unix.Kill(pid, unix.SIGKILL)
}

func readRequest(r *bufio.Reader) (runcwire.ExecRequest, error) {
	var request runcwire.ExecRequest
	line, err := r.ReadSlice('\n')
	if err != nil {
		return request, fmt.Errorf("read the request: %w", err)
	}
	if err := json.Unmarshal(line, &request); err != nil {
		return request, fmt.Errorf("read the request: %w", err)
	}
	if len(request.Args) == 0 {
		return request, errors.New("read the request: no arguments")
	}
	return request, nil
}

func prepareExec(dir string, request runcwire.ExecRequest) (*libcontainer.Container, *libcontainer.Process, error) {
	spec, err := readSpec(dir)
	if err != nil {
		return nil, nil, err
	}
	machine, err := thisMachine()
	if err != nil {
		return nil, nil, err
	}
	machine.clamp(spec)
	c, err := load(dir)
	if err != nil {
		return nil, nil, err
	}
	p, err := newProcess(execProcess(spec.Process, request), false)
	return c, p, err
}

// execProcess is the container's process with another program.
func execProcess(p *specs.Process, request runcwire.ExecRequest) *specs.Process {
	other := *p
	other.Args = request.Args
	other.Env = append(append([]string(nil), p.Env...), request.Env...)
	if request.TTY {
		other.Env = withTerm(other.Env)
	}
	if request.Cwd != "" {
		other.Cwd = request.Cwd
	}
	return &other
}

// withTerm names a kind of terminal that every program knows, unless one is named.
func withTerm(env []string) []string {
	for _, entry := range env {
		if strings.HasPrefix(entry, "TERM=") {
			return env
		}
	}
	return append(slices.Clip(env), "TERM=xterm")
}

// obey carries out what comes down the control descriptor. Its end means that
// the agent, or the user behind it, is gone: the process and its group go too.
func obey(commands *bufio.Reader, pid int, t *terminal) {
	for {
		line, err := commands.ReadSlice('\n')
		if err != nil {
			kill(pid)
			return
		}
		var size runcwire.Resize
		if json.Unmarshal(line, &size) == nil {
			t.resize(size)
		}
	}
}

func wait(p *libcontainer.Process) (code, signal int, err error) {
	state, err := p.Wait()
	var exited *exec.ExitError
	if err != nil && !errors.As(err, &exited) {
		return 0, 0, fmt.Errorf("wait: %w", err)
	}
	status, ok := state.Sys().(syscall.WaitStatus)
	if !ok {
		return 0, 0, errors.New("wait: no status")
	}
	if status.Signaled() {
		return 128 + int(status.Signal()), int(status.Signal()), nil
	}
	return status.ExitStatus(), 0, nil
}

// endOfInput is what a terminal's reader takes for the end (VEOF).
const endOfInput = 4

// terminal joins this process's streams with a pseudo terminal in the
// container; the zero value, for a process without one, does nothing.
type terminal struct {
	parent, child *os.File // the socket that the master comes through
	master        *os.File
	copied        chan struct{}
}

func attach(p *libcontainer.Process, request runcwire.ExecRequest) (*terminal, error) {
	if !request.TTY {
		p.Stdin, p.Stdout, p.Stderr = os.Stdin, os.Stdout, os.Stderr
		return &terminal{}, nil
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("console socket: %w", err)
	}
	t := &terminal{parent: os.NewFile(uintptr(fds[0]), "console"), child: os.NewFile(uintptr(fds[1]), "console-child")}
	p.ConsoleSocket = t.child
	p.ConsoleWidth, p.ConsoleHeight = request.Width, request.Height
	return t, nil
}

func (t *terminal) start() error {
	if t.parent == nil {
		return nil
	}
	_ = t.child.Close()
	if err := t.receiveMaster(); err != nil {
		return err
	}
	t.copied = make(chan struct{})
	go func() {
		if _, err := io.Copy(t.master, os.Stdin); err == nil {
			// Closing a terminal would hang up: its reader is told of the end as
			// from a keyboard.
			_, _ = t.master.Write([]byte{endOfInput})
		}
	}()
	go func() {
		_, _ = io.Copy(os.Stdout, t.master) // EIO is the end of a terminal
		close(t.copied)
	}()
	return nil
}

func (t *terminal) receiveMaster() error {
	const maxName = 4096
	name, oob := make([]byte, maxName), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(int(t.parent.Fd()), name, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return fmt.Errorf("receive the terminal: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return fmt.Errorf("receive the terminal: %d messages: %w", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return fmt.Errorf("receive the terminal: %d descriptors: %w", len(fds), err)
	}
	t.master = os.NewFile(uintptr(fds[0]), "terminal")
	return nil
}

func (t *terminal) resize(size runcwire.Resize) {
	if t.master == nil {
		return
	}
	_ = unix.IoctlSetWinsize(int(t.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Height, Col: size.Width})
}

// drain waits until everything that was written to the terminal is copied.
func (t *terminal) drain() {
	if t.copied != nil {
		<-t.copied
	}
}
