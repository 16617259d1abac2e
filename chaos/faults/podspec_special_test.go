package faults

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// stopsWithin is less than the time after which pods are killed that do not say.
const stopsWithin = 25 * time.Second

// change alters what pods refer to, once they have seen how it was.
func (c *specs) change(t *testing.T) {
	t.Helper()
	c.until(t, "a pod to have read old files", func(ctx context.Context) error {
		got, err := c.s.Balsa(ctx, "logs", "updates", "-n", specNamespace)
		if err == nil && got != "oldoldoldold\n" {
			err = fmt.Errorf("it prints %q", got)
		}
		return err
	})
	c.until(t, "a pod to wait for a ConfigMap", func(ctx context.Context) error {
		return c.holds(ctx, &specRow{name: "env-waits", status: []string{
			"containerStatuses.0.state.waiting.reason CreateContainerConfigError", `containerStatuses.0.state.waiting.message .*"spec/later".*`,
		}})
	})
	c.balsa(t, "apply", "-f", "testdata/podspec/later.yaml")
	c.balsa(t, "label", "pod", "updates", "-n", specNamespace, "changed=true")
}

// special are checks beyond a row's status and logs.
func (c *specs) special() map[string]func(*testing.T) {
	return map[string]func(*testing.T){
		"sidecar":          c.order("sidecar", "side is up\nbetween\nmain\nside ends\n"),
		"ephemeral":        c.ephemeral,
		"liveness":         c.noGrace("liveness"),
		"post-start-sleep": c.readyAfter("post-start-sleep", 3*time.Second),
		"probe-delay":      c.readyAfter("probe-delay", 12*time.Second),
		"probe-successes":  c.readyAfter("probe-successes", 12*time.Second),
		"probe-timeout":    c.ranFor("probe-timeout", 3*time.Second),
		"probe-failures":   c.ranFor("probe-failures", 12*time.Second),
		"stop-in-order":    c.stops("stop-in-order", 0, c.order("stop", "preStop\nTERM\n")),
		"stop-by-signal":   c.stops("stop-by-signal", 0, c.order("signal", "USR1\n")),
		"stop-after-sleep": c.stops("stop-after-sleep", 3*time.Second, nil),
		"stop-after-grace": c.stops("stop-after-grace", 3*time.Second, nil),
	}
}

// order reads what containers wrote, one after the other.
func (c *specs) order(folder, want string) func(*testing.T) {
	return func(t *testing.T) {
		got, err := os.ReadFile(filepath.Join(c.host, folder, "order"))
		if err != nil || string(got) != want {
			t.Errorf("they wrote %q, %v; want %q", got, err, want)
		}
	}
}

// readyAfter looks how long after its container's start a pod became ready.
// Times are told in whole seconds. A container that is not ready is asked every
// second at least.
func (c *specs) readyAfter(name string, least time.Duration) func(*testing.T) {
	return func(t *testing.T) {
		var pod struct {
			Status struct {
				Conditions []struct {
					Type               string    `json:"type"`
					LastTransitionTime time.Time `json:"lastTransitionTime"`
				} `json:"conditions"`
				ContainerStatuses []struct {
					State struct {
						Running struct {
							StartedAt time.Time `json:"startedAt"`
						} `json:"running"`
					} `json:"state"`
				} `json:"containerStatuses"`
			} `json:"status"`
		}
		must(t, c.s.Decode(t.Context(), &pod, "get", "pod", name, "-n", specNamespace))
		for _, condition := range pod.Status.Conditions {
			took := condition.LastTransitionTime.Sub(pod.Status.ContainerStatuses[0].State.Running.StartedAt)
			if condition.Type == "Ready" && took <= least-time.Second {
				t.Errorf("it was ready after %v, want %v at least", took, least)
			}
		}
	}
}

// ranFor looks how long the run before the last restart was. Times are told in
// whole seconds.
func (c *specs) ranFor(name string, least time.Duration) func(*testing.T) {
	return func(t *testing.T) {
		var pod struct {
			Status struct {
				ContainerStatuses []struct {
					LastState struct {
						Terminated struct {
							StartedAt  time.Time `json:"startedAt"`
							FinishedAt time.Time `json:"finishedAt"`
						} `json:"terminated"`
					} `json:"lastState"`
				} `json:"containerStatuses"`
			} `json:"status"`
		}
		must(t, c.s.Decode(t.Context(), &pod, "get", "pod", name, "-n", specNamespace))
		last := pod.Status.ContainerStatuses[0].LastState.Terminated
		if took := last.FinishedAt.Sub(last.StartedAt); took <= least-time.Second {
			t.Errorf("it was ended after %v, want %v at least", took, least)
		}
	}
}

