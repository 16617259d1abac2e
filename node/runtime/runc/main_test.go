//balsa:real-processes

package runc

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/internal/helpers"
	"github.com/balsa-run/balsa/internal/hostcgroup"
	"github.com/balsa-run/balsa/internal/hostmount"
	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/node/runtime/runtimetest"
)

// agentEnv makes the test binary be an agent: see TestMain.
const agentEnv = "BALSA_RUNC_TEST_AGENT"

func TestMain(m *testing.M) {
	if spec := os.Getenv(agentEnv); spec != "" {
		beAgent(spec)
	}
	_, before := os.Stat(userRoot)
	code := m.Run()
	if before != nil {
		_ = os.Remove(userRoot) // made by balsa-runc for the first user namespace
	}
	if dir := builtAt.Load(); dir != nil {
		_ = os.RemoveAll(*dir)
	}
	os.Exit(code)
}

// userRoot is where balsa-runc shows root file systems to user namespaces.
const userRoot = "/run/balsa-rootfs"

// builtAt is where builtDir has built, for TestMain to remove.
var builtAt atomic.Pointer[string]

// builtDir holds the programs that the tests run, built once.
var builtDir = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "balsa-runc-test-")
	if err != nil {
		return "", err
	}
	builtAt.Store(&dir)
	for name, args := range map[string][]string{
		"balsa-shim": {"CGO_ENABLED=0", "-ldflags=-s -w", "../../../cmd/balsa-shim"},
		"balsa-runc": {"CGO_ENABLED=1", "-tags=seccomp netgo osusergo", `-ldflags=-s -w -linkmode external -extldflags "-static"`, "../../../cmd/balsa-runc"},
		"sim":        {"CGO_ENABLED=0", "-ldflags=-s -w", "../runtimetest/sim"},
	} {
		cmd := exec.Command("go", append([]string{"build", "-o", filepath.Join(dir, name)}, args[1:]...)...)
		cmd.Env = append(os.Environ(), args[0])
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build %s: %w\n%s", name, err, out)
		}
	}
	return dir, nil
})

// machine is the room that a test gives to one node.
type machine struct {
	t      testing.TB
	opt    Options
	image  runtime.Image
	rt     *Runtime
	agents []*exec.Cmd
}

const patience = 30 * time.Second

func newMachine(t testing.TB) *machine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("these tests start containers and need root")
	}
	built, err := builtDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	m := &machine{t: t, image: testImage(t, built)}
	m.opt = Options{
		Dir: filepath.Join(dir, "node"), CgroupPrefix: "/balsa-test/" + strconv.Itoa(os.Getpid()) + "-" + filepath.Base(filepath.Dir(dir)) + filepath.Base(dir),
		Helpers: helpers.Paths{Shim: filepath.Join(built, "balsa-shim"), Runc: filepath.Join(built, "balsa-runc")},
		Log:     slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	t.Cleanup(m.cleanUp)
	return m
}

