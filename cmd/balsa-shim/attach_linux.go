package main

import "syscall"

// Attached clients. Once a client's "attach" has been answered, its connection
// carries frames in both directions instead of lines:
//
//	+------+----------------+---------+
//	| kind | length, 3 bytes| payload |   big endian
//	+------+----------------+---------+
//
// Output goes to every attached client, and none of them can hold up the
// container: what does not fit a client's buffer is dropped, and a frame says
// how much. Input is the other way round: while the program does not read, no
// attached client of it is read from.
const (
	// From the client.
	frameInput  = 'i'
	frameEnd    = 'e' // no more input of this client
	frameResize = 'r' // width and height, 2 bytes each
	// From the shim.
	frameOut     = 'o'
	frameErr     = 'x'
	frameDropped = 'd' // 8 bytes: how many bytes of output are missing here
	frameOver    = 'q' // the program has ended; its state, as in an answer

	frameHeader = 4
	// maxFrameBytes bounds a client's frame; a longer one ends the connection.
	maxFrameBytes = 32 << 10
	// attachBufBytes is the output that waits for one slow client.
	attachBufBytes = 256 << 10
	// maxAttached bounds the attached clients of a pod, so that they cannot take
	// all connections from the agent.
	maxAttached = 16
	// endOfInput is what a terminal's reader takes for the end (VEOF).
	endOfInput = 4
)

// attach turns a connection into a stream of a running container.
func (c *conn) attach(r *request) {
	ct, ok := c.find(r)
	if !ok {
		return
	}
	if ct.state != stateRunning {
		c.refuse(r.id, "not-running", ct.state)
		return
	}
	if c.s.attached >= maxAttached {
		c.refuse(r.id, "limit", "16 clients are attached to this pod already")
		return
	}
	c.feeds = r.get("stdin") == "1"
	if c.feeds && !ct.takesInput() {
		c.refuse(r.id, "no-stdin", "its input is closed or was never open")
		return
	}
	c.unwatch()
	c.send(ct.describe(newLine(r.id).word("ok").num("tty", int64(ct.tty))).end())
	c.to = ct
	c.paused = len(ct.pending) > 0
	c.s.attached++
	ct.attached = append(ct.attached, c)
}

// detach takes the connection off its container; an input that may be used once
// ends with it.
func (c *conn) detach() {
	ct := c.to
	if ct == nil {
		return
	}
	c.to = nil
	c.s.attached--
	kept := ct.attached[:0]
	for _, other := range ct.attached {
		if other != c {
			kept = append(kept, other)
		}
	}
	ct.attached = kept
	c.s.inputOver(c, ct)
}

// inputOver: only the first client that ends its input counts, and only where
// the input is to be used once.
func (s *shim) inputOver(c *conn, ct *container) {
	if !c.feeds {
		return
	}
	c.feeds = false
	if ct.stdinOnce {
		ct.ending = true
		s.feed(ct)
	}
}

// frames handles the whole frames that have arrived; false ends the connection.
func (c *conn) frames() bool {
	for c.to != nil && !c.paused && len(c.in) >= frameHeader {
		size := int(c.in[1])<<16 | int(c.in[2])<<8 | int(c.in[3])
		if size > maxFrameBytes {
			return false
		}
		if len(c.in) < frameHeader+size {
			break
		}
		// Taken out first: handling it may come back here.
		kind, payload := c.in[0], append([]byte(nil), c.in[frameHeader:frameHeader+size]...)
		c.in = append(c.in[:0], c.in[frameHeader+size:]...)
		c.frame(kind, payload)
	}
	return true
}

func (c *conn) frame(kind byte, payload []byte) {
	ct := c.to
	switch {
	case kind == frameInput && c.feeds && ct.takesInput():
		ct.pending = append(ct.pending, payload...)
		c.s.feed(ct)
	case kind == frameEnd:
		c.s.inputOver(c, ct)
	case kind == frameResize && len(payload) == 4 && ct.tty != 0 && ct.out.fd >= 0:
		width, height := uint16(payload[0])<<8|uint16(payload[1]), uint16(payload[2])<<8|uint16(payload[3])
		setTerminalSize(ct.out.fd, width, height)
	}
}

// offer sends a frame if there is room for it; forced frames are small and
// always go.
func (c *conn) offer(kind byte, payload []byte, forced bool) {
	if c.lost || c.fd < 0 {
		return
	}
	if !forced && len(c.out)+len(payload) > attachBufBytes {
		c.dropped += int64(len(payload))
		return
	}
	if c.dropped > 0 {
		var count [8]byte
		for i := range count {
			count[i] = byte(c.dropped >> (56 - 8*i))
		}
		c.dropped = 0
		c.out = appendFrame(c.out, frameDropped, count[:])
	}
	c.out = appendFrame(c.out, kind, payload)
	c.flush()
}

