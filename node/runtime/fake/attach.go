package fake

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/balsa-run/balsa/node/runtime"
)

// attachBufBytes is the output that waits for a slow reader; more is dropped,
// with a notice.
const attachBufBytes = 256 << 10

// input is what a program reads. Guarded by the machine's lock.
type input struct {
	open    bool
	pending []byte
	size    runtime.TerminalSize
	wake    chan struct{} // closed and replaced at every change
}

func newInput(cfg runtime.ContainerConfig) *input {
	return &input{open: cfg.Stdin, wake: make(chan struct{})}
}

func (in *input) changed() {
	close(in.wake)
	in.wake = make(chan struct{})
}

// line takes the next line, or what is left once the input has ended.
func (in *input) line() (text string, ok, over bool) {
	if i := bytes.IndexByte(in.pending, '\n'); i >= 0 {
		text = string(in.pending[:i])
		in.pending = in.pending[i+1:]
		return text, true, false
	}
	if in.open {
		return "", false, false
	}
	text = string(in.pending)
	in.pending = nil
	return text, text != "", true
}

// attached is one reader of a program's output. Guarded by the machine's lock.
type attached struct {
	chunks  []chunk
	size    int
	dropped int
	wake    chan struct{}
}

type chunk struct {
	stream runtime.LogStream
	data   []byte
}

func (a *attached) add(stream runtime.LogStream, text string) {
	if a.size+len(text) > attachBufBytes {
		a.dropped += len(text)
		return
	}
	if a.dropped > 0 {
		notice := fmt.Appendf(nil, "\n[balsa: %d bytes of output were dropped, since they were not read in time; balsa logs has them]\n", a.dropped)
		a.chunks, a.dropped = append(a.chunks, chunk{runtime.Stderr, notice}), 0
	}
	a.chunks = append(a.chunks, chunk{stream, []byte(text)})
	a.size += len(text)
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// printLocked is a line of the program: into the log, and to who is attached.
func (c *container) printLocked(stream runtime.LogStream, text string) {
	if c.cfg.TTY {
		stream = runtime.Stdout
	}
	c.log.add(c.m.opt.Clock.Now(), stream, text)
	for _, a := range c.attached {
		a.add(stream, text+"\n")
	}
}

// Attach implements runtime.Streams.
func (r *Runtime) Attach(ctx context.Context, uid runtime.PodUID, name string, cfg runtime.AttachConfig) error {
	c, a, err := r.join(ctx, uid, name, cfg)
	if err != nil {
		return err
	}
	ctx, cancel := r.untilClosed(ctx)
	defer cancel(nil)
	defer c.leave(a)
	over := make(chan struct{})
	defer close(over)
	if cfg.Stdin != nil {
		go c.take(cfg.Stdin)
	}
	go c.resize(cfg.Resize, over)
	for {
		chunks, ended := c.drainTo(a)
		for _, k := range chunks {
			if err := writeChunk(cfg, k); err != nil {
				return fmt.Errorf("pod %s: attached to container %s: hand out its output: %w", uid, name, err)
			}
		}
		if ended {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-a.wake:
		case <-c.halted:
		}
	}
}

func writeChunk(cfg runtime.AttachConfig, k chunk) error {
	w := cfg.Stdout
	if k.stream == runtime.Stderr && cfg.Stderr != nil {
		w = cfg.Stderr
	}
	if w == nil {
		return nil
	}
	_, err := w.Write(k.data)
	return err
}

func (r *Runtime) join(ctx context.Context, uid runtime.PodUID, name string, cfg runtime.AttachConfig) (*container, *attached, error) {
	if err := r.enter(ctx); err != nil {
		return nil, nil, err
	}
	defer r.m.mu.Unlock()
	c, err := r.runningLocked(uid, name)
	if err != nil {
		return nil, nil, err
	}
	if cfg.Stdin != nil && !c.input.open {
		return nil, nil, fmt.Errorf("pod %s: attach to container %s: the container takes no input (stdin is not set, or stdinOnce was used): %w", uid, name, runtime.ErrInvalid)
	}
	a := &attached{wake: make(chan struct{}, 1)}
	c.attached = append(c.attached, a)
	return c, a, nil
}

// runningLocked is the newest attempt of a container, which runs.
func (r *Runtime) runningLocked(uid runtime.PodUID, name string) (*container, error) {
	p, ok := r.m.pods[uid]
	if !ok {
		return nil, fmt.Errorf("pod %s: %w", uid, runtime.ErrPodNotFound)
	}
	newest, ok := p.state(uid).Container(name)
	if !ok {
		return nil, fmt.Errorf("pod %s: container %s: %w", uid, name, runtime.ErrContainerNotFound)
	}
	if newest.Status != runtime.ContainerRunning {
		return nil, fmt.Errorf("pod %s: container %s is %s: %w", uid, name, newest.Status, runtime.ErrNotRunning)
	}
	return p.containers[key(name, newest.Attempt)], nil
}

func (c *container) leave(a *attached) {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	c.attached = slices.DeleteFunc(c.attached, func(other *attached) bool { return other == a })
}

// drainTo takes what waits for a reader; ended when no more will come.
func (c *container) drainTo(a *attached) (chunks []chunk, ended bool) {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	chunks = a.chunks
	if c.gone && a.dropped > 0 {
		dropped := a.dropped
		a.dropped = 0
		chunks = append(chunks, chunk{runtime.Stderr, fmt.Appendf(nil, "\n[balsa: %d bytes of output were dropped, since they were not read in time; balsa logs has them]\n", dropped)})
	}
	a.chunks, a.size = nil, 0
	return chunks, c.gone
}

// take moves a reader's bytes into the program's input.
func (c *container) take(from io.Reader) {
	buf := make([]byte, 4<<10)
	for {
		n, err := from.Read(buf)
		if !c.typed(buf[:n], err != nil) || err != nil {
			return
		}
	}
}

func (c *container) typed(data []byte, over bool) bool {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	if c.gone || !c.input.open {
		return false
	}
	c.input.pending = append(c.input.pending, data...)
	if over && c.cfg.StdinOnce {
		c.input.open = false
	}
	c.input.changed()
	return true
}

func (c *container) resize(sizes <-chan runtime.TerminalSize, over <-chan struct{}) {
	for {
		select {
		case <-over:
			return
		case size, ok := <-sizes:
			if !ok {
				return
			}
			c.m.mu.Lock()
			c.input.size = size
			c.input.changed()
			c.m.mu.Unlock()
		}
	}
}

// echo prints the input until it ends; false when the program is over.
func (c *container) echo() bool {
	return c.onInput(func(in *input) bool {
		for {
			text, ok, over := in.line()
			if ok {
				c.printLocked(runtime.Stdout, text)
			}
			if over || !ok {
				return over
			}
		}
	})
}

// winSize waits for the terminal to have a size.
func (c *container) winSize() bool {
	return c.onInput(func(in *input) bool {
		if in.size.Width == 0 {
			return false
		}
		c.printLocked(runtime.Stdout, fmt.Sprintf("%dx%d", in.size.Width, in.size.Height))
		return true
	})
}

// onInput asks at every change of the input whether the step is done.
func (c *container) onInput(done func(*input) bool) bool {
	for {
		c.m.mu.Lock()
		if c.gone {
			c.m.mu.Unlock()
			return false
		}
		ok := done(c.input)
		c.wakeLocked()
		wake := c.input.wake
		c.m.mu.Unlock()
		if ok {
			return true
		}
		select {
		case <-wake:
		case <-c.halted:
			return false
		}
	}
}