// stops deletes a pod, which takes a while, but not until it is killed.
func (c *specs) stops(name string, least time.Duration, then func(*testing.T)) func(*testing.T) {
	return func(t *testing.T) {
		started := time.Now()
		c.balsa(t, "delete", "pod", name, "-n", specNamespace)
		if took := time.Since(started); took < least || took > stopsWithin {
			t.Errorf("it was gone after %v, want %v at least, and %v at most", took, least, stopsWithin)
		}
		c.forget(name)
		if then != nil {
			then(t)
		}
	}
}

// ephemeral adds a container to a pod that runs, as who writes manifests does.
func (c *specs) ephemeral(t *testing.T) {
	at := slices.IndexFunc(c.rows, func(row *specRow) bool { return row.name == "ephemeral" })
	row := *c.rows[at]
	row.spec = maps.Clone(row.spec)
	row.spec["ephemeralContainers"] = []any{map[string]any{
		"name": "debug", "image": specImage, "command": []any{"sh", "-c"}, "workingDir": "/tmp", "targetContainerName": "main",
		"args":    []any{"pwd; id -u; echo $WORD $COLOUR; cat /look/file; touch /look/x 2>&1; ps -o args | grep -c '[s]leep 600'; test -t 1 && tty; echo -n last >/tmp/said"},
		"env":     []any{map[string]any{"name": "WORD", "value": "hello"}},
		"envFrom": []any{map[string]any{"configMapRef": map[string]any{"name": "settings"}}}, "tty": true, "imagePullPolicy": "Never",
		"securityContext": map[string]any{"runAsUser": 1000}, "terminationMessagePath": "/tmp/said",
		"volumeMounts": []any{map[string]any{"name": "data", "mountPath": "/look", "readOnly": true}},
	}}
	pod, err := json.Marshal(row.pod())
	must(t, err)
	path := filepath.Join(t.TempDir(), "pod.json")
	must(t, os.WriteFile(path, pod, 0o600))
	c.balsa(t, "apply", "-f", path)
	row.logs = map[string]string{"debug": "/tmp\n1000\nhello green\nof main\ntouch: /look/x: Read-only file system\n1\n/dev/pts/0\n"}
	row.status = []string{"ephemeralContainerStatuses.0.state.terminated.message last", "conditions.Ready True"}
	c.check(t, &row)
}

// noGrace ends a pod that would take five minutes to go by itself.
func (c *specs) noGrace(name string) func(*testing.T) {
	return func(t *testing.T) {
		c.balsa(t, "delete", "pod", name, "-n", specNamespace, "--grace-period", "1")
		c.forget(name)
	}
}

func (c *specs) forget(name string) {
	c.rows = slices.DeleteFunc(slices.Clone(c.rows), func(row *specRow) bool { return row.name == name })
}

func (c *specs) stillSo(t *testing.T) {
	for _, row := range c.rows {
		if err := c.holds(t.Context(), row); err != nil {
			t.Errorf("%s: %v", row.name, err)
		}
	}
}

// tolerations taints the node, so it comes last.
func (c *specs) tolerations(t *testing.T) {
	c.balsa(t, "node", "taint", "n1", "dedicated=spec:NoSchedule")
	defer c.balsa(t, "node", "taint", "n1", "dedicated-")
	var out strings.Builder
	rows := []*specRow{}
	// Who names the node himself asks no scheduler.
	named := &specRow{name: "node-name", spec: map[string]any{"nodeName": "n1", "containers": []any{map[string]any{"args": []any{"echo there"}}}}}
	for name, list := range map[string][]any{
		"tolerates":       {map[string]any{"key": "dedicated", "operator": "Equal", "value": "spec", "effect": "NoSchedule"}},
		"tolerates-key":   {map[string]any{"key": "dedicated", "operator": "Exists"}},
		"tolerates-other": {map[string]any{"key": "dedicated", "operator": "Equal", "value": "other", "effect": "NoSchedule"}},
		"tolerates-later": {map[string]any{"key": "dedicated", "operator": "Exists", "effect": "NoExecute"}},
		"tolerates-none":  {},
	} {
		row := &specRow{name: name, spec: map[string]any{"tolerations": list, "containers": []any{map[string]any{"args": []any{"echo there"}}}}}
		if name != "tolerates" && name != "tolerates-key" {
			row.status = []string{"phase Pending", "conditions.PodScheduled False"}
		}
		pod, err := json.Marshal(row.pod())
		must(t, err)
		fmt.Fprintf(&out, "---\n%s\n", pod)
		rows = append(rows, row)
	}
	pod, err := json.Marshal(named.pod())
	must(t, err)
	fmt.Fprintf(&out, "---\n%s\n", pod)
	rows = append(rows, named)
	path := filepath.Join(t.TempDir(), "pods.yaml")
	must(t, os.WriteFile(path, []byte(out.String()), 0o600))
	c.balsa(t, "apply", "-f", path)
	c.end = time.Now().Add(specPatience)
	for _, row := range rows {
		c.until(t, row.name, func(ctx context.Context) error { return c.holds(ctx, row) })
	}
}

