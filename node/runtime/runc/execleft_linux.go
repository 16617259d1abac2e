package runc

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/internal/runcwire"
)

// What becomes of a process that an exec has begun when the helper that waits for
// it is killed: it would run on in its container, known to nobody. So the helper
// says which one it is as soon as it exists, and it is noted in a file for as long
// as it runs, in case the agent is killed together with the helper.

// execProcess is a process, told from a later one with its id by when it began.
type execProcess struct {
	pid   int
	ticks uint64
}

// begun follows the process of one exec.
type begun struct {
	dir string // of the notes

	mu      sync.Mutex
	process execProcess // guarded by mu
	noteErr error       // guarded by mu
}

func (b *begun) known() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.process.pid != 0
}

// take notes the process. It is told twice, by itself and by the helper's report;
// the second time changes nothing.
func (b *begun) take(p execProcess) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.process.pid != 0 {
		return
	}
	b.process = p
	b.noteErr = b.writeLocked()
}

func (b *begun) noteLocked() string {
	return filepath.Join(b.dir, fmt.Sprintf("%d-%d", b.process.pid, b.process.ticks))
}

// read takes the helper's report in to its end, and the process once it is told:
// helpers from before execHold tell only here.
func (b *begun) read(r io.Reader) (report string, err error) {
	lines, all := bufio.NewReader(r), strings.Builder{}
	for {
		line, err := lines.ReadString('\n')
		all.WriteString(line)
		if pid, ticks, ok := runcwire.ParseStartedReport(line); ok {
			b.take(execProcess{pid, ticks})
		}
		if errors.Is(err, io.EOF) {
			return all.String(), nil
		}
		if err != nil {
			return all.String(), err
		}
	}
}

func (b *begun) writeLocked() error {
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return err
	}
	return os.WriteFile(b.noteLocked(), nil, 0o600)
}

// end kills the process if the helper has not seen its end.
func (b *begun) end(unseen bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.process.pid == 0 {
		return nil
	}
	if unseen {
		if err := b.process.kill(); err != nil {
			return err // the note stays, for the next Open
		}
	}
	if err := os.Remove(b.noteLocked()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return b.noteErr
}

// kill kills the process and its group, as the helper would have. One that has
// ended, or whose id somebody else has now, is left alone.
func (p execProcess) kill() error {
	fd, err := unix.PidfdOpen(p.pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("process %d of an exec: %w", p.pid, err)
	}
	defer unix.Close(fd)
	// The descriptor is of whoever had the id a moment ago: if that one began when
	// ours did, it is ours.
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("process %d of an exec: %w", p.pid, err)
	}
	if ticks, err := runcwire.ParseStartTicks(string(stat)); err != nil || ticks != p.ticks {
		return err
	}
	// While the process is there, and be it as a zombie, the group is its own: an
	// exec begins a session.
	group := unix.Kill(-p.pid, unix.SIGKILL)
	own := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	for _, err := range []error{group, own} {
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill process %d of an exec: %w", p.pid, err)
		}
	}
	return nil
}

// endExecs ends what execs of an agent that is gone have left. After a reboot the
// notes mean nothing.
func endExecs(dir string, sameBoot bool) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var failed []error
	for _, e := range entries {
		var p execProcess
		if n, _ := fmt.Sscanf(e.Name(), "%d-%d", &p.pid, &p.ticks); n == 2 && p.pid > 1 && sameBoot {
			if err := p.kill(); err != nil {
				failed = append(failed, err)
				continue
			}
		}
		failed = append(failed, os.Remove(filepath.Join(dir, e.Name())))
	}
	return errors.Join(failed...)
}
