package runc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync/atomic"
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
// end of the control pipe kills it. If the helper dies, this process kills what it
// began; if both die at once, the next Open does. Nothing begins before it is noted.
func (r *Runtime) Exec(ctx context.Context, uid runtime.PodUID, name string, cfg runtime.ExecConfig) (runtime.ExitStatus, error) {
	var none runtime.ExitStatus
	newest, _, err := r.newest(uid, name)
	if err != nil {
		return none, err
	}
	request, err := execRequest(cfg)
	if err != nil {
		return none, err
	}
	x := &execution{dir: r.podDir(uid), helper: r.opt.Helpers.Runc, id: containerID(name, newest.Attempt), cfg: cfg, log: r.opt.Log}
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
	request := runcwire.ExecRequest{Args: cfg.Args, Env: env, Cwd: cfg.WorkingDir, TTY: cfg.TTY, Hold: true}
	select {
	case size := <-cfg.Resize: // the terminal's first size, if it is known
		request.Width, request.Height = size.Width, size.Height
	default:
	}
	line, err := runcwire.Line(request)
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
	log             *slog.Logger
	control         *os.File // our end; closing it kills the process
	report          *os.File
	hold            *execHold
}

func (x *execution) run(ctx context.Context, request []byte) (runtime.ExitStatus, error) {
	var none runtime.ExitStatus
	cmd, children, err := x.command(ctx)
	if err != nil {
		return none, err
	}
	defer func() { _ = x.report.Close() }()
	outputs, err := x.pipes(cmd, &children)
	var stdin io.WriteCloser
	if err == nil {
		stdin, err = stdinPipe(cmd, x.cfg.Stdin)
	}
	if err == nil {
		err = cmd.Start()
	}
	for _, f := range children {
		_ = f.Close()
	}
	if err != nil {
		closeOutputs(outputs)
		_ = errors.Join(x.control.Close(), x.hold.conn.Close())
		return none, err
	}
	for _, o := range outputs {
		go o.copy()
	}
	done, left := make(chan struct{}), &begun{dir: filepath.Join(x.dir, execsDir)}
	go x.hold.serve(left, cmd.Process.Pid)
	go x.direct(request, done)
	go feed(stdin, x.cfg.Stdin)
	report, readErr := left.read(io.LimitReader(x.report, maxExecReportBytes))
	// The helper is over, but not yet waited for: until it is, its id is its own.
	readErr = errors.Join(readErr, x.hold.end())
	waitErr := cmd.Wait()
	close(done)
	code, signal, reportErr := runcwire.ParseExecReport(report)
	leftErr := left.end(errors.Is(reportErr, runcwire.ErrNoReport))
	if leftErr != nil {
		x.log.Warn("what an exec has begun cannot be noted or ended", "container", x.id, "error", leftErr)
	}
	outputErr := drain(ctx, outputs)
	if ctx.Err() != nil {
		return none, context.Cause(ctx)
	}
	switch {
	case errors.Is(reportErr, runcwire.ErrNoReport) && left.known():
		// It did run, for how long and with what outcome nobody knows.
		return none, errors.Join(fmt.Errorf("%w; its process was killed", reportErr), readErr, leftErr)
	case reportErr != nil:
		return none, fmt.Errorf("%w: %w", errors.Join(reportErr, readErr, ignoreExit(waitErr)), runtime.ErrStartFailed)
	}
	if outputErr != nil {
		return none, fmt.Errorf("hand out its output: %w", outputErr)
	}
	return runtime.ExitStatus{Code: code, Signal: runtime.Signal(signal)}, nil
}

func (x *execution) command(ctx context.Context) (cmd *exec.Cmd, children []*os.File, err error) {
	controlIn, control, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	report, reportOut, err := os.Pipe()
	if err != nil {
		return nil, nil, errors.Join(err, controlIn.Close(), control.Close())
	}
	hold, held, err := newExecHold()
	if err != nil {
		return nil, nil, errors.Join(err, controlIn.Close(), control.Close(), report.Close(), reportOut.Close())
	}
	x.control, x.report, x.hold = control, report, hold
	cmd = exec.CommandContext(ctx, x.helper, "exec", filepath.Join(containersDir, x.id))
	cmd.Dir, cmd.Env = x.dir, []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	children = []*os.File{controlIn, reportOut, held} // runcwire's ExecControlFD and on
	cmd.ExtraFiles = slices.Clone(children)
	cmd.Cancel = control.Close
	cmd.WaitDelay = execKillDelay
	return cmd, children, nil
}

// pipes gives the program's output pipes of ours instead of the command's own,
// which are cut a moment after the program has ended however much is in them.
func (x *execution) pipes(cmd *exec.Cmd, children *[]*os.File) ([]*output, error) {
	var outputs []*output
	for _, to := range []struct {
		w    io.Writer
		file *io.Writer
	}{{x.cfg.Stdout, &cmd.Stdout}, {x.cfg.Stderr, &cmd.Stderr}} {
		if to.w == nil {
			continue
		}
		r, w, err := os.Pipe()
		if err != nil {
			closeOutputs(outputs)
			return nil, err
		}
		*to.file = w
		*children = append(*children, w)
		outputs = append(outputs, &output{from: r, to: to.w, over: make(chan error, 1)})
	}
	return outputs, nil
}

// output is one stream of the program on its way to the caller.
type output struct {
	from *os.File
	to   io.Writer
	over chan error
	// ended: the program is over, and only what is on its way still counts.
	ended atomic.Bool
}

// execLinger is how long, once the program is over, a silent pipe is still held
// open for processes that it left behind.
const execLinger = 500 * time.Millisecond

func (o *output) copy() {
	buf := make([]byte, 32<<10)
	for {
		n, err := o.from.Read(buf)
		if n > 0 {
			if _, werr := o.to.Write(buf[:n]); werr != nil {
				_ = o.from.Close() // the program gets SIGPIPE, as in a shell
				o.over <- werr
				return
			}
		}
		if err != nil {
			_ = o.from.Close()
			if errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) {
				err = nil
			}
			o.over <- err
			return
		}
		if o.ended.Load() {
			_ = o.from.SetReadDeadline(time.Now().Add(execLinger))
		}
	}
}

// drain waits until everything that the program printed is handed out, however
// slowly it is taken.
func drain(ctx context.Context, outputs []*output) error {
	var errs []error
	for _, o := range outputs {
		o.ended.Store(true)
		_ = o.from.SetReadDeadline(time.Now().Add(execLinger))
	}
	for _, o := range outputs {
		select {
		case err := <-o.over:
			errs = append(errs, err)
		case <-ctx.Done():
			_ = o.from.SetReadDeadline(time.Now())
			return context.Cause(ctx)
		}
	}
	return errors.Join(errs...)
}

func closeOutputs(outputs []*output) {
	for _, o := range outputs {
		_ = o.from.Close()
	}
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
