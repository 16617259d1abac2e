package faults

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/chaos/stage"
)

const (
	boxImage = "balsa/box:1"
	// bigBytes are copied in both directions.
	bigBytes    = 100 << 20
	latencyRuns = 60
)

// boxManifest is a pod of an image that holds one static program and nothing
// else, with a server that listens on the pod's loopback only.
const boxManifest = `apiVersion: v1
kind: Pod
metadata:
  name: box
  labels: {app: box}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: balsa/box:1
    securityContext: {runAsUser: 0}
    command: [/busybox, sh, -c, "echo up; echo marker >/marker; exec /busybox httpd -f -p 127.0.0.1:8080 -h /"]
---
apiVersion: v1
kind: Pod
metadata:
  name: shell
  labels: {app: box}
spec:
  terminationGracePeriodSeconds: 1
  restartPolicy: Never
  containers:
  - name: sh
    image: balsa/box:1
    command: [/busybox, sh]
    stdin: true
    stdinOnce: true
`

// box is a cluster with a pod to reach into.
type box struct {
	*testing.T
	s        *stage.Stage
	programs stage.Programs
}

func withBox(t *testing.T, prefix string, servers int) *box {
	t.Helper()
	s, programs := up(t, prefix, servers, 1)
	b := &box{T: t, s: s, programs: programs}
	dir := t.TempDir()
	archive, manifest := filepath.Join(dir, "box.tar"), filepath.Join(dir, "box.yaml")
	build := exec.CommandContext(t.Context(), "go", "run", "../../examples/image", "-name", boxImage, "-out", archive, "/bin/busybox")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the image: %v\n%s", err, out)
	}
	must(t, os.WriteFile(manifest, []byte(boxManifest), 0o644))
	for _, command := range [][]string{{"image", "import", archive}, {"apply", "-f", manifest}} {
		if _, err := s.Balsa(t.Context(), command...); err != nil {
			t.Fatal(err)
		}
	}
	must(t, s.Until(t.Context(), converge, "the pods to run", func(ctx context.Context) error {
		_, err := b.try(ctx, nil, "exec", "box", "--", "/busybox", "test", "-e", "/marker")
		if err == nil {
			_, err = b.try(ctx, nil, "exec", "shell", "--", "/busybox", "true")
		}
		return err
	}))
	return b
}

// command is balsa on the operator's host, by the configuration of all servers.
func (b *box) command(ctx context.Context, args ...string) *exec.Cmd {
	return b.s.Operator.Command(ctx, b.programs.Balsa, append([]string{"--config", b.s.Admin()}, args...)...)
}

// try runs balsa and returns its standard output alone.
func (b *box) try(ctx context.Context, in io.Reader, args ...string) (string, error) {
	command := b.command(ctx, args...)
	var out, errOut bytes.Buffer
	command.Stdin, command.Stdout, command.Stderr = in, &out, &errOut
	if err := command.Run(); err != nil {
		return out.String(), fmt.Errorf("balsa %s: %w: %s", strings.Join(args, " "), err, errOut.String())
	}
	return out.String(), nil
}

func (b *box) run(args ...string) string {
	b.Helper()
	out, err := b.try(b.Context(), nil, args...)
	must(b.T, err)
	return out
}

// exitCode is how a command ended.
func exitCode(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		return -1
	}
	return 0
}

// inside counts the processes in the pod that have a word in their arguments.
func (b *box) inside(word string) int {
	b.Helper()
	return strings.Count(b.run("exec", "box", "--", "/busybox", "ps", "-o", "args"), word)
}

// TestStreamsIntoPods reaches into pods through each of three servers.
func TestStreamsIntoPods(t *testing.T) {
	b := withBox(t, "sx", 3)
	t.Run("ExecThroughEveryServer", b.execEverywhere)
	t.Run("ExecInput", b.execInput)
	t.Run("ExecTerminal", b.execTerminal)
	t.Run("ExecLatency", b.execLatency)
	t.Run("InterruptedExecIsKilled", b.execInterrupted)
	t.Run("RemovedUserLosesExec", b.removedUser)
	t.Run("PortForward", b.portForward)
	t.Run("CopyBigFile", b.copyBig)
	t.Run("CopyFolders", b.copyFolders)
	t.Run("Logs", b.manyLogs)
	t.Run("Top", b.top)
	t.Run("Attach", b.attach)
	t.Run("AgentRestarts", b.agentRestarts)
}

