package fake

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"time"

	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/node/runtime/simprog"
)

// logBuffer keeps lines as the shim keeps files: the oldest file goes when
// there would be too many. Guarded by the machine's lock.
type logBuffer struct {
	limits runtime.LogLimits
	files  [][]runtime.LogLine // oldest first; the last is written
	size   int64               // of the last file
	first  int                 // number of the oldest line that is kept
	wake   chan struct{}       // closed and replaced at every change
}

// lineOverhead is what time stamp, stream and mark take on disk.
const lineOverhead = 40

func newLogBuffer(limits runtime.LogLimits) *logBuffer {
	return &logBuffer{limits: limits, files: make([][]runtime.LogLine, 1), wake: make(chan struct{})}
}

// add appends a line, split where it is too long.
func (b *logBuffer) add(now time.Time, stream runtime.LogStream, text string) {
	for len(text) > runtime.MaxLogLineBytes {
		b.put(runtime.LogLine{Time: now.UTC(), Stream: stream, Partial: true, Text: []byte(text[:runtime.MaxLogLineBytes])})
		text = text[runtime.MaxLogLineBytes:]
	}
	b.put(runtime.LogLine{Time: now.UTC(), Stream: stream, Text: []byte(text)})
}

func (b *logBuffer) put(l runtime.LogLine) {
	size := int64(len(l.Text) + lineOverhead)
	if b.size > 0 && b.size+size > b.limits.MaxBytes {
		b.files, b.size = append(b.files, nil), 0
		if len(b.files) > b.limits.MaxFiles {
			b.first += len(b.files[0])
			b.files = b.files[1:]
		}
	}
	last := len(b.files) - 1
	b.files[last] = append(b.files[last], l)
	b.size += size
}

func (b *logBuffer) wakeAll() {
	close(b.wake)
	b.wake = make(chan struct{})
}

// line returns the line of a number, or the oldest one after it.
func (b *logBuffer) line(number int) (runtime.LogLine, int, bool) {
	number = max(number, b.first)
	at := number - b.first
	for _, file := range b.files {
		if at < len(file) {
			return file[at], number, true
		}
		at -= len(file)
	}
	return runtime.LogLine{}, number, false
}

// whole counts the lines that are complete and not older than since.
func (b *logBuffer) whole(since time.Time) int {
	n := 0
	for _, file := range b.files {
		for _, l := range file {
			if !l.Partial && !l.Time.Before(since) {
				n++
			}
		}
	}
	return n
}

// logReader reads by line number.
type logReader struct {
	r      *Runtime
	ctx    context.Context
	cancel context.CancelCauseFunc
	c      *container
	opt    runtime.LogOptions
	next   int
	skip   int
}

// OpenLog implements runtime.Streams.
func (r *Runtime) OpenLog(ctx context.Context, uid runtime.PodUID, name string, attempt int, opt runtime.LogOptions) (runtime.LogReader, error) {
	if err := r.enter(ctx); err != nil {
		return nil, err
	}
	defer r.m.mu.Unlock()
	p, ok := r.m.pods[uid]
	if !ok {
		return nil, fmt.Errorf("pod %s: %w", uid, runtime.ErrPodNotFound)
	}
	c, ok := p.containers[key(name, attempt)]
	if !ok {
		return nil, fmt.Errorf("pod %s: container %s attempt %d: %w", uid, name, attempt, runtime.ErrContainerNotFound)
	}
	l := &logReader{r: r, c: c, opt: opt}
	l.ctx, l.cancel = r.untilClosed(ctx)
	if opt.TailLines > 0 {
		l.skip = max(0, c.log.whole(opt.Since)-opt.TailLines)
	}
	return l, nil
}

// Next implements runtime.LogReader.
func (l *logReader) Next() (runtime.LogLine, error) {
	for {
		line, ok, wake := l.take()
		if ok {
			return line, nil
		}
		if wake == nil {
			return runtime.LogLine{}, io.EOF
		}
		select {
		case <-l.ctx.Done():
			return runtime.LogLine{}, context.Cause(l.ctx)
		case <-wake:
		}
	}
}

// take returns the next line that is wanted, or what to wait on for it; nil at
// the end.
func (l *logReader) take() (runtime.LogLine, bool, <-chan struct{}) {
	l.r.m.mu.Lock()
	defer l.r.m.mu.Unlock()
	for {
		line, number, ok := l.c.log.line(l.next)
		if !ok {
			break
		}
		l.next = number + 1
		if line.Time.Before(l.opt.Since) {
			continue
		}
		if l.skip == 0 {
			return line, true, nil
		}
		if !line.Partial {
			l.skip--
		}
	}
	if !l.opt.Follow || l.c.state.Status == runtime.ContainerExited || l.c.gone {
		return runtime.LogLine{}, false, nil
	}
	return runtime.LogLine{}, false, l.c.log.wake
}

// Close implements runtime.LogReader.
func (l *logReader) Close() error {
	l.cancel(nil)
	return nil
}

