package runc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/balsa-run/balsa/internal/runcwire"
	"github.com/balsa-run/balsa/node/runtime"
)

const (
	// execKillDelay is how long the helper may take to kill its process; then
	// it is killed itself.
	execKillDelay = 3 * time.Second
	// maxExecReportBytes bounds what the helper reports.
	maxExecReportBytes = 8 << 10
)

// Exec implements runtime.Streams. The helper is this process's child, not the
// shim's: an exec has no life beyond its caller, and if this process dies, the
// end of the control pipe kills it.
func (r *Runtime) Exec(ctx context.Context, uid runtime.PodUID, name string, cfg runtime.ExecConfig) (runtime.ExitStatus, error) {
	var none runtime.ExitStatus
	state, err := r.Pod(ctx, uid)
	if err != nil {
		return none, err
	}
	newest, ok := state.Container(name)
	if !ok {
		return none, fmt.Errorf("pod %s: container %s: %w", uid, name, runtime.ErrContainerNotFound)
	}
	if newest.Status != runtime.ContainerRunning {
		return none, fmt.Errorf("pod %s: container %s is %s: %w", uid, name, newest.Status, runtime.ErrNotRunning)
	}
	request, err := execRequest(cfg)
	if err != nil {
		return none, err
	}
	x := &execution{dir: r.podDir(uid), helper: r.opt.Helpers.Runc, id: containerID(name, newest.Attempt), cfg: cfg}
	exit, err := x.run(ctx, request)
	if err != nil {
		return none, fmt.Errorf("pod %s: exec in container %s: %w", uid, name, err)
	}
	return exit, nil
}

func execRequest(cfg runtime.ExecConfig) ([]byte, error) {
	if len(cfg.Args) == 0 {
		return nil, fmt.Errorf("exec: no command: %w", runtime.ErrInvalid)
	}
	env, err := runtime.MergeEnv(nil, cfg.Env)
	if err != nil {
		return nil, fmt.Errorf("exec: %w: %w", err, runtime.ErrInvalid)
	}
	line, err := runcwire.Line(runcwire.ExecRequest{Args: cfg.Args, Env: env, Cwd: cfg.WorkingDir, TTY: cfg.TTY})
	if err != nil {
		return nil, err
	}
	if len(line) > runcwire.MaxExecRequestBytes {
		return nil, fmt.Errorf("exec: arguments and environment take %d bytes, at most %d are allowed: %w", len(line), runcwire.MaxExecRequestBytes, runtime.ErrInvalid)
	}
	return line, nil
}

// execution is one run of "balsa-runc exec".
type execution struct {
	dir, helper, id string
	cfg             runtime.ExecConfig
	control         *os.File // our end; closing it kills the process
	report          *os.File
}

func (x *execution) run(ctx context.Context, request []byte) (runtime.ExitStatus, error) {
	var none runtime.ExitStatus
	cmd, children, err := x.command(ctx)
	if err != nil {
		return none, err
	}
	defer func() { _ = x.report.Close() }()
	stdin, err := stdinPipe(cmd, x.cfg.Stdin)
	if err == nil {
		err = cmd.Start()
	}
	for _, f := range children {
		_ = f.Close()
	}
	if err != nil {
		_ = x.control.Close()
		return none, err
	}
	done := make(chan struct{})
	go x.direct(request, done)
	go feed(stdin, x.cfg.Stdin)
	report, readErr := io.ReadAll(io.LimitReader(x.report, maxExecReportBytes))
	waitErr := cmd.Wait()
	close(done)
	if ctx.Err() != nil {
		return none, context.Cause(ctx)
	}
	code, signal, err := runcwire.ParseExecReport(string(report))
	if err != nil {
		return none, fmt.Errorf("%w: %w", errors.Join(err, readErr, ignoreExit(waitErr)), runtime.ErrStartFailed)
	}
	return runtime.ExitStatus{Code: code, Signal: runtime.Signal(signal)}, nil
}

func (x *execution) command(ctx context.Context) (*exec.Cmd, []*os.File, error) {
	controlIn, control, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	report, reportOut, err := os.Pipe()
	if err != nil {
		return nil, nil, errors.Join(err, controlIn.Close(), control.Close())
	}
	x.control, x.report = control, report
	cmd := exec.CommandContext(ctx, x.helper, "exec", filepath.Join(containersDir, x.id))
	cmd.Dir, cmd.Env = x.dir, []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Stdout, cmd.Stderr = x.cfg.Stdout, x.cfg.Stderr
	cmd.ExtraFiles = []*os.File{controlIn, reportOut}
	cmd.Cancel = control.Close
	cmd.WaitDelay = execKillDelay
	return cmd, cmd.ExtraFiles, nil
}

// stdinPipe makes a pipe that Wait does not wait for: a terminal's reader
// would block it for ever.
func stdinPipe(cmd *exec.Cmd, stdin io.Reader) (io.WriteCloser, error) {
	if stdin == nil {
		return nil, nil
	}
	return cmd.StdinPipe()
}

func feed(to io.WriteCloser, from io.Reader) {
	if to == nil {
		return
	}
	_, _ = io.Copy(to, from)
	_ = to.Close()
}

// direct sends the request, then the sizes of the terminal.
func (x *execution) direct(request []byte, done <-chan struct{}) {
	defer func() { _ = x.control.Close() }()
	if _, err := x.control.Write(request); err != nil {
		return
	}
	for {
		select {
		case <-done:
			return
		case size, ok := <-x.cfg.Resize:
			if !ok {
				<-done
				return
			}
			line, err := runcwire.Line(runcwire.Resize(size))
			if err != nil {
				return
			}
			if _, err := x.control.Write(line); err != nil {
				return
			}
		}
	}
}

// ignoreExit: how the helper ended says nothing beyond its report.
func ignoreExit(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil
	}
	return err
}
