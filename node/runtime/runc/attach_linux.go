package runc

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"

	"github.com/balsa-run/balsa/node/runtime"
)

// The frames of an attached connection: cmd/balsa-shim/attach_linux.go draws them.
const (
	frameInput   = 'i'
	frameEnd     = 'e'
	frameResize  = 'r'
	frameOut     = 'o'
	frameErr     = 'x'
	frameDropped = 'd'
	frameOver    = 'q'

	frameHeader = 4
	// inputChunk is how much input a frame carries; the shim takes twice that.
	inputChunk = 16 << 10
	// maxShimFrame bounds what the shim sends in one frame.
	maxShimFrame = 64 << 10
)

// errOldShim: the shim cannot attach, and gives neither inputs nor terminals.
var errOldShim = errors.New("the pod was started by an older version, whose containers have no streams to attach to: start the pod anew")

// streamKeys ask the shim for an input or a terminal.
func (p *pod) streamKeys(c runtime.ContainerConfig) ([][2]string, error) {
	p.mu.Lock()
	shim := p.shim
	p.mu.Unlock()
	if !c.Stdin && !c.TTY {
		return nil, nil
	}
	if shim == nil || !shim.greeting.attach {
		return nil, errOldShim
	}
	var keys [][2]string
	for _, key := range []struct {
		name string
		on   bool
	}{{"stdin", c.Stdin}, {"stdinonce", c.Stdin && c.StdinOnce}, {"tty", c.TTY}} {
		if key.on {
			keys = append(keys, [2]string{key.name, "1"})
		}
	}
	return keys, nil
}

// Attach implements runtime.Streams. Each call is a connection of its own to the
// shim, so that one that is slow holds up nothing else.
func (r *Runtime) Attach(ctx context.Context, uid runtime.PodUID, name string, cfg runtime.AttachConfig) error {
	newest, p, err := r.newest(uid, name)
	if err != nil {
		return err
	}
	a, err := p.attach(ctx, newest, cfg)
	if err != nil {
		return fmt.Errorf("pod %s: attach to container %s: %w", uid, name, err)
	}
	for _, end := range []context.Context{ctx, r.ctx} {
		stop := context.AfterFunc(end, func() { _ = a.conn.Close() })
		defer stop()
	}
	defer func() { _ = a.conn.Close() }()
	over := make(chan struct{})
	defer close(over)
	if cfg.Stdin != nil {
		go a.feed(cfg.Stdin)
	}
	go a.resize(cfg.Resize, over)
	err = a.copy(p)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil && r.ctx.Err() != nil {
		return errClosed
	}
	if err != nil {
		return fmt.Errorf("pod %s: attached to container %s: %w", uid, name, err)
	}
	return nil
}

// newest is the newest attempt of a container, which runs.
func (r *Runtime) newest(uid runtime.PodUID, name string) (runtime.ContainerState, *pod, error) {
	p, ok := r.find(uid)
	if !ok {
		return runtime.ContainerState{}, nil, fmt.Errorf("pod %s: %w", uid, runtime.ErrPodNotFound)
	}
	state, ok := p.state()
	if !ok {
		return runtime.ContainerState{}, nil, fmt.Errorf("pod %s: %w", uid, runtime.ErrPodNotFound)
	}
	c, ok := state.Container(name)
	if !ok {
		return runtime.ContainerState{}, nil, fmt.Errorf("pod %s: container %s: %w", uid, name, runtime.ErrContainerNotFound)
	}
	if c.Status != runtime.ContainerRunning {
		return c, nil, fmt.Errorf("pod %s: container %s is %s: %w", uid, name, c.Status, runtime.ErrNotRunning)
	}
	return c, p, nil
}

// attachment is one attached connection.
type attachment struct {
	conn  net.Conn
	lines *bufio.Reader
	cfg   runtime.AttachConfig
	mu    sync.Mutex // held while a frame is written
}

func (p *pod) attach(ctx context.Context, c runtime.ContainerState, cfg runtime.AttachConfig) (*attachment, error) {
	client, lines, err := dialShim(ctx, p.dir)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, runtime.ErrPodLost)
	}
	a := &attachment{conn: client.conn, lines: lines, cfg: cfg}
	if err := a.ask(client.greeting, c); err != nil {
		_ = a.conn.Close()
		return nil, err
	}
	return a, nil
}

