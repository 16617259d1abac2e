package faults

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/balsa-run/balsa/chaos/stage"
)

// soon bounds what a node finds out by itself: it looks every ten seconds.
const soon = 30 * time.Second

const bounded = `apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec:
  storageClassName: local-directory
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 1Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: keeper}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - {name: c, image: "balsa/echo:1", volumeMounts: [{name: data, mountPath: /data}]}
  volumes:
    - {name: data, persistentVolumeClaim: {claimName: data}}
---
apiVersion: v1
kind: Pod
metadata: {name: greedy}
spec:
  containers:
    - {name: c, image: "balsa/echo:1", env: [{name: LISTEN, value: ":8081"}], volumeMounts: [{name: cache, mountPath: /cache}]}
  volumes:
    - {name: cache, emptyDir: {sizeLimit: 1Mi}}
`

// podOf is what a test asks of one pod.
type podOf struct {
	Metadata struct {
		UID string `json:"uid"`
	} `json:"metadata"`
	Status struct {
		Phase, Reason, Message string
		Conditions             []struct{ Type, Status, Reason string }
	} `json:"status"`
}

// apply writes a manifest to the operator's folder and applies it.
func apply(t *testing.T, s *stage.Stage, text string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "objects.yaml")
	must(t, os.WriteFile(path, []byte(text), 0o600))
	_, err := s.Balsa(t.Context(), "apply", "-f", path)
	must(t, err)
}

func getPod(t *testing.T, s *stage.Stage, name string) (p podOf) {
	t.Helper()
	must(t, s.Decode(t.Context(), &p, "get", "pod", name))
	return p
}

// within waits for a node to do something by itself.
func within(t *testing.T, s *stage.Stage, what string, check func() error) {
	t.Helper()
	began := time.Now()
	must(t, s.Until(t.Context(), soon, what, func(context.Context) error { return check() }))
	t.Logf("%s: after %v", what, time.Since(began).Round(100*time.Millisecond))
}

// TestNodeKeepsItsDiskFree: a pod whose emptyDir outgrows its limit goes, and so
// does what was in a volume that nobody claims any more.
func TestNodeKeepsItsDiskFree(t *testing.T) {
	s, programs := up(t, "fd", 1, 1)
	_, err := s.Balsa(t.Context(), "image", "import", programs.Echo)
	must(t, err)
	apply(t, s, bounded)
	within(t, s, "both pods to run", func() error {
		for _, name := range []string{"keeper", "greedy"} {
			if p := getPod(t, s, name); p.Status.Phase != "Running" {
				return fmt.Errorf("%s is %s: %s", name, p.Status.Phase, p.Status.Message)
			}
		}
		return nil
	})
	volumes := filepath.Join(s.Agents[0].Host.Dir, "data", "agent", "volumes")
	scratch := filepath.Join(volumes, "pods", getPod(t, s, "greedy").Metadata.UID, "scratch", "cache")
	must(t, os.WriteFile(filepath.Join(scratch, "big"), make([]byte, 3<<20), 0o600))
	kept, err := filepath.Glob(filepath.Join(volumes, "persistent", "pvc-*", "data"))
	if err != nil || len(kept) != 1 {
		t.Fatalf("contents of persistent volumes: %v %v", kept, err)
	}
	must(t, os.WriteFile(filepath.Join(kept[0], "file"), []byte("kept"), 0o600))
	for _, command := range [][]string{{"delete", "pod", "keeper"}, {"delete", "pvc", "data"}} {
		_, err := s.Balsa(t.Context(), command...)
		must(t, err)
	}
	within(t, s, "the contents to go, and then the volume", func() error {
		list, err := s.Balsa(t.Context(), "get", "pv", "-o", "json")
		if err != nil || strings.Contains(list, "pvc-") {
			return fmt.Errorf("the volumes are %s, %w", list, err)
		}
		if _, err := os.Stat(filepath.Dir(kept[0])); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the volume is gone, and of its contents: %v", err)
		}
		return nil
	})
	within(t, s, "the greedy pod to be evicted", func() error {
		if p := getPod(t, s, "greedy"); p.Status.Phase != "Failed" || p.Status.Reason != "Evicted" {
			return fmt.Errorf("it is %s %s", p.Status.Phase, p.Status.Reason)
		}
		return nil
	})
	if p := getPod(t, s, "greedy"); !strings.Contains(p.Status.Message, `volume "cache" uses 3.0 MiB of ephemeral storage; its limit is 1.0 MiB`) {
		t.Errorf("it says %q", p.Status.Message)
	}
	within(t, s, "its files to go", func() error {
		if _, err := os.Stat(scratch); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s: %w", scratch, err)
		}
		return nil
	})
}

