package main

import (
	"bytes"
	"syscall"
	"testing"

	"pgregory.net/rapid"
)

// attachedPair is a shim with a container that has an input, and a client that
// feeds it.
func attachedPair(t *rapid.T) (c *conn, reader int, done func()) {
	s, err := newShim("uid", "helper")
	if err != nil {
		t.Fatal(err)
	}
	w, r, err := inputPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.SetNonblock(r, true); err != nil {
		t.Fatal(err)
	}
	ct := &container{stdin: true, stdinOnce: true, stdinFD: w, consoleFD: -1, out: stream{fd: -1}, err: stream{fd: -1}}
	if err := s.watch(w, func(events uint32) { s.inputReady(ct, events) }); err != nil {
		t.Fatal(err)
	}
	c = &conn{s: s, fd: -1, to: ct, feeds: true}
	ct.attached = []*conn{c}
	return c, r, func() {
		s.closeInput(ct)
		syscall.Close(r)
		syscall.Close(s.ep)
	}
}

// TestInputArrivesWhole: however frames are cut and however slowly the program
// reads, it gets every byte in order and then the end; and what waits is bounded.
func TestInputArrivesWhole(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, reader, done := attachedPair(t)
		defer done()
		var sent, wire []byte
		for range rapid.IntRange(0, 12).Draw(t, "frames") {
			payload := bytes.Repeat([]byte{byte(len(sent))}, rapid.IntRange(0, maxFrameBytes).Draw(t, "size"))
			sent = append(sent, payload...)
			wire = appendFrame(wire, frameInput, payload)
		}
		wire = appendFrame(wire, frameEnd, nil)
		var got []byte
		buf := make([]byte, 16<<10)
		for over := false; !over; {
			if !c.paused && len(wire) > 0 {
				n := rapid.IntRange(1, min(len(wire), readBufBytes)).Draw(t, "cut")
				c.in, wire = append(c.in, wire[:n]...), wire[n:]
				if !c.frames() {
					t.Fatal("the connection was cut")
				}
			}
			if most := maxFrameBytes + readBufBytes; len(c.to.pending) > most {
				t.Fatalf("%d bytes wait, more than %d", len(c.to.pending), most)
			}
			n, err := read(reader, buf)
			if err == nil {
				got = append(got, buf[:n]...)
				over = n == 0
			}
			c.s.feed(c.to)
		}
		if !bytes.Equal(got, sent) {
			t.Fatalf("the program got %d bytes of %d", len(got), len(sent))
		}
	})
}

func TestTooLongFrameCutsTheConnection(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, _, done := attachedPair(t)
		defer done()
		size := rapid.IntRange(maxFrameBytes+1, 1<<24-1).Draw(t, "size")
		c.in = []byte{frameInput, byte(size >> 16), byte(size >> 8), byte(size)}
		if c.frames() {
			t.Fatal("a frame that is too long is waited for")
		}
	})
}

// TestSlowClientIsToldWhatItMissed: output beyond the buffer is dropped, and the
// count comes before what is shown next.
func TestSlowClientIsToldWhatItMissed(t *testing.T) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(fds[:])
	s, err := newShim("uid", "helper")
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(s.ep)
	c := &conn{s: s, fd: fds[0]}
	chunk := bytes.Repeat([]byte{'x'}, 32<<10)
	offered := 0
	for c.dropped == 0 {
		c.offer(frameOut, chunk, false)
		offered += len(chunk)
	}
	missed := c.dropped
	var got []byte
	buf := make([]byte, 64<<10)
	for {
		n, err := read(fds[1], buf)
		if err == syscall.EAGAIN {
			if len(c.out) == 0 {
				break
			}
			c.flush()
			continue
		}
		got = append(got, buf[:n]...)
	}
	c.offer(frameOver, []byte("end"), true)
	n, err := read(fds[1], buf)
	want := appendFrame(appendFrame(nil, frameDropped, []byte{0, 0, 0, 0, 0, byte(missed >> 16), byte(missed >> 8), byte(missed)}), frameOver, []byte("end"))
	if err != nil || !bytes.Equal(buf[:n], want) {
		t.Errorf("after %d bytes of %d the client reads %q, %v; want %q", len(got), offered, buf[:n], err, want)
	}
}
