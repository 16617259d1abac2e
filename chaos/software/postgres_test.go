package software

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

const (
	accountsQuery = "select 'rows ' || count(*) || ' sum ' || sum(balance) from accounts"
	accounts      = "rows 500 sum 1252500"
)

// postgres keeps its rows when its pod is replaced, when it is killed, and when
// its volume is full.
func postgres(t *testing.T, c *cluster) {
	c.apply(t, "postgres.yaml")
	pod := c.onlyPod(t, "postgres", "app=postgres")
	// What is looked for at the end is seen now.
	contains(t, "what there is of pods", strings.Join(leftovers(t, c), "\n"), "loop ", "mount ", "volumes/persistent/pvc-", "volumes/pods/", "shim", "cgroup")
	c.writeAccounts(t)
	c.sameAccounts(t)
	c.copyIn(t)

	c.balsa(t, "delete", "pod", pod.GetMetadata().GetName(), "-n", "postgres")
	pod = c.onlyPod(t, "postgres", "app=postgres", pod.GetMetadata().GetName())
	c.sameAccounts(t)
	contains(t, "the log of the init container", c.logs(t, "postgres", pod, "-c", "initdb"), "database found")
	log := c.logs(t, "postgres", pod, "-c", "postgres")
	contains(t, "the log after a replacement", log, "database system was shut down at")
	if strings.Contains(log, "not properly shut down") {
		t.Errorf("the stop signal did not bring a fast shutdown:\n%s", log)
	}

	must(t, syscall.Kill(first(t, pod, "postgres"), syscall.SIGKILL))
	ended := c.restarted(t, "postgres", pod.GetMetadata().GetName(), 1)
	if ended.GetExitCode() != 137 || ended.GetReason() != "Error" {
		t.Errorf("a killed container ended with %v, want 137, Error", ended)
	}
	contains(t, "the log after SIGKILL", c.logs(t, "postgres", pod, "-c", "postgres"), "not properly shut down; automatic recovery in progress")
	contains(t, "the log before SIGKILL", c.logs(t, "postgres", pod, "-c", "postgres", "-p"), "ready to accept connections")
	c.sameAccounts(t)

	c.fillVolume(t, pod)
	c.balsa(t, "delete", "namespace", "postgres")
}

func (c *cluster) logs(t *testing.T, namespace string, pod *balsav1.Pod, args ...string) string {
	t.Helper()
	return c.balsa(t, append([]string{"logs", pod.GetMetadata().GetName(), "-n", namespace}, args...)...)
}

// writeAccounts has a pod of its own write over the network.
func (c *cluster) writeAccounts(t *testing.T) {
	t.Helper()
	file := c.apply(t, "postgres-client.yaml")
	c.until(t, "the client to succeed", func(ctx context.Context) error {
		pod, err := c.pod(ctx, "postgres", "client")
		if err != nil {
			return err
		}
		if phase := pod.GetStatus().GetPhase(); phase != "Succeeded" {
			return fmt.Errorf("it is %s: %v", phase, pod.GetStatus().GetContainerStatuses())
		}
		return nil
	})
	contains(t, "the log of the client", c.balsa(t, "logs", "client", "-n", "postgres"), "INSERT 0 500", accounts)
	c.balsa(t, "delete", "-f", file)
}

// copyIn sends a table through the standard input of exec, and one back.
func (c *cluster) copyIn(t *testing.T) {
	t.Helper()
	const copied = 100_000
	c.balsa(t, c.psql("create table numbers (n int)")...)
	script := fmt.Sprintf(`set -eu -o pipefail
psql() { %q --config %q -n postgres exec -i deploy/postgres -c postgres -- psql -At -v ON_ERROR_STOP=1 -c "$1"; }
seq %d | psql "copy numbers from stdin"
psql "copy (select n from numbers order by n) to stdout" </dev/null | cmp - <(seq %d)`, c.programs.Balsa, c.Admin(), copied, copied)
	out, err := c.Operator.Run(t.Context(), "bash", "-c", script)
	if err != nil {
		t.Fatalf("copy through exec: %v: %s", err, out)
	}
}

func (c *cluster) psql(query string) []string {
	return []string{"exec", "deploy/postgres", "-n", "postgres", "-c", "postgres", "--", "psql", "-At", "-v", "ON_ERROR_STOP=1", "-c", query}
}

func (c *cluster) sameAccounts(t *testing.T) {
	t.Helper()
	contains(t, "the table", c.balsa(t, c.psql(accountsQuery)...), accounts)
}

// fillVolume writes until nothing more goes in. Whoever writes is told so; reading
// goes on, the node is well, and with room there is again everything works.
func (c *cluster) fillVolume(t *testing.T, pod *balsav1.Pod) {
	t.Helper()
	shell := []string{"exec", pod.GetMetadata().GetName(), "-n", "postgres", "-c", "postgres", "--", "sh", "-c"}
	out, code := c.fails(t, append(shell, "dd if=/dev/zero of=$PGDATA/ballast bs=1M count=1000")...)
	if code != 1 {
		t.Errorf("dd on a full volume ended with %d, want its own 1", code)
	}
	contains(t, "what dd said on a full volume", out, "No space left on device")
	out, _ = c.fails(t, c.psql("create unlogged table fill as select repeat(md5(n::text), 50) from generate_series(1, 20000) n")...)
	contains(t, "what PostgreSQL said on a full volume", out, "could not extend file", "No space left on device")
	c.sameAccounts(t)
	c.nodeWell(t, c.node(t, pod))
	c.balsa(t, append(shell, "rm $PGDATA/ballast")...)
	c.balsa(t, c.psql("create table again as select 'written after ' || n from generate_series(1, 1000) n")...)
	c.sameAccounts(t)
	now := c.onlyPod(t, "postgres", "app=postgres")
	if restarts := now.GetStatus().GetContainerStatuses()[0].GetRestartCount(); restarts != 1 {
		t.Errorf("a full volume had PostgreSQL restarted: %d restarts, want the one after SIGKILL", restarts)
	}
}