func (b *box) with(t *testing.T) *box { return &box{T: t, s: b.s, programs: b.programs} }

func (b *box) execEverywhere(t *testing.T) {
	for _, server := range b.s.Servers {
		config := filepath.Join(b.s.Lab.Dir, "admin-"+server.Host.Name+".yaml")
		command := b.s.Operator.Command(t.Context(), b.programs.Balsa, "--config", config, "exec", "box", "--", "/busybox", "sh", "-c", "echo out; echo err >&2; exit 7")
		var out, errOut bytes.Buffer
		command.Stdout, command.Stderr = &out, &errOut
		if code := exitCode(command.Run()); code != 7 || out.String() != "out\n" || errOut.String() != "err\n" {
			t.Errorf("through %s: exit code %d, printed %q and %q", server.Host.Name, code, &out, &errOut)
		}
	}
	if _, err := b.try(t.Context(), nil, "exec", "box", "--", "/busybox", "sh", "-c", "kill -9 $$"); exitCode(err) != 137 {
		t.Errorf("a program that is killed: %v", err)
	}
	if _, err := b.try(t.Context(), nil, "exec", "box", "--", "/no-such"); exitCode(err) != 1 || !strings.Contains(err.Error(), "/no-such") {
		t.Errorf("a program that is not there: %v", err)
	}
}

func (b *box) execInput(t *testing.T) {
	text := strings.Repeat("a line of text\n", 200_000)
	out, err := b.try(t.Context(), strings.NewReader(text), "exec", "-i", "box", "--", "/busybox", "cat")
	if err != nil || out != text {
		t.Errorf("%d bytes of %d come back, %v", len(out), len(text), err)
	}
}

// execTerminal types on a terminal whose size changes.
func (b *box) execTerminal(t *testing.T) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	defer master.Close()
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	must(t, errors.Join(err, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)))
	terminal, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	size := func(rows, columns uint16) {
		must(t, unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns}))
	}
	size(37, 101)
	command := b.command(t.Context(), "exec", "-it", "box", "--", "/busybox", "sh", "-c", "/busybox stty size; trap '/busybox stty size; exit 5' WINCH; echo ready; while :; do /busybox sleep 0.1; done")
	command.Stdin, command.Stdout, command.Stderr = terminal, terminal, terminal
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	must(t, errors.Join(command.Start(), terminal.Close()))
	lines := bufio.NewReader(master)
	wants := func(want string) {
		t.Helper()
		line, err := lines.ReadString('\n')
		if strings.TrimSpace(line) != want {
			t.Errorf("the terminal shows %q, %v; want %q", line, err, want)
		}
	}
	wants("37 101")
	wants("ready")
	size(50, 120)
	wants("50 120")
	if code := exitCode(command.Wait()); code != 5 {
		t.Errorf("exit code %d", code)
	}
}

// execLatency measures the whole command, its own start included.
func (b *box) execLatency(t *testing.T) {
	var took []time.Duration
	for range latencyRuns {
		started := time.Now()
		_, err := b.try(t.Context(), nil, "exec", "box", "--", "/busybox", "true")
		must(t, err)
		took = append(took, time.Since(started))
	}
	slices.Sort(took)
	t.Logf("balsa exec, %d runs: p50 %v, p99 %v", latencyRuns, took[len(took)/2].Round(time.Millisecond), took[len(took)*99/100].Round(time.Millisecond))
}

// longExec starts an exec that prints a word and then sleeps; stop it.
func (b *box) longExec(t *testing.T, config, seconds string) (command *exec.Cmd, ended chan error) {
	t.Helper()
	command = b.s.Operator.Command(t.Context(), b.programs.Balsa, "--config", config, "exec", "box", "--", "/busybox", "sh", "-c", "echo begun; exec /busybox sleep "+seconds)
	out, err := command.StdoutPipe()
	must(t, errors.Join(err, command.Start()))
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "begun\n" {
		t.Fatalf("printed %q, %v", line, err)
	}
	ended = make(chan error, 1)
	go func() { ended <- command.Wait() }()
	return command, ended
}

