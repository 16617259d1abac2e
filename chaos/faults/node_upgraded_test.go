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

// idleRounds is how often the agent and its oldest predecessor take turns.
const idleRounds = 4

// earlierAgent builds the program of the commit that a file names with its helpers
// inside, as it was delivered.
func earlierAgent(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", file))
	must(t, err)
	tree := filepath.Join(t.TempDir(), file)
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
// request fails. Then the oldest agent that there is takes its turn; its way to
// replace the rules loses a request in some two thousand, so nobody asks meanwhile.
func TestAgentIsReplacedFiftyTimes(t *testing.T) {
	oldest, earlier := earlierAgent(t, "earlier-commit"), earlierAgent(t, "earlier-agent-commit")
	s, programs := withApp(t, "gc", 1, 1)
	n := &crashNode{T: t, s: s, programs: programs, agent: s.Agents[0]}
	h := n.agent.Host
	r := &replacing{crashNode: n, pods: n.livesIn(namespace), processes: identities(processesIn(h))}
	stop := startRequests(t, s, h, programs, "rounds")
	for round := range agentRounds {
		r.replace(round, []string{earlier, programs.Balsa}[round%2], []string{"version=0.0.0-earlier", "version="}[round%2])
	}
	t.Logf("%d agents, the slowest was back after %v", agentRounds, r.slowest.Round(time.Millisecond))
	pause(t, settle)
	stop()
	for round := range idleRounds {
		r.replace(round, []string{oldest, programs.Balsa}[round%2], []string{"version=0.0.0-earlier", "version="}[round%2])
	}
	n.ready(namespace, 3)
	if after := n.livesIn(namespace); after != r.pods {
		t.Errorf("containers changed (-before +after):\n%s", cmp.Diff(r.pods, after))
	}
	// What the last one finds is a node that works.
	scale(t, s, 4)
	if now := identities(processesIn(h)); !containsLines(now, r.processes) {
		t.Errorf("the processes were\n%s\nand are\n%s", r.processes, now)
	}
	n.balsa("delete", "-f", "../../examples/hello.yaml")
	if left := processesIn(h); len(left) > 0 {
		t.Errorf("there is left %v", names(left))
	}
}

// replacing is a node whose agent is replaced; pods and processes are what has to
// stay as it is.
type replacing struct {
	*crashNode
	pods, processes string
	slowest         time.Duration
}

// replace ends the agent, in turn by SIGTERM and SIGKILL, and begins another.
func (r *replacing) replace(round int, binary, version string) {
	r.Helper()
	h, process := r.agent.Host, r.agent.Process
	if round%4 < 2 {
		must(r.T, process.Stop(patience))
	} else {
		must(r.T, process.Kill())
	}
	log, began := logEnd(r.T, process.LogPath), time.Now()
	r.startOn(binary, filepath.Join(h.Dir, "data"), filepath.Join(h.Dir, "run"))
	r.says(log, "agent runs", version, "registered")
	r.slowest = max(r.slowest, time.Since(began))
	if now := identities(processesIn(h)); now != r.processes {
		r.Fatalf("%s, round %d, changed processes (-before +after):\n%s", version, round, cmp.Diff(r.processes, now))
	}
	if now := r.livesIn(namespace); now != r.pods {
		r.Fatalf("%s, round %d, changed what the pods tell (-before +after):\n%s", version, round, cmp.Diff(r.pods, now))
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