// onSmallDisk moves an agent's data to a file system of its own.
func onSmallDisk(t *testing.T, agent *stage.Member, size string) (data string) {
	t.Helper()
	must(t, agent.Process.Kill())
	data = filepath.Join(agent.Host.Dir, "data")
	was := data + ".was"
	must(t, os.Rename(data, was))
	must(t, os.Mkdir(data, 0o700))
	must(t, syscall.Mount("tmpfs", data, "tmpfs", 0, "size="+size))
	t.Cleanup(func() { // the agent is gone by then, or keeps the mount for a moment
		if err := syscall.Unmount(data, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	out, err := exec.CommandContext(t.Context(), "cp", "-a", was+"/.", data).CombinedOutput()
	if err != nil {
		t.Fatalf("copy %s: %v: %s", was, err, out)
	}
	must(t, agent.Restart())
	return data
}

// TestFullDisk: with no byte left on its disk a node says so, gets no new pods, and
// goes on with those that it has, also through a restart of its agent.
func TestFullDisk(t *testing.T) {
	s, programs := up(t, "ff", 1, 1)
	data := onSmallDisk(t, s.Agents[0], "512m") // images leave 256 MiB to others
	must(t, s.WaitNodes(t.Context(), 1))
	for _, command := range [][]string{{"image", "import", programs.Echo}, {"apply", "-f", "../../examples/hello.yaml"}} {
		_, err := s.Balsa(t.Context(), command...)
		must(t, err)
	}
	_, err := s.WaitReady(t.Context(), namespace, 3, converge)
	must(t, err)
	before := containers(t, s, s.Agents[0].Host.Name)
	full, err := os.Create(filepath.Join(data, "junk"))
	must(t, err)
	for block := make([]byte, 1<<20); err == nil; _, err = full.Write(block) {
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	must(t, full.Close())
	within(t, s, "the node to say so", func() error {
		var node struct {
			Spec   struct{ Taints []struct{ Key string } }
			Status struct {
				Conditions []struct{ Type, Status, Message string }
			}
		}
		if err := s.Decode(t.Context(), &node, "get", "node", s.Agents[0].Host.Name); err != nil {
			return err
		}
		if text := fmt.Sprint(node); !strings.Contains(text, "{DiskPressure True 0 B of disk are available") || !strings.Contains(text, "node.kubernetes.io/disk-pressure") {
			return errors.New(text)
		}
		return nil
	})
	// Without a byte to write to, a pod can be ended, and the others go on.
	pods, err := s.Pods(t.Context(), namespace)
	must(t, err)
	if _, err := s.Balsa(t.Context(), "scale", "deployment/hello", "-n", namespace, "--replicas", "2"); err != nil {
		t.Fatal(err)
	}
	within(t, s, "a pod to go", func() error {
		if left, err := s.Pods(t.Context(), namespace); err != nil || len(left) != len(pods)-1 {
			return fmt.Errorf("%d pods, %w", len(left), err)
		}
		return nil
	})
	must(t, s.Agents[0].Process.Kill())
	must(t, s.Agents[0].Restart())
	pause(t, settle)
	_, err = s.WaitReady(t.Context(), namespace, 2, converge)
	must(t, err)
	after := containers(t, s, s.Agents[0].Host.Name)
	kept(t, after, before)
}
