package faults

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/balsa-run/balsa/chaos/stage"
	"github.com/balsa-run/balsa/chaos/world/host"
)

const namespace = "hello"

// withApp puts a cluster with the hello app on the stage.
func withApp(t *testing.T, prefix string, servers, agents int) (*stage.Stage, stage.Programs) {
	t.Helper()
	s, programs := up(t, prefix, servers, agents)
	for _, command := range [][]string{{"image", "import", programs.Echo}, {"apply", "-f", "../../examples/hello.yaml"}} {
		if _, err := s.Balsa(t.Context(), command...); err != nil {
			t.Fatal(err)
		}
	}
	_, err := s.WaitReady(t.Context(), namespace, 3, converge)
	must(t, err)
	return s, programs
}

// containers tells which containers run on a node, and since when.
func containers(t *testing.T, s *stage.Stage, node string) string {
	t.Helper()
	pods, err := s.Pods(t.Context(), namespace)
	must(t, err)
	var running []string
	for _, pod := range pods {
		for _, container := range pod.Status.ContainerStatuses {
			if pod.Spec.NodeName == node && container.State.Running != nil {
				running = append(running, fmt.Sprintf("%s %s restarts %d", pod.Metadata.Name, container.State.Running.StartedAt, container.RestartCount))
			}
		}
	}
	if len(running) == 0 {
		t.Fatalf("nothing runs on %s", node)
	}
	return strings.Join(running, "\n")
}

// startRequests asks for the Service's address from a node's host and returns
// what ends the load and judges it: no request may have failed.
func startRequests(t *testing.T, s *stage.Stage, from *host.Host, programs stage.Programs, name string) (stop func()) {
	t.Helper()
	var service struct {
		Spec struct {
			ClusterIP string `json:"clusterIP"`
		} `json:"spec"`
	}
	must(t, s.Decode(t.Context(), &service, "get", "service", "hello", "-n", namespace))
	requests, err := s.StartRequests(from, programs.Chaos, "http://"+service.Spec.ClusterIP+"/", name)
	must(t, err)
	pause(t, settle)
	return func() {
		t.Helper()
		report, err := requests.Stop()
		must(t, err)
		t.Logf("%s: %d requests, %d failed", name, report.Requests, report.Failed)
		if report.Failed > 0 {
			t.Errorf("%s: requests failed: %v", name, report.Errors)
		}
	}
}

func TestAgentKilled(t *testing.T) {
	s, programs := withApp(t, "fa", 1, 2)
	agent := s.Agents[1]
	before := containers(t, s, agent.Host.Name)
	stop := startRequests(t, s, s.Agents[0].Host, programs, "agent")
	must(t, agent.Process.Kill())
	pause(t, settle)
	must(t, agent.Restart())
	_, err := s.WaitReady(t.Context(), namespace, 3, converge)
	must(t, err)
	pause(t, settle)
	stop()
	if after := containers(t, s, agent.Host.Name); after != before {
		t.Errorf("containers changed with their agent:\nbefore %s\nafter  %s", before, after)
	}
}

// TestAgentsCgroupKilled is how an init system may end a service: everything in
// its cgroup gets SIGKILL. The shims are elsewhere.
func TestAgentsCgroupKilled(t *testing.T) {
	s, programs := withApp(t, "fg", 1, 1)
	agent := s.Agents[0]
	before := containers(t, s, agent.Host.Name)
	group := filepath.Join("/sys/fs/cgroup/pids", strings.TrimPrefix(agent.Host.CgroupPrefix(), "/")+"-svc")
	must(t, os.MkdirAll(group, 0o755))
	must(t, agent.Process.Kill())
	// The agent starts inside the service's cgroup, and whatever it starts with it.
	must(t, agent.RestartIn(group))
	_, err := s.WaitReady(t.Context(), namespace, 3, converge)
	must(t, err)
	if _, err := s.Balsa(t.Context(), "scale", "deployment/hello", "-n", namespace, "--replicas", "4"); err != nil {
		t.Fatal(err)
	}
	_, err = s.WaitReady(t.Context(), namespace, 4, converge)
	must(t, err)
	scaled := containers(t, s, agent.Host.Name)
	kept(t, before, scaled)
	stop := startRequests(t, s, agent.Host, programs, "cgroup")
	killGroup(t, group)
	pause(t, settle)
	must(t, agent.Restart())
	_, err = s.WaitReady(t.Context(), namespace, 4, converge)
	must(t, err)
	stop()
	if after := containers(t, s, agent.Host.Name); after != scaled {
		t.Errorf("containers changed with their agent's cgroup:\nbefore %s\nafter  %s", scaled, after)
	}
}

// kept checks that every container of before still runs.
func kept(t *testing.T, before, after string) {
	t.Helper()
	for _, container := range strings.Split(before, "\n") {
		if !strings.Contains(after, container) {
			t.Errorf("%s is gone; there are\n%s", container, after)
		}
	}
}

