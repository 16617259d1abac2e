package software

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

const (
	// graceSlack is what a busy machine may need beyond a grace period.
	graceSlack = 30 * time.Second
	// fewZombies may be seen of a shell that has not come to wait for its children
	// yet; it makes five a second.
	fewZombies = 4
)

// shell looks at scripts as PID 1, which has no handlers of signals unless it
// says so and inherits everybody's children.
func shell(t *testing.T, c *cluster) {
	c.apply(t, "shell.yaml")
	_, err := c.WaitReady(t.Context(), "shell", 2, patience)
	must(t, err)
	c.killedBySickness(t)
	c.inheritedChildren(t)
	c.deleteUnwilling(t, "stubborn", 4*time.Second, 137)
	c.deleteUnwilling(t, "careless", 2*time.Second, 137)
	c.balsa(t, "delete", "namespace", "shell")
}

// killedBySickness fails a liveness probe, whose own grace ends with SIGKILL.
func (c *cluster) killedBySickness(t *testing.T) {
	t.Helper()
	c.balsa(t, "exec", "stubborn", "-n", "shell", "--", "touch", "/tmp/sick")
	ended := c.restarted(t, "shell", "stubborn", 1)
	if ended.GetExitCode() != 137 {
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
// grace, then it is killed, whatever it has inherited.
func (c *cluster) deleteUnwilling(t *testing.T, name string, grace time.Duration, exitCode int32) {
	t.Helper()
	pod, err := c.pod(t.Context(), "shell", name)
	must(t, err)
	started := time.Now()
	c.balsa(t, "delete", "pod", name, "-n", "shell", "--wait=false")
	var last *balsav1.Pod
	c.until(t, name+" to be gone", func(ctx context.Context) error {
		now, err := c.pod(ctx, "shell", name)
		if err == nil {
			last = now
			return errors.New("it is there")
		}
		return notFound(err)
	})
	took := time.Since(started)
	t.Logf("%s, with a grace of %v, was gone after %v; last seen: %v", name, grace, took.Round(time.Millisecond), last.GetStatus().GetContainerStatuses())
	if took < grace || took > grace+graceSlack {
		t.Errorf("%s was gone after %v, want %v and little more", name, took, grace)
	}
	if left := processes(t, pod); len(left) > 0 {
		t.Errorf("%s is gone and has processes: %+v", name, left)
	}
	_ = exitCode
}
