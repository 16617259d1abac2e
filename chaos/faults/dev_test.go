package faults

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/balsa-run/balsa/chaos/stage"
	"github.com/balsa-run/balsa/chaos/world/host"
)

var update = flag.Bool("update", false, "rewrite the golden transcripts")

// poll is how often a test asks whether something has come about.
const poll = 100 * time.Millisecond

// dev is a `balsa dev` and the folder it keeps its state in.
type dev struct {
	host     *host.Host
	programs stage.Programs
	data     string
	process  *host.Process // of its last start
}

// devs makes hosts, each with a folder for a `balsa dev` that does not run yet.
func devs(t *testing.T, prefix string, names ...string) []*dev {
	t.Helper()
	building, cancel := context.WithTimeout(t.Context(), buildTimeout)
	defer cancel()
	programs, err := stage.Build(building, "../..")
	must(t, err)
	lab, err := host.New(prefix, t.TempDir())
	must(t, err)
	var all []*dev
	t.Cleanup(func() {
		for _, d := range all {
			d.takeDown(t)
		}
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, name := range names {
		h, err := lab.AddHost(name)
		must(t, err)
		all = append(all, &dev{host: h, programs: programs, data: filepath.Join(h.Dir, "dev")})
	}
	return all
}

// beside is another `balsa dev` of the same host: same network, another folder.
func (d *dev) beside(t *testing.T) *dev {
	t.Helper()
	other := &dev{host: d.host, programs: d.programs, data: filepath.Join(d.host.Dir, "other")}
	t.Cleanup(func() { other.takeDown(t) })
	return other
}

// takeDown ends it and its pods, which live on without it.
func (d *dev) takeDown(t *testing.T) {
	if d.process != nil {
		if t.Failed() {
			t.Logf("--- %s\n%s", d.process.Name, d.process.Tail(25))
		}
		if err := d.process.Kill(); err != nil {
			t.Error(err)
		}
	}
	for _, group := range d.groups() {
		if err := emptyGroup(group); err != nil {
			t.Error(err)
		}
	}
}

// group is the cgroup that it gives to its pods.
func (d *dev) group() string {
	sum := sha256.Sum256([]byte(d.data))
	return "/balsa-dev-" + hex.EncodeToString(sum[:4])
}

// groups are the folders of its cgroup in every hierarchy, the deepest first.
func (d *dev) groups() []string {
	var found []string
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		tops, err := filepath.Glob(pattern + d.group())
		if err != nil {
			continue
		}
		for _, top := range tops {
			_ = filepath.WalkDir(top, func(path string, entry fs.DirEntry, err error) error {
				if err == nil && entry.IsDir() {
					found = append(found, path)
				}
				return nil
			})
		}
	}
	slices.SortFunc(found, func(a, b string) int { return strings.Compare(b, a) })
	return found
}

// emptyGroup ends what is in a cgroup and removes it.
func emptyGroup(group string) error {
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	for deadline := time.Now().Add(converge); ; <-ticker.C {
		text, err := os.ReadFile(filepath.Join(group, "cgroup.procs"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
			return nil
		}
		for _, word := range strings.Fields(string(text)) {
			var pid int
			if _, err := fmt.Sscan(word, &pid); err == nil && pid > 1 {
				_ = syscall.Kill(pid, syscall.SIGKILL) // it may be gone
			}
		}
		if err = os.Remove(group); err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("cgroup %s cannot be emptied: %w", group, err)
		}
	}
}

// start runs it until it is stopped, and waits until its node is Ready.
func (d *dev) start(t *testing.T, args ...string) {
	t.Helper()
	started := time.Now()
	d.launch(t, args...)
	d.eventually(t, "the node to be Ready", func() error {
		if !d.process.Running() {
			t.Fatalf("balsa dev ended:\n%s", d.process.Tail(10))
		}
		text, err := os.ReadFile(d.process.LogPath)
		if err == nil && !strings.Contains(string(text), "balsa dev is ready") {
			err = errors.New("it does not say that it is")
		}
		return err
	})
	t.Logf("%s was ready after %v", d.process.Name, time.Since(started).Round(time.Millisecond))
}

// launch starts it, with a log of its own.
func (d *dev) launch(t *testing.T, args ...string) {
	t.Helper()
	name := fmt.Sprintf("%s-%d", filepath.Base(d.data), time.Now().UnixNano())
	process, err := d.host.Start(name, d.programs.Balsa, append([]string{"dev", "--data-dir", d.data}, args...)...)
	must(t, err)
	d.process = process
}

func (d *dev) stop(t *testing.T) {
	t.Helper()
	must(t, d.process.Stop(converge))
}

// balsa runs the command line on its host and insists that it succeeds.
func (d *dev) balsa(t *testing.T, args ...string) string {
	t.Helper()
	out, err := d.try(t, args...)
	must(t, err)
	return out
}

func (d *dev) try(t *testing.T, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), converge)
	defer cancel()
	return d.host.Run(ctx, d.programs.Balsa, append([]string{"--config", filepath.Join(d.data, "admin.yaml")}, args...)...)
}

