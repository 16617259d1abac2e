package etcdtest

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// startEtcd starts a real etcd of one member on a folder of its own, and returns
// when it answers. It ends with the test.
func startEtcd(t testing.TB, flags ...string) *side {
	t.Helper()
	s, _ := startEtcdOn(t, t.TempDir(), flags...)
	return s
}

// startEtcdOn starts it on a folder that may hold data already. stop ends it
// before the test does.
func startEtcdOn(t testing.TB, dir string, flags ...string) (s *side, stop func()) {
	t.Helper()
	s = &side{name: "etcd", address: freeAddress(t)}
	clients, peers := "http://"+s.address, "http://"+freeAddress(t)
	args := append([]string{
		"--name", "default", "--data-dir", dir, "--log-level", "error",
		"--listen-client-urls", clients, "--advertise-client-urls", clients,
		"--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers, "--initial-cluster", "default=" + peers,
		// The disk is not what is compared.
		"--unsafe-no-fsync",
	}, flags...)
	stop, s.ended = startProcess(t, "etcd", exec.Command(peer("etcd"), args...))
	s.connect(t, "")
	awaitLeader(t, s.client, s.address)
	return s, stop
}

func awaitLeader(t testing.TB, c *clientv3.Client, address string) {
	t.Helper()
	eventually(t, address+" has a leader", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		r, err := c.Status(ctx, address)
		return err == nil && r.Leader != 0
	})
}

// startProcess starts a program that ends with the test, by a signal it may obey
// and then by one it cannot. What it said is shown when the test fails.
func startProcess(t testing.TB, name string, cmd *exec.Cmd) (stop func(), end <-chan struct{}) {
	t.Helper()
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended is of no interest
		close(ended)
	}()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(patience / 3):
			cmd.Process.Signal(os.Kill)
			<-ended
		}
		if t.Failed() {
			t.Logf("%s said:\n%s", name, tail(said.String(), 4000))
		}
	}
	t.Cleanup(stop)
	return stop, ended
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }
