package runtimetest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"sync"

	"github.com/balsa-run/balsa/node/runtime"
)

// output collects what a program prints.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// attach joins container c of pod a.
func (h *harness) attach(ctx context.Context, cfg runtime.AttachConfig) <-chan error {
	over, rt := make(chan error, 1), h.Runtime
	go func() { over <- rt.Attach(ctx, "a", "c", cfg) }()
	return over
}

// result waits for an Attach to return.
func (h *harness) result(over <-chan error) error {
	h.Helper()
	var err error
	h.eventually("the attached stream to end", func() bool {
		select {
		case err = <-over:
			return true
		default:
			return false
		}
	})
	return err
}

// reaches types a line until it is seen in each of the outputs: by then they
// are attached.
func (h *harness) reaches(in io.Writer, line string, outs ...*output) {
	h.Helper()
	h.eventually(fmt.Sprintf("%q to come back", line), func() bool {
		if _, err := io.WriteString(in, line+"\n"); err != nil {
			h.Fatalf("type %q: %v", line, err)
		}
		for _, out := range outs {
			if !strings.Contains(out.String(), line) {
				return false
			}
		}
		return true
	})
}

func (h *harness) interactive(steps ...string) runtime.ContainerConfig {
	c := h.container("c", 0, steps...)
	c.Stdin = true
	return c
}

// testAttach: two are attached, one types, both see; the input that is used once
// ends with who typed.
func testAttach(h *harness) {
	h.runPod("a")
	c := h.interactive("out=up", "echo", "err=bye", "exit=3")
	c.StdinOnce = true
	h.run(c)
	var out, errOut, other output
	in, typed := io.Pipe()
	first := h.attach(h.ctx, runtime.AttachConfig{Stdin: in, Stdout: &out, Stderr: &errOut})
	second := h.attach(h.ctx, runtime.AttachConfig{Stdout: &other, Stderr: &other})
	h.reaches(typed, "one", &out, &other)
	if err := typed.Close(); err != nil {
		h.Fatal(err)
	}
	for _, over := range []<-chan error{first, second} {
		if err := h.result(over); err != nil {
			h.Errorf("attach ends with %v", err)
		}
	}
	if c := h.attempt("a", "c", 0); c.Status != runtime.ContainerExited || c.Exit.Code != 3 {
		h.Errorf("when the stream has ended the container reads %+v", c)
	}
	if errOut.String() != "bye\n" || !strings.Contains(other.String(), "bye\n") {
		h.Errorf("standard error %q, the other one saw %q", errOut.String(), other.String())
	}
	lines := h.readLog("a", "c", 0, runtime.LogOptions{})
	if len(lines) < 3 || lines[0] != "stdout up" || lines[len(lines)-1] != "stderr bye" {
		h.Errorf("the log reads %q", lines)
	}
}

// testAttachLeaves: who leaves takes nothing along, and an input that is not for
// once stays open.
func testAttachLeaves(h *harness) {
	h.runPod("a")
	h.run(h.interactive("term=7", "echo"))
	for _, line := range []string{"one", "two"} {
		var out output
		in, typed := io.Pipe()
		ctx, cancel := context.WithCancel(h.ctx)
		over := h.attach(ctx, runtime.AttachConfig{Stdin: in, Stdout: &out})
		h.reaches(typed, line, &out)
		cancel()
		if err := h.result(over); !errors.Is(err, context.Canceled) {
			h.Errorf("an attach that is cancelled ends with %v", err)
		}
		if err := in.Close(); err != nil {
			h.Fatal(err)
		}
	}
	if err := h.Runtime.Signal(h.ctx, "a", "c", 0, runtime.SIGTERM); err != nil {
		h.Fatal(err)
	}
	if c := h.exited("a", "c", 0); c.Exit.Code != 7 {
		h.Errorf("after SIGTERM %+v", c)
	}
}

func testAttachSurvivesAgent(h *harness) {
	h.runPod("a")
	h.run(h.interactive("echo"))
	var out output
	in, typed := io.Pipe()
	over := h.attach(h.ctx, runtime.AttachConfig{Stdin: in, Stdout: &out})
	h.reaches(typed, "one", &out)
	h.restart()
	if err := h.result(over); err == nil {
		h.Error("the stream of an agent that is gone ends without an error")
	}
	var again output
	in2, typed2 := io.Pipe()
	h.attach(h.ctx, runtime.AttachConfig{Stdin: in2, Stdout: &again})
	h.reaches(typed2, "two", &again)
	for _, end := range []io.Closer{in, in2} {
		if err := end.Close(); err != nil {
			h.Error(err)
		}
	}
}