func appendFrame(b []byte, kind byte, payload []byte) []byte {
	n := len(payload)
	b = append(b, kind, byte(n>>16), byte(n>>8), byte(n))
	return append(b, payload...)
}

// show sends output to everybody who is attached.
func (c *container) show(from *stream, data []byte) {
	kind := byte(frameOut)
	if from == &c.err {
		kind = frameErr
	}
	for _, client := range c.attached {
		client.offer(kind, data, false)
	}
}

// dismiss tells everybody who is attached that the program has ended.
func (s *shim) dismiss(ct *container) {
	state := ct.describe(newLine("over")).end()
	for _, c := range append([]*conn(nil), ct.attached...) {
		c.feeds = false
		c.offer(frameOver, state, true)
		c.detach()
		c.deaf = true
	}
	s.closeInput(ct)
}

func (c *container) takesInput() bool {
	return c.stdin && !c.ending && (c.tty == 0 && c.stdinFD >= 0 || c.tty != 0 && c.out.fd >= 0)
}

// inputFD is where input goes: a pipe, or the terminal that output comes from.
func (c *container) inputFD() int {
	if c.tty != 0 {
		return c.out.fd
	}
	return c.stdinFD
}

// feed writes what waits to the program. While something is left, the clients
// that feed it are not read from.
func (s *shim) feed(ct *container) {
	fd := ct.inputFD()
	for fd >= 0 && len(ct.pending) > 0 {
		n, err := write(fd, ct.pending)
		if err == syscall.EAGAIN {
			break
		}
		if err != nil {
			s.closeInput(ct) // nobody will ever read it
			fd = -1
			break
		}
		ct.pending = append(ct.pending[:0], ct.pending[n:]...)
	}
	if fd < 0 {
		ct.pending = nil
	}
	if len(ct.pending) == 0 {
		ct.pending = nil
		if ct.ending {
			s.endInput(ct)
		}
	}
	s.regulate(ct)
}

// regulate makes what is waited for agree with what waits.
func (s *shim) regulate(ct *container) {
	full := len(ct.pending) > 0
	events := uint32(0)
	if ct.tty != 0 {
		events = syscall.EPOLLIN
	}
	if full {
		events |= syscall.EPOLLOUT
	}
	if fd := ct.inputFD(); fd >= 0 && ct.stdin {
		s.rewatch(fd, events)
	}
	for _, c := range append([]*conn(nil), ct.attached...) {
		if c.paused == full {
			continue
		}
		c.paused = full
		c.flush() // sets the events
		if !full && !c.frames() {
			c.cut()
		}
	}
}

// endInput closes a pipe, and types the end for who reads a terminal: closing
// that would hang up.
func (s *shim) endInput(ct *container) {
	if ct.tty == 0 {
		s.closeInput(ct)
		return
	}
	if ct.out.fd >= 0 && !ct.endTyped {
		ct.endTyped = true
		write(ct.out.fd, []byte{endOfInput})
	}
}

func (s *shim) closeInput(ct *container) {
	if ct.stdinFD >= 0 {
		s.drop(ct.stdinFD)
	}
	ct.stdinFD, ct.pending = -1, nil
}

// inputReady: the pipe takes more, or its reader is gone.
func (s *shim) inputReady(ct *container, events uint32) {
	if events&(syscall.EPOLLERR|syscall.EPOLLHUP) != 0 {
		s.closeInput(ct)
	}
	s.feed(ct)
}

// terminalReady: output has come, or the terminal takes more input.
func (s *shim) terminalReady(ct *container, events uint32) {
	if events&syscall.EPOLLOUT != 0 {
		s.feed(ct)
	}
	if events&^uint32(syscall.EPOLLOUT) != 0 {
		s.pump(ct, &ct.out)
	}
	if ct.out.fd < 0 {
		s.feed(ct) // nobody reads any more
	}
}

// takeTerminal receives the terminal that the container's first process made.
func (s *shim) takeTerminal(ct *container) {
	if ct.consoleFD < 0 {
		return
	}
	fd, err := receiveFD(ct.consoleFD)
	if err == syscall.EAGAIN {
		return
	}
	s.drop(ct.consoleFD)
	ct.consoleFD = -1
	if err != nil {
		return
	}
	if syscall.SetNonblock(fd, true) != nil || s.watch(fd, func(events uint32) { s.terminalReady(ct, events) }) != nil {
		syscall.Close(fd)
		return
	}
	ct.out.fd = fd
}
