package faults

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// startersKilled is how many programs that start containers are killed. A pod
// whose start failed waits ten seconds, then twenty, for the next.
const startersKilled = 6

const sharedPod = `apiVersion: v1
kind: Pod
metadata: {name: shared}
spec:
  shareProcessNamespace: true
  terminationGracePeriodSeconds: 1
  containers:
  - {name: one, image: "balsa/box:1", command: [/busybox, sleep, "7201"]}
  - {name: two, image: "balsa/box:1", command: [/busybox, sleep, "7202"]}
`

const manyPods = `apiVersion: apps/v1
kind: Deployment
metadata: {name: many}
spec:
  replicas: 0
  selector: {matchLabels: {app: many}}
  template:
    metadata: {labels: {app: many}}
    spec:
      terminationGracePeriodSeconds: 1
      initContainers:
      - {name: first, image: "balsa/box:1", command: [/busybox, "true"]}
      containers:
      - {name: main, image: "balsa/box:1", command: [/busybox, sleep, "7203"]}
`

// TestProcessesOfPodsAreKilled takes each kind of process that stands behind a
// pod. The pod comes back, says what happened and counts it; nothing of the other
// pods changes, and nothing is left of what was killed.
func TestProcessesOfPodsAreKilled(t *testing.T) {
	n := withNode(t, "gb")
	n.balsa("image", "import", n.programs.Echo)
	n.balsa("apply", "-f", "../../examples/hello.yaml")
	n.apply(sharedPod)
	n.apply(manyPods)
	n.ready(namespace, 3)
	n.ready("default", 1)
	t.Run("Shim", n.killShim)
	t.Run("Pause", n.killPause)
	t.Run("Exec", n.killExec)
	t.Run("Starters", n.killStarters)
}

func (n *crashNode) with(t *testing.T) *crashNode {
	return &crashNode{T: t, s: n.s, programs: n.programs, agent: n.agent}
}

// of are the processes of one pod; without, those of all others.
func of(uid string, processes []process) []process {
	return slices.DeleteFunc(slices.Clone(processes), func(p process) bool { return !strings.HasPrefix(p.group, uid+"/") })
}

func without(uid string, processes []process) []process {
	return slices.DeleteFunc(slices.Clone(processes), func(p process) bool { return strings.HasPrefix(p.group, uid+"/") })
}

// lose kills one process of a pod and waits until the pod has come back: each of
// its containers once more, and the same processes as before. The others live on.
func (n *crashNode) lose(namespace, name, program, group string, reasons ...string) {
	n.Helper()
	h := n.agent.Host
	pods := n.readyIn(namespace)
	before, uid := processesIn(h), pods[name].Metadata.UID
	victims := slices.DeleteFunc(of(uid, before), func(p process) bool { return !p.runs(program) || p.group != uid+"/"+group })
	if len(victims) != 1 {
		n.Fatalf("pod %s has %d processes %s in cgroup %s: %v", name, len(victims), program, group, names(of(uid, before)))
	}
	must(n.T, syscall.Kill(victims[0].pid, syscall.SIGKILL))
	n.until("the pod to come back", func(ctx context.Context) error {
		now, err := n.pods(ctx, namespace)
		if err != nil || now[name] == nil {
			return errors.Join(err, fmt.Errorf("the pods are %v", now))
		}
		for _, c := range now[name].containers() {
			if end := c.LastState.Terminated; c.RestartCount != 1 || !c.Ready || end == nil || !slices.Contains(reasons, end.Reason) || end.ExitCode != 137 {
				return fmt.Errorf("container %s: restarts %d ready %t, %v, before: %v", c.Name, c.RestartCount, c.Ready, c.State, c.LastState)
			}
		}
		if diff := cmp.Diff(names(of(uid, before)), withoutAttempts(names(of(uid, processesIn(h))))); diff != "" {
			return fmt.Errorf("its processes differ (-before +after):\n%s", diff)
		}
		return nil
	})
	n.unmoved(uid, before)
	after, err := n.pods(n.Context(), namespace)
	must(n.T, err)
	for other, p := range pods {
		if other != name && (after[other] == nil || after[other].lives() != p.lives()) {
			n.Errorf("pod %s was\n%s\nand is\n%+v", other, p.lives(), after[other])
		}
	}
}

// withoutAttempts names the second attempts' cgroups as the first ones'.
func withoutAttempts(lines []string) []string {
	for i := range lines {
		lines[i] = strings.Replace(lines[i], "-1: ", "-0: ", 1)
	}
	slices.Sort(lines)
	return lines
}

// unmoved checks that the processes of all pods but one are those of before.
func (n *crashNode) unmoved(uid string, before []process) {
	n.Helper()
	if diff := cmp.Diff(identities(without(uid, before)), identities(without(uid, processesIn(n.agent.Host)))); diff != "" {
		n.Errorf("the processes of other pods differ (-before +after):\n%s", diff)
	}
}

func (n *crashNode) readyIn(namespace string) map[string]*podStatus {
	n.Helper()
	pods, err := n.pods(n.Context(), namespace)
	must(n.T, err)
	return n.ready(namespace, len(pods))
}

func (n *crashNode) killShim(t *testing.T) {
	n = n.with(t)
	for name := range n.readyIn(namespace) {
		n.lose(namespace, name, "balsa-shim", "shim", "ShimLost")
		return
	}
}

// killPause: the kernel kills with it what is in its process namespace, which the
// shim may see before the agent notices.
func (n *crashNode) killPause(t *testing.T) {
	n.with(t).lose("default", "shared", "balsa-shim", "pause", "Error", "ShimLost")
}

