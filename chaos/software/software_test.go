// Package software runs programs that people run - nginx, PostgreSQL, Redis,
// Python, shell scripts - in pods of a real cluster, from images that it makes of
// Debian's packages. They rely on what no program written for a test does: stop
// signals, file modes, memory limits, shared memory, a PID 1 with children.
//
//balsa:real-processes
package software

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/codec"

	"github.com/balsa-run/balsa/chaos/stage"
)

const (
	buildTimeout  = 10 * time.Minute
	importTimeout = 3 * time.Minute
	patience      = 120 * time.Second
	maxJSON       = 4 << 20
)

// cluster is one server and two agents, which all tests share: each has a
// namespace of its own.
type cluster struct {
	*stage.Stage
	programs stage.Programs
}

func TestRealSoftware(t *testing.T) {
	archive := images(t)
	c := up(t, archive)
	before := leftovers(t, c)
	t.Run("all", func(t *testing.T) {
		for _, test := range []struct {
			name string
			run  func(*testing.T, *cluster)
		}{{"PostgreSQL", postgres}, {"Nginx", nginx}, {"ShellAsPID1", shell}, {"Python", python}, {"Redis", redis}} {
			t.Run(test.name, func(t *testing.T) {
				t.Parallel()
				defer c.explain(t)
				test.run(t, c)
			})
		}
	})
	if t.Failed() {
		return
	}
	c.until(t, "the nodes to be as they were", func(context.Context) error {
		if diff := cmp.Diff(before, leftovers(t, c)); diff != "" {
			return fmt.Errorf("there is more (+) or less (-): %s", diff)
		}
		return nil
	})
}

func up(t *testing.T, archive string) *cluster {
	t.Helper()
	building, cancel := context.WithTimeout(t.Context(), buildTimeout)
	defer cancel()
	programs, err := stage.Build(building, "../..")
	must(t, err)
	s, err := stage.Up(t.Context(), stage.Options{Prefix: "sw", Dir: t.TempDir(), Binary: programs.Balsa, Servers: 1, Agents: 2})
	must(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(s.Logs(40))
		}
		if err := s.Down(); err != nil {
			t.Error(err)
		}
	})
	c := &cluster{Stage: s, programs: programs}
	started := time.Now()
	c.balsaWithin(t, importTimeout, "image", "import", archive)
	t.Logf("images imported in %v", time.Since(started).Round(time.Millisecond))
	return c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// balsa runs the command line and fails the test if that fails.
func (c *cluster) balsa(t *testing.T, args ...string) string {
	t.Helper()
	return c.balsaWithin(t, patience, args...)
}

func (c *cluster) balsaWithin(t *testing.T, limit time.Duration, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	out, err := c.Operator.Run(ctx, c.programs.Balsa, append([]string{"--config", c.Admin()}, args...)...)
	must(t, err)
	return out
}

// apply applies a manifest of testdata, each word of replace made the next one,
// and returns the file.
func (c *cluster) apply(t *testing.T, name string, replace ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	must(t, err)
	changed := strings.NewReplacer(replace...).Replace(string(text))
	if len(replace) > 0 && changed == string(text) {
		t.Fatalf("nothing of %v is in %s", replace, name)
	}
	file := filepath.Join(t.TempDir(), name)
	must(t, os.WriteFile(file, []byte(changed), 0o600))
	c.balsa(t, "apply", "-f", file)
	return file
}

// until waits for check to return nil; what it said last is in the error, unless
// that was only that the time is over.
func (c *cluster) until(t *testing.T, what string, check func(context.Context) error) {
	t.Helper()
	last := errors.New("nothing")
	err := c.Until(t.Context(), patience, what, func(ctx context.Context) error {
		err := check(ctx)
		if ctx.Err() == nil {
			last = err
		}
		return err
	})
	if err != nil {
		t.Fatalf("%v; before: %v", err, last)
	}
}