func (a *attachment) ask(g greeting, c runtime.ContainerState) error {
	if !g.attach {
		return errOldShim
	}
	keys := [][2]string{{"name", c.Name}, {"attempt", strconv.Itoa(c.Attempt)}}
	if a.cfg.Stdin != nil {
		keys = append(keys, [2]string{"stdin", "1"})
	}
	if _, err := io.WriteString(a.conn, formatRequest("1", "attach", keys)); err != nil {
		return err
	}
	answer, err := readAnswer(a.lines, "1")
	if err != nil {
		return err
	}
	if answer.kind == "ok" {
		return nil
	}
	refused := &shimError{"attach", answer.keys["why"], answer.keys["msg"]}
	switch refused.code {
	case "not-running", "not-found":
		return fmt.Errorf("%w: %w", refused, runtime.ErrNotRunning)
	case "no-stdin":
		return fmt.Errorf("the container takes no input (stdin is not set, or stdinOnce was used): %w", runtime.ErrInvalid)
	}
	return refused
}

func (a *attachment) send(kind byte, payload []byte) error {
	frame := make([]byte, frameHeader, frameHeader+len(payload))
	binary.BigEndian.PutUint32(frame, uint32(len(payload)))
	frame[0] = kind
	a.mu.Lock()
	defer a.mu.Unlock()
	_, err := a.conn.Write(append(frame, payload...))
	return err
}

// feed ends with the input, or when the connection does not take more.
func (a *attachment) feed(from io.Reader) {
	buf := make([]byte, inputChunk)
	for {
		n, err := from.Read(buf)
		if n > 0 && a.send(frameInput, buf[:n]) != nil {
			return
		}
		if err != nil {
			_ = a.send(frameEnd, nil)
			return
		}
	}
}

func (a *attachment) resize(sizes <-chan runtime.TerminalSize, over <-chan struct{}) {
	for {
		select {
		case <-over:
			return
		case size, ok := <-sizes:
			if !ok {
				return
			}
			payload := binary.BigEndian.AppendUint16(nil, size.Width)
			if a.send(frameResize, binary.BigEndian.AppendUint16(payload, size.Height)) != nil {
				return
			}
		}
	}
}

// copy hands out what the program prints until the shim says that it has ended.
func (a *attachment) copy(p *pod) error {
	for {
		kind, payload, err := a.next()
		if err != nil {
			return fmt.Errorf("the shim has ended the stream: %w: %w", err, runtime.ErrPodLost)
		}
		switch kind {
		case frameOut:
			err = writeTo(a.cfg.Stdout, payload)
		case frameErr:
			err = writeTo(a.cfg.Stderr, payload)
		case frameDropped:
			err = a.gap(payload)
		case frameOver:
			p.learn(payload)
			return nil
		}
		if err != nil {
			return fmt.Errorf("hand out its output: %w", err)
		}
	}
}

func (a *attachment) next() (byte, []byte, error) {
	var header [frameHeader]byte
	if _, err := io.ReadFull(a.lines, header[:]); err != nil {
		return 0, nil, err
	}
	kind := header[0]
	header[0] = 0
	size := binary.BigEndian.Uint32(header[:])
	if size > maxShimFrame {
		return 0, nil, fmt.Errorf("a frame of %d bytes, at most %d are allowed", size, maxShimFrame)
	}
	payload := make([]byte, size)
	_, err := io.ReadFull(a.lines, payload)
	return kind, payload, err
}

// gap tells the reader, where it was too slow, how much it has missed.
func (a *attachment) gap(payload []byte) error {
	if len(payload) != 8 {
		return fmt.Errorf("a notice of %d bytes, want 8", len(payload))
	}
	notice := fmt.Appendf(nil, "\n[balsa: %d bytes of output were dropped, since they were not read in time; balsa logs has them]\n", binary.BigEndian.Uint64(payload))
	if a.cfg.Stderr != nil {
		return writeTo(a.cfg.Stderr, notice)
	}
	return writeTo(a.cfg.Stdout, notice)
}

func writeTo(w io.Writer, b []byte) error {
	if w == nil {
		return nil
	}
	_, err := w.Write(b)
	return err
}

// learn takes over the state that the last frame carries, so that whoever waits
// for Attach to end finds the exit code.
func (p *pod) learn(text []byte) {
	parts := words(string(text))
	if len(parts) == 0 {
		return
	}
	keys, err := parseKeys(parts[1:])
	if err != nil {
		return
	}
	if state, err := parseContainer(keys); err == nil {
		p.observe(state)
	}
}
