package software

import (
	"context"
	"fmt"
	"testing"
	"time"
)

const (
	// graceSlack is what a busy machine may need beyond a grace period.
	graceSlack = 30 * time.Second
	// fewZombies may be seen of a shell that has not come to wait for its children
	// yet; it makes five a second.
	fewZombies = 4
	killed     = 137
)

// shell looks at scripts as PID 1, which has no handlers of signals unless it
// says so and inherits everybody's children.
func shell(t *testing.T, c *cluster) {
	c.apply(t, "shell.yaml")
	_, err := c.WaitReady(t.Context(), "shell", 2, patience)
	must(t, err)
	c.killedBySickness(t)
	c.inheritedChildren(t)
	c.deleteUnwilling(t, "careless", 2*time.Second)
	c.deleteUnwilling(t, "stubborn", 4*time.Second)
	c.balsa(t, "delete", "namespace", "shell")
}

// killedBySickness fails a liveness probe, whose own grace ends with SIGKILL.
func (c *cluster) killedBySickness(t *testing.T) {
	t.Helper()
	c.balsa(t, "exec", "stubborn", "-n", "shell", "--", "touch", "/tmp/sick")
	ended := c.restarted(t, "shell", "stubborn", 1)
	if ended.GetExitCode() != killed {
		t.Errorf("a script that ignores SIGTERM ended with %v, want 137", ended)
	}
	contains(t, "the log before the kill", c.balsa(t, "logs", "stubborn", "-n", "shell", "-p"), "started\n", "SIGTERM ignored\n")
	// The next run begins with the image's files.
	c.balsa(t, "exec", "stubborn", "-n", "shell", "--", "sh", "-c", "! test -e /tmp/sick")
}

// inheritedChildren: nothing keeps the shell from waiting for those it inherits,
// also of exec, and nothing of exec is left.
func (c *cluster) inheritedChildren(t *testing.T) {
	t.Helper()
	pod, err := c.pod(t.Context(), "shell", "stubborn")
	must(t, err)
	for range 10 {
		c.balsa(t, "exec", "stubborn", "-n", "shell", "--", "sh", "-c", "(sleep 0.05 &)")
	}
	c.until(t, "few zombies", func(context.Context) error {
		zombies := 0
		for _, p := range processes(t, pod) {
			if p.zombie {
				zombies++
			}
		}
		if zombies > fewZombies {
			return fmt.Errorf("there are %d", zombies)
		}
		return nil
	})
}

// deleteUnwilling deletes a pod that SIGTERM does not end: it gets all of its
// grace, then it is killed, whatever it has inherited. Who watches sees that.
func (c *cluster) deleteUnwilling(t *testing.T, name string, grace time.Duration) {
	t.Helper()
	pod, err := c.pod(t.Context(), "shell", name)
	must(t, err)
	watch, err := c.Operator.Start("watch-"+name, c.programs.Balsa, "--config", c.Admin(), "-n", "shell", "get", "pod", name, "-w", "-o", "json")
	must(t, err)
	c.untilSaid(t, watch, `"running"`)
	started := time.Now()
	c.balsa(t, "delete", "pod", name, "-n", "shell")
	took := time.Since(started)
	t.Logf("%s, with a grace of %v, was gone after %v", name, grace, took.Round(time.Millisecond))
	if took < grace || took > grace+graceSlack {
		t.Errorf("%s was gone after %v, want %v and little more", name, took, grace)
	}
	if left := processes(t, pod); len(left) > 0 {
		t.Errorf("%s is gone and has processes: %+v", name, left)
	}
	c.untilSaid(t, watch, fmt.Sprintf(`"exitCode": %d`, killed))
	must(t, watch.Kill())
}
