package runc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/node/runtime"
)

const (
	// shimStartTimeout bounds the wait for a new shim's "ready".
	shimStartTimeout = 20 * time.Second
	// lostAfter is how long a shim may hold its lock without answering before
	// the connection is given up until the next call.
	reconnectFor  = 10 * time.Second
	reconnectLook = 5 * time.Millisecond
)

// startShim gives the pod a shim, unless one lives: its lock says so. The lock
// is taken here and handed down, so that two agents, or one that restarts,
// never start two shims.
func (p *pod) startShim(ctx context.Context) error {
	lock, err := lockPath(filepath.Join(p.dir, lockFile))
	if errors.Is(err, unix.EWOULDBLOCK) {
		return p.connect(ctx)
	}
	if err != nil {
		return fmt.Errorf("shim lock: %w", err)
	}
	defer func() { _ = lock.Close() }()
	if err := p.spawnShim(ctx, lock); err != nil {
		return fmt.Errorf("start the shim: %w", err)
	}
	return p.connect(ctx)
}

func (p *pod) spawnShim(ctx context.Context, lock *os.File) error {
	log, err := os.OpenFile(filepath.Join(p.dir, shimLogFile), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	ready, child, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = ready.Close() }()
	// The shim outlives the call, and this process.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), p.rt.opt.Helpers.Shim, p.dir, string(p.uid), p.rt.opt.Helpers.Runc)
	cmd.Dir, cmd.Stderr, cmd.ExtraFiles = p.dir, log, []*os.File{child, lock}
	cmd.Env = shimEnv()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = p.rt.cgroups.Start(filepath.Join(p.cgroup, shimCgroup), cmd)
	_ = child.Close()
	if err != nil {
		return err
	}
	go reap(cmd) // if it should end before us
	return awaitReady(ctx, ready)
}

// reap waits for a child that lives as long as a pod. It sleeps where
// connections do: a goroutine in wait4(2) keeps a thread, with 48 KiB of stacks
// in this process and more in the kernel. Kernels before 5.10 know no other way.
func reap(cmd *exec.Cmd) {
	_ = awaitEnd(cmd.Process.Pid)
	_ = cmd.Wait()
}

// awaitEnd returns once a child of this process has ended; it is not reaped yet.
func awaitEnd(pid int) (err error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return err
	}
	process := os.NewFile(uintptr(fd), "pidfd") // in the poller, since it does not block
	defer func() { err = errors.Join(err, process.Close()) }()
	raw, err := process.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(hasEnded)
}

func hasEnded(pidfd uintptr) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return n > 0 && err == nil
}

// shimEnv keeps the Go runtime's own share small in the programs that last as
// long as a pod. One thread does their work, and their heap is a tenth of a huge
// page; with transparent huge pages set to "always", as in Debian's kernel, each
// would be given one.
func shimEnv() []string {
	return []string{"GOMAXPROCS=1", "GOTRACEBACK=single", "GODEBUG=disablethp=1"}
}

func awaitReady(ctx context.Context, ready *os.File) error {
	ctx, cancel := context.WithTimeout(ctx, shimStartTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Now()) })
	defer stop()
	line, err := bufio.NewReader(ready).ReadString('\n')
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("no answer: %w", context.Cause(ctx))
	case line == "ready\n":
		return nil
	case err != nil && !errors.Is(err, io.EOF):
		return err
	case line == "":
		return errors.New("it ended at once")
	}
	return errors.New(strings.TrimSpace(strings.TrimPrefix(line, "error ")))
}

// connect dials a living shim and takes over what it says about containers.
func (p *pod) connect(ctx context.Context) error {
	client, lines, err := dialShim(ctx, p.dir)
	if err != nil {
		return err
	}
	if client.greeting.uid != string(p.uid) {
		client.close()
		return fmt.Errorf("the shim in %s serves pod %q", p.dir, client.greeting.uid)
	}
	states, err := client.watch(lines)
	if err != nil {
		client.close()
		return err
	}
	known := map[string]bool{}
	for _, s := range states {
		known[containerID(s.Name, s.Attempt)] = true
	}
	p.mu.Lock()
	p.shim, p.known, p.closing, p.sandbox, p.message = client, known, false, runtime.SandboxReady, ""
	p.mu.Unlock()
	for _, s := range states {
		p.observe(s)
	}
	serving := p.rt.background(func(context.Context) {
		client.serve(lines, shimHandlers{onContainer: p.observe, onClosed: p.connectionEnded})
	})
	if !serving {
		p.disconnect()
		return fmt.Errorf("pod %s: %w", p.uid, errClosed)
	}
	return nil
}

// errClosed: the runtime was closed meanwhile.
var errClosed = errors.New("runtime is closed")