// gone waits until no process in the pod has the word in its arguments.
func (b *box) gone(t *testing.T, word string) {
	t.Helper()
	must(t, b.s.Until(t.Context(), converge, "the program to be gone", func(context.Context) error {
		if n := b.with(t).inside(word); n > 0 {
			return fmt.Errorf("%d run", n)
		}
		return nil
	}))
}

func (b *box) execInterrupted(t *testing.T) {
	for signal, seconds := range map[syscall.Signal]string{syscall.SIGKILL: "7001", syscall.SIGINT: "7004"} {
		command, ended := b.longExec(t, b.s.Admin(), seconds)
		must(t, command.Process.Signal(signal))
		if err := <-ended; signal == syscall.SIGINT && exitCode(err) != 130 {
			t.Errorf("interrupted, it ends with %v", err)
		}
		b.gone(t, "sleep "+seconds)
	}
}

func (b *box) removedUser(t *testing.T) {
	config := filepath.Join(t.TempDir(), "bob.yaml")
	b.with(t).run("user", "create", "bob", "--role", "admin", "--file", config)
	_, ended := b.longExec(t, config, "7002")
	started := time.Now()
	b.with(t).run("user", "remove", "bob", "--role", "admin")
	select {
	case err := <-ended:
		if exitCode(err) != 1 {
			t.Errorf("the removed user's exec ends with %v", err)
		}
		t.Logf("the removed user's exec ended after %v", time.Since(started).Round(time.Millisecond))
	case <-time.After(converge): // within 5 s on a quiet machine; apiserver.TestRemovedIdentity measures it
		t.Errorf("the removed user's exec still runs after %v", converge)
	}
	b.gone(t, "sleep 7002")
}

func (b *box) portForward(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	command := b.command(ctx, "port-forward", "pod/box", ":8080", ":8081")
	out, err := command.StdoutPipe()
	must(t, errors.Join(err, command.Start()))
	defer func() { _ = command.Wait() }()
	defer cancel()
	lines := bufio.NewReader(out)
	var ports [2]string
	for i := range ports {
		line, err := lines.ReadString('\n')
		must(t, err)
		address, _, _ := strings.Cut(strings.TrimPrefix(line, "Forwarding from "), " ")
		ports[i] = address
	}
	get := func(address string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		return b.s.Operator.Run(ctx, "/bin/busybox", "wget", "-q", "-O", "-", "http://"+address+"/marker")
	}
	for range 20 {
		if text, err := get(ports[0]); err != nil || text != "marker\n" {
			t.Fatalf("the pod answers %q, %v", text, err)
		}
		// Nobody listens there: only that connection ends.
		if text, err := get(ports[1]); err == nil {
			t.Fatalf("a port that is closed answers %q", text)
		}
	}
}

func hashOf(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	must(t, err)
	return hex.EncodeToString(h.Sum(nil))
}

func (b *box) copyBig(t *testing.T) {
	dir := t.TempDir()
	big, back := filepath.Join(dir, "big"), filepath.Join(dir, "back")
	f, err := os.Create(big)
	must(t, err)
	_, err = io.CopyN(f, rand.NewChaCha8([32]byte{1}), bigBytes)
	must(t, errors.Join(err, f.Close()))
	started := time.Now()
	b.with(t).run("cp", big, "box:/big")
	in := time.Since(started)
	inside, _, _ := strings.Cut(b.with(t).run("exec", "box", "--", "/busybox", "sha256sum", "/big"), " ")
	started = time.Now()
	b.with(t).run("cp", "box:/big", back)
	out := time.Since(started)
	if want := hashOf(t, big); inside != want || hashOf(t, back) != want {
		t.Errorf("hashes differ: here %s, inside %s, back %s", want, inside, hashOf(t, back))
	}
	t.Logf("%d MiB: in %v, out %v", bigBytes>>20, in.Round(time.Millisecond), out.Round(time.Millisecond))
	b.with(t).run("exec", "box", "--", "/busybox", "rm", "/big")
}