// killExec kills the program that carries out an exec: the caller is told, and the
// containers do not notice. What was executed is left in its container and ends
// with it at the latest.
func (n *crashNode) killExec(t *testing.T) {
	n = n.with(t)
	n.readyIn("default")
	before := processesIn(n.agent.Host)
	command := n.s.Operator.Command(t.Context(), n.programs.Balsa, "--config", n.s.Admin(), "exec", "shared", "-c", "one", "--", "/busybox", "sleep", "7204")
	var said bytes.Buffer
	command.Stdout, command.Stderr = &said, &said
	must(t, command.Start())
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	executed := func() []process {
		return slices.DeleteFunc(processesIn(n.agent.Host), func(p process) bool { return p.args != "/busybox sleep 7204" })
	}
	var helpers []process
	n.until("the program to be executed", func(context.Context) error {
		select {
		case err := <-ended:
			t.Fatalf("the exec has ended: %v: %s", err, said.String())
		default:
		}
		helpers = slices.DeleteFunc(childrenOf(n.agent.Process.Pid()), func(p process) bool { return !p.runs("balsa-runc") })
		if len(executed()) != 1 || len(helpers) != 1 {
			return fmt.Errorf("the agent has the helpers %v, and in the pod runs %v", helpers, executed())
		}
		return nil
	})
	must(t, syscall.Kill(helpers[0].pid, syscall.SIGKILL))
	select {
	case err := <-ended:
		if exitCode(err) == 0 {
			t.Error("the exec says that it has succeeded")
		}
		t.Logf("the exec ends with %d and says: %s", exitCode(err), said.String())
	case <-time.After(patience):
		t.Fatal("the exec does not notice")
	}
	if now := identities(processesIn(n.agent.Host)); !containsLines(now, identities(before)) {
		t.Errorf("the processes were\n%s\nand are\n%s", identities(before), now)
	}
	n.balsa("exec", "shared", "-c", "one", "--", "/busybox", "true")
	n.balsa("delete", "pod", "shared")
	if left := executed(); len(left) > 0 {
		t.Errorf("the pod has gone, and of it there is left %v", left)
	}
}

// killStarters kills every second program that starts a container, in whatever
// it is doing, until some have been killed. All pods start in the end. Such a
// program may be gone before a busy machine looks, so the pods start anew until
// enough were met.
func (n *crashNode) killStarters(t *testing.T) {
	const pods, most = 8, 20
	n = n.with(t)
	killed, restarts := 0, 0
	for round := 0; killed < startersKilled; round++ {
		if round == most {
			t.Fatalf("%d programs that start containers were killed in %d rounds, %d were wanted", killed, most, startersKilled)
		}
		k, r := n.killStartersOnce(pods, startersKilled-killed)
		killed, restarts = killed+k, restarts+r
	}
	t.Logf("%d programs that start containers were killed, %d starts were tried again", killed, restarts)
	n.balsa("delete", "deployment", "many")
}

// killStartersOnce starts pods, kills at most so many programs that start them,
// and takes the pods away once they run. It returns the kills and the restarts.
func (n *crashNode) killStartersOnce(pods, most int) (killed, restarts int) {
	n.Helper()
	stop := background(n.T, func(ctx context.Context) error {
		seen := map[string]bool{}
		return every(ctx, watchEvery, func() (bool, error) {
			for _, p := range n.starters() {
				if key := fmt.Sprint(p.pid, p.since); !seen[key] && killed < most {
					seen[key] = true
					if len(seen)%2 == 0 && syscall.Kill(p.pid, syscall.SIGKILL) == nil {
						killed++
					}
				}
			}
			return killed == most, nil
		})
	})
	n.balsa("scale", "deployment/many", "--replicas", fmt.Sprint(pods))
	all := n.ready("default", pods)
	stop()
	for name, p := range all {
		for _, c := range p.containers() {
			restarts += c.RestartCount
		}
		if got := names(of(p.Metadata.UID, processesIn(n.agent.Host))); len(got) != 2 {
			n.Errorf("pod %s has the processes %v", name, got)
		}
	}
	if restarts > killed {
		n.Errorf("%d restarts are counted after %d kills", restarts, killed)
	}
	n.balsa("scale", "deployment/many", "--replicas", "0")
	n.ready("default", 0)
	n.until("nothing to be left of the pods", func(context.Context) error {
		var left []string
		for _, p := range all {
			left = append(left, filesBelow(p.Metadata.UID, filepath.Join(n.agent.Host.Dir, "run"), filepath.Join(n.agent.Host.Dir, "data", "agent"))...)
			left = append(left, slices.DeleteFunc(cgroupsOf(n.agent.Host), func(group string) bool { return !strings.Contains(group, p.Metadata.UID) })...)
			left = append(left, names(of(p.Metadata.UID, processesIn(n.agent.Host)))...)
		}
		if len(left) > 0 {
			return errors.New(strings.Join(left, "\n"))
		}
		return nil
	})
	return killed, restarts
}

// starters are the programs that start containers just now.
func (n *crashNode) starters() []process {
	var shims []int
	for _, p := range processesIn(n.agent.Host) {
		if p.runs("balsa-shim") {
			shims = append(shims, p.pid)
		}
	}
	return slices.DeleteFunc(childrenOf(shims...), func(p process) bool { return !strings.HasPrefix(p.args, "balsa-runc run ") })
}