// killGroup sends SIGKILL to all that is in a cgroup.
func killGroup(t *testing.T, group string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(group, "cgroup.procs"))
	must(t, err)
	pids := strings.Fields(string(text))
	if len(pids) == 0 {
		t.Fatalf("nothing is in %s", group)
	}
	for _, word := range pids {
		var pid int
		if _, err := fmt.Sscan(word, &pid); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Fatal(err)
		}
	}
}

// TestShimKilled takes the process that holds a pod: the pod's containers end
// with it and are started again, and nothing of the old ones is left.
func TestShimKilled(t *testing.T) {
	s, _ := withApp(t, "fs", 1, 1)
	shims := shimsOf(t, s.Agents[0].Host)
	if len(shims) != 3 {
		t.Fatalf("%d shims run for 3 pods", len(shims))
	}
	must(t, syscall.Kill(shims[0], syscall.SIGKILL))
	must(t, s.Until(t.Context(), converge, "the pod to be restarted", func(ctx context.Context) error {
		pods, err := s.Pods(ctx, namespace)
		if err != nil {
			return err
		}
		for _, pod := range pods {
			if pod.Ready() && pod.Status.ContainerStatuses[0].RestartCount == 1 {
				return nil
			}
		}
		return errors.New("no ready pod counts a restart")
	}))
	_, err := s.WaitReady(t.Context(), namespace, 3, converge)
	must(t, err)
	if again := shimsOf(t, s.Agents[0].Host); len(again) != 3 {
		t.Errorf("%d shims run for 3 pods", len(again))
	}
}

// shimsOf finds the shims of a host's pods by the cgroup that they are in.
func shimsOf(t *testing.T, h *host.Host) []int {
	t.Helper()
	var shims []int
	entries, err := os.ReadDir("/proc")
	must(t, err)
	for _, entry := range entries {
		var pid int
		if _, err := fmt.Sscan(entry.Name(), &pid); err != nil {
			continue
		}
		name, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "comm"))
		if err != nil || !strings.HasPrefix(string(name), "balsa-shim") {
			continue
		}
		groups, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "cgroup"))
		if err == nil && strings.Contains(string(groups), ":"+h.CgroupPrefix()+"/") {
			shims = append(shims, pid)
		}
	}
	return shims
}

// TestAgentStartsWithoutServers: pods run on, services route, and an agent that
// starts in the meantime finds everything on its disk.
func TestAgentStartsWithoutServers(t *testing.T) {
	s, programs := withApp(t, "fn", 3, 2)
	agent := s.Agents[1]
	before := containers(t, s, agent.Host.Name)
	stop := startRequests(t, s, agent.Host, programs, "alone")
	for _, server := range s.Servers {
		must(t, server.Process.Kill())
	}
	pause(t, settle)
	must(t, agent.Process.Kill())
	pause(t, settle)
	must(t, agent.Restart())
	pause(t, 5*time.Second)
	if !agent.Process.Running() {
		t.Fatal("the agent did not stay up without servers")
	}
	if shims := shimsOf(t, agent.Host); len(shims) == 0 {
		t.Fatal("no pod is left")
	}
	stop()
	for _, server := range s.Servers {
		must(t, server.Restart())
	}
	converged(t, s, 3)
	_, err := s.WaitReady(t.Context(), namespace, 3, converge)
	must(t, err)
	if after := containers(t, s, agent.Host.Name); after != before {
		t.Errorf("containers changed while no server was there:\nbefore %s\nafter  %s", before, after)
	}
}

// TestLeaderCutOffFromAgents: the agents go by the other servers, and nothing
// happens to their pods.
func TestLeaderCutOffFromAgents(t *testing.T) {
	s, programs := withApp(t, "fc", 3, 2)
	before := containers(t, s, s.Agents[0].Host.Name)
	stop := startRequests(t, s, s.Agents[0].Host, programs, "cutoff")
	leader := otherLeader(t, s)
	agents := []*host.Host{s.Agents[0].Host, s.Agents[1].Host}
	must(t, s.Lab.Partition([]*host.Host{leader.Host}, agents))
	if _, err := s.Balsa(t.Context(), "scale", "deployment/hello", "-n", namespace, "--replicas", "5"); err != nil {
		t.Fatal(err)
	}
	_, err := s.WaitReady(t.Context(), namespace, 5, converge)
	must(t, err)
	must(t, s.Lab.Heal())
	pause(t, settle)
	stop()
	kept(t, before, containers(t, s, s.Agents[0].Host.Name))
}

// bare makes a pod of the echo program that no controller has, on a node.
func bare(t *testing.T, s *stage.Stage, name, node string) {
	t.Helper()
	manifest := filepath.Join(t.TempDir(), name+".yaml")
	must(t, os.WriteFile(manifest, fmt.Appendf(nil, `apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: %s, labels: {app: bare}}
spec:
  nodeName: %s
  containers:
    - name: echo
      image: balsa/echo:1
`, name, namespace, node), 0o600))
	_, err := s.Balsa(t.Context(), "apply", "-f", manifest)
	must(t, err)
	podSays(t, s, name, "Running", "True", "")
}

