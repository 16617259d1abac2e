package runtimetest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/balsa-run/balsa/node/runtime"
)

// readLog returns "stream text" for each line.
func (h *harness) readLog(uid runtime.PodUID, name string, attempt int, opt runtime.LogOptions) []string {
	h.Helper()
	var lines []string
	for _, l := range h.readLines(uid, name, attempt, opt) {
		lines = append(lines, string(l.Stream)+" "+string(l.Text))
	}
	return lines
}

func (h *harness) readLines(uid runtime.PodUID, name string, attempt int, opt runtime.LogOptions) []runtime.LogLine {
	h.Helper()
	r, err := h.Runtime.OpenLog(h.ctx, uid, name, attempt, opt)
	if err != nil {
		h.Fatalf("OpenLog: %v", err)
	}
	defer func() {
		if err := r.Close(); err != nil {
			h.Errorf("close the log: %v", err)
		}
	}()
	var lines []runtime.LogLine
	for {
		line, err := r.Next()
		if errors.Is(err, io.EOF) {
			return lines
		}
		if err != nil {
			h.Fatalf("read the log: %v", err)
		}
		lines = append(lines, line)
	}
}

func testEnvironment(h *harness) {
	h.runPod("a")
	c := h.container("c", 0, "env=FROM_IMAGE", "env=BOTH", "env=OWN", "env=HOSTNAME", "env=PATH")
	c.Image.Env = []string{"FROM_IMAGE=1", "BOTH=image"}
	c.Env = []runtime.EnvVar{{Name: "BOTH", Value: "pod"}, {Name: "OWN", Value: "a=b c"}}
	h.run(c)
	h.exited("a", "c", 0)
	want := []string{"stdout FROM_IMAGE=1", "stdout BOTH=pod", "stdout OWN=a=b c", "stdout HOSTNAME=host-a",
		"stdout PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	if got := h.readLog("a", "c", 0, runtime.LogOptions{}); !slices.Equal(got, want) {
		h.Errorf("environment\n%q, want\n%q", got, want)
	}
}

func testLog(h *harness) {
	h.runPod("a")
	long := strings.Repeat("x", runtime.MaxLogLineBytes+10)
	h.run(h.container("c", 0, "out=first", "sleep=50ms", "err=second", "sleep=50ms", "out="+long, "out=", "exit=1"))
	h.exited("a", "c", 0)
	lines := h.readLines("a", "c", 0, runtime.LogOptions{})
	var got []string
	for i, l := range lines {
		got = append(got, fmt.Sprintf("%s %v %d", l.Stream, l.Partial, len(l.Text)))
		if l.Time.IsZero() || i > 0 && l.Time.Before(lines[i-1].Time) {
			h.Errorf("line %d has time %v", i, l.Time)
		}
	}
	want := []string{"stdout false 5", "stderr false 6", fmt.Sprintf("stdout true %d", runtime.MaxLogLineBytes), "stdout false 10", "stdout false 0"}
	if !slices.Equal(got, want) {
		h.Errorf("log %q, want %q", got, want)
	}
}

func testLogFollow(h *harness) {
	h.runPod("a")
	h.run(h.container("c", 0, "out=one", "sleep=200ms", "out=two", "sleep=200ms", "out=three"))
	done := make(chan []string)
	go func() { done <- h.readLog("a", "c", 0, runtime.LogOptions{Follow: true}) }()
	var got []string
	h.eventually("the follower to end", func() bool {
		select {
		case got = <-done:
			return true
		default:
			return false
		}
	})
	if want := []string{"stdout one", "stdout two", "stdout three"}; !slices.Equal(got, want) {
		h.Errorf("followed %q, want %q", got, want)
	}
}

// testLogFollowRotation: a follower misses nothing when files are put aside and
// the oldest ones removed behind it.
func testLogFollowRotation(h *harness) {
	const rounds, lines = 6, 60
	h.runPod("a")
	var steps []string
	for range rounds {
		steps = append(steps, fmt.Sprintf("lines=%d", lines), "sleep=300ms")
	}
	c := h.container("c", 0, steps...)
	c.Log = runtime.LogLimits{MaxBytes: runtime.MinLogMaxBytes, MaxFiles: 3}
	h.run(c)
	done := make(chan []string)
	go func() { done <- h.readLog("a", "c", 0, runtime.LogOptions{Follow: true}) }()
	var got []string
	h.eventually("the follower to end", func() bool {
		select {
		case got = <-done:
			return true
		default:
			return false
		}
	})
	for i, line := range got {
		if want := fmt.Sprintf("stdout line %d", i%lines); line != want {
			h.Fatalf("line %d reads %q, want %q", i, line, want)
		}
	}
	if len(got) != rounds*lines {
		h.Errorf("followed %d lines of %d", len(got), rounds*lines)
	}
	if kept := h.readLog("a", "c", 0, runtime.LogOptions{}); len(kept) >= rounds*lines {
		h.Errorf("nothing was removed (%d lines): the test shows nothing", len(kept))
	}
}

