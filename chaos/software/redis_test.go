package software

import (
	"context"
	"fmt"
	"strings"
	"testing"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// redis keeps its keys on a volume that is a folder: when its pod is replaced,
// when it was killed for using more memory than it may, and when it may use more.
func redis(t *testing.T, c *cluster) {
	c.apply(t, "redis.yaml")
	pod := c.onlyPod(t, "redis", "app=redis")
	c.setOverForward(t)
	c.redisCLI(t, "OK", "set", "kept", "by exec")

	c.balsa(t, "delete", "pod", pod.GetMetadata().GetName(), "-n", "redis")
	pod = c.onlyPod(t, "redis", "app=redis", pod.GetMetadata().GetName())
	c.redisKeys(t)
	contains(t, "the log of the replacement", c.logs(t, "redis", pod), "DB loaded from append only file")

	c.outOfMemory(t, pod)
	c.redisKeys(t)

	c.apply(t, "redis.yaml", "memory: 48Mi", "memory: 56Mi")
	c.onlyPod(t, "redis", "app=redis", pod.GetMetadata().GetName())
	c.redisKeys(t)
	c.balsa(t, "delete", "namespace", "redis")
}

func (c *cluster) redisCLI(t *testing.T, want string, args ...string) {
	t.Helper()
	out := c.balsa(t, append([]string{"exec", "deploy/redis", "-n", "redis", "--", "redis-cli"}, args...)...)
	contains(t, fmt.Sprint(args), out, want)
}

func (c *cluster) redisKeys(t *testing.T) {
	t.Helper()
	c.redisCLI(t, "by exec", "get", "kept")
	c.redisCLI(t, "by-forward", "get", "forwarded")
}

// setOverForward speaks Redis' protocol through a forwarded port.
func (c *cluster) setOverForward(t *testing.T) {
	t.Helper()
	forward, err := c.Operator.Start("forward", c.programs.Balsa, "--config", c.Admin(), "-n", "redis", "port-forward", "deploy/redis", "16379:redis")
	must(t, err)
	const dialogue = `exec 3<>/dev/tcp/127.0.0.1/16379; printf 'SET forwarded by-forward\r\n' >&3; read -r -t 20 line <&3; echo "$line"`
	c.until(t, "an answer through the forwarded port", func(ctx context.Context) error {
		out, err := c.Operator.Run(ctx, "bash", "-c", dialogue)
		if err == nil && !strings.Contains(out, "+OK") {
			err = fmt.Errorf("it is %q: %s", out, forward.Tail(5))
		}
		return err
	})
	must(t, forward.Kill())
}

// outOfMemory has Redis take more than its limit.
func (c *cluster) outOfMemory(t *testing.T, pod *balsav1.Pod) {
	t.Helper()
	name := pod.GetMetadata().GetName()
	// Whether the client hears of the end of its server is not said.
	c.mayFail(t, "exec", name, "-n", "redis", "--", "redis-cli", "setrange", "big", "100000000", "x")
	ended := c.restarted(t, "redis", name, 1)
	if ended.GetReason() != "OOMKilled" || ended.GetExitCode() != 137 {
		t.Errorf("a container beyond its memory limit ended with %v, want 137, OOMKilled", ended)
	}
	contains(t, "balsa describe", c.balsa(t, "describe", "pod", name, "-n", "redis"), "OOMKilled")
	c.nodeWell(t, c.node(t, pod))
}
