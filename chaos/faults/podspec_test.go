package faults

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"
	"golang.org/x/tools/txtar"

	"github.com/balsa-run/balsa/chaos/stage"
)

const (
	specNamespace = "spec"
	// specPatience is for all rows together, specLast for what is asked after it.
	specPatience = 300 * time.Second
	specLast     = time.Second
	absent       = "<none>"
)

// specRow is a pod and what has to come of it. docs/reference/pod-spec.md names
// rows as tests.
type specRow struct {
	name string
	spec map[string]any
	// logs are those of containers that have ended, by name; the first one's by "".
	logs map[string]string
	// status has lines of a path in the pod's status and a pattern.
	status []string
}

// specs is the cluster in which all rows run at once.
type specs struct {
	s        *stage.Stage
	programs stage.Programs
	host     string // folder of the node, for hostPath volumes
	rows     []*specRow
	end      time.Time // of the patience
}

// TestPodSpecForReal runs a pod for each row of testdata/podspec: what a field
// promises is looked for inside of the container or in the pod's status.
func TestPodSpecForReal(t *testing.T) {
	s, programs := up(t, "ps", 1, 1)
	c := &specs{s: s, programs: programs, host: t.TempDir()}
	c.prepareNode(t)
	c.read(t)
	archive := imageForSpecs(t)
	c.balsa(t, "image", "import", archive)
	c.balsa(t, "apply", "-f", "testdata/podspec/objects.yaml")
	c.balsa(t, "apply", "-f", c.manifest(t))
	c.end = time.Now().Add(specPatience)
	c.change(t)
	special := c.special()
	for _, row := range c.rows {
		t.Run(row.name, func(t *testing.T) {
			c.check(t, row)
			if more := special[row.name]; more != nil {
				more(t)
				delete(special, row.name)
			}
		})
	}
	for name := range special {
		t.Errorf("there is no row %s", name)
	}
	// What held at one moment may have been on its way to something else.
	t.Run("StillSo", c.stillSo)
	t.Run("groups", c.groupPolicies)
	t.Run("tolerations", c.tolerations)
	t.Run("evictions", c.evictions)
	c.balsa(t, "delete", "namespace", specNamespace)
}

// prepareNode makes what pods expect of the node.
func (c *specs) prepareNode(t *testing.T) {
	t.Helper()
	for _, dir := range []string{"there", "propagation"} {
		must(t, os.Mkdir(filepath.Join(c.host, dir), 0o777))
		must(t, os.Chmod(filepath.Join(c.host, dir), 0o777))
	}
	// Mounts get into and out of containers where those of the node are shared, as
	// systemd makes them.
	shared := filepath.Join(c.host, "propagation")
	must(t, unix.Mount(shared, shared, "", unix.MS_BIND, ""))
	t.Cleanup(func() { must(t, unix.Unmount(shared, unix.MNT_DETACH)) })
	must(t, unix.Mount("", shared, "", unix.MS_SHARED, ""))
	must(t, os.WriteFile(filepath.Join(c.host, "there", "file"), []byte("of the node\n"), 0o644))
	profiles := filepath.Join(c.s.Agents[0].Host.Dir, "data", "seccomp", "profiles")
	must(t, os.MkdirAll(profiles, 0o755))
	must(t, os.WriteFile(filepath.Join(profiles, "no-mkdir.json"),
		[]byte(`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}`), 0o644))
	c.balsa(t, "label", "node", "n1", "zone=a")
}

// facts are what rows may name in {{ }}.
func (c *specs) facts(t *testing.T) *strings.Replacer {
	t.Helper()
	words := []string{"{{host}}", c.host, "{{address}}", c.s.Agents[0].Host.Address}
	for _, of := range []string{"pid", "ipc", "user"} {
		link, err := os.Readlink("/proc/self/ns/" + of)
		must(t, err)
		words = append(words, "{{"+of+"}}", link)
	}
	link, err := c.s.Agents[0].Host.Run(t.Context(), "readlink", "/proc/self/ns/net")
	must(t, err)
	words = append(words, "{{net}}", strings.TrimSpace(link))
	text, err := os.ReadFile("/etc/resolv.conf")
	must(t, err)
	servers := regexp.MustCompile(`(?m)^nameserver.*$`).FindAllString(string(text), 3)
	return strings.NewReplacer(append(words, "{{nameservers}}", strings.Join(servers, "\n"))...)
}

func (c *specs) read(t *testing.T) {
	t.Helper()
	replace := c.facts(t)
	files, err := filepath.Glob("testdata/podspec/*.txtar")
	must(t, err)
	for _, path := range files {
		archive, err := txtar.ParseFile(path)
		must(t, err)
		for _, file := range archive.Files {
			c.section(t, file.Name, replace.Replace(string(file.Data)))
		}
	}
	if len(c.rows) < 90 {
		t.Fatalf("%d rows", len(c.rows))
	}
}

