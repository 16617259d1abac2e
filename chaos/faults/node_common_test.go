package faults

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/balsa-run/balsa/chaos/stage"
	"github.com/balsa-run/balsa/chaos/world/host"
)

const (
	// patience is how long a node may take to come right again on a machine that
	// is busy with something else.
	patience = 120 * time.Second
	// watchEvery is how often what a node does is looked at, to hit it in the act.
	watchEvery = time.Millisecond
	// settledFor is how long an end state has to stay as it is.
	settledFor = 2 * time.Second
	busybox    = "/bin/busybox"
)

// crashNode is a cluster of one server and one node that things are done to.
type crashNode struct {
	*testing.T
	s        *stage.Stage
	programs stage.Programs
	agent    *stage.Member
}

func withNode(t *testing.T, prefix string) *crashNode {
	t.Helper()
	s, programs := up(t, prefix, 1, 1)
	n := &crashNode{T: t, s: s, programs: programs, agent: s.Agents[0]}
	n.balsa("image", "import", n.box(boxImage, busybox))
	return n
}

// box makes the archive of an image that holds one static program, busybox or one
// of that name, and nothing else.
func (n *crashNode) box(name, program string) (archive string) {
	n.Helper()
	archive = filepath.Join(n.TempDir(), "box.tar")
	build := exec.CommandContext(n.Context(), "go", "run", "../../examples/image", "-name", name, "-out", archive, program)
	if out, err := build.CombinedOutput(); err != nil {
		n.Fatalf("build image %s: %v\n%s", name, err, out)
	}
	return archive
}

// balsa runs the command line and insists that it succeeds.
func (n *crashNode) balsa(args ...string) string {
	n.Helper()
	out, err := n.s.Balsa(n.Context(), args...)
	must(n.T, err)
	return out
}

func (n *crashNode) apply(manifest string) {
	n.Helper()
	file := filepath.Join(n.TempDir(), "manifest.yaml")
	must(n.T, os.WriteFile(file, []byte(manifest), 0o644))
	n.balsa("apply", "-f", file)
}

func (n *crashNode) until(what string, so func(ctx context.Context) error) {
	n.Helper()
	var last error // what was so before the time was over
	err := n.s.Until(n.Context(), patience, what, func(ctx context.Context) error {
		err := so(ctx)
		if ctx.Err() == nil {
			last = err
		}
		return err
	})
	if err != nil {
		n.Fatalf("waited %v for %s: %v", patience, what, last)
	}
}

// podStatus is what a pod tells of itself, without times.
type podStatus struct {
	Metadata struct {
		Name string `json:"name"`
		UID  string `json:"uid"`
	} `json:"metadata"`
	Status struct {
		Phase      string `json:"phase"`
		Conditions []struct {
			Type   string `json:"type"`
			Status string `json:"status"`
		} `json:"conditions"`
		Init []containerStatus `json:"initContainerStatuses"`
		Main []containerStatus `json:"containerStatuses"`
	} `json:"status"`
}

type containerStatus struct {
	Name         string         `json:"name"`
	Ready        bool           `json:"ready"`
	RestartCount int            `json:"restartCount"`
	ContainerID  string         `json:"containerID"`
	State        containerState `json:"state"`
	LastState    containerState `json:"lastState"`
}

type containerState struct {
	Running *struct {
		StartedAt string `json:"startedAt"`
	} `json:"running"`
	Terminated *struct {
		ExitCode int    `json:"exitCode"`
		Reason   string `json:"reason"`
	} `json:"terminated"`
	Waiting *struct {
		Reason  string `json:"reason"`
		Message string `json:"message"`
	} `json:"waiting"`
}

func (s containerState) String() string {
	switch {
	case s.Running != nil:
		return "running"
	case s.Terminated != nil:
		return fmt.Sprintf("%s %d", s.Terminated.Reason, s.Terminated.ExitCode)
	case s.Waiting != nil:
		return "waiting " + s.Waiting.Reason + " " + s.Waiting.Message
	}
	return "nothing"
}

func (p *podStatus) containers() []containerStatus {
	return slices.Concat(p.Status.Init, p.Status.Main)
}

func (p *podStatus) ready() bool {
	for _, c := range p.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True"
		}
	}
	return false
}

// lives tells which containers of a pod run and since when: what must not change
// when the pod is left alone.
func (p *podStatus) lives() string {
	var lines []string
	for _, c := range p.containers() {
		if c.State.Running != nil {
			lines = append(lines, fmt.Sprintf("%s/%s %s restarts %d %s", p.Metadata.Name, c.Name, c.ContainerID, c.RestartCount, c.State.Running.StartedAt))
		}
	}
	return strings.Join(lines, "\n")
}

// pods lists those of a namespace by name.
func (n *crashNode) pods(ctx context.Context, namespace string) (map[string]*podStatus, error) {
	var list struct {
		Items []*podStatus `json:"items"`
	}
	if err := n.s.Decode(ctx, &list, "get", "pods", "-n", namespace); err != nil {
		return nil, err
	}
	found := map[string]*podStatus{}
	for _, p := range list.Items {
		found[p.Metadata.Name] = p
	}
	return found, nil
}

// ready waits until exactly count pods of a namespace are there, all ready.
func (n *crashNode) ready(namespace string, count int) map[string]*podStatus {
	n.Helper()
	var pods map[string]*podStatus
	n.until(fmt.Sprintf("%d pods of %s to be ready", count, namespace), func(ctx context.Context) (err error) {
		if pods, err = n.pods(ctx, namespace); err != nil {
			return err
		}
		var waits []string
		for name, p := range pods {
			if !p.ready() {
				waits = append(waits, fmt.Sprint(name, " is ", p.Status.Phase, ": ", p.containers()))
			}
		}
		if len(waits) > 0 || len(pods) != count {
			return fmt.Errorf("there are %d; not ready are %s", len(pods), strings.Join(waits, "; "))
		}
		return nil
	})
	return pods
}

