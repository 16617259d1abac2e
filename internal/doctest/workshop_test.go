package doctest

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	namespace = "balsadoc"
	// address is the one of the host that the namespace plays. It must lie
	// outside the CIDRs of pods and Services.
	address     = "192.168.77.1/24"
	endedWithin = 30 * time.Second
)

// workshop is a copy of the tree, as a reader has it after git clone, and a
// network namespace that stands for the reader's machine.
type workshop struct {
	dir string
}

func openWorkshop(t *testing.T) *workshop {
	t.Helper()
	w := &workshop{dir: filepath.Join(t.TempDir(), "balsa")}
	must(t, copyTree(root, w.dir))
	// What an earlier run that was killed has left.
	_ = exec.CommandContext(t.Context(), "ip", "netns", "delete", namespace).Run()
	t.Cleanup(func() { _ = exec.CommandContext(context.Background(), "ip", "netns", "delete", namespace).Run() })
	for _, line := range []string{
		"netns add " + namespace,
		"-n " + namespace + " link set lo up",
		"-n " + namespace + " link add outside type veth peer name beyond",
		"-n " + namespace + " address add " + address + " dev outside",
		"-n " + namespace + " link set outside up",
		"-n " + namespace + " link set beyond up",
	} {
		if out, err := exec.CommandContext(t.Context(), "ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v\n%s", line, err, out)
		}
	}
	return w
}

// copyTree leaves out what git does not have.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, name)
		switch {
		case entry.IsDir() && (name == "bin" || name == ".git" || name == ".tools" || name == "balsa-dev" || name == "internal/helpers/bin"):
			return fs.SkipDir
		case entry.IsDir():
			return os.MkdirAll(target, 0o755)
		case !entry.Type().IsRegular():
			return nil
		}
		return copyFile(path, target)
	})
}

func copyFile(from, to string) error {
	info, err := os.Stat(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // somebody's temporary file
	}
	if err != nil {
		return err
	}
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, text, info.Mode().Perm())
}

// build runs the commands of a block on this machine, in the copy.
func (w *workshop) build(t *testing.T, b block) {
	t.Helper()
	for _, s := range b.transcript() {
		command := exec.CommandContext(t.Context(), "bash", "-euc", s.command)
		command.Dir = w.dir
		if out, err := command.CombinedOutput(); err != nil {
			t.Fatalf("$ %s\n%v\n%s", s.command, err, out)
		}
	}
}

// inside is a command in the namespace. Only the network is another: `ip netns
// exec` would hide the cgroups.
func (w *workshop) inside(ctx context.Context, args ...string) *exec.Cmd {
	command := exec.CommandContext(ctx, "nsenter", append([]string{"--net=/run/netns/" + namespace}, args...)...)
	command.Dir = w.dir
	command.Env = append(os.Environ(), "HOME="+w.dir, "BALSA_CONFIG=")
	command.WaitDelay = endedWithin
	return command
}

// serve runs the one command of a block until the test ends, on a new disk, and
// waits until it has printed what the block says.
func (w *workshop) serve(t *testing.T, b block) {
	t.Helper()
	s := b.transcript()[0]
	data := filepath.Join(w.dir, "balsa-dev")
	must(t, os.RemoveAll(data))
	out, log := &output{}, &output{}
	command := w.inside(context.Background(), "bash", "-c", "exec "+s.command)
	command.Stdout, command.Stderr = out, log
	must(t, command.Start())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = command.Wait() // its exit code is not the point; what it printed is
	}()
	t.Cleanup(func() {
		_ = command.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(endedWithin):
			_ = command.Process.Kill()
			t.Errorf("%s did not end within %v of SIGTERM", s.command, endedWithin)
		}
		if t.Failed() {
			t.Logf("the log of %s:\n%s", s.command, log)
		}
		w.sweep(t, data)
	})
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for deadline := time.After(patience); !sameOutput(s.output, out.String()); {
		select {
		case <-ticker.C:
		case <-ended:
			t.Fatalf("%s ended:\n%s%s", s.command, out, log)
		case <-deadline:
			t.Fatalf("%s printed:\n%s%s", s.command, out, log)
		}
	}
}

// sweep insists that no pod is left, and removes those of a document that
// failed: their shims outlive the agent, as they should.
func (w *workshop) sweep(t *testing.T, data string) {
	t.Helper()
	pods, err := os.ReadDir(filepath.Join(data, "run", "pods", "pods"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if len(pods) > 0 && !t.Failed() {
		t.Errorf("%d pods are left on the machine", len(pods))
	}
	for _, group := range groupsOf(data) {
		killGroup(group)
	}
	unmountUnder(data)
}

// groupsOf are the cgroups that `balsa dev` makes for a data directory.
func groupsOf(data string) []string {
	sum := sha256.Sum256([]byte(data))
	name := "balsa-dev-" + hex.EncodeToString(sum[:4])
	var groups []string
	for _, pattern := range []string{"/sys/fs/cgroup/" + name, "/sys/fs/cgroup/*/" + name} {
		found, _ := filepath.Glob(pattern)
		groups = append(groups, found...)
	}
	return groups
}

// killGroup removes a cgroup of ours; processes that are still in it are ended,
// by the ids that it holds.
func killGroup(group string) {
	var dirs []string
	_ = filepath.WalkDir(group, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	for _, dir := range slices.Backward(dirs) {
		text, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		for _, field := range strings.Fields(string(text)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 1 {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		_ = os.Remove(dir)
	}
}

func unmountUnder(dir string) {
	text, _ := os.ReadFile("/proc/self/mounts")
	var points []string
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 1 && strings.HasPrefix(fields[1], dir+"/") {
			points = append(points, fields[1])
		}
	}
	for _, point := range slices.Backward(points) {
		_ = syscall.Unmount(point, syscall.MNT_DETACH)
	}
}

// program runs a Go program of a document, as one of this module.
func (w *workshop) program(t *testing.T, d document, b block) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "main.go")
	must(t, os.WriteFile(path, []byte(b.text+"\n"), 0o644))
	binary := filepath.Join(t.TempDir(), "program")
	build := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", binary, path)
	build.Dir = w.dir
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%s:%d: %v\n%s", d.path, b.line, err, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := w.inside(ctx, binary).CombinedOutput()
	if err != nil {
		t.Fatalf("%s:%d: %v\n%s", d.path, b.line, err, out)
	}
	want := printedBy(d, b)
	if !sameOutput(strings.Split(want, "\n"), string(out)) {
		t.Fatalf("%s:%d: the program printed:\n%s\nthe document says:\n%s", d.path, b.line, out, want)
	}
}

// printedBy is the block "text" that follows a program.
func printedBy(d document, program block) string {
	for _, b := range d.blocks {
		if b.line > program.line {
			return b.text
		}
	}
	return ""
}

// shell is one bash, so that a variable that a command sets is there for the
// next one.
type shell struct {
	in  io.Writer
	out *bufio.Reader
}

func (w *workshop) shell(t *testing.T) *shell {
	t.Helper()
	command := w.inside(t.Context(), "bash", "-c", "exec 2>&1; exec bash")
	in, err := command.StdinPipe()
	must(t, err)
	out, err := command.StdoutPipe()
	must(t, err)
	must(t, command.Start())
	t.Cleanup(func() {
		_ = in.Close()
		_ = command.Wait()
	})
	return &shell{in: in, out: bufio.NewReader(out)}
}

const mark = "----- this command has ended -----"

// run returns what a command printed.
func (s *shell) run(t *testing.T, command string) string {
	t.Helper()
	_, err := fmt.Fprintf(s.in, "{ %s\n} </dev/null; echo; echo '%s'\n", command, mark)
	must(t, err)
	var text strings.Builder
	for {
		line, err := s.out.ReadString('\n')
		if err != nil {
			t.Fatalf("$ %s: the shell has ended: %v\n%s", command, err, text.String())
		}
		if strings.TrimSpace(line) == mark {
			return text.String()
		}
		text.WriteString(line)
	}
}

// breathe lets a fifth of a second pass before a command is repeated.
func (s *shell) breathe(t *testing.T) {
	t.Helper()
	timer := time.NewTimer(200 * time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	}
}

type output struct {
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}