// section takes in ROW.yaml, ROW.log, ROW.log.CONTAINER or ROW.status; the first
// of a row's is its .yaml.
func (c *specs) section(t *testing.T, section, text string) {
	t.Helper()
	name, kind, _ := strings.Cut(section, ".")
	if kind == "yaml" {
		row := &specRow{name: name, logs: map[string]string{}}
		must(t, yaml.Unmarshal([]byte(text), &row.spec))
		c.rows = append(c.rows, row)
		return
	}
	row := c.rows[len(c.rows)-1]
	container, isLog := strings.CutPrefix(kind, "log")
	switch {
	case row.name != name:
		t.Fatalf("section %s has no row", section)
	case isLog:
		row.logs[strings.TrimPrefix(container, ".")] = text
	case kind == "status":
		row.status = strings.Split(strings.TrimSpace(text), "\n")
	default:
		t.Fatalf("section %s is unknown", section)
	}
}

// manifest writes all pods into one file.
func (c *specs) manifest(t *testing.T) string {
	t.Helper()
	var out strings.Builder
	for _, row := range c.rows {
		pod, err := json.Marshal(row.pod())
		must(t, err)
		fmt.Fprintf(&out, "---\n%s\n", pod)
	}
	path := filepath.Join(t.TempDir(), "pods.yaml")
	must(t, os.WriteFile(path, []byte(out.String()), 0o600))
	return path
}

// pod fills in what rows leave out.
func (r *specRow) pod() map[string]any {
	orElse := func(in map[string]any, key string, value any) {
		if _, given := in[key]; !given {
			in[key] = value
		}
	}
	orElse(r.spec, "restartPolicy", "Never")
	orElse(r.spec, "terminationGracePeriodSeconds", 1)
	for _, list := range []string{"initContainers", "containers"} {
		containers, _ := r.spec[list].([]any)
		for _, container := range containers {
			if fields, ok := container.(map[string]any); ok {
				orElse(fields, "name", "main")
				orElse(fields, "image", specImage)
			}
		}
	}
	return map[string]any{
		"apiVersion": "v1", "kind": "Pod", "spec": r.spec,
		"metadata": map[string]any{
			"name": r.name, "namespace": specNamespace,
			"labels": map[string]any{"app": "podspec", "row": r.name}, "annotations": map[string]any{"note": "a note"},
		},
	}
}

func (c *specs) balsa(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), specPatience)
	defer cancel()
	out, err := c.s.Operator.Run(ctx, c.programs.Balsa, append([]string{"--config", c.s.Admin()}, args...)...)
	must(t, err)
	return out
}

// until waits for check to hold; what it said last is in the failure.
func (c *specs) until(t *testing.T, what string, check func(context.Context) error) {
	t.Helper()
	last := errors.New("nothing")
	err := c.s.Until(t.Context(), max(specLast, time.Until(c.end)), what, func(ctx context.Context) error {
		err := check(ctx)
		if ctx.Err() == nil {
			last = err
		}
		return err
	})
	if err != nil {
		t.Errorf("waited for %s: %v", what, last)
	}
}

// check waits for a row's status, then compares its logs.
func (c *specs) check(t *testing.T, row *specRow) {
	defer c.explain(t, row)
	c.until(t, row.name, func(ctx context.Context) error { return c.holds(ctx, row) })
	for container, want := range row.logs {
		args := []string{"logs", row.name, "-n", specNamespace}
		if container != "" || len(row.containers()) > 1 {
			args = append(args, "-c", row.container(container))
		}
		got := strings.ReplaceAll(c.balsa(t, args...), "\r\n", "\n")
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("container %q prints (-want +got):\n%s", container, diff)
		}
	}
}

func (c *specs) explain(t *testing.T, row *specRow) {
	if t.Failed() {
		t.Log(c.s.Balsa(context.WithoutCancel(t.Context()), "describe", "pod", row.name, "-n", specNamespace))
	}
}

func (r *specRow) containers() []any {
	containers, _ := r.spec["containers"].([]any)
	inits, _ := r.spec["initContainers"].([]any)
	return append(slices.Clone(containers), inits...)
}

// container is a container's name; "" is the first one.
func (r *specRow) container(name string) string {
	if first, ok := r.containers()[0].(map[string]any); ok && name == "" {
		return fmt.Sprint(first["name"])
	}
	return name
}

// holds compares the pod's status; without other word it has to have succeeded.
func (c *specs) holds(ctx context.Context, row *specRow) error {
	var pod struct {
		Status map[string]any `json:"status"`
	}
	if err := c.s.Decode(ctx, &pod, "get", "pod", row.name, "-n", specNamespace); err != nil {
		return err
	}
	lines := row.status
	if len(lines) == 0 {
		lines = []string{"phase Succeeded"}
	}
	for _, line := range lines {
		path, pattern, _ := strings.Cut(line, " ")
		got := fieldAt(pod.Status, path)
		ok, err := regexp.MatchString("^(?:"+pattern+")$", got)
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("%s is %q, want %q", path, got, pattern)
		}
	}
	return nil
}

// fieldAt follows names and numbers; conditions are found by their type.
func fieldAt(at any, path string) string {
	for word := range strings.SplitSeq(path, ".") {
		switch value := at.(type) {
		case map[string]any:
			at = value[word]
		case []any:
			at = elementAt(value, word)
		default:
			return absent
		}
	}
	if at == nil {
		return absent
	}
	return fmt.Sprint(at)
}

func elementAt(list []any, word string) any {
	if i, err := strconv.Atoi(word); err == nil {
		if i < len(list) {
			return list[i]
		}
		return nil
	}
	for _, element := range list {
		if condition, ok := element.(map[string]any); ok && condition["type"] == word {
			return condition["status"]
		}
	}
	return nil
}
