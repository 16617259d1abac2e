package runc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/balsa-run/balsa/node/runtime"
)

// errShimGone: the connection to the shim has ended.
var errShimGone = errors.New("connection to the shim has ended")

const (
	socketName = "shim.sock"
	// dialTimeout bounds the greeting; a stopped shim does not hold up Open.
	dialTimeout = 5 * time.Second
	// shimLineBuffer holds what a shim says but for rare lines with a long
	// message. Every pod has one for as long as it lives.
	shimLineBuffer = 1 << 10
)

// errLongLine: what the other side says cannot be a shim's.
var errLongLine = fmt.Errorf("a line of more than %d bytes", maxShimLineBytes)

// shimError is an answer that says no.
type shimError struct{ verb, code, message string }

func (e *shimError) Error() string {
	return fmt.Sprintf("shim refuses %s: %s: %s", e.verb, e.code, e.message)
}

// shimClient is one connection to one shim. Answers find their request by id,
// events go to onContainer, and onClosed is called once at the end.
type shimClient struct {
	conn     net.Conn
	greeting greeting

	mu      sync.Mutex
	nextID  int
	pending map[string]chan shimLine // guarded by mu; nil once closed
}

type shimHandlers struct {
	onContainer func(runtime.ContainerState)
	onClosed    func(*shimClient)
}

// dialShim connects and agrees on a version. Events start with watch.
func dialShim(ctx context.Context, podDir string) (*shimClient, *bufio.Reader, error) {
	conn, err := dialIn(ctx, podDir)
	if err != nil {
		return nil, nil, err
	}
	c := &shimClient{conn: conn, pending: map[string]chan shimLine{}}
	lines := bufio.NewReaderSize(conn, shimLineBuffer)
	if err := c.greet(ctx, lines); err != nil {
		_ = conn.Close()
		return nil, nil, fmt.Errorf("greet the shim in %s: %w", podDir, err)
	}
	return c, lines, nil
}

// dialIn reaches the socket through a descriptor of its directory, since a
// socket's address holds only 108 bytes.
func dialIn(ctx context.Context, podDir string) (net.Conn, error) {
	dir, err := os.Open(podDir)
	if err != nil {
		return nil, fmt.Errorf("dial shim: %w", err)
	}
	defer func() { _ = dir.Close() }()
	var d net.Dialer
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := d.DialContext(ctx, "unix", filepath.Join("/proc/self/fd", strconv.Itoa(int(dir.Fd())), socketName))
	if err != nil {
		return nil, fmt.Errorf("dial shim in %s: %w", podDir, err)
	}
	return conn, nil
}

func (c *shimClient) greet(ctx context.Context, lines *bufio.Reader) error {
	deadline := time.Now().Add(dialTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := c.conn.SetDeadline(deadline); err != nil {
		return err
	}
	first, err := readLine(lines)
	if err != nil {
		return err
	}
	if c.greeting, err = parseGreeting(first); err != nil {
		return err
	}
	version, err := c.greeting.agree()
	if err != nil {
		return err
	}
	if _, err := io.WriteString(c.conn, formatRequest("0", "hello", [][2]string{{"proto", strconv.Itoa(version)}})); err != nil {
		return err
	}
	answer, err := readAnswer(lines, "0")
	if err != nil {
		return err
	}
	if answer.kind != "ok" {
		return &shimError{"hello", answer.keys["why"], answer.keys["msg"]}
	}
	return c.conn.SetDeadline(time.Time{})
}

// readLine also reads a line that is longer than the buffer, up to
// maxShimLineBytes.
func readLine(lines *bufio.Reader) (string, error) {
	line, err := lines.ReadSlice('\n')
	if !errors.Is(err, bufio.ErrBufferFull) {
		return string(line), err
	}
	long := slices.Clone(line)
	for errors.Is(err, bufio.ErrBufferFull) {
		line, err = lines.ReadSlice('\n')
		if long = append(long, line...); len(long) > maxShimLineBytes {
			return "", errLongLine
		}
	}
	return string(long), err
}

func readAnswer(lines *bufio.Reader, id string) (shimLine, error) {
	for {
		text, err := readLine(lines)
		if err != nil {
			return shimLine{}, err
		}
		line, err := parseShimLine(text)
		if err != nil {
			return shimLine{}, err
		}
		if line.id == id {
			return line, nil
		}
	}
}

// watch asks for events and returns the state of every container that the shim
// holds. After it, serve must read the rest.
func (c *shimClient) watch(lines *bufio.Reader) ([]runtime.ContainerState, error) {
	if err := c.conn.SetDeadline(time.Now().Add(dialTimeout)); err != nil {
		return nil, err
	}
	if _, err := io.WriteString(c.conn, formatRequest("0", "watch", nil)); err != nil {
		return nil, err
	}
	var states []runtime.ContainerState
	for {
		line, err := readAnswer(lines, "0")
		if err != nil {
			return nil, fmt.Errorf("watch the shim: %w", err)
		}
		if line.kind != "item" {
			return states, c.conn.SetDeadline(time.Time{})
		}
		state, err := parseContainer(line.keys)
		if err != nil {
			return nil, fmt.Errorf("watch the shim: %w", err)
		}
		states = append(states, state)
	}
}

// serve reads until the connection ends. Lines of a kind that this agent does
// not know are left alone: a newer shim may send them.
func (c *shimClient) serve(lines *bufio.Reader, h shimHandlers) {
	defer h.onClosed(c)
	defer c.close()
	for {
		text, err := readLine(lines)
		if err != nil {
			return
		}
		line, err := parseShimLine(text)
		if err != nil {
			return
		}
		if line.id != eventID {
			c.answer(line)
			continue
		}
		if state, err := parseContainer(line.keys); line.kind == "container" && err == nil {
			h.onContainer(state)
		}
	}
}

func (c *shimClient) answer(line shimLine) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if waiting, ok := c.pending[line.id]; ok {
		delete(c.pending, line.id)
		waiting <- line
	}
}

// close ends the connection and every request that waits on it.
func (c *shimClient) close() {
	_ = c.conn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, waiting := range c.pending {
		close(waiting)
	}
	c.pending = nil
}

// call sends one request and waits for its answer.
func (c *shimClient) call(ctx context.Context, verb string, keys [][2]string) (shimLine, error) {
	id, waiting, err := c.register()
	if err != nil {
		return shimLine{}, err
	}
	if _, err := io.WriteString(c.conn, formatRequest(id, verb, keys)); err != nil {
		c.forget(id)
		return shimLine{}, fmt.Errorf("%s: %w: %w", verb, errShimGone, err)
	}
	select {
	case <-ctx.Done():
		c.forget(id)
		return shimLine{}, fmt.Errorf("%s: %w", verb, context.Cause(ctx))
	case line, ok := <-waiting:
		if !ok {
			return shimLine{}, fmt.Errorf("%s: %w", verb, errShimGone)
		}
		if line.kind == "error" {
			return line, &shimError{verb, line.keys["why"], line.keys["msg"]}
		}
		return line, nil
	}
}

func (c *shimClient) register() (string, chan shimLine, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pending == nil {
		return "", nil, errShimGone
	}
	c.nextID++
	id := strconv.Itoa(c.nextID)
	waiting := make(chan shimLine, 1)
	c.pending[id] = waiting
	return id, waiting, nil
}

func (c *shimClient) forget(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, id)
}

// refusedWith tells whether err is the shim's answer with this code.
func refusedWith(err error, code string) bool {
	var refused *shimError
	return errors.As(err, &refused) && refused.code == code
}