// explain prints what there is to know of every pod when a test has failed.
func (c *cluster) explain(t *testing.T) {
	if !t.Failed() {
		return
	}
	// The test's own context may have ended.
	ctx := context.WithoutCancel(t.Context())
	names, err := c.Balsa(ctx, "get", "pods", "-A", "-o", "wide")
	t.Logf("%s %v", names, err)
	for line := range strings.Lines(names) {
		fields := strings.Fields(line)
		if len(fields) < 5 || fields[0] == "NAMESPACE" { // not a pod
			continue
		}
		for _, words := range [][]string{{"describe", "pod", fields[1]}, {"logs", fields[1], "--all-containers", "--prefix", "--tail", "30"}} {
			out, err := c.Balsa(ctx, append(words, "-n", fields[0])...)
			t.Logf("--- balsa %v\n%s%v", words, out, err)
		}
	}
}

// pod reads a pod.
func (c *cluster) pod(ctx context.Context, namespace, name string) (*balsav1.Pod, error) {
	var raw json.RawMessage
	if err := c.Decode(ctx, &raw, "get", "pod", name, "-n", namespace); err != nil {
		return nil, err
	}
	pod := &balsav1.Pod{}
	return pod, codec.Options{Lenient: true}.ReadJSON(raw, maxJSON, pod)
}

// onlyPod waits until a namespace has one pod with the label, which is Ready and
// none of the given ones.
func (c *cluster) onlyPod(t *testing.T, namespace, selector string, not ...string) *balsav1.Pod {
	t.Helper()
	var found *balsav1.Pod
	c.until(t, "a ready pod of "+namespace, func(ctx context.Context) error {
		names, err := c.Balsa(ctx, "get", "pods", "-n", namespace, "-l", selector, "-o", "name")
		if err != nil {
			return err
		}
		list := strings.Fields(names)
		if len(list) != 1 {
			return fmt.Errorf("there are %v", list)
		}
		_, name, _ := strings.Cut(list[0], "/")
		if slices.Contains(not, name) {
			return fmt.Errorf("%s is still there", name)
		}
		if found, err = c.pod(ctx, namespace, name); err != nil {
			return err
		}
		return readiness(found)
	})
	return found
}

func readiness(pod *balsav1.Pod) error {
	for _, condition := range pod.GetStatus().GetConditions() {
		if condition.GetType() == "Ready" && condition.GetStatus() == "True" {
			return nil
		}
	}
	return fmt.Errorf("%s is %s: %v", pod.GetMetadata().GetName(), pod.GetStatus().GetPhase(), pod.GetStatus().GetContainerStatuses())
}

// restarted waits until the first container of a pod has been restarted so many
// times and is ready again, and returns how the run before ended.
func (c *cluster) restarted(t *testing.T, namespace, name string, times int32) *balsav1.ContainerStateTerminated {
	t.Helper()
	var ended *balsav1.ContainerStateTerminated
	c.until(t, fmt.Sprintf("restart %d of %s", times, name), func(ctx context.Context) error {
		pod, err := c.pod(ctx, namespace, name)
		if err != nil {
			return err
		}
		status := pod.GetStatus().GetContainerStatuses()[0]
		if status.GetRestartCount() != times {
			return fmt.Errorf("it was restarted %d times: %v", status.GetRestartCount(), status)
		}
		ended = status.GetLastState().GetTerminated()
		return readiness(pod)
	})
	if ended == nil {
		t.Fatalf("%s was restarted and does not say how it ended", name)
	}
	return ended
}

// node is the member that runs a pod.
func (c *cluster) node(t *testing.T, pod *balsav1.Pod) *stage.Member {
	t.Helper()
	for _, agent := range c.Agents {
		if agent.Host.Name == pod.GetSpec().GetNodeName() {
			return agent
		}
	}
	t.Fatalf("pod %s is on %q", pod.GetMetadata().GetName(), pod.GetSpec().GetNodeName())
	return nil
}