func (d *dev) eventually(t *testing.T, what string, so func() error) {
	t.Helper()
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	for deadline := time.Now().Add(converge); ; <-ticker.C {
		err := so()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s: %v", converge, what, err)
		}
	}
}

// app brings up the hello app and returns its Service's address.
func (d *dev) app(t *testing.T) (address string) {
	t.Helper()
	d.balsa(t, "image", "import", d.programs.Echo)
	d.balsa(t, "apply", "-f", "../../examples/hello.yaml")
	d.eventually(t, "three pods", func() error { return d.running(t, 3) })
	var service struct {
		Spec struct {
			ClusterIP string `json:"clusterIP"`
		} `json:"spec"`
	}
	must(t, json.Unmarshal([]byte(d.balsa(t, "get", "service/hello", "-n", namespace, "-o", "json")), &service))
	d.eventually(t, "an answer", func() error { return d.answers(t, service.Spec.ClusterIP) })
	return service.Spec.ClusterIP
}

func (d *dev) answers(t *testing.T, address string) error {
	_, err := d.host.Run(t.Context(), "curl", "-sS", "--fail", "--max-time", "5", "http://"+address+"/")
	return err
}

func (d *dev) pods(t *testing.T) []stage.Pod {
	t.Helper()
	var list struct {
		Items []stage.Pod `json:"items"`
	}
	must(t, json.Unmarshal([]byte(d.balsa(t, "get", "pods", "-n", namespace, "-o", "json")), &list))
	return list.Items
}

func (d *dev) running(t *testing.T, want int) error {
	t.Helper()
	pods, ready := d.pods(t), 0
	for i := range pods {
		if pods[i].Ready() {
			ready++
		}
	}
	if ready != want || len(pods) != want {
		return fmt.Errorf("%d of %d pods are ready", ready, len(pods))
	}
	return nil
}

// containers tells which containers its cluster knows to run, and since when.
func (d *dev) containers(t *testing.T) string {
	t.Helper()
	var running []string
	for _, pod := range d.pods(t) {
		for _, c := range pod.Status.ContainerStatuses {
			if c.State.Running != nil {
				running = append(running, fmt.Sprintf("%s %s restarts %d id %s", pod.Metadata.Name, c.State.Running.StartedAt, c.RestartCount, c.ContainerID))
			}
		}
	}
	slices.Sort(running)
	return strings.Join(running, "\n")
}

// processes are those of its pods on this machine, shims and containers alike,
// by the cgroup that they are in.
func (d *dev) processes(t *testing.T) string {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	must(t, err)
	var found []string
	for _, entry := range entries {
		groups, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "cgroup"))
		if err == nil && strings.Contains(string(groups), ":"+d.group()+"/") {
			found = append(found, entry.Name())
		}
	}
	if len(found) == 0 {
		t.Fatalf("nothing runs below cgroup %s", d.group())
	}
	return strings.Join(found, " ")
}

// sockets are the shims' of its pods.
func (d *dev) sockets(t *testing.T) []string {
	t.Helper()
	var found []string
	must(t, filepath.WalkDir(d.data, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type() == fs.ModeSocket {
			found = append(found, path)
		}
		return nil
	}))
	return found
}

// TestDevsAtOnce runs two on one machine, each with a network of its own. What
// one does, also when it dies, is nothing to the other's pods.
func TestDevsAtOnce(t *testing.T) {
	both := devs(t, "fd", "d1", "d2")
	one, two := both[0], both[1]
	one.start(t)
	address := one.app(t)
	before, processes := one.containers(t), one.processes(t)
	unmoved := func(after string) {
		t.Helper()
		if now := one.containers(t); now != before {
			t.Errorf("after %s the other's containers are\n%s\nthey were\n%s", after, now, before)
		}
		if now := one.processes(t); now != processes {
			t.Errorf("after %s the other's processes are %s, they were %s", after, now, processes)
		}
		if err := one.answers(t, address); err != nil {
			t.Errorf("after %s: %v", after, err)
		}
	}
	two.start(t)
	two.app(t)
	unmoved("a start")
	for _, d := range both {
		if sockets := d.sockets(t); len(sockets) != 3 {
			t.Errorf("%d sockets for 3 pods: %v", len(sockets), sockets)
		}
	}
	must(t, two.process.Kill())
	kept := two.processes(t)
	two.start(t)
	if again := two.processes(t); again != kept {
		t.Errorf("after SIGKILL and a start the processes are %s, they were %s", again, kept)
	}
	unmoved("SIGKILL and a start")
	two.balsa(t, "delete", "-f", "../../examples/hello.yaml")
	if left := two.sockets(t); len(left) > 0 {
		t.Errorf("sockets of deleted pods: %v", left)
	}
	two.stop(t)
	unmoved("an end")
}