// testImage has two layers, of which the upper one hides a file of the lower.
func testImage(t testing.TB, built string) runtime.Image {
	t.Helper()
	lower, upper := t.TempDir(), t.TempDir()
	for _, dir := range []string{"bin", "etc", "tmp", "data"} {
		if err := os.MkdirAll(filepath.Join(lower, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write := func(path, content string) {
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(lower, "etc/passwd"), "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n")
	write(filepath.Join(lower, "etc/group"), "root:x:0:\napp:x:1000:\nextra:x:2000:app\n")
	write(filepath.Join(lower, "data/which"), "lower")
	for _, dir := range []string{lower, upper} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(upper, "data"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(filepath.Join(upper, "data/which"), "upper")
	copyProgram(t, filepath.Join(built, "sim"), filepath.Join(lower, "bin/sim"))
	copyProgram(t, "/bin/busybox", filepath.Join(lower, "bin/busybox"))
	if err := os.Symlink("busybox", filepath.Join(lower, "bin/sh")); err != nil {
		t.Fatal(err)
	}
	return runtime.Image{Digest: "sha256:0123", Layers: []string{lower, upper}}
}

func copyProgram(t testing.TB, from, to string) {
	t.Helper()
	content, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, content, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (m *machine) open() *Runtime {
	m.t.Helper()
	rt, err := Open(context.Background(), m.opt)
	if err != nil {
		m.t.Fatalf("Open: %v", err)
	}
	m.rt = rt
	return rt
}

func (m *machine) close() {
	m.t.Helper()
	if m.rt == nil {
		return
	}
	if err := m.rt.Close(); err != nil {
		m.t.Errorf("Close: %v", err)
	}
	m.rt = nil
}

// cleanUp removes every pod and then looks for what was left.
func (m *machine) cleanUp() {
	for _, agent := range m.agents {
		_ = agent.Process.Kill()
		_ = agent.Wait()
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if m.rt == nil {
		m.open()
	}
	pods, err := m.rt.Pods(ctx)
	if err != nil {
		m.t.Error(err)
	}
	for _, p := range pods {
		if err := m.rt.RemovePod(ctx, p.UID); err != nil {
			m.t.Errorf("RemovePod %s: %v", p.UID, err)
		}
	}
	m.close()
	m.checkNothingLeft()
}

func (m *machine) checkNothingLeft() {
	if mounts, err := hostmount.Under(m.opt.Dir); err != nil || len(mounts) > 0 {
		m.t.Errorf("mounts are left: %v %v", mounts, err)
	}
	tree, err := hostcgroup.Discover()
	if err != nil {
		m.t.Fatal(err)
	}
	for _, file := range tree.ProcsFiles(m.opt.CgroupPrefix) {
		if _, err := os.Stat(filepath.Dir(file)); err == nil {
			m.t.Errorf("cgroup %s is left", filepath.Dir(file))
		}
	}
	entries, err := os.ReadDir(filepath.Join(m.opt.Dir, podsDir))
	if err != nil || len(entries) > 0 {
		m.t.Errorf("directories of pods are left: %v %v", entries, err)
	}
	if pids := processesUnder(m.t, m.opt.Dir); len(pids) > 0 {
		m.t.Errorf("processes are left: %v", pids)
	}
}

// processesUnder finds shims and helpers of a directory by their command lines.
func processesUnder(t testing.TB, dir string) []string {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, path := range paths {
		if content, err := os.ReadFile(path); err == nil && strings.Contains(string(content), dir+"/") && !strings.Contains(path, "/"+strconv.Itoa(os.Getpid())+"/") {
			found = append(found, path+": "+strings.ReplaceAll(string(content), "\x00", " "))
		}
	}
	return found
}

func (m *machine) podDir(uid runtime.PodUID) string {
	return filepath.Join(m.opt.Dir, podsDir, string(uid))
}

// shimPID asks the shim itself.
func (m *machine) shimPID(uid runtime.PodUID) int {
	m.t.Helper()
	client, _, err := dialShim(context.Background(), m.podDir(uid))
	if err != nil {
		m.t.Fatal(err)
	}
	defer client.close()
	return client.greeting.pid
}

func (m *machine) killShim(uid runtime.PodUID) {
	m.t.Helper()
	if err := unix.Kill(m.shimPID(uid), unix.SIGKILL); err != nil {
		m.t.Fatal(err)
	}
}

// poll waits until condition holds.
func poll(t testing.TB, message string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", patience, message)
		}
		tick()
	}
}

func tick() {
	timer := time.NewTimer(2 * time.Millisecond)
	<-timer.C
}

func TestConformance(t *testing.T) {
	runtimetest.Run(t, func(t *testing.T) *runtimetest.Node {
		m := newMachine(t)
		return &runtimetest.Node{
			Runtime: m.open(), Image: m.image,
			RestartAgent: func() runtime.Runtime { m.close(); return m.open() },
			KillShim:     m.killShim, Tick: tick,
		}
	})
}