// apply writes pods and has them applied.
func (c *specs) apply(t *testing.T, rows ...*specRow) {
	t.Helper()
	var out strings.Builder
	for _, row := range rows {
		pod, err := json.Marshal(row.pod())
		must(t, err)
		fmt.Fprintf(&out, "---\n%s\n", pod)
	}
	path := filepath.Join(t.TempDir(), "pods.yaml")
	must(t, os.WriteFile(path, []byte(out.String()), 0o600))
	c.balsa(t, "apply", "-f", path)
}

// groupPolicies has a second pod come to a volume whose root is of the group
// already, but a file in it is not.
func (c *specs) groupPolicies(t *testing.T) {
	for policy, want := range map[string]string{"OnRootMismatch": "5555\n", "Always": "7777\n"} {
		name := "group-" + strings.ToLower(policy)
		claim := filepath.Join(t.TempDir(), "claim.yaml")
		must(t, os.WriteFile(claim, fmt.Appendf(nil, `apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %s, namespace: %s}
spec: {accessModes: [ReadWriteOnce], storageClassName: local, resources: {requests: {storage: 16Mi}}}
`, name, specNamespace), 0o600))
		c.balsa(t, "apply", "-f", claim)
		pod := func(name, claim, script string) *specRow {
			return &specRow{name: name, logs: map[string]string{}, spec: map[string]any{
				"securityContext": map[string]any{"fsGroup": 7777, "fsGroupChangePolicy": policy},
				"volumes":         []any{map[string]any{"name": "data", "persistentVolumeClaim": map[string]any{"claimName": claim}}},
				"containers":      []any{map[string]any{"args": []any{script}, "volumeMounts": []any{map[string]any{"name": "data", "mountPath": "/data"}}}},
			}}
		}
		c.end = time.Now().Add(specPatience)
		first := pod(name+"-1", name, "touch /data/f; chgrp 5555 /data/f; stat -c %g /data /data/f")
		first.logs[""] = "7777\n5555\n"
		c.apply(t, first)
		c.check(t, first)
		second := pod(name+"-2", name, "stat -c %g /data/f")
		second.logs[""] = want
		c.apply(t, second)
		c.check(t, second)
	}
}

// evictions puts a taint on the node that ends pods: at once, after the time that
// they tolerate it, or not at all.
func (c *specs) evictions(t *testing.T) {
	const tolerated = 8 * time.Second
	row := func(name string, toleration ...any) *specRow {
		return &specRow{name: name, status: []string{"conditions.Ready True"}, spec: map[string]any{
			"tolerations": toleration, "containers": []any{map[string]any{"args": []any{"exec sleep 600"}}},
		}}
	}
	bounded := map[string]any{"key": "leave", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": int(tolerated.Seconds())}
	stays := row("evict-never", map[string]any{"key": "leave", "operator": "Exists", "effect": "NoExecute"})
	rows := []*specRow{row("evict-at-once"), row("evict-later", bounded), stays}
	c.apply(t, rows...)
	c.end = time.Now().Add(specPatience)
	for _, row := range rows {
		c.until(t, row.name, func(ctx context.Context) error { return c.holds(ctx, row) })
	}
	c.balsa(t, "node", "taint", "n1", "leave=now:NoExecute")
	tainted := time.Now()
	defer c.balsa(t, "node", "taint", "n1", "leave-")
	gone := func(name string) {
		t.Helper()
		c.until(t, name+" to go", func(ctx context.Context) error {
			shown, err := c.s.Balsa(ctx, "get", "pods", "-n", specNamespace, "-o", "name")
			if err == nil && strings.Contains(shown, "/"+name+"\n") {
				err = errors.New("it is there")
			}
			return err
		})
	}
	gone("evict-at-once")
	gone("evict-later")
	if took := time.Since(tainted); took < tolerated-time.Second {
		t.Errorf("a pod that tolerates the taint for %v was gone after %v", tolerated, took)
	}
	if err := c.holds(t.Context(), stays); err != nil {
		t.Errorf("a pod that tolerates the taint: %v", err)
	}
}
