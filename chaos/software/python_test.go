package software

import (
	"context"
	"fmt"
	"strings"
	"testing"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/chaos/world/host"
)

// python reads what Balsa gives to it, and Balsa tells how it ends.
func python(t *testing.T, c *cluster) {
	c.apply(t, "python.yaml")
	pod := c.onlyPod(t, "python", "app=python")
	contains(t, "what the program found", c.ask(t, pod, "/"),
		"greeting good morning\n", "pod app\n", "node "+pod.GetSpec().GetNodeName()+"\n", "address "+pod.GetStatus().GetPodIp()+"\n",
		"memory 128\n", "token open sesame\n", `labels app="python",tier="front"`, "uid 65534 gid 4321", "1234")
	c.untilLogged(t, "serves\n", "this goes to stderr\n", `request "GET / HTTP/1.1" 200`)

	c.ask(t, pod, "/exit")
	ended := c.restarted(t, "python", "app", 1)
	if ended.GetExitCode() != 7 || ended.GetReason() != "Error" {
		t.Errorf("a program that ended with 7 is said to have ended with %v", ended)
	}
	contains(t, "the log of the run before", c.logs(t, "python", pod, "-p"), "asked to end\n")
	if out, code := c.fails(t, "exec", "app", "-n", "python", "--", "python3", "-c", "raise SystemExit(5)"); code != 5 {
		t.Errorf("exec ended with %d, want the program's 5: %s", code, out)
	}
	c.followToTheEnd(t)
	c.runOnce(t)
	c.balsa(t, "delete", "namespace", "python")
}

// untilLogged waits for what the program printed: it comes after the answer.
func (c *cluster) untilLogged(t *testing.T, wanted ...string) {
	t.Helper()
	c.until(t, "the log to be complete", func(ctx context.Context) error {
		out, err := c.Balsa(ctx, "logs", "app", "-n", "python")
		if err != nil {
			return err
		}
		for _, want := range wanted {
			if !strings.Contains(out, want) {
				return fmt.Errorf("it has no %q: %s", want, out)
			}
		}
		return nil
	})
}

func (c *cluster) ask(t *testing.T, pod *balsav1.Pod, path string) string {
	t.Helper()
	out, err := c.Agents[0].Host.Run(t.Context(), "curl", "-sS", "--max-time", "30", "http://"+pod.GetStatus().GetPodIp()+":8080"+path)
	must(t, err)
	return out
}

// followToTheEnd deletes the pod while its log is followed: what it prints at
// SIGTERM is seen, and the following ends.
func (c *cluster) followToTheEnd(t *testing.T) {
	t.Helper()
	follow, err := c.Operator.Start("follow", c.programs.Balsa, "--config", c.Admin(), "-n", "python", "logs", "-f", "app")
	must(t, err)
	c.untilSaid(t, follow, "serves")
	c.balsa(t, "delete", "pod", "app", "-n", "python")
	c.untilSaid(t, follow, "ending on signal 15")
	c.until(t, "the following of a log to end with the pod", func(context.Context) error {
		if follow.Running() {
			return fmt.Errorf("it goes on: %s", follow.Tail(5))
		}
		return nil
	})
}

func (c *cluster) untilSaid(t *testing.T, p *host.Process, want string) {
	t.Helper()
	c.until(t, p.Name+" to say "+want, func(context.Context) error {
		if said := p.Tail(1000); !strings.Contains(said, want) {
			return fmt.Errorf("it said %q", said)
		}
		return nil
	})
}

// runOnce has a program that fails and is not started again, with a last word.
func (c *cluster) runOnce(t *testing.T) {
	t.Helper()
	c.apply(t, "python-once.yaml")
	var ended *balsav1.ContainerStateTerminated
	c.until(t, "the pod to fail", func(ctx context.Context) error {
		pod, err := c.pod(ctx, "python", "once")
		if err != nil {
			return err
		}
		if phase := pod.GetStatus().GetPhase(); phase != "Failed" {
			return fmt.Errorf("it is %s: %v", phase, pod.GetStatus().GetContainerStatuses())
		}
		ended = pod.GetStatus().GetContainerStatuses()[0].GetState().GetTerminated()
		return nil
	})
	if ended.GetExitCode() != 3 || ended.GetReason() != "Error" || strings.TrimSpace(ended.GetMessage()) != "the last word" {
		t.Errorf("a program that ended with 3 and a last word ended with %v", ended)
	}
}