func testLogTail(h *harness) {
	h.runPod("a")
	h.run(h.container("c", 0, "lines=10", "sleep=100ms", "out=late"))
	h.exited("a", "c", 0)
	if got := h.readLog("a", "c", 0, runtime.LogOptions{TailLines: 2}); !slices.Equal(got, []string{"stdout line 9", "stdout late"}) {
		h.Errorf("last two lines: %q", got)
	}
	all := h.readLines("a", "c", 0, runtime.LogOptions{})
	since := all[len(all)-1].Time
	if got := h.readLog("a", "c", 0, runtime.LogOptions{Since: since}); !slices.Equal(got, []string{"stdout late"}) {
		h.Errorf("lines since %v: %q", since, got)
	}
	if got := h.readLog("a", "c", 0, runtime.LogOptions{Since: since.Add(time.Second)}); len(got) != 0 {
		h.Errorf("lines since later: %q", got)
	}
}

func testLogBounded(h *harness) {
	const lines, maxBytes, maxFiles = 20000, 16 << 10, 2
	h.runPod("a")
	c := h.container("c", 0, fmt.Sprintf("lines=%d", lines))
	c.Log = runtime.LogLimits{MaxBytes: maxBytes, MaxFiles: maxFiles}
	h.run(c)
	h.exited("a", "c", 0)
	got := h.readLog("a", "c", 0, runtime.LogOptions{})
	// A line takes some 50 bytes with its time stamp.
	if n := len(got); n < maxBytes/100 || n > maxFiles*maxBytes/20 {
		h.Errorf("kept %d lines of %d", n, lines)
	}
	for i, line := range got {
		if want := fmt.Sprintf("stdout line %d", lines-len(got)+i); line != want {
			h.Fatalf("line %d of what is left reads %q, want %q", i, line, want)
		}
	}
}

func testExec(h *harness) {
	h.runPod("a")
	h.run(h.container("c", 0, "forever"))
	var out, stderr bytes.Buffer
	exit, err := h.Runtime.Exec(h.ctx, "a", "c", runtime.ExecConfig{
		Args: []string{"/bin/sim", "out=hello", "err=oops", "env=EXTRA", "env=HOSTNAME", "exit=9"},
		Env:  []runtime.EnvVar{{Name: "EXTRA", Value: "1"}}, Stdout: &out, Stderr: &stderr,
	})
	if err != nil {
		h.Fatal(err)
	}
	if exit != (runtime.ExitStatus{Code: 9}) || out.String() != "hello\nEXTRA=1\nHOSTNAME=host-a\n" || stderr.String() != "oops\n" {
		h.Errorf("exec: %+v, stdout %q, stderr %q", exit, out.String(), stderr.String())
	}
	if c := h.attempt("a", "c", 0); c.Status != runtime.ContainerRunning {
		h.Errorf("after the exec the container reads %+v", c)
	}
	_, err = h.Runtime.Exec(h.ctx, "a", "c", runtime.ExecConfig{Args: []string{"/no-such"}})
	h.wantError(err, runtime.ErrStartFailed, "exec of a program that is not there")
	if err := h.Runtime.Signal(h.ctx, "a", "c", 0, runtime.SIGKILL); err != nil {
		h.Fatal(err)
	}
	h.exited("a", "c", 0)
	_, err = h.Runtime.Exec(h.ctx, "a", "c", runtime.ExecConfig{Args: []string{"/bin/sim"}})
	h.wantError(err, runtime.ErrNotRunning, "exec in an exited container")
}

func testReadiness(h *harness) {
	h.runPod("a")
	ready := func(name string) bool {
		exit, err := h.Runtime.Exec(h.ctx, "a", name, runtime.ExecConfig{Args: []string{"/bin/sim", "is-ready"}})
		if err != nil {
			h.Fatal(err)
		}
		return exit.Code == 0
	}
	// What a start and an exec take on this machine is less than what follows.
	before := time.Now()
	h.run(h.container("never", 0, "forever"))
	if ready("never") {
		h.Error("a program that is never ready is ready")
	}
	unready := 500*time.Millisecond + 2*time.Since(before)
	h.run(h.container("c", 0, "sleep="+unready.String(), "ready", "forever"))
	if ready("c") {
		h.Errorf("ready at once, want after %v", unready)
	}
	h.eventually("the program to be ready", func() bool { return ready("c") })
}