// process is one that belongs to a pod of a host.
type process struct {
	pid    int
	parent int
	group  string // its cgroup, below that of the host's pods
	args   string
	// since is the kernel's clock tick of its start: with the pid it names the
	// process for good.
	since string
}

// runs tells whether the process runs a program whose name begins so.
func (p process) runs(program string) bool {
	first, _, _ := strings.Cut(p.args, " ")
	return strings.HasPrefix(filepath.Base(first), program)
}

// processesIn finds what is in the cgroups of a host's pods.
func processesIn(h *host.Host) []process {
	return processesWhere(func(pid int) (group string, is bool) {
		groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		if err != nil {
			return "", false
		}
		for line := range strings.Lines(string(groups)) {
			if _, rest, found := strings.Cut(strings.TrimSpace(line), ":"+h.CgroupPrefix()+"/pods/"); found {
				return rest, true
			}
		}
		return "", false
	})
}

// childrenOf finds the living children of processes.
func childrenOf(parents ...int) []process {
	all := processesWhere(func(int) (string, bool) { return "", true })
	return slices.DeleteFunc(all, func(p process) bool { return !slices.Contains(parents, p.parent) })
}

func processesWhere(is func(pid int) (string, bool)) []process {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var found []process
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		group, ok := is(pid)
		if !ok {
			continue
		}
		stat, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "stat"))
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(stat), ") ")
		fields := strings.Fields(rest)
		if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
			continue
		}
		args, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline"))
		if err != nil {
			continue
		}
		p := process{pid: pid, group: group, since: fields[19], args: string(bytes.TrimSpace(bytes.ReplaceAll(args, []byte{0}, []byte{' '})))}
		if p.parent, err = strconv.Atoi(fields[1]); err == nil {
			found = append(found, p)
		}
	}
	return found
}

// names are what processes are, without what differs from run to run: the shims
// by their program alone.
func names(processes []process) []string {
	var lines []string
	for _, p := range processes {
		args := p.args
		if p.runs("balsa-shim") {
			args = "balsa-shim"
		}
		_, group, _ := strings.Cut(p.group, "/")
		lines = append(lines, group+": "+args)
	}
	slices.Sort(lines)
	return lines
}

// identities name the processes for good.
func identities(processes []process) string {
	var lines []string
	for _, p := range processes {
		lines = append(lines, fmt.Sprint(p.pid, " since ", p.since, " ", p.args))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// mountsBelow are the mount points below a folder, in order.
func mountsBelow(dir string) []string {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return []string{err.Error()}
	}
	var found []string
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		_, after, _ := strings.Cut(line, " - ")
		if kind := strings.Fields(after); len(fields) > 4 && len(kind) > 0 && strings.HasPrefix(fields[4], dir+"/") {
			found = append(found, strings.TrimPrefix(fields[4], dir+"/")+" "+kind[0])
		}
	}
	slices.Sort(found)
	return found
}

// filesBelow are the names of all files below folders that have a word in them.
func filesBelow(word string, dirs ...string) []string {
	var found []string
	for _, dir := range dirs {
		_ = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err == nil && strings.Contains(path, word) {
				found = append(found, strings.TrimPrefix(path, dir))
			}
			return nil
		})
	}
	return found
}

// cgroupsOf are the cgroups of a host's pods, in every hierarchy.
func cgroupsOf(h *host.Host) []string {
	var found []string
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		groups, err := filepath.Glob(pattern + h.CgroupPrefix() + "/pods/*/.")
		if err == nil {
			found = append(found, groups...)
		}
	}
	return found
}

// logFrom reads what a log has got since an offset, whole lines.
type logFrom struct {
	path   string
	offset int64
	rest   []byte
}

func logEnd(t *testing.T, path string) *logFrom {
	t.Helper()
	info, err := os.Stat(path)
	must(t, err)
	return &logFrom{path: path, offset: info.Size()}
}

func (l *logFrom) lines() []string {
	file, err := os.Open(l.path)
	if err != nil {
		return nil
	}
	defer file.Close()
	buffer := make([]byte, 64<<10)
	n, _ := file.ReadAt(buffer, l.offset) // the end is no failure
	l.offset += int64(n)
	l.rest = append(l.rest, buffer[:n]...)
	var lines []string
	for {
		line, rest, found := bytes.Cut(l.rest, []byte("\n"))
		if !found {
			return lines
		}
		lines, l.rest = append(lines, string(line)), rest
	}
}

var (
	actionLine = regexp.MustCompile(`level=(INFO|WARN) msg="([^"]*)" .*pod=(\S+) uid=(\S+) error=`)
	anyUID     = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
)

// action reads which action on a pod a line of the agent's log tells of.
func action(line, pod string) (name string, is bool) {
	m := actionLine.FindStringSubmatch(line)
	if m == nil || m[3] != pod {
		return "", false
	}
	return anyUID.ReplaceAllString(m[2], "UID"), true
}

// background runs f until the returned function is called, or the test ends, and
// lets it say what went wrong.
func background(t *testing.T, f func(ctx context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	end := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	t.Cleanup(end)
	return end
}

// every calls f again and again until it is done or fails.
func every(ctx context.Context, interval time.Duration, f func() (done bool, err error)) error {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		if done, err := f(); done || err != nil {
			return err
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func sorted(lines []string) string {
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
