package main

import "syscall"

// conn is one client. Its answers wait in out while the client is slow; a
// client that lets too many wait is cut off and may come again.
type conn struct {
	s    *shim
	fd   int // -1 once closed
	in   []byte
	out  []byte
	lost bool // no further output

	// Once it is attached:
	to      *container // nil before and after
	feeds   bool       // its input is the program's
	paused  bool       // not read from, while the program does not read
	deaf    bool       // the program has ended: what the client still says is nothing
	dropped int64      // bytes of output that it has not been told of
}

const (
	maxOutBytes = 1 << 20
	maxConns    = 64
	backlog     = 16
)

// listen binds the socket by a path relative to the pod's directory: the
// address of a unix socket holds only 108 bytes.
func (s *shim) listen(path string) error {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	syscall.Unlink(path)
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		return err
	}
	if err := syscall.Chmod(path, 0o600); err != nil {
		return err
	}
	if err := syscall.Listen(fd, backlog); err != nil {
		return err
	}
	conns := 0
	return s.watch(fd, func(uint32) { s.accept(fd, &conns) })
}

func (s *shim) accept(listener int, conns *int) {
	fd, _, err := syscall.Accept4(listener, syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK)
	if err != nil {
		return
	}
	if *conns >= maxConns {
		syscall.Close(fd)
		return
	}
	c := &conn{s: s, fd: fd}
	closed := func() { *conns-- }
	if s.watch(fd, func(events uint32) { c.ready(events, closed) }) != nil {
		syscall.Close(fd)
		return
	}
	*conns++
	c.send(newLine("balsa-shim").num("proto", protoVersion).num("min", protoMin).num("pid", int64(syscall.Getpid())).str("uid", s.uid).num("attach", 1).end())
}

func (c *conn) ready(events uint32, closed func()) {
	if events&syscall.EPOLLOUT != 0 {
		c.flush()
	}
	if events&^uint32(syscall.EPOLLOUT) != 0 && !c.lost && !c.receive() {
		c.lost = true
	}
	if c.lost {
		c.close()
		closed()
	}
}

// close drops the connection. A container's starters may still refer to it:
// send then does nothing.
func (c *conn) close() {
	c.s.drop(c.fd)
	c.fd, c.in, c.out = -1, nil, nil
	c.unwatch()
	c.detach()
}

// receive reads once and handles the lines that are complete; false ends the
// connection.
func (c *conn) receive() bool {
	n, err := read(c.fd, c.s.buf)
	if err == syscall.EAGAIN {
		return true
	}
	if err != nil || n <= 0 {
		return false
	}
	if c.deaf {
		return true
	}
	c.in = append(c.in, c.s.buf[:n]...)
	for c.to == nil {
		end := indexLF(c.in)
		if end < 0 {
			break
		}
		text := string(c.in[:end])
		c.in = append(c.in[:0], c.in[end+1:]...)
		if end > maxLineBytes || !c.handle(text) {
			return false
		}
	}
	if c.to != nil {
		return c.frames()
	}
	return len(c.in) <= maxLineBytes
}

func indexLF(b []byte) int {
	for i := range b {
		if b[i] == '\n' {
			return i
		}
	}
	return -1
}

// handle answers one request; false ends the connection, which is the only
// answer to a line that is none.
func (c *conn) handle(text string) bool {
	r, ok := parseRequest(text)
	if !ok {
		return false
	}
	switch r.verb {
	case "hello":
		c.hello(&r)
	case "start":
		c.s.start(c, &r)
	case "list":
		c.list(&r)
	case "watch":
		c.unwatch()
		c.s.watchers = append(c.s.watchers, c)
		c.list(&r)
	case "signal":
		c.signal(&r)
	case "attach":
		c.attach(&r)
	case "forget":
		c.forget(&r)
	case "quit":
		c.quit(&r)
	default:
		c.refuse(r.id, "unknown-verb", r.verb)
	}
	return true
}

// hello agrees on a version: the smaller one of the two best.
func (c *conn) hello(r *request) {
	theirs, ok := r.number("proto")
	if !ok || theirs < protoMin {
		c.refuse(r.id, "version", "this shim speaks versions "+string(appendInt(nil, protoMin))+" to "+string(appendInt(nil, protoVersion)))
		return
	}
	c.send(newLine(r.id).word("ok").num("proto", min(theirs, protoVersion)).end())
}

// list sends every container, then ok.
func (c *conn) list(r *request) {
	for _, ct := range c.s.containers {
		c.send(ct.describe(newLine(r.id).word("item")).end())
	}
	c.send(newLine(r.id).word("ok").end())
}

func (c *conn) find(r *request) (*container, bool) {
	attempt, ok := r.number("attempt")
	ct := c.s.containers[containerKey(r.get("name"), attempt)]
	if !ok || ct == nil {
		c.refuse(r.id, "not-found", r.get("name"))
		return nil, false
	}
	return ct, true
}

func (c *conn) signal(r *request) {
	ct, ok := c.find(r)
	if !ok {
		return
	}
	sig, ok := r.number("sig")
	if !ok || sig <= 0 || sig > 64 {
		c.refuse(r.id, "bad-request", "sig: want 1 to 64")
		return
	}
	if ct.state != stateRunning {
		c.refuse(r.id, "not-running", ct.state)
		return
	}
	if err := pidfdSignal(ct.pidfd, int(sig)); err != nil {
		c.refuse(r.id, "not-running", err.Error())
		return
	}
	c.send(newLine(r.id).word("ok").end())
}

// forget frees what is kept of an exited attempt. Its files are not touched.
func (c *conn) forget(r *request) {
	ct, ok := c.find(r)
	if !ok {
		return
	}
	if ct.state != stateExited {
		c.refuse(r.id, "busy", ct.state)
		return
	}
	delete(c.s.containers, ct.key)
	c.send(newLine(r.id).word("ok").end())
}

// quit ends the shim, unless a container would lose it.
func (c *conn) quit(r *request) {
	for _, ct := range c.s.containers {
		if ct.state != stateExited {
			c.refuse(r.id, "busy", "container "+ct.name+" is "+ct.state)
			return
		}
	}
	c.send(newLine(r.id).word("ok").end())
	c.s.quitting = true
}

func (c *conn) refuse(id, code, message string) {
	c.send(newLine(id).word("error").str("why", code).str("msg", message).end())
}

// send queues b and writes what the socket takes.
func (c *conn) send(b []byte) {
	if c.lost || c.fd < 0 {
		return
	}
	c.out = append(c.out, b...)
	c.flush()
}

func (c *conn) flush() {
	for len(c.out) > 0 {
		n, err := write(c.fd, c.out)
		if err == syscall.EAGAIN {
			break
		}
		if err != nil {
			c.cut()
			return
		}
		c.out = append(c.out[:0], c.out[n:]...)
	}
	if len(c.out) > maxOutBytes {
		c.cut()
		return
	}
	events := uint32(syscall.EPOLLIN)
	if c.paused {
		events = 0
	}
	if len(c.out) > 0 {
		events |= syscall.EPOLLOUT
	}
	c.s.rewatch(c.fd, events)
}

// cut ends the connection at the next event: the peer's end of the socket is
// shut, so there will be one.
func (c *conn) cut() {
	c.lost, c.out = true, nil
	c.unwatch()
	syscall.Shutdown(c.fd, syscall.SHUT_RDWR)
}

func (c *conn) unwatch() {
	kept := c.s.watchers[:0]
	for _, w := range c.s.watchers {
		if w != c {
			kept = append(kept, w)
		}
	}
	c.s.watchers = kept
}
