package daemon

//balsa:real-processes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/client"
)

// running is a server in this process.
type running struct {
	options ServerOptions
	stop    context.CancelFunc
	ended   chan error
}

func runServer(t *testing.T, o ServerOptions) *running {
	t.Helper()
	o.DataDir, o.Listen, o.Gossip, o.Logger = t.TempDir(), freeAddress(t), freeAddress(t), slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{options: o, stop: cancel, ended: make(chan error, 1)}
	go func() { r.ended <- RunServer(ctx, o) }()
	t.Cleanup(cancel)
	return r
}

// wait is for the end of a server that was told to stop.
func (r *running) wait(t *testing.T) {
	t.Helper()
	select {
	case err := <-r.ended:
		if err != nil {
			t.Errorf("%s ends with %v", r.options.Name, err)
		}
	case <-time.After(patience):
		t.Fatalf("%s does not end:\n%s", r.options.Name, goroutines())
	}
}

// admin is a client of that server alone, which repeats nothing.
func (r *running) admin(t *testing.T) *client.Client {
	t.Helper()
	eventually(t, func() error {
		_, err := os.Stat(filepath.Join(r.options.DataDir, adminFile))
		return err
	})
	c, err := client.FromFile(filepath.Join(r.options.DataDir, adminFile), func(c *client.Config) { c.Pinned, c.RetryFor = true, -1 })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// freeAddress is a port of loopback that TCP and UDP have free.
func freeAddress(t *testing.T) string {
	t.Helper()
	for range 100 {
		tcp, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		address := tcp.Addr().String()
		udp, err := net.ListenPacket("udp4", address)
		_ = tcp.Close()
		if err == nil {
			_ = udp.Close()
			return address
		}
	}
	t.Fatal("no port is free for TCP and UDP alike")
	return ""
}

func eventually(t *testing.T, holds func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := holds()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited for %v: %v\n%s", patience, err, goroutines())
		}
		<-time.After(20 * time.Millisecond)
	}
}

func goroutines() string {
	var text strings.Builder
	_ = pprof.Lookup("goroutine").WriteTo(&text, 2) // strings.Builder takes all
	return text.String()
}

// leftOver is every goroutine that only a server, or what it stands on, runs.
func leftOver() error {
	var left []error
	for one := range strings.SplitSeq(goroutines(), "\n\n") {
		for _, part := range []string{"hashicorp/raft", "hashicorp/serf", "hashicorp/memberlist", "bbolt", "balsa/cluster", "balsa/daemon/core", "balsa/apiserver", "balsa/reconciler", "daemon.(*demux)"} {
			if strings.Contains(one, part) {
				left = append(left, errors.New(one))
				break
			}
		}
	}
	return errors.Join(left...)
}

// TestAStoppedServerLeavesNothing behind in the process that ran it.
func TestAStoppedServerLeavesNothing(t *testing.T) {
	if err := leftOver(); err != nil {
		t.Fatalf("before it started: %v", err)
	}
	s := runServer(t, ServerOptions{Name: "s1", Init: true})
	c := s.admin(t)
	eventually(t, func() error { return leads(c) })
	c.Close()
	s.stop()
	s.wait(t)
	eventually(t, leftOver)
}

// leads tells whether a server knows a leader that a majority follows.
func leads(c *client.Client) error {
	_, err := c.Objects.List(context.Background(), &balsav1.ListRequest{Kind: "Namespace"})
	return err
}

// TestTwoOfThreeServersStop in one process: nothing of them goes on to lead the
// third, which says at once that there is no leader.
func TestTwoOfThreeServersStop(t *testing.T) {
	first := runServer(t, ServerOptions{Name: "s1", Init: true})
	c := first.admin(t)
	servers := map[string]*running{"s1": first}
	for _, name := range []string{"s2", "s3"} {
		var token string
		eventually(t, func() error {
			made, err := c.Cluster.CreateToken(t.Context(), &balsav1.CreateTokenRequest{Role: "server"})
			token = made.GetToken()
			return err
		})
		servers[name] = runServer(t, ServerOptions{Name: name, Join: []string{first.options.Listen}, Token: token})
		eventually(t, func() error { return voters(c, len(servers)) })
	}
	// The leader ends first, and with it the one that it hands over to.
	if _, err := c.Cluster.TransferLeadership(t.Context(), &balsav1.TransferLeadershipRequest{MemberId: idOf(t, c, "s2")}); err != nil {
		t.Log(err) // it may lead already
	}
	for _, name := range []string{"s2", "s3"} {
		servers[name].stop()
	}
	for _, name := range []string{"s2", "s3"} {
		servers[name].wait(t)
	}
	eventually(t, func() error {
		if runs := strings.Count(goroutines(), "raft.(*Raft).runFSM("); runs != 1 {
			return fmt.Errorf("%d rafts run", runs)
		}
		if err := leads(c); !strings.Contains(fmt.Sprint(err), "no leader is known") || connect.CodeOf(err) != connect.CodeUnavailable {
			return fmt.Errorf("the third says: %w", err)
		}
		return nil
	})
	c.Close()
	first.stop()
	first.wait(t)
	eventually(t, leftOver)
}

func voters(c *client.Client, want int) error {
	status, err := c.Cluster.GetStatus(context.Background(), &balsav1.GetStatusRequest{})
	if err != nil {
		return err
	}
	count := 0
	for _, m := range status.GetMembers() {
		if m.GetVoter() && m.GetProblem() == "" {
			count++
		}
	}
	if count != want {
		return fmt.Errorf("%d of %d vote: %v", count, want, status)
	}
	return nil
}

func idOf(t *testing.T, c *client.Client, name string) string {
	t.Helper()
	status, err := c.Cluster.GetStatus(t.Context(), &balsav1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range status.GetMembers() {
		if m.GetName() == name {
			return m.GetId()
		}
	}
	t.Fatalf("no member %s in %v", name, status)
	return ""
}
