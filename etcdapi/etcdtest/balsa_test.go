package etcdtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// startBalsa starts a balsa server of its own, with etcd's API, and makes a client
// for it as a person would.
func startBalsa(t testing.TB) *side {
	t.Helper()
	program, err := filepath.Abs(*balsaFlag)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s := &side{name: "balsa server", address: freeAddress(t)}
	startProcess(t, s.name, exec.Command(program, "server", "--init", "--name", "s1", "--data-dir", filepath.Join(dir, "data"),
		"--listen", freeAddress(t), "--gossip-listen", freeAddress(t), "--etcd-listen", s.address, "--log-level", "warn"))
	admin := filepath.Join(dir, "data", "admin.yaml")
	eventually(t, "the server has made a cluster", func() bool {
		_, err := os.Stat(admin)
		return err == nil
	})
	pems := filepath.Join(dir, "pems")
	// It waits for the server by itself.
	create := exec.CommandContext(within(t), program, "--config", admin, "user", "create", "tester", "--role", "admin", "--pem", pems)
	if said, err := create.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", create, err, said)
	}
	s.connect(t, pems)
	awaitLeader(t, s.client, s.address)
	return s
}