func testAttachTerminal(h *harness) {
	h.runPod("a")
	c := h.interactive("winsize", "echo")
	c.TTY, c.StdinOnce = true, true
	h.run(c)
	var out output
	in, typed := io.Pipe()
	sizes := make(chan runtime.TerminalSize, 1)
	sizes <- runtime.TerminalSize{Width: 132, Height: 43}
	over := h.attach(h.ctx, runtime.AttachConfig{Stdin: in, Stdout: &out, Resize: sizes})
	h.eventually("the terminal's size", func() bool { return strings.Contains(out.String(), "132x43") })
	h.reaches(typed, "hello", &out)
	if err := typed.Close(); err != nil {
		h.Fatal(err)
	}
	if err := h.result(over); err != nil {
		h.Errorf("attach ends with %v", err)
	}
	if c := h.exited("a", "c", 0); c.Exit.Code != 0 {
		h.Errorf("after the end of its input the container reads %+v", c)
	}
}

// testAttachSlow: a reader that does not read holds up neither the program nor
// its log, and is told that something is missing.
func testAttachSlow(h *harness) {
	const lines = 200_000 // some 2 MB
	h.runPod("a")
	c := h.interactive("out=up", "echo", fmt.Sprintf("lines=%d", lines))
	c.StdinOnce = true
	h.run(c)
	gate := make(chan struct{})
	var out output
	slow := &gated{gate: gate, to: &out}
	in, typed := io.Pipe()
	over := h.attach(h.ctx, runtime.AttachConfig{Stdin: in, Stdout: slow, Stderr: slow})
	if _, err := io.WriteString(typed, "go\n"); err != nil {
		h.Fatal(err)
	}
	if err := typed.Close(); err != nil {
		h.Fatal(err)
	}
	if c := h.exited("a", "c", 0); c.Exit.Code != 0 {
		h.Errorf("the container reads %+v", c)
	}
	log := h.readLog("a", "c", 0, runtime.LogOptions{TailLines: 1})
	if len(log) != 1 || log[0] != fmt.Sprintf("stdout line %d", lines-1) {
		h.Errorf("the log ends %q", log)
	}
	close(gate)
	if err := h.result(over); err != nil {
		h.Errorf("attach ends with %v", err)
	}
	if text := out.String(); !strings.Contains(text, "bytes of output were dropped") {
		h.Errorf("a reader that was too slow got %d bytes and no notice", len(text))
	}
}

// gated takes nothing before its gate is open.
type gated struct {
	gate <-chan struct{}
	to   io.Writer
}

func (g *gated) Write(p []byte) (int, error) {
	<-g.gate
	return g.to.Write(p)
}

func testAttachRefusals(h *harness) {
	h.wantError(h.Runtime.Attach(h.ctx, "a", "c", runtime.AttachConfig{}), runtime.ErrPodNotFound, "attach to a pod that is not there")
	h.runPod("a")
	h.wantError(h.Runtime.Attach(h.ctx, "a", "c", runtime.AttachConfig{}), runtime.ErrContainerNotFound, "attach to a container that is not there")
	h.run(h.container("c", 0, "forever"))
	h.wantError(h.Runtime.Attach(h.ctx, "a", "c", runtime.AttachConfig{Stdin: strings.NewReader("x")}), runtime.ErrInvalid, "type into a container without an input")
	if err := h.Runtime.Signal(h.ctx, "a", "c", 0, runtime.SIGKILL); err != nil {
		h.Fatal(err)
	}
	h.exited("a", "c", 0)
	h.wantError(h.Runtime.Attach(h.ctx, "a", "c", runtime.AttachConfig{}), runtime.ErrNotRunning, "attach to a container that has exited")
}

