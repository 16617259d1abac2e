package inside

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/balsa-run/balsa/cluster/memlog"
	"github.com/balsa-run/balsa/cluster/memnet"
	"github.com/balsa-run/balsa/pki"
)

// ports attaches a server and a client to a network.
func ports(t *testing.T) (network *memnet.Network, server, user *port) {
	t.Helper()
	network = memnet.New()
	server, err := newPort(network, "s1:7443", pki.Identity{Role: pki.RoleServer, Name: "s1"})
	if err != nil {
		t.Fatal(err)
	}
	user, err = newPort(network, "c1:1", pki.Identity{Role: pki.RoleAdmin, Name: "c1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, p := range []*port{server, user} {
			p.die()
			p.bury()
		}
	})
	return network, server, user
}

func TestConnectionsFindTheirProtocol(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, server, user := ports(t)
		for protocol, listener := range map[string]net.Listener{protocolAPI: server.API(), protocolJoin: server.Join()} {
			c, err := user.dial(t.Context(), "s1:7443", protocol)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(c, "hello"); err != nil {
				t.Fatal(err)
			}
			accepted, err := listener.Accept()
			if err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 5)
			if _, err := io.ReadFull(accepted, got); err != nil || string(got) != "hello" {
				t.Errorf("%s: read %q, %v", protocol, got, err)
			}
			if who, ok := server.Identify(accepted); !ok || who.String() != "admin/c1" {
				t.Errorf("%s: called by %v (%v), expected admin/c1", protocol, who, ok)
			}
		}
	})
}

func TestConnectionsThatAreRefused(t *testing.T) {
	for name, open := range map[string]func(user *port) (net.Conn, error){
		"raft for a client":  func(user *port) (net.Conn, error) { return user.DialRaft("s1:7443", time.Second) },
		"no such protocol":   func(user *port) (net.Conn, error) { return user.dial(context.Background(), "s1:7443", "gopher") },
		"a first line of 1k": func(user *port) (net.Conn, error) { return raw(user, strings.Repeat("x", 1<<10)) },
		"half a first line":  func(user *port) (net.Conn, error) { return raw(user, "api ") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, _, user := ports(t)
				c, err := open(user)
				if err != nil {
					t.Fatal(err)
				}
				if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
					t.Errorf("read %d bytes, %v; expected the end", n, err)
				}
				_ = c.Close()
			})
		})
	}
}

func raw(user *port, text string) (net.Conn, error) {
	c, err := user.host.DialContext(context.Background(), "s1:7443")
	if err == nil {
		_, err = io.WriteString(c, text)
	}
	return c, err
}

// A dead process does nothing, and the other end learns of it at the burial.
func TestDeadPort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, server, user := ports(t)
		near, err := user.DialServer(t.Context(), "s1:7443")
		if err != nil {
			t.Fatal(err)
		}
		far, err := server.API().Accept()
		if err != nil {
			t.Fatal(err)
		}
		waiting := make(chan error, 1)
		go func() { _, err := far.Read(make([]byte, 1)); waiting <- err }()
		synctest.Wait()
		server.die()
		if err := <-waiting; !errors.Is(err, errDead) {
			t.Errorf("who waited in a read was told %v", err)
		}
		if _, err := far.Write([]byte("x")); !errors.Is(err, errDead) {
			t.Errorf("wrote after death: %v", err)
		}
		if err := errors.Join(far.SetDeadline(time.Time{}), far.Close()); !errors.Is(err, errDead) {
			t.Errorf("a deadline was taken back after death: %v", err)
		}
		if _, err := server.dial(t.Context(), "c1:1", protocolAPI); !errors.Is(err, errDead) {
			t.Errorf("dialled after death: %v", err)
		}
		if server.Answers(t.Context(), "c1:1") || !user.Answers(t.Context(), "s1:7443") {
			t.Error("the host of a dead process answers, the dead process hears nothing")
		}
		if _, err := server.API().Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("accepted after death: %v", err)
		}
		heard := make(chan error, 1)
		go func() { _, err := near.Read(make([]byte, 1)); heard <- err }()
		synctest.Wait()
		select {
		case err := <-heard:
			t.Errorf("the other end was told before the burial: %v", err)
		default:
		}
		server.bury()
		if err := <-heard; !errors.Is(err, io.EOF) {
			t.Errorf("the other end was told %v", err)
		}
		if _, err := user.DialServer(t.Context(), "s1:7443"); err == nil {
			t.Error("a dead process was dialled")
		}
	})
}

func TestAnswersOfACutHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network, _, user := ports(t)
		network.Cut("s1:7443", "c1:1")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if user.Answers(ctx, "s1:7443") {
			t.Error("a host whose answers are held answers")
		}
	})
}

// A write that is on its way when the power goes was never acknowledged, and is
// there or not as a whole.
func TestCrashInTheMiddleOfAWrite(t *testing.T) {
	for name, test := range map[string]struct {
		after time.Duration
		kept  bool
	}{"before it is on the disk": {50 * time.Millisecond, false}, "before its writer hears": {150 * time.Millisecond, true}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				disk := memlog.New()
				disk.SetLatency(func() time.Duration { return 100 * time.Millisecond })
				told := make(chan error, 1)
				go func() { told <- disk.Stable().Set([]byte("k"), []byte("v")) }()
				Sleep(t.Context(), test.after)
				select {
				case err := <-told:
					t.Fatalf("the writer has been told %v already", err)
				default:
				}
				value, err := disk.Crash().Stable().Get([]byte("k"))
				if err != nil || (string(value) == "v") != test.kept {
					t.Errorf("%q, %v on the disk after the crash; kept: %v", value, err, test.kept)
				}
				if err := <-told; (err == nil) != test.kept {
					t.Errorf("the write returned %v", err)
				}
			})
		})
	}
}