// Exec implements runtime.Streams: the command is a program in the same
// language, which ends when it ends or ctx does.
func (r *Runtime) Exec(ctx context.Context, uid runtime.PodUID, name string, cfg runtime.ExecConfig) (runtime.ExitStatus, error) {
	if err := r.inject(OpExec, uid); err != nil {
		return runtime.ExitStatus{}, err
	}
	c, env, err := r.execTarget(ctx, uid, name, cfg)
	if err != nil {
		return runtime.ExitStatus{}, err
	}
	program, err := simprog.Parse(cfg.Args)
	if err != nil {
		return runtime.ExitStatus{}, fmt.Errorf("pod %s: exec in container %s: %w: %w", uid, name, err, runtime.ErrStartFailed)
	}
	x := &execution{c: c, cfg: cfg, env: env}
	for _, step := range program {
		over, exit, err := x.step(ctx, step)
		if over || err != nil {
			return exit, err
		}
	}
	return runtime.ExitStatus{}, nil
}

func (r *Runtime) execTarget(ctx context.Context, uid runtime.PodUID, name string, cfg runtime.ExecConfig) (*container, []string, error) {
	if len(cfg.Args) == 0 {
		return nil, nil, fmt.Errorf("exec: no command: %w", runtime.ErrInvalid)
	}
	if err := r.enter(ctx); err != nil {
		return nil, nil, err
	}
	defer r.m.mu.Unlock()
	c, err := r.runningLocked(uid, name)
	if err != nil {
		return nil, nil, err
	}
	env, err := runtime.MergeEnv(c.env, cfg.Env)
	if err != nil {
		return nil, nil, fmt.Errorf("exec: %w: %w", err, runtime.ErrInvalid)
	}
	return c, env, nil
}

// execution is one program beside the container's own.
type execution struct {
	c   *container
	cfg runtime.ExecConfig
	env []string
}

func (x *execution) step(ctx context.Context, s simprog.Step) (over bool, exit runtime.ExitStatus, err error) {
	switch s.Kind {
	case simprog.Out:
		err = writeLine(x.cfg.Stdout, s.Text)
	case simprog.Err:
		err = writeLine(x.cfg.Stderr, s.Text)
	case simprog.Env:
		err = writeLine(x.cfg.Stdout, s.Text+"="+lookup(x.env, s.Text))
	case simprog.Lines:
		for i := range s.Number {
			err = writeLine(x.cfg.Stdout, fmt.Sprint("line ", i))
		}
	case simprog.Exit:
		return true, runtime.ExitStatus{Code: s.Number}, nil
	case simprog.IsReady:
		x.c.m.mu.Lock()
		defer x.c.m.mu.Unlock()
		if !x.c.ready {
			return true, runtime.ExitStatus{Code: 1}, nil
		}
	case simprog.Sleep, simprog.Forever:
		return x.wait(ctx, s)
	case simprog.Echo:
		return x.echo(ctx)
	case simprog.WinSize:
		return x.winSize(ctx)
	case simprog.Cat:
		x.c.m.mu.Lock()
		text := x.c.files.content(s.Text)
		x.c.m.mu.Unlock()
		err = writeLine(x.cfg.Stdout, text)
	}
	return false, exit, err
}

// wait ends early with the context, or with the container, which takes every
// process in it along.
func (x *execution) wait(ctx context.Context, s simprog.Step) (bool, runtime.ExitStatus, error) {
	var due <-chan time.Time
	if s.Kind == simprog.Sleep {
		timer := x.c.m.opt.Clock.NewTimer(s.Duration)
		defer timer.Stop()
		due = timer.C()
	}
	select {
	case <-due:
		return false, runtime.ExitStatus{}, nil
	case <-x.c.halted:
		return true, killed(runtime.SIGKILL), nil
	case <-ctx.Done():
		return true, runtime.ExitStatus{}, context.Cause(ctx)
	}
}

// echo gives back the input, line by line.
func (x *execution) echo(ctx context.Context) (bool, runtime.ExitStatus, error) {
	if x.cfg.Stdin == nil {
		return false, runtime.ExitStatus{}, nil
	}
	over := make(chan error, 1)
	go func() {
		lines := bufio.NewScanner(x.cfg.Stdin)
		for lines.Scan() {
			if err := writeLine(x.cfg.Stdout, lines.Text()); err != nil {
				over <- err
				return
			}
		}
		over <- nil
	}()
	select {
	case err := <-over:
		return false, runtime.ExitStatus{}, err
	case <-x.c.halted:
		return true, killed(runtime.SIGKILL), nil
	case <-ctx.Done():
		return true, runtime.ExitStatus{}, context.Cause(ctx)
	}
}

// winSize waits for the terminal to have a size.
func (x *execution) winSize(ctx context.Context) (bool, runtime.ExitStatus, error) {
	select {
	case size := <-x.cfg.Resize:
		return false, runtime.ExitStatus{}, writeLine(x.cfg.Stdout, fmt.Sprintf("%dx%d", size.Width, size.Height))
	case <-x.c.halted:
		return true, killed(runtime.SIGKILL), nil
	case <-ctx.Done():
		return true, runtime.ExitStatus{}, context.Cause(ctx)
	}
}

func writeLine(w io.Writer, text string) error {
	if w == nil {
		return nil
	}
	_, err := io.WriteString(w, text+"\n")
	return err
}