func testExecStreams(h *harness) {
	h.runPod("a")
	h.run(h.container("c", 0, "forever"))
	var out output
	exit, err := h.Runtime.Exec(h.ctx, "a", "c", runtime.ExecConfig{
		Args: []string{"/bin/sim", "echo", "exit=5"}, Stdin: strings.NewReader("one\ntwo\n"), Stdout: &out,
	})
	if err != nil || exit.Code != 5 || out.String() != "one\ntwo\n" {
		h.Errorf("exec with an input: %+v, %v, printed %q", exit, err, out.String())
	}
	var terminal output
	sizes := make(chan runtime.TerminalSize, 1)
	sizes <- runtime.TerminalSize{Width: 100, Height: 30}
	exit, err = h.Runtime.Exec(h.ctx, "a", "c", runtime.ExecConfig{
		Args: []string{"/bin/sim", "winsize", "exit=6"}, TTY: true, Resize: sizes, Stdout: &terminal,
	})
	if err != nil || exit.Code != 6 || strings.TrimSpace(terminal.String()) != "100x30" {
		h.Errorf("exec with a terminal: %+v, %v, printed %q", exit, err, terminal.String())
	}
	ctx, cancel := context.WithCancel(h.ctx)
	over, rt := make(chan error, 1), h.Runtime
	go func() {
		_, err := rt.Exec(ctx, "a", "c", runtime.ExecConfig{Args: []string{"/bin/sim", "out=up", "forever"}, Stdout: &output{}})
		over <- err
	}()
	cancel()
	if err := h.result(over); !errors.Is(err, context.Canceled) {
		h.Errorf("an exec that is cancelled ends with %v", err)
	}
}

// testExecSlowReader: what a program printed before it ended is handed out whole,
// however slowly it is taken.
func testExecSlowReader(h *harness) {
	const lines = 20_000
	h.runPod("a")
	h.run(h.container("c", 0, "forever"))
	gate := make(chan struct{})
	var out output
	type result struct {
		exit runtime.ExitStatus
		err  error
	}
	over, rt := make(chan result, 1), h.Runtime
	go func() {
		exit, err := rt.Exec(h.ctx, "a", "c", runtime.ExecConfig{Args: []string{"/bin/sim", fmt.Sprintf("lines=%d", lines)}, Stdout: &gated{gate: gate, to: &out}})
		over <- result{exit, err}
	}()
	close(gate)
	var got result
	h.eventually("the exec to end", func() bool {
		select {
		case got = <-over:
			return true
		default:
			return false
		}
	})
	if n := strings.Count(out.String(), "\n"); got.err != nil || n != lines {
		h.Errorf("%+v: %d lines of %d", got, n, lines)
	}
}

func testDial(h *harness) {
	const port = 8080
	h.runPod("a")
	if _, err := h.Runtime.Dial(h.ctx, "a", port); err == nil {
		h.Error("nobody listens, and the connection is made")
	}
	_, err := h.Runtime.Dial(h.ctx, "a", 0)
	h.wantError(err, runtime.ErrInvalid, "port 0")
	_, err = h.Runtime.Dial(h.ctx, "b", port)
	h.wantError(err, runtime.ErrPodNotFound, "dial a pod that is not there")
	h.run(h.container("c", 0, fmt.Sprintf("listen=%d", port), "forever"))
	var conn runtime.Conn
	h.eventually("the port to be open", func() bool {
		conn, err = h.Runtime.Dial(h.ctx, "a", port)
		return err == nil
	})
	sent := make(chan error, 1)
	go func() {
		_, err := io.WriteString(conn, "ping")
		sent <- errors.Join(err, conn.CloseWrite())
	}()
	answer, err := io.ReadAll(conn)
	if err := errors.Join(err, <-sent, conn.Close()); err != nil || string(answer) != "ping" {
		h.Errorf("the port answers %q, %v", answer, err)
	}
}

func (h *harness) archive(entries ...tar.Header) *bytes.Buffer {
	h.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		content := ""
		if e.Typeflag == tar.TypeReg {
			content = e.PAXRecords["TEST.content"]
			e.PAXRecords, e.Size = nil, int64(len(content))
		}
		if err := w.WriteHeader(&e); err != nil {
			h.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			h.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		h.Fatal(err)
	}
	return &b
}

func regular(name, content string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o640, Uid: 12, Gid: 34, PAXRecords: map[string]string{"TEST.content": content}}
}