// processes are those in a pod's cgroup, as this machine numbers them.
func processes(t *testing.T, pod *balsav1.Pod) []process {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	must(t, err)
	var found []process
	for _, entry := range entries {
		var p process
		if _, err := fmt.Sscan(entry.Name(), &p.pid); err != nil {
			continue
		}
		groups, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "cgroup"))
		if err != nil || !strings.Contains(string(groups), pod.GetMetadata().GetUid()) {
			continue
		}
		status, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "status"))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(status)) {
			fields := strings.Fields(line)
			switch {
			case strings.HasPrefix(line, "Name:"):
				p.name = fields[1]
			case strings.HasPrefix(line, "State:"):
				p.zombie = fields[1] == "Z"
			case strings.HasPrefix(line, "NSpid:"):
				p.inner = fields[len(fields)-1]
			}
		}
		found = append(found, p)
	}
	return found
}

type process struct {
	pid    int
	name   string
	inner  string // its number in its own namespace
	zombie bool
}

// first finds PID 1 of a container that runs a program.
func first(t *testing.T, pod *balsav1.Pod, program string) int {
	t.Helper()
	all := processes(t, pod)
	for _, p := range all {
		if p.name == program && p.inner == "1" {
			return p.pid
		}
	}
	t.Fatalf("no %s is PID 1 of pod %s: %+v", program, pod.GetMetadata().GetName(), all)
	return 0
}

// leftovers is what pods leave on a machine if nobody cleans up: mounts, cgroups,
// loop devices, network namespaces, shims, and files that are named after a pod or
// its volume.
func leftovers(t *testing.T, c *cluster) []string {
	t.Helper()
	var all []string
	uid := regexp.MustCompile("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-")
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); strings.HasPrefix(fields[4], c.Lab.Dir) {
			all = append(all, "mount "+strings.TrimPrefix(fields[4], c.Lab.Dir))
		}
	}
	loops, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	must(t, err)
	for _, loop := range loops {
		if file, err := os.ReadFile(loop); err == nil && strings.Contains(string(file), c.Lab.Dir) {
			all = append(all, "loop "+strings.TrimSpace(string(file)))
		}
	}
	for _, leak := range c.Lab.Leaks() {
		if kind, _, _ := strings.Cut(leak, " "); kind == "cgroup" || kind == "network" {
			all = append(all, leak)
		}
		if strings.HasPrefix(leak, "process") && strings.Contains(leak, "shim") {
			all = append(all, leak)
		}
	}
	for _, agent := range c.Agents {
		err := filepath.WalkDir(agent.Host.Dir, func(path string, entry fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // it is going away
			}
			if err != nil || !uid.MatchString(entry.Name()) {
				return err
			}
			all = append(all, "file "+strings.TrimPrefix(path, c.Lab.Dir))
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		})
		must(t, err)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// nodeWell checks that an agent is its first one still and that its node is
// Ready and under no pressure.
func (c *cluster) nodeWell(t *testing.T, agent *stage.Member) {
	t.Helper()
	if !agent.Process.Running() {
		t.Fatalf("agent %s has ended", agent.Host.Name)
	}
	var raw json.RawMessage
	must(t, c.Decode(t.Context(), &raw, "get", "node", agent.Host.Name))
	node := &balsav1.Node{}
	must(t, codec.Options{Lenient: true}.ReadJSON(raw, maxJSON, node))
	for _, condition := range node.GetStatus().GetConditions() {
		if good := condition.GetType() == "Ready"; (condition.GetStatus() == "True") != good {
			t.Errorf("node %s: %v", agent.Host.Name, condition)
		}
	}
}

// fails runs the command line and returns what it said when it failed, and its
// exit code.
func (c *cluster) fails(t *testing.T, args ...string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := c.Operator.Run(ctx, c.programs.Balsa, append([]string{"--config", c.Admin()}, args...)...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Fatalf("balsa %v: %v: %s, want a failure", args, err, out)
	}
	return out, exit.ExitCode()
}

func contains(t *testing.T, what, text string, wanted ...string) {
	t.Helper()
	for _, want := range wanted {
		if !strings.Contains(text, want) {
			t.Errorf("%s has no %q:\n%s", what, want, text)
		}
	}
}

// mayFail runs the command line for what it does, not for how it ends.
func (c *cluster) mayFail(t *testing.T, args ...string) {
	t.Helper()
	out, err := c.Balsa(t.Context(), args...)
	t.Logf("balsa %v: %v %s", args, err, strings.TrimSpace(out))
}