// podSays waits until a pod has a phase, and a status and reason of its condition
// Ready.
func podSays(t *testing.T, s *stage.Stage, name, phase, ready, reason string) {
	t.Helper()
	must(t, s.Until(t.Context(), converge, fmt.Sprintf("pod %s to be %s, Ready %s %s", name, phase, ready, reason), func(ctx context.Context) error {
		var pod struct {
			Status struct {
				Phase      string `json:"phase"`
				Conditions []struct {
					Type   string `json:"type"`
					Status string `json:"status"`
					Reason string `json:"reason"`
				} `json:"conditions"`
			} `json:"status"`
		}
		if err := s.Decode(ctx, &pod, "get", "pod", name, "-n", namespace); err != nil {
			return err
		}
		for _, c := range pod.Status.Conditions {
			if c.Type == "Ready" && pod.Status.Phase == phase && c.Status == ready && c.Reason == reason {
				return nil
			}
		}
		return fmt.Errorf("it is %+v", pod.Status)
	}))
}

// started tells since when a pod's container runs, and its restarts.
func started(t *testing.T, s *stage.Stage, name string) string {
	t.Helper()
	var pod stage.Pod
	must(t, s.Decode(t.Context(), &pod, "get", "pod", name, "-n", namespace))
	for _, c := range pod.Status.ContainerStatuses {
		if c.State.Running != nil {
			return fmt.Sprintf("%s since %s, restarts %d", c.ContainerID, c.State.Running.StartedAt, c.RestartCount)
		}
	}
	t.Fatalf("pod %s does not run", name)
	return ""
}

// TestNodeRemoved: the agent of a node that was removed ends its containers and
// itself, and comes back with a new token only.
func TestNodeRemoved(t *testing.T) {
	s, _ := withApp(t, "fr", 1, 3)
	gone := s.Agents[2]
	bare(t, s, "alone", gone.Host.Name)
	if len(shimsOf(t, gone.Host)) < 2 {
		t.Fatalf("%d pods on %s", len(shimsOf(t, gone.Host)), gone.Host.Name)
	}
	_, err := s.Balsa(t.Context(), "node", "remove", gone.Host.Name)
	must(t, err)
	began := time.Now()
	ends(t, gone, "this node was removed from the cluster; to let it in again")
	t.Logf("the agent ended its pods and itself %v after the removal", time.Since(began).Round(time.Second))
	if left := shimsOf(t, gone.Host); len(left) > 0 {
		t.Errorf("shims are left: %v", left)
	}
	_, err = s.WaitReady(t.Context(), namespace, 3, converge)
	must(t, err)
	must(t, gone.Restart())
	ends(t, gone, "is part of no cluster yet")
	token, err := s.Token(t.Context(), "agent")
	must(t, err)
	file := filepath.Join(gone.Host.Dir, "token")
	must(t, os.WriteFile(file, []byte(token), 0o600))
	must(t, gone.Rerun("--join", s.Addresses()[0], "--token-file", file))
	must(t, s.WaitNodes(t.Context(), 3))
	bare(t, s, "again", gone.Host.Name)
}

// TestNodeLost takes a whole host off the network: its pods come back elsewhere,
// but for one that nobody replaces, which waits for it and never stops.
func TestNodeLost(t *testing.T) {
	s, _ := withApp(t, "fl", 1, 3)
	lost := s.Agents[2]
	bare(t, s, "alone", lost.Host.Name)
	before := started(t, s, "alone")
	must(t, s.Lab.Partition([]*host.Host{lost.Host}, []*host.Host{s.Servers[0].Host, s.Operator, s.Agents[0].Host, s.Agents[1].Host}))
	must(t, s.Until(t.Context(), converge, "three ready pods on the other nodes", func(ctx context.Context) error {
		pods, err := s.Pods(ctx, namespace)
		if err != nil {
			return err
		}
		ready := 0
		for _, pod := range pods {
			if pod.Ready() && pod.Spec.NodeName != lost.Host.Name {
				ready++
			}
		}
		if ready < 3 {
			return fmt.Errorf("%d are", ready)
		}
		return nil
	}))
	podSays(t, s, "alone", "Running", "False", "NodeLost")
	if shown, err := s.Balsa(t.Context(), "get", "pod", "alone", "-n", namespace); err != nil || !strings.Contains(shown, "0/1") || !strings.Contains(shown, "NodeLost") {
		t.Errorf("a pod of a lost node is shown as\n%s%v", shown, err)
	}
	must(t, s.Lab.Heal())
	must(t, s.WaitNodes(t.Context(), 3))
	_, err := s.WaitReady(t.Context(), namespace, 4, converge)
	must(t, err)
	podSays(t, s, "alone", "Running", "True", "")
	if after := started(t, s, "alone"); after != before {
		t.Errorf("the pod that waited for its node was %s, is %s", before, after)
	}
	must(t, s.Until(t.Context(), converge, "the lost node to let its old pods go", func(context.Context) error {
		pods, err := s.Pods(t.Context(), namespace)
		if err != nil {
			return err
		}
		here := 0
		for _, pod := range pods {
			if pod.Spec.NodeName == lost.Host.Name {
				here++
			}
		}
		if shims := shimsOf(t, lost.Host); len(shims) != here {
			return fmt.Errorf("%d shims for %d pods", len(shims), here)
		}
		return nil
	}))
}