func testCopy(h *harness) {
	h.runPod("a")
	h.run(h.container("c", 0, "forever"))
	in := h.archive(
		tar.Header{Name: "site/", Typeflag: tar.TypeDir, Mode: 0o751},
		regular("site/index", "hello"), tar.Header{Name: "site/current", Typeflag: tar.TypeSymlink, Linkname: "index", Mode: 0o777},
	)
	result, err := h.Runtime.CopyIn(h.ctx, "a", "c", "/data", in)
	if err != nil || result.Entries != 3 || result.Bytes != 5 {
		h.Fatalf("copy in: %+v, %v", result, err)
	}
	var seen bytes.Buffer
	if _, err := h.Runtime.Exec(h.ctx, "a", "c", runtime.ExecConfig{Args: []string{"/bin/sim", "cat=/data/site/index"}, Stdout: &seen}); err != nil || seen.String() != "hello\n" {
		h.Errorf("inside, the file reads %q, %v", seen.String(), err)
	}
	got := h.copyOut("/data/site")
	want := map[string]string{"site/": "751 ", "site/index": "640 12:34 hello", "site/current": "-> index"}
	for name, expected := range want {
		if !strings.HasPrefix(got[name], expected) {
			h.Errorf("%s comes back as %q, want %q", name, got[name], expected)
		}
	}
	if len(got) != len(want) {
		h.Errorf("what comes back is %v", got)
	}
	if one := h.copyOut("/data/site/index"); len(one) != 1 || !strings.HasSuffix(one["index"], "hello") {
		h.Errorf("a single file comes back as %v", one)
	}
}

// copyOut describes the entries of the archive.
func (h *harness) copyOut(name string) map[string]string {
	h.Helper()
	var b bytes.Buffer
	if err := h.Runtime.CopyOut(h.ctx, "a", "c", name, &b); err != nil {
		h.Fatalf("copy out %s: %v", name, err)
	}
	found := map[string]string{}
	r := tar.NewReader(&b)
	for {
		e, err := r.Next()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			h.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			h.Fatal(err)
		}
		found[e.Name] = fmt.Sprintf("%o %d:%d %s", e.Mode, e.Uid, e.Gid, content)
		if e.Typeflag == tar.TypeSymlink {
			found[e.Name] = "-> " + e.Linkname
		}
	}
}

func testCopyRefusals(h *harness) {
	h.runPod("a")
	h.run(h.container("c", 0, "forever"))
	err := h.Runtime.CopyOut(h.ctx, "a", "c", "/no/such", io.Discard)
	h.wantError(err, fs.ErrNotExist, "copy out what is not there")
	h.wantError(h.Runtime.CopyOut(h.ctx, "a", "c", "data", io.Discard), runtime.ErrInvalid, "copy out by a path that is not absolute")
	_, err = h.Runtime.CopyIn(h.ctx, "a", "c", "/no/such", h.archive(regular("f", "x")))
	h.wantError(err, fs.ErrNotExist, "copy into a folder that is not there")
	_, err = h.Runtime.CopyIn(h.ctx, "a", "c", "/data", h.archive(regular("../../f", "x")))
	h.wantError(err, runtime.ErrInvalid, "an entry that leads out")
	_, err = h.Runtime.CopyIn(h.ctx, "a", "c", "/data", h.archive(tar.Header{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}))
	h.wantError(err, runtime.ErrInvalid, "a device")
	result, err := h.Runtime.CopyIn(h.ctx, "a", "c", "/data", io.MultiReader(bytes.NewReader(h.archive(regular("kept", "x")).Bytes()[:1024]), strings.NewReader(strings.Repeat("?", 512))))
	if err == nil || result.Entries != 1 {
		h.Errorf("an archive that breaks off: %+v, %v", result, err)
	}
}

func testStats(h *harness) {
	_, err := h.Runtime.Stats(h.ctx, "a")
	h.wantError(err, runtime.ErrPodNotFound, "stats of a pod that is not there")
	h.runPod("a")
	c := h.container("c", 0, "lines=2000", "forever")
	c.Resources.MemoryLimitBytes = 64 << 20
	h.run(c)
	h.run(h.container("done", 0, "exit=0"))
	h.exited("a", "done", 0)
	h.eventually("the log to be written", func() bool { return len(h.readLog("a", "c", 0, runtime.LogOptions{})) == 2000 })
	stats, err := h.Runtime.Stats(h.ctx, "a")
	if err != nil || len(stats.Containers) != 1 || stats.Time.IsZero() {
		h.Fatalf("stats %+v, %v: want those of the container that runs", stats, err)
	}
	s := stats.Containers[0]
	if s.Name != "c" || s.MemoryBytes <= 0 || s.WorkingSetBytes <= 0 || s.WorkingSetBytes > s.MemoryBytes || s.MemoryLimitBytes != 64<<20 || s.Pids < 1 || s.LogBytes < 20_000 {
		h.Errorf("stats read %+v", s)
	}
}
