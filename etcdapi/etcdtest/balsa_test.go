package etcdtest

import (
	"bytes"
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
	s := &side{name: "balsa server", address: freeAddress(t), program: program, listen: freeAddress(t)}
	startProcess(t, s.name, exec.Command(program, "server", "--init", "--name", "s1", "--data-dir", filepath.Join(dir, "data"),
		"--listen", s.listen, "--gossip-listen", freeAddress(t), "--etcd-listen", s.address, "--log-level", "warn"))
	s.admin, s.pems = filepath.Join(dir, "data", "admin.yaml"), filepath.Join(dir, "pems")
	eventually(t, "the server has made a cluster", func() bool {
		_, err := os.Stat(s.admin)
		return err == nil
	})
	s.balsa(t, "user", "create", "tester", "--role", "admin", "--pem", s.pems)
	s.connect(t, s.pems)
	awaitLeader(t, s.client, s.address)
	return s
}

// balsa runs a command of the operator, which waits for the servers by itself, and
// returns what it prints.
func (s *side) balsa(t testing.TB, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(within(t), s.program, append([]string{"--config", s.admin}, args...)...)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s%s", cmd, err, out, said.String())
	}
	return string(out)
}
