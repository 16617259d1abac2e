package runc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/node/runtime"
)

const (
	// podDialTimeout bounds a connection to a port of a pod.
	podDialTimeout = 10 * time.Second
	maxPort        = 1<<16 - 1
)

// Dial implements runtime.Streams. A socket belongs to the network namespace of
// the thread that makes it, so a thread enters the pod's, makes it, and ends.
func (r *Runtime) Dial(ctx context.Context, uid runtime.PodUID, port int) (runtime.Conn, error) {
	if port < 1 || port > maxPort {
		return nil, fmt.Errorf("dial pod %s: port %d: want 1 to %d: %w", uid, port, maxPort, runtime.ErrInvalid)
	}
	state, err := r.Pod(ctx, uid)
	if err != nil {
		return nil, err
	}
	if state.Sandbox != runtime.SandboxReady {
		return nil, fmt.Errorf("dial pod %s: %w", uid, runtime.ErrPodLost)
	}
	ctx, cancel := context.WithTimeout(ctx, podDialTimeout)
	defer cancel()
	conn, err := dialFrom(ctx, state.NetNS, net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return nil, fmt.Errorf("dial pod %s: %w", uid, err)
	}
	return conn, nil
}

// dialFrom dials inside a network namespace; an empty path is the caller's own.
func dialFrom(ctx context.Context, netns, address string) (*net.TCPConn, error) {
	var conn *net.TCPConn
	dial := func() error {
		// An address that is a number needs no other goroutine: this one, and so
		// this thread, makes the socket.
		c, err := new(net.Dialer).DialContext(ctx, "tcp4", address)
		if err == nil {
			conn = c.(*net.TCPConn)
		}
		return err
	}
	if netns == "" {
		err := dial()
		return conn, err
	}
	done := make(chan error, 1)
	go inNetNS(netns, dial, done)
	err := <-done
	return conn, err
}

// inNetNS runs f on a thread that enters the namespace and dies with it. The
// main thread cannot die: where this goroutine finds itself there, it holds it
// back until f has run on another one.
func inNetNS(path string, f func() error, done chan<- error) {
	goruntime.LockOSThread() // never unlocked, except on the main thread
	if unix.Gettid() == unix.Getpid() {
		defer goruntime.UnlockOSThread()
		other := make(chan error, 1)
		go inNetNS(path, f, other)
		done <- <-other
		return
	}
	done <- enterAnd(path, f)
}

func enterAnd(path string, f func() error) error {
	ns, err := os.Open(filepath.Clean(path))
	if err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
	if err := errors.Join(err, ns.Close()); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	return f()
}
