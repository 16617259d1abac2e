package fake

import (
	"context"
	"fmt"
	"io"

	"github.com/balsa-run/balsa/node/runtime"
)

// Dial implements runtime.Streams: what listens in a simulated pod answers with
// what it is sent.
func (r *Runtime) Dial(ctx context.Context, uid runtime.PodUID, port int) (runtime.Conn, error) {
	if port < 1 || port > 1<<16-1 {
		return nil, fmt.Errorf("dial pod %s: port %d: want 1 to 65535: %w", uid, port, runtime.ErrInvalid)
	}
	if err := r.enter(ctx); err != nil {
		return nil, err
	}
	defer r.m.mu.Unlock()
	p, ok := r.m.pods[uid]
	if !ok {
		return nil, fmt.Errorf("pod %s: %w", uid, runtime.ErrPodNotFound)
	}
	for _, c := range p.containers {
		if !c.gone && c.ports[port] {
			return newEcho(c.halted), nil
		}
	}
	return nil, fmt.Errorf("dial pod %s: 127.0.0.1:%d: connection refused", uid, port)
}

// echoConn is a connection to somebody who sends back what he gets.
type echoConn struct {
	r    *io.PipeReader
	w    *io.PipeWriter
	done chan struct{}
}

func newEcho(halted <-chan struct{}) *echoConn {
	r, w := io.Pipe()
	e := &echoConn{r: r, w: w, done: make(chan struct{})}
	go func() {
		select {
		case <-halted:
			_ = w.CloseWithError(io.ErrUnexpectedEOF)
		case <-e.done:
		}
	}()
	return e
}

func (e *echoConn) Read(p []byte) (int, error)  { return e.r.Read(p) }
func (e *echoConn) Write(p []byte) (int, error) { return e.w.Write(p) }
func (e *echoConn) CloseWrite() error           { return e.w.Close() }

func (e *echoConn) Close() error {
	select {
	case <-e.done:
	default:
		close(e.done)
	}
	_ = e.w.Close()
	return e.r.Close()
}

// statsBytes is what every simulated container uses.
const statsBytes = 1 << 20

// Stats implements runtime.Observer: a simulated program uses the processor all
// the time and always the same memory.
func (r *Runtime) Stats(ctx context.Context, uid runtime.PodUID) (runtime.PodStats, error) {
	if err := r.enter(ctx); err != nil {
		return runtime.PodStats{}, err
	}
	defer r.m.mu.Unlock()
	p, ok := r.m.pods[uid]
	if !ok {
		return runtime.PodStats{}, fmt.Errorf("pod %s: %w", uid, runtime.ErrPodNotFound)
	}
	now := r.m.opt.Clock.Now().UTC()
	stats := runtime.PodStats{Time: now}
	for _, state := range p.state(uid).Containers {
		if state.Status != runtime.ContainerRunning {
			continue
		}
		c := p.containers[key(state.Name, state.Attempt)]
		stats.Containers = append(stats.Containers, runtime.ContainerStats{
			Name: state.Name, Attempt: state.Attempt, CPUNanos: int64(now.Sub(state.StartedAt)), MemoryBytes: statsBytes,
			WorkingSetBytes: statsBytes, MemoryLimitBytes: c.cfg.Resources.MemoryLimitBytes, Pids: 1,
			WritableBytes: c.files.bytes(), LogBytes: c.log.bytes(),
		})
	}
	return stats, nil
}

func (b *logBuffer) bytes() int64 {
	n := int64(0)
	for _, file := range b.files {
		for _, l := range file {
			n += int64(len(l.Text) + lineOverhead)
		}
	}
	return n
}
