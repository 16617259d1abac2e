package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Process is a program that runs on a host until it is told to stop. What it
// prints goes to LogPath.
type Process struct {
	Name    string
	LogPath string

	command *exec.Cmd
	done    chan struct{} // closed when it has ended
	err     error         // how it ended; read after done
}

// Start runs a program on the host. Its output is appended to <host>/<name>.log,
// so that a restarted program's story stays in one file.
func (h *Host) Start(name, program string, args ...string) (*Process, error) {
	logPath := filepath.Join(h.Dir, name+".log")
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p := &Process{Name: h.Name + "/" + name, LogPath: logPath, done: make(chan struct{})}
	p.command = h.Command(context.Background(), program, args...)
	p.command.Stdout, p.command.Stderr = log, log
	// Of its own group: a ctrl-C at the terminal reaches the lab, which then ends
	// its processes in order.
	p.command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.command.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.Name, err)
	}
	go func() {
		p.err = p.command.Wait()
		close(p.done)
	}()
	h.lab.mu.Lock()
	h.lab.processes = append(h.lab.processes, p)
	h.lab.mu.Unlock()
	return p, nil
}

// Pid is the process's id: nsenter becomes the program it was asked to run.
func (p *Process) Pid() int { return p.command.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Running tells whether the process has not ended yet.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Signal sends a signal, to this process only.
func (p *Process) Signal(signal syscall.Signal) error {
	err := p.command.Process.Signal(signal)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// Kill ends the process with SIGKILL and waits for its end.
func (p *Process) Kill() error {
	if err := p.Signal(syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill %s: %w", p.Name, err)
	}
	return p.wait(killTimeout)
}

// Stop asks the process to end and waits for it, then ends it by force.
func (p *Process) Stop(patience time.Duration) error {
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop %s: %w", p.Name, err)
	}
	if p.wait(patience) == nil {
		return nil
	}
	return errors.Join(fmt.Errorf("%s did not end within %v of SIGTERM", p.Name, patience), p.Kill())
}

func (p *Process) wait(patience time.Duration) error {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-p.done:
		return nil
	case <-timer.C:
		return fmt.Errorf("%s still runs after %v", p.Name, patience)
	}
}

// Tail returns the last lines of what the process printed, for a report.
func (p *Process) Tail(lines int) string {
	text, err := os.ReadFile(p.LogPath)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
