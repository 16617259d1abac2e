package faults

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// TestPodsRestartWithoutServers ends containers while no server is there, before
// and after a restart of the agent. They run again by what the node knows, and the
// servers learn of it when they are back.
func TestPodsRestartWithoutServers(t *testing.T) {
	s, programs := withApp(t, "ge", 1, 1)
	n := &crashNode{T: t, s: s, programs: programs, agent: s.Agents[0]}
	before := n.ready(namespace, 3)
	must(t, s.Servers[0].Process.Kill())
	crashed := []string{n.crash()}
	must(t, n.agent.Process.Kill())
	log := logEnd(t, n.agent.Process.LogPath)
	must(t, n.agent.Restart())
	n.says(log, "agent runs")
	crashed = append(crashed, n.crash())
	must(t, s.Servers[0].Restart())
	n.until("the servers to know", func(ctx context.Context) error {
		pods, err := n.pods(ctx, namespace)
		if err != nil {
			return err
		}
		for name, p := range pods {
			c, want := p.Status.Main[0], 0
			if slices.Contains(crashed, p.Metadata.UID) {
				want = 1
			}
			switch {
			case before[name] == nil || !p.ready() || c.RestartCount != want:
				return fmt.Errorf("pod %s: ready %t, %d restarts, %v", name, p.ready(), c.RestartCount, c.State)
			case want == 0 && p.lives() != before[name].lives():
				return fmt.Errorf("pod %s was\n%s\nand is\n%s", name, before[name].lives(), p.lives())
			case want == 1 && c.LastState.String() != "Error 137":
				return fmt.Errorf("pod %s ended with %v", name, c.LastState)
			}
		}
		return nil
	})
	n.ready(namespace, 3)
}

// crash ends a container that has not ended yet, waits until the pod has another
// in its place, and returns the pod's uid.
func (n *crashNode) crash() (uid string) {
	n.Helper()
	for _, p := range processesIn(n.agent.Host) {
		if strings.HasSuffix(p.group, "/echo-0") {
			uid, _, _ = strings.Cut(p.group, "/")
			must(n.T, syscall.Kill(p.pid, syscall.SIGKILL))
			break
		}
	}
	n.until("the container to be started again", func(context.Context) error {
		running := names(of(uid, processesIn(n.agent.Host)))
		if len(running) != 2 || !strings.HasPrefix(running[0], "echo-1: ") {
			return fmt.Errorf("there is %v", running)
		}
		return nil
	})
	return uid
}
