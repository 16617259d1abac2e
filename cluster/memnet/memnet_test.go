package memnet_test

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/balsa-run/balsa/cluster/memnet"
)

func connect(t *testing.T, n *memnet.Network) (near, far net.Conn) {
	t.Helper()
	a, err := n.Listen("a")
	if err != nil {
		t.Fatal(err)
	}
	b, err := n.Listen("b")
	if err != nil {
		t.Fatal(err)
	}
	if near, err = a.DialContext(context.Background(), "b"); err != nil {
		t.Fatal(err)
	}
	if far, err = b.Accept(); err != nil {
		t.Fatal(err)
	}
	return near, far
}

func TestBytesArriveInOrderThenEOF(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := connect(t, memnet.New())
		for _, s := range []string{"one ", "two ", "three"} {
			if _, err := near.Write([]byte(s)); err != nil {
				t.Fatal(err)
			}
		}
		_ = near.Close()
		got, err := io.ReadAll(far)
		if err != nil || string(got) != "one two three" {
			t.Errorf("read %q, error %v", got, err)
		}
		if _, err := far.Write([]byte("x")); err == nil {
			t.Error("a write to a closed connection succeeded")
		}
	})
}

func TestDelayAndCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		near, far := connect(t, n)
		n.Delay("a", "b", 30*time.Millisecond)
		begin := time.Now()
		_, _ = near.Write([]byte("late"))
		buffer := make([]byte, 10)
		if _, err := far.Read(buffer); err != nil || time.Since(begin) != 30*time.Millisecond {
			t.Errorf("read after %v, error %v", time.Since(begin), err)
		}
		n.HealAll()
		n.Cut("a", "b") // one way
		_, _ = near.Write([]byte("held"))
		_, _ = far.Write([]byte("back"))
		if k, err := near.Read(buffer); err != nil || string(buffer[:k]) != "back" {
			t.Errorf("the other way: %q, %v", buffer[:k], err)
		}
		_ = far.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := far.Read(buffer); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("through a cut: %v", err)
		}
		_ = far.SetReadDeadline(time.Time{})
		time.AfterFunc(time.Minute, func() { n.Heal("a", "b") })
		if k, err := far.Read(buffer); err != nil || string(buffer[:k]) != "held" {
			t.Errorf("after healing: %q, %v", buffer[:k], err)
		}
	})
}

func TestDialFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		near, _ := connect(t, n)
		_ = near
		c, err := n.Listen("c")
		if err != nil {
			t.Fatal(err)
		}
		var dial *net.OpError
		if _, err := c.DialContext(context.Background(), "nobody"); !errors.As(err, &dial) || dial.Op != "dial" {
			t.Errorf("nobody answers: %v", err)
		}
		n.Isolate("c", "a", "b")
		begin := time.Now()
		if _, err := c.Dial("a", 2*time.Second); err == nil || time.Since(begin) != 2*time.Second {
			t.Errorf("through a cut: %v after %v", err, time.Since(begin))
		}
		if _, err := n.Listen("c"); err == nil {
			t.Error("two hosts of one name")
		}
		_ = c.Close()
		if _, err := c.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept after close: %v", err)
		}
	})
}

func TestAFullWindowWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := connect(t, memnet.New())
		big := make([]byte, 1<<20)
		_, _ = near.Write(big)
		_ = near.SetWriteDeadline(time.Now().Add(time.Second))
		if _, err := near.Write([]byte("more")); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("beyond the window: %v", err)
		}
		if _, err := io.ReadFull(far, big); err != nil {
			t.Fatal(err)
		}
		_ = near.SetWriteDeadline(time.Time{})
		if _, err := near.Write([]byte("more")); err != nil {
			t.Errorf("with room again: %v", err)
		}
	})
}

func TestReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := connect(t, memnet.New())
		_, _ = near.Write([]byte("under way"))
		waits := make(chan error, 1)
		go func() { _, err := near.Read(make([]byte, 1)); waits <- err }()
		synctest.Wait()
		near.(*memnet.Conn).Reset()
		if err := <-waits; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("a read that waits: %v", err)
		}
		if n, err := far.Read(make([]byte, 10)); n != 0 || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the other end reads %d bytes, %v", n, err)
		}
		for _, end := range []net.Conn{near, far} {
			if _, err := end.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("a write: %v", err)
			}
		}
	})
}

// What comes late holds up all behind it.
func TestExtra(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		near, far := connect(t, n)
		lost := true
		n.Extra("a", "b", func() time.Duration {
			defer func() { lost = false }()
			if lost {
				return 200 * time.Millisecond
			}
			return 0
		})
		begin := time.Now()
		_, _ = near.Write([]byte("one "))
		_, _ = near.Write([]byte("two"))
		got := make([]byte, 7)
		if _, err := io.ReadFull(far, got); err != nil || string(got) != "one two" || time.Since(begin) != 200*time.Millisecond {
			t.Errorf("read %q after %v, %v", got, time.Since(begin), err)
		}
		n.Extra("a", "b", nil)
		_, _ = near.Write([]byte("three"))
		if _, err := far.Read(got); err != nil || time.Since(begin) != 200*time.Millisecond {
			t.Errorf("after healing %v, %v", time.Since(begin), err)
		}
	})
}

// Everything arrives once and in order, however the ends take turns.
func TestStreamIsAStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		near, far := connect(t, n)
		chance := rand.New(rand.NewPCG(1, 2))
		n.Extra("a", "b", func() time.Duration { return time.Duration(chance.Int64N(int64(time.Millisecond))) })
		const total = 4 << 20
		go func() {
			turns := rand.New(rand.NewPCG(3, 4))
			for sent := 0; sent < total; {
				chunk := make([]byte, min(1+turns.IntN(100_000), total-sent))
				for i := range chunk {
					chunk[i] = byte((sent + i) % 251)
				}
				if _, err := near.Write(chunk); err != nil {
					t.Error(err)
				}
				sent += len(chunk)
				if turns.IntN(3) == 0 {
					time.Sleep(time.Duration(turns.Int64N(int64(3 * time.Millisecond))))
				}
			}
			_ = near.Close()
		}()
		got, turns := 0, rand.New(rand.NewPCG(5, 6))
		for {
			if turns.IntN(5) == 0 {
				_ = far.SetReadDeadline(time.Now().Add(time.Duration(turns.Int64N(int64(time.Millisecond)))))
			}
			chunk := make([]byte, 1+turns.IntN(100_000))
			k, err := far.Read(chunk)
			for i := range k {
				if chunk[i] != byte((got+i)%251) {
					t.Fatalf("byte %d is wrong", got+i)
				}
			}
			got += k
			switch {
			case errors.Is(err, os.ErrDeadlineExceeded):
				_ = far.SetReadDeadline(time.Time{})
			case errors.Is(err, io.EOF):
				if got != total {
					t.Errorf("%d bytes came, %d were sent", got, total)
				}
				return
			case err != nil:
				t.Fatal(err)
			}
		}
	})
}