// observe takes over a state that the shim reports. States only move forward:
// an answer may be read after the event that overtook it.
func (p *pod) observe(s runtime.ContainerState) {
	id := containerID(s.Name, s.Attempt)
	p.mu.Lock()
	a, ok := p.containers[id]
	news := ok && rank(s.Status) > rank(a.state.Status)
	if news {
		s.ImageDigest = a.record.ImageDigest
		a.state = s
	}
	p.mu.Unlock()
	if !news {
		return
	}
	p.rt.changes.Add(p.uid)
	if s.Status == runtime.ContainerExited {
		p.rt.background(func(ctx context.Context) { p.tidyInTurn(ctx, id) })
	}
}

func rank(s runtime.ContainerStatus) int {
	switch s {
	case runtime.ContainerExited:
		return 2
	case runtime.ContainerRunning:
		return 1
	}
	return 0
}

// connectionEnded finds out why: this agent closed it, the shim dropped it, or
// the shim is dead.
func (p *pod) connectionEnded(client *shimClient) {
	p.mu.Lock()
	wanted := p.closing || p.shim != client
	if p.shim == client {
		p.shim = nil
	}
	p.mu.Unlock()
	if wanted {
		return
	}
	p.rt.background(func(ctx context.Context) {
		release, err := p.take(ctx)
		if err != nil {
			return
		}
		defer release()
		if err := p.reconnectOrLose(ctx); err != nil {
			p.rt.opt.Log.Error("pod lost its shim, and cleaning up after it failed", "pod", p.uid, "error", err)
		}
	})
}

// reconnectOrLose runs in the pod's turn.
func (p *pod) reconnectOrLose(ctx context.Context) error {
	p.mu.Lock()
	settled := p.shim != nil || p.closing || !p.exists
	p.mu.Unlock()
	if settled {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, reconnectFor)
	defer cancel()
	for {
		lock, err := lockPath(filepath.Join(p.dir, lockFile))
		if err == nil {
			defer func() { _ = lock.Close() }()
			return p.lose(p.rt.ctx, runtime.ReasonShimLost, p.whyLost())
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		err = p.connect(ctx)
		if err == nil {
			return nil
		}
		timer := time.NewTimer(reconnectLook)
		select {
		case <-ctx.Done():
			timer.Stop()
			p.setLost("the shim lives but does not answer: " + err.Error())
			return err
		case <-timer.C:
		}
	}
}

func (p *pod) whyLost() string {
	message := "the pod's shim died; its containers were killed"
	if last := lastLine(filepath.Join(p.dir, shimLogFile)); last != "" {
		message += "; its last words: " + last
	}
	return message
}

func (p *pod) setLost(message string) {
	p.mu.Lock()
	p.sandbox, p.message = runtime.SandboxLost, message
	p.mu.Unlock()
	p.rt.changes.Add(p.uid)
}

// lose kills what the dead shim left running and records the exits that nobody
// saw. It runs in the pod's turn, with the shim's lock held: no second shim can
// start meanwhile, so nothing runs twice.
func (p *pod) lose(ctx context.Context, reason runtime.Reason, message string) error {
	if err := p.killContainers(ctx); err != nil {
		return err
	}
	var errs []error
	for _, id := range p.ids() {
		errs = append(errs, p.recordLost(id, reason, message), p.tidy(ctx, id))
	}
	p.setLost(message)
	return errors.Join(errs...)
}

// recordLost prefers what the shim managed to write before it died.
func (p *pod) recordLost(id string, reason runtime.Reason, message string) error {
	p.mu.Lock()
	a := p.containers[id]
	state := a.state
	p.mu.Unlock()
	if state.Status == runtime.ContainerExited {
		return nil
	}
	dir := filepath.Join(p.dir, containersDir, id)
	if recorded, ok := readRecord(filepath.Join(dir, exitFile)); ok {
		state = recorded
	} else {
		if recorded, ok := readRecord(filepath.Join(dir, startedFile)); ok {
			state.StartedAt = recorded.StartedAt
		}
		state.Status, state.PID, state.FinishedAt = runtime.ContainerExited, 0, time.Now().UTC()
		state.Exit = runtime.ExitStatus{Code: runtime.LostExitCode, Signal: runtime.SIGKILL}
		state.Reason, state.Message = reason, message
		if err := replaceFile(filepath.Join(dir, exitFile), []byte(formatLost(state)), true); err != nil {
			return fmt.Errorf("record the loss of %s: %w", id, err)
		}
	}
	p.mu.Lock()
	state.ImageDigest = a.record.ImageDigest
	a.state = state
	p.mu.Unlock()
	p.rt.changes.Add(p.uid)
	return nil
}

func readRecord(path string) (runtime.ContainerState, bool) {
	content, err := os.ReadFile(path)
	if err != nil {
		return runtime.ContainerState{}, false
	}
	state, err := parseRecord(string(content))
	return state, err == nil
}
