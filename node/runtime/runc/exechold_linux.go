package runc

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/internal/runcwire"
)

// An exec's program does not begin before it is noted: the process that will
// execute it says hello on a socket and waits, and goes on when it is answered.
//
//	helper            its process                 agent
//	  |-- fork, join ------>|
//	  |                     |-- hello (+ kernel: my pid) -->|
//	  |                     |                               | is it the helper's child?
//	  |                     |                               | note execs/PID-TICKS
//	  |                     |<------------------------ go --|
//	  |                 execve(program)
//
// Whoever is killed in between, nothing runs that is not noted: the end of the
// socket ends a process that still waits. The helper's own report comes too late
// for that, after execve.
type execHold struct {
	conn *net.UnixConn
	over chan struct{} // closed when nobody is let go any more
	err  error         // valid after over
}

// newExecHold also returns the end of the process, for the helper to hand on.
func newExecHold() (*execHold, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket of an exec: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "hold"), os.NewFile(uintptr(fds[1]), "held")
	defer func() { _ = ours.Close() }() // the connection has a descriptor of its own
	// Only the kernel knows which id the process has outside of its namespace.
	err = unix.SetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("socket of an exec: %w", err), theirs.Close())
	}
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("socket of an exec: %w", err), theirs.Close())
	}
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, nil, errors.Join(fmt.Errorf("socket of an exec: it is a %T", conn), conn.Close(), theirs.Close())
	}
	return &execHold{conn: unixConn, over: make(chan struct{})}, theirs, nil
}

// serve notes the one process that the helper begins, then lets it go.
func (h *execHold) serve(b *begun, helper int) {
	defer close(h.over)
	h.err = h.letGo(b, helper)
	if h.err != nil {
		_ = h.conn.Close() // it ends, instead of waiting on
	}
}

func (h *execHold) letGo(b *begun, helper int) error {
	pid, err := h.hello()
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		return nil // no process came as far as that, or an older helper's, which does not ask
	}
	if err != nil {
		return fmt.Errorf("process of an exec: %w", err)
	}
	p, err := childOf(helper, pid)
	if err != nil {
		return err
	}
	b.take(p)
	if _, err := h.conn.Write([]byte{runcwire.ExecGo}); err != nil {
		return fmt.Errorf("process %d of an exec: let it go: %w", pid, err)
	}
	return nil
}

// hello waits for the process and returns its id.
func (h *execHold) hello() (int, error) {
	word, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(unix.SizeofUcred))
	n, oobn, _, _, err := h.conn.ReadMsgUnix(word, oob)
	if err != nil {
		return 0, err
	}
	if n == 0 {
		return 0, io.EOF
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		return 0, fmt.Errorf("%d messages about who it is: %w", len(messages), errors.Join(err, unix.EBADMSG))
	}
	who, err := unix.ParseUnixCredentials(&messages[0])
	if err != nil {
		return 0, fmt.Errorf("who it is: %w", err)
	}
	return int(who.Pid), nil
}

// end closes the socket. After it no process is let go.
func (h *execHold) end() error {
	_ = h.conn.Close()
	<-h.over
	return h.err
}

// childOf is the process with that id if it is a child of the helper, which has
// not been waited for. It waits for our answer, but may be killed, and its id may
// be a stranger's by now: a stranger has another parent.
func childOf(helper, pid int) (execProcess, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return execProcess{}, fmt.Errorf("process %d of an exec: %w", pid, err)
	}
	parent, err := runcwire.ParseParent(string(stat))
	if err != nil {
		return execProcess{}, fmt.Errorf("process %d of an exec: %w", pid, err)
	}
	if parent != helper {
		return execProcess{}, fmt.Errorf("process %d of an exec: its parent is %d, not its helper %d, which is gone", pid, parent, helper)
	}
	ticks, err := runcwire.ParseStartTicks(string(stat))
	return execProcess{pid, ticks}, err
}
