package runc

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/internal/helpers"
	"github.com/balsa-run/balsa/internal/hostcgroup"
	"github.com/balsa-run/balsa/internal/hostmount"
	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/node/runtime/simprog"
)

// agentOrder is what a re-executed test binary is told to do as an agent.
type agentOrder struct {
	Dir, CgroupPrefix string
	Helpers           helpers.Paths
	Image             runtime.Image
	UID               runtime.PodUID
	Containers        map[string][]string // name to steps
	Exec              []string            // run in the container "c" until killed
}

// beAgent waits for a line, does what it is told, says "up" and stays.
func beAgent(spec string) {
	err := func() error {
		var o agentOrder
		if err := json.Unmarshal([]byte(spec), &o); err != nil {
			return err
		}
		if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
			return err
		}
		return o.run()
	}()
	fmt.Fprintln(os.Stderr, "agent:", err)
	os.Exit(1)
}

func (o agentOrder) run() error {
	ctx := context.Background()
	rt, err := Open(ctx, Options{Dir: o.Dir, CgroupPrefix: o.CgroupPrefix, Helpers: o.Helpers, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	if _, err := rt.RunPod(ctx, runtime.PodConfig{UID: o.UID, Hostname: "h"}); err != nil {
		return err
	}
	for name, steps := range o.Containers {
		c := runtime.ContainerConfig{Name: name, Image: o.Image, Command: append([]string{"/bin/" + simprog.Name}, steps...)}
		if err := rt.RunContainer(ctx, o.UID, c); err != nil {
			return err
		}
	}
	if len(o.Exec) > 0 {
		_, err = rt.Exec(ctx, o.UID, "c", runtime.ExecConfig{Args: o.Exec, Stdout: os.Stdout})
		return err
	}
	fmt.Println("up")
	select {}
}

// agent is a process that holds the machine's directory.
type agent struct {
	cmd   *exec.Cmd
	stdin io.Writer
	out   *bufio.Reader
}

func (m *machine) startAgent(o agentOrder) *agent {
	m.t.Helper()
	o.Dir, o.CgroupPrefix, o.Helpers, o.Image, o.UID = m.opt.Dir, m.opt.CgroupPrefix, m.opt.Helpers, m.image, "a"
	spec, err := json.Marshal(o)
	if err != nil {
		m.t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), agentEnv+"="+string(spec))
	cmd.Stderr = m.t.Output()
	stdin, err1 := cmd.StdinPipe()
	stdout, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		m.t.Fatal(err)
	}
	m.agents = append(m.agents, cmd)
	return &agent{cmd: cmd, stdin: stdin, out: bufio.NewReader(stdout)}
}

func (a *agent) begin(t testing.TB) {
	t.Helper()
	if _, err := io.WriteString(a.stdin, "go\n"); err != nil {
		t.Fatal(err)
	}
}

// line waits for a line that the agent prints.
func (a *agent) line(t testing.TB, want string) {
	t.Helper()
	if got, err := a.out.ReadString('\n'); err != nil || got != want+"\n" {
		t.Fatalf("the agent printed %q, %v; want %q", got, err, want)
	}
}

func (a *agent) kill(t testing.TB) {
	t.Helper()
	if err := a.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = a.cmd.Wait()
}

func (m *machine) attempt(name string) runtime.ContainerState {
	m.t.Helper()
	pod, err := m.rt.Pod(m.t.Context(), "a")
	if err != nil {
		m.t.Fatal(err)
	}
	c, ok := pod.Attempt(name, 0)
	if !ok {
		m.t.Fatalf("no container %s in %+v", name, pod)
	}
	return c
}