func (b *box) copyFolders(t *testing.T) {
	bb := b.with(t)
	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "site", "sub"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "site", "sub", "page"), []byte("page\n"), 0o640))
	must(t, os.Symlink("sub/page", filepath.Join(dir, "site", "now")))
	bb.run("cp", filepath.Join(dir, "site"), "box:/site")
	bb.run("cp", filepath.Join(dir, "site"), "box:/site") // into the folder, which is there now
	if got := bb.run("exec", "box", "--", "/busybox", "cat", "/site/now", "/site/site/sub/page"); got != "page\npage\n" {
		t.Errorf("inside the files read %q", got)
	}
	if got := bb.run("exec", "box", "--", "/busybox", "stat", "-c", "%a %u:%g", "/site/sub/page"); got != "640 0:0\n" {
		t.Errorf("the file has %q", got)
	}
	// A link that leads out of the container's root leads nowhere.
	bb.run("exec", "box", "--", "/busybox", "ln", "-s", "/etc", "/host")
	must(t, os.MkdirAll(filepath.Join(dir, "back"), 0o755))
	bb.run("cp", "box:/site", filepath.Join(dir, "back"))
	if text, err := os.ReadFile(filepath.Join(dir, "back", "site", "now")); err != nil || string(text) != "page\n" {
		t.Errorf("back here the file reads %q, %v", text, err)
	}
	if _, err := b.try(t.Context(), nil, "cp", "box:/host/machine-id", filepath.Join(dir, "stolen")); err == nil {
		t.Error("a link inside the container has led to a file of the node")
	}
	if got, err := b.try(t.Context(), nil, "cp", "box:/site", "-"); err != nil || !strings.Contains(got, "site/sub/page") {
		t.Errorf("as a stream: %d bytes, %v", len(got), err)
	}
}

func (b *box) manyLogs(t *testing.T) {
	if got := b.with(t).run("logs", "-l", "app=box", "--all-containers", "--prefix"); got != "[pod/box/web] up\n" {
		t.Errorf("logs print %q", got)
	}
}

func (b *box) top(t *testing.T) {
	if got := b.with(t).run("top", "pods", "--containers", "--sort-by", "memory"); !strings.Contains(got, "box ") || !strings.Contains(got, "web ") || !strings.Contains(got, "shell ") {
		t.Errorf("top pods prints:\n%s", got)
	}
	if got := b.with(t).run("top", "nodes"); !strings.Contains(got, "n1 ") {
		t.Errorf("top nodes prints:\n%s", got)
	}
}

// attach types into a program that ends with its input.
func (b *box) attach(t *testing.T) {
	out, err := b.try(t.Context(), strings.NewReader("echo hello\nexit 9\n"), "attach", "-i", "shell")
	if exitCode(err) != 9 || out != "hello\n" {
		t.Errorf("attached: %v, printed %q", err, out)
	}
}

// agentRestarts: an exec ends with its agent, says so, and the next one works.
func (b *box) agentRestarts(t *testing.T) {
	agent := b.s.Agents[0]
	_, ended := b.longExec(t, b.s.Admin(), "7003")
	must(t, agent.Process.Kill())
	select {
	case err := <-ended:
		if exitCode(err) != 1 {
			t.Errorf("the exec ends with %v", err)
		}
	case <-time.After(converge):
		t.Error("the exec still runs without its agent")
	}
	must(t, agent.Restart())
	must(t, b.s.Until(t.Context(), converge, "the agent to answer", func(ctx context.Context) error {
		_, err := b.try(ctx, nil, "exec", "box", "--", "/busybox", "true")
		return err
	}))
	b.gone(t, "sleep 7003")
}

// TestDebugJoinsAPod adds a container that sees the processes of another.
func TestDebugJoinsAPod(t *testing.T) {
	b := withBox(t, "sd", 1)
	out := b.run("debug", "box", "--image", boxImage, "--target", "web", "--", "/busybox", "ps", "-o", "args")
	if !strings.Contains(out, "httpd -f") {
		t.Errorf("the debug container sees:\n%s", out)
	}
	if _, err := b.try(t.Context(), nil, "debug", "box", "--image", boxImage, "--", "/busybox", "sh", "-c", "exit 4"); exitCode(err) != 4 {
		t.Errorf("its exit code: %v", err)
	}
}