// TestDevsInTurn uses one network for two folders, one after the other. Pods that
// the first has left behind live while the second runs and are its again when it
// returns; both at once is refused.
func TestDevsInTurn(t *testing.T) {
	one := devs(t, "fe", "d1")[0]
	two := one.beside(t)
	one.start(t)
	address := one.app(t)
	before, processes := one.containers(t), one.processes(t)

	two.launch(t, "--listen", "127.0.0.1:7543")
	two.eventually(t, "the second to be refused", func() error {
		if two.process.Running() {
			return errors.New("it runs")
		}
		return nil
	})
	if said := two.process.Tail(2); !strings.Contains(said, "address already in use") {
		t.Errorf("the second says: %s", said)
	}
	must(t, one.answers(t, address))

	one.stop(t)
	two.start(t)
	two.app(t)
	if now := one.processes(t); now != processes {
		t.Errorf("another's start left the processes %s of %s", now, processes)
	}
	kept := two.containers(t)
	two.stop(t)
	one.start(t)
	one.eventually(t, "the pods to be back", func() error { return errors.Join(one.running(t, 3), one.answers(t, address)) })
	if now := one.containers(t); now != before {
		t.Errorf("the containers are\n%s\nthey were\n%s", now, before)
	}
	one.balsa(t, "delete", "-f", "../../examples/hello.yaml")
	one.stop(t)
	two.start(t)
	two.eventually(t, "the pods to be back", func() error { return two.running(t, 3) })
	if now := two.containers(t); now != kept {
		t.Errorf("the second's containers are\n%s\nthey were\n%s", now, kept)
	}
}

// TestImageNobodyImported shows what a user sees who forgot to import an image,
// and that importing it is all that is left to do.
func TestImageNobodyImported(t *testing.T) {
	d := devs(t, "fi", "d1")[0]
	d.start(t)
	manifest := filepath.Join(d.host.Dir, "echo.yaml")
	must(t, os.WriteFile(manifest, []byte("apiVersion: v1\nkind: Pod\nmetadata:\n  name: echo\nspec:\n  containers:\n  - name: echo\n    image: balsa/echo:1\n"), 0o600))
	d.balsa(t, "apply", "-f", manifest)
	d.eventually(t, "the pod to say what it lacks", func() error {
		said := d.balsa(t, "describe", "pod/echo")
		for _, want := range []string{"10.244.", "Scheduled ", "BackOff ", "image import"} {
			if !strings.Contains(said, want) {
				return fmt.Errorf("it says: %s", said)
			}
		}
		return nil
	})
	var text strings.Builder
	for _, command := range []string{"get pods", "get pods -o wide", "describe pod echo", "events --for pod/echo"} {
		// Which event was the last differs, so they stand in the order of their text.
		said, _, _ := strings.Cut(d.balsa(t, strings.Fields(command)...), "\nEvents:")
		if lines := strings.SplitAfter(said, "\n"); strings.HasPrefix(command, "events") {
			slices.SortFunc(lines[1:], func(a, b string) int { return strings.Compare(event(a), event(b)) })
			said = strings.Join(lines, "")
		}
		fmt.Fprintf(&text, "$ balsa %s\n%s", command, said)
	}
	golden(t, "image-not-present", text.String())

	d.balsa(t, "image", "import", d.programs.Echo)
	d.eventually(t, "the pod to run", func() error {
		if table := d.balsa(t, "get", "pods"); !strings.Contains(table, "Running") {
			return errors.New(table)
		}
		return nil
	})
	d.balsa(t, "delete", "pod", "echo")
}

// event is a line of balsa events without how long ago and how often it was.
func event(line string) string {
	return regexp.MustCompile(`^\S+( \(x\d+\))?`).ReplaceAllString(line, "")
}

// golden compares with testdata/NAME.golden, without what differs from run to
// run.
func golden(t *testing.T, name, got string) {
	t.Helper()
	for _, rule := range [][2]string{
		{`\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b`, "UID"},
		{`"UID"`, "UID"},
		{`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z`, "TIME"},
		{`resourceVersion: "\d+"`, `resourceVersion: "N"`},
		{`\b10\.(77|244)\.\d+\.\d+\b`, "ADDRESS"},
		{`(?m)\b\d+s( \(x\d+\))?( {3,}|$)`, "AGE$2"},
		// Between two attempts the reason is the other.
		{`Back-off pulling image "[^"]*": `, ""},
		{`Reason:( +)ErrImagePull`, "Reason:${1}ImagePullBackOff"},
		{`0/1( +)ErrImagePull`, "0/1${1}ImagePullBackOff"},
		// How the registry is out of reach depends on the machine.
		{`(?m)(registry index\.docker\.io: ).*?(; import|$)`, "${1}WHY$2"},
		{`(?m)^(\s*Start time:\s+).*`, "${1}TIME"},
		{`(\S) {2,}`, "$1   "},
	} {
		got = regexp.MustCompile(rule[0]).ReplaceAllString(got, rule[1])
	}
	path := filepath.Join("testdata", name+".golden")
	if *update {
		must(t, os.WriteFile(path, []byte(got), 0o644))
		return
	}
	want, err := os.ReadFile(path)
	must(t, err)
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs (-want +got), go test -update rewrites it:\n%s", path, diff)
	}
}