// checkOutlived: the one that ended without an agent has its code, the one
// that runs is taken over and can be ended.
func (m *machine) checkOutlived() {
	m.t.Helper()
	exit := filepath.Join(m.podDir("a"), containersDir, "ends-0", exitFile)
	poll(m.t, "the shim to record an exit without an agent", func() bool {
		_, err := os.Stat(exit)
		return err == nil
	})
	m.open()
	if c := m.attempt("ends"); c.Exit.Code != 21 || c.Reason != runtime.ReasonError || c.FinishedAt.IsZero() {
		m.t.Errorf("what ended without an agent reads %+v", c)
	}
	c := m.attempt("stays")
	if c.Status != runtime.ContainerRunning || unix.Kill(c.PID, 0) != nil {
		m.t.Fatalf("what ran without an agent reads %+v", c)
	}
	if err := m.rt.Signal(m.t.Context(), "a", "stays", 0, runtime.SIGTERM); err != nil {
		m.t.Fatal(err)
	}
	poll(m.t, "the exit of the adopted container", func() bool { return m.attempt("stays").Status == runtime.ContainerExited })
	if c := m.attempt("stays"); c.Exit.Code != 33 {
		m.t.Errorf("the adopted container ended as %+v", c)
	}
}

func outliving() agentOrder {
	return agentOrder{Containers: map[string][]string{
		"stays": {"term=33", "forever"}, "ends": {"sleep=300ms", "out=last words", "exit=21"},
	}}
}

func TestContainersOutliveAgentKilled(t *testing.T) {
	m := newMachine(t)
	a := m.startAgent(outliving())
	a.begin(t)
	a.line(t, "up")
	a.kill(t)
	m.checkOutlived()
}

