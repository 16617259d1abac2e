package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"
)

// watched ends a body that stalls: in each window of Stall it must bring
// StallBytes, or its end. Time in which nobody reads does not count.
type watched struct {
	body   io.ReadCloser
	cancel context.CancelCauseFunc
	limits Limits
	timer  *time.Timer

	bytes   atomic.Int64 // since the window began
	reading atomic.Bool
	idle    atomic.Bool // somebody did not read for a part of the window
	stalled atomic.Bool
}

// Watch ends a transfer that stalls: the body then fails with ErrStalled. Close
// the result.
func Watch(body io.ReadCloser, cancel context.CancelCauseFunc, limits Limits) io.ReadCloser {
	w := &watched{body: body, cancel: cancel, limits: limits}
	w.idle.Store(true)
	w.timer = time.AfterFunc(limits.Stall, w.check)
	return w
}

func (w *watched) check() {
	// Idle at one check is idle in the window after it as well: reading may begin
	// again just before the next check.
	idle := w.idle.Swap(!w.reading.Load()) || !w.reading.Load()
	if bytes := w.bytes.Swap(0); !idle && bytes < w.limits.StallBytes {
		w.stalled.Store(true)
		w.cancel(ErrStalled)
		return
	}
	w.timer.Reset(w.limits.Stall)
}

func (w *watched) Read(p []byte) (int, error) {
	w.reading.Store(true)
	n, err := w.body.Read(p)
	w.reading.Store(false)
	w.bytes.Add(int64(n))
	if err != nil && !errors.Is(err, io.EOF) && w.stalled.Load() {
		err = fmt.Errorf("%w: less than %d bytes in %s", ErrStalled, w.limits.StallBytes, w.limits.Stall)
	}
	return n, err
}

func (w *watched) Close() error {
	w.timer.Stop()
	err := w.body.Close()
	w.cancel(nil)
	return err
}
