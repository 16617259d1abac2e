package faults

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// agentRounds is how often the agent is replaced.
const agentRounds = 50

// earlierAgent builds the program of the earlier commit with its helpers inside,
// as it was delivered.
func earlierAgent(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("testdata/earlier-commit")
	must(t, err)
	tree := filepath.Join(t.TempDir(), "earlier")
	git(t, "../..", "git", "worktree", "add", "--detach", tree, strings.TrimSpace(string(text)))
	t.Cleanup(func() {
		command := exec.Command("git", "worktree", "remove", "--force", tree)
		command.Dir = "../.."
		if out, err := command.CombinedOutput(); err != nil {
			t.Errorf("git worktree remove: %v: %s", err, out)
		}
	})
	git(t, tree, "make", "build", "VERSION=0.0.0-earlier")
	return filepath.Join(tree, "bin", "balsa")
}

// startOn runs an agent on folders that a node has.
func (n *crashNode) startOn(binary, data, run string, args ...string) {
	n.Helper()
	h := n.agent.Host
	process, err := h.Start("agent", binary, append([]string{"agent", "--name", h.Name, "--data-dir", data, "--run-dir", run,
		"--node-ip", h.Address, "--cgroup-prefix", h.CgroupPrefix()}, args...)...)
	must(n.T, err)
	n.agent.Process = process
}

// says waits until the agent's log has each of some words, in lines that came
// since.
func (n *crashNode) says(log *logFrom, words ...string) {
	n.Helper()
	var text strings.Builder
	n.until("the agent to say "+strings.Join(words, ", "), func(context.Context) error {
		for _, line := range log.lines() {
			text.WriteString(line + "\n")
		}
		for _, word := range words {
			if !strings.Contains(text.String(), word) {
				return fmt.Errorf("it says\n%s", text.String())
			}
		}
		if !n.agent.Process.Running() {
			return errors.New("it has ended")
		}
		return nil
	})
}

// TestAgentIsReplacedFiftyTimes upgrades and downgrades the agent in turn, half of
// the times with SIGKILL, while a Service is asked. No container notices, no
// request fails.
func TestAgentIsReplacedFiftyTimes(t *testing.T) {
	old := earlierAgent(t)
	s, programs := withApp(t, "gc", 1, 1)
	n := &crashNode{T: t, s: s, programs: programs, agent: s.Agents[0]}
	h, binaries := n.agent.Host, []string{old, programs.Balsa}
	versions := []string{"version=0.0.0-earlier", "version="}
	data, run := filepath.Join(h.Dir, "data"), filepath.Join(h.Dir, "run")
	before, processes := n.livesIn(namespace), identities(processesIn(h))
	stop := startRequests(t, s, h, programs, "rounds")
	var slowest time.Duration
	for round := range agentRounds {
		if round%4 < 2 {
			must(t, n.agent.Process.Stop(patience))
		} else {
			must(t, n.agent.Process.Kill())
		}
		log, began := logEnd(t, n.agent.Process.LogPath), time.Now()
		n.startOn(binaries[round%2], data, run)
		n.says(log, "agent runs", versions[round%2], "registered")
		slowest = max(slowest, time.Since(began))
		if now := identities(processesIn(h)); now != processes {
			t.Fatalf("round %d changed processes (-before +after):\n%s", round, cmp.Diff(processes, now))
		}
		if now := n.livesIn(namespace); now != before {
			t.Fatalf("round %d changed what the pods tell (-before +after):\n%s", round, cmp.Diff(before, now))
		}
	}
	t.Logf("%d agents, the slowest was back after %v", agentRounds, slowest.Round(time.Millisecond))
	pause(t, settle)
	stop()
	n.ready(namespace, 3)
	if after := n.livesIn(namespace); after != before {
		t.Errorf("containers changed (-before +after):\n%s", cmp.Diff(before, after))
	}
	// What the last one finds is a node that works.
	scale(t, s, 4)
	if now := identities(processesIn(h)); !containsLines(now, processes) {
		t.Errorf("the processes were\n%s\nand are\n%s", processes, now)
	}
	n.balsa("delete", "-f", "../../examples/hello.yaml")
	if left := processesIn(h); len(left) > 0 {
		t.Errorf("there is left %v", names(left))
	}
}

func containsLines(all, some string) bool {
	for _, line := range strings.Split(some, "\n") {
		if !strings.Contains(all, line) {
			return false
		}
	}
	return true
}

// livesIn tells which containers of a namespace run and since when.
func (n *crashNode) livesIn(namespace string) string {
	n.Helper()
	pods, err := n.pods(n.Context(), namespace)
	must(n.T, err)
	var lines []string
	for _, p := range pods {
		lines = append(lines, p.lives())
	}
	return sorted(lines)
}