func TestContainersOutliveKillOfAgentsCgroup(t *testing.T) {
	m := newMachine(t)
	tree, err := hostcgroup.Discover()
	if err != nil {
		t.Fatal(err)
	}
	cgroup := "/balsa-test-agent/" + strconv.Itoa(os.Getpid())
	if err := tree.Make(cgroup); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := tree.Remove(ctx, cgroup); err != nil {
			t.Error(err)
		}
		tree.RemoveIfEmpty(cgroup)
	})
	a := m.startAgent(outliving())
	for _, file := range tree.ProcsFiles(cgroup) {
		if err := os.WriteFile(file, []byte(strconv.Itoa(a.cmd.Process.Pid)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a.begin(t)
	a.line(t, "up")
	before, err := tree.PIDs(cgroup)
	if err != nil || len(before) == 0 {
		t.Fatalf("the agent is not in its cgroup: %v, %v", before, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := tree.Kill(ctx, cgroup); err != nil {
		t.Fatal(err)
	}
	_ = a.cmd.Wait()
	m.checkOutlived()
}

func TestExecDiesWithAgent(t *testing.T) {
	m := newMachine(t)
	a := m.startAgent(agentOrder{Containers: map[string][]string{"c": {"forever"}}, Exec: []string{"/bin/sim", "out=here", "term=ignore", "forever"}})
	a.begin(t)
	a.line(t, "here")
	tree, err := hostcgroup.Discover()
	if err != nil {
		t.Fatal(err)
	}
	count := func() int {
		pids, err := tree.PIDs(filepath.Join(m.opt.CgroupPrefix, podsCgroup, "a", "c-0"))
		if err != nil {
			t.Fatal(err)
		}
		return len(pids)
	}
	if n := count(); n != 2 {
		t.Fatalf("%d processes in the container, want its own and the exec's", n)
	}
	a.kill(t)
	poll(t, "the exec to end with the agent", func() bool { return count() == 1 })
}

// TestAgentKilledAtAnyMoment kills agents in the middle of starting a pod.
// Whatever is found afterwards must be consistent, and removable.
func TestAgentKilledAtAnyMoment(t *testing.T) {
	m := newMachine(t)
	for delay := time.Duration(0); delay < 100*time.Millisecond; delay += 9 * time.Millisecond {
		a := m.startAgent(agentOrder{Containers: map[string][]string{"c": {"out=ran", "forever"}}})
		a.begin(t)
		<-time.NewTimer(delay).C
		a.kill(t)
		rt := m.open()
		if _, err := rt.RunPod(t.Context(), runtime.PodConfig{UID: "a", Hostname: "h"}); err != nil {
			t.Fatalf("after a kill at %v: %v", delay, err)
		}
		c := runtime.ContainerConfig{Name: "c", Image: m.image, Command: []string{"/bin/sim", "out=ran", "forever"}}
		if err := rt.RunContainer(t.Context(), "a", c); err != nil {
			t.Fatalf("after a kill at %v: %v", delay, err)
		}
		m.checkOneRun(delay)
		if err := rt.RemovePod(t.Context(), "a"); err != nil {
			t.Fatalf("after a kill at %v: %v", delay, err)
		}
		m.close()
	}
}

// checkOneRun: attempt 0 was started exactly once, or was lost before.
func (m *machine) checkOneRun(delay time.Duration) {
	m.t.Helper()
	state := m.attempt("c")
	if state.Reason == runtime.ReasonShimLost {
		return
	}
	if state.Status != runtime.ContainerRunning {
		m.t.Errorf("after a kill at %v the container reads %+v", delay, state)
		return
	}
	log := filepath.Join(m.podDir("a"), logsDir, "c-0.log")
	poll(m.t, "the container's line", func() bool {
		content, err := os.ReadFile(log)
		return err == nil && len(content) > 0
	})
	content, err := os.ReadFile(log)
	lines, parseErr := parseLogLine(content)
	if err != nil || parseErr != nil || string(lines.Text) != "ran" {
		m.t.Errorf("after a kill at %v the log reads %q: want one line", delay, content)
	}
}

// TestShimKilledWhileStarting: the start fails or the container is lost, and
// nothing of it lives on.
func TestShimKilledWhileStarting(t *testing.T) {
	m := newMachine(t)
	rt := m.open()
	tree, err := hostcgroup.Discover()
	if err != nil {
		t.Fatal(err)
	}
	for delay := time.Duration(0); delay < 48*time.Millisecond; delay += 6 * time.Millisecond {
		if _, err := rt.RunPod(t.Context(), runtime.PodConfig{UID: "a"}); err != nil {
			t.Fatal(err)
		}
		pid := m.shimPID("a")
		result := make(chan error, 1)
		go func() {
			c := runtime.ContainerConfig{Name: "c", Image: m.image, Command: []string{"/bin/sim", "term=ignore", "forever"}}
			result <- rt.RunContainer(t.Context(), "a", c)
		}()
		<-time.NewTimer(delay).C
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := <-result; err != nil && !errors.Is(err, runtime.ErrPodLost) {
			t.Errorf("shim killed after %v: %v, want success or ErrPodLost", delay, err)
		}
		poll(t, "the pod to be lost", func() bool {
			pod, err := rt.Pod(t.Context(), "a")
			return err == nil && pod.Sandbox == runtime.SandboxLost
		})
		poll(t, "the container to be lost", func() bool {
			pod, err := rt.Pod(t.Context(), "a")
			c, ok := pod.Attempt("c", 0)
			return err == nil && (!ok || c.Reason == runtime.ReasonShimLost)
		})
		if pids, err := tree.PIDs(filepath.Join(m.opt.CgroupPrefix, podsCgroup, "a")); err != nil || len(pids) > 0 {
			t.Errorf("shim killed after %v: processes %v live on, %v", delay, pids, err)
		}
		if err := rt.RemovePod(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDirectoryHasOneAgent(t *testing.T) {
	m := newMachine(t)
	m.open()
	if _, err := Open(t.Context(), m.opt); !errors.Is(err, ErrInUse) {
		t.Errorf("a second agent: %v, want ErrInUse", err)
	}
	other := m.opt
	other.Dir = t.TempDir()
	if _, err := Open(t.Context(), other); !errors.Is(err, ErrInUse) {
		t.Errorf("an agent elsewhere with the same cgroups: %v, want ErrInUse", err)
	}
}

func TestOpenRemovesOrphans(t *testing.T) {
	m := newMachine(t)
	tree, err := hostcgroup.Discover()
	if err != nil {
		t.Fatal(err)
	}
	// A cgroup of a pod that has no directory, with a process in it.
	cgroup := filepath.Join(m.opt.CgroupPrefix, podsCgroup, "stranger", "c-0")
	if err := tree.Make(cgroup); err != nil {
		t.Fatal(err)
	}
	sleeper := exec.Command("/bin/sleep", "1000")
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	for _, file := range tree.ProcsFiles(cgroup) {
		if err := os.WriteFile(file, []byte(strconv.Itoa(sleeper.Process.Pid)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// A directory without a record, with a pinned namespace and a mount in it.
	dir := m.podDir("halfway")
	for _, sub := range []string{nsDir, shmDir} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	pin := filepath.Join(dir, nsDir, "net")
	if err := errors.Join(touch(pin), hostmount.Namespaces{Net: pin}.Pin(), hostmount.Tmpfs(filepath.Join(dir, shmDir), 1<<20, 0)); err != nil {
		t.Fatal(err)
	}
	m.open()
	if err := sleeper.Wait(); err == nil || sleeper.ProcessState.Sys().(interface{ Signaled() bool }).Signaled() == false {
		t.Errorf("the stranger's process ended with %v, want killed", err)
	}
	if pods, err := m.rt.Pods(t.Context()); err != nil || len(pods) > 0 {
		t.Errorf("pods %v, %v", pods, err)
	}
	// The rest is what every test checks at its end.
}

func TestRebootIsRecognised(t *testing.T) {
	m := newMachine(t)
	rt := m.open()
	if _, err := rt.RunPod(t.Context(), runtime.PodConfig{UID: "a"}); err != nil {
		t.Fatal(err)
	}
	c := runtime.ContainerConfig{Name: "c", Image: m.image, Command: []string{"/bin/sim", "forever"}}
	if err := rt.RunContainer(t.Context(), "a", c); err != nil {
		t.Fatal(err)
	}
	m.close()
	// What a reboot leaves: the files alone, with another boot's id.
	if err := unix.Kill(m.shimPID("a"), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	poll(t, "the shim to be gone", func() bool {
		lock, err := lockPath(filepath.Join(m.podDir("a"), lockFile))
		return err == nil && lock.Close() == nil
	})
	var record podRecord
	path := filepath.Join(m.podDir("a"), podFile)
	if err := readJSON(path, &record); err != nil {
		t.Fatal(err)
	}
	record.BootID = "another"
	if err := writeJSON(path, record); err != nil {
		t.Fatal(err)
	}
	rt = m.open()
	if state := m.attempt("c"); state.Reason != runtime.ReasonNodeRebooted {
		t.Errorf("after a reboot the container reads %+v", state)
	}
	if state, err := rt.RunPod(t.Context(), runtime.PodConfig{UID: "a"}); err != nil || state.Sandbox != runtime.SandboxReady {
		t.Errorf("after a reboot RunPod gives %+v, %v", state, err)
	}
}

// TestDeleteSubcommand is what a person does when no agent is left.
func TestDeleteSubcommand(t *testing.T) {
	m := newMachine(t)
	rt := m.open()
	if _, err := rt.RunPod(t.Context(), runtime.PodConfig{UID: "a"}); err != nil {
		t.Fatal(err)
	}
	c := runtime.ContainerConfig{Name: "c", Image: m.image, Command: []string{"/bin/sim", "term=ignore", "forever"}}
	if err := rt.RunContainer(t.Context(), "a", c); err != nil {
		t.Fatal(err)
	}
	if err := rt.Signal(t.Context(), "a", "c", 0, runtime.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		cmd := exec.Command(m.opt.Helpers.Runc, "delete", filepath.Join(containersDir, "c-0"))
		cmd.Dir = m.podDir("a")
		poll(t, "balsa-runc delete to succeed", func() bool {
			again := *cmd
			return again.Run() == nil
		})
	}
	if _, err := os.Stat(filepath.Join(m.podDir("a"), "runc", "c-0")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("libcontainer's state: %v, want gone", err)
	}
}
