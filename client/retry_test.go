package client

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

const (
	notApplied = balsav1.ErrorDetail_APPLIED_NOT_APPLIED
	unknown    = balsav1.ErrorDetail_APPLIED_UNKNOWN
)

// TestFailover reads while servers fail one after the other: each call finds the
// one that works.
func TestFailover(t *testing.T) {
	for _, how := range []mode{down, silent, leadless, mute} {
		in(t, func(t *testing.T, w *world) {
			w.state.write("+x")
			read := func() {
				t.Helper()
				if _, err := Get[*balsav1.ConfigMap](t.Context(), w.client, "default", "x", GetOptions{}); err != nil {
					t.Fatalf("mode %d: %v", how, err)
				}
			}
			read()
			w.servers["a:1"].fail(how)
			w.client.Close() // what stays open would hide a server that takes no connections
			if passed := took(read); passed > 3*time.Second {
				t.Errorf("mode %d: the first failover took %v", how, passed)
			}
			w.servers["b:1"].fail(how)
			w.client.Close()
			read()
			if used := w.client.servers.pick(false); used != "c:1" {
				t.Errorf("mode %d: %s is in use, want c:1", how, used)
			}
			w.servers["a:1"].fail(well)
			before := w.servers["a:1"].count()
			read()
			if w.servers["a:1"].count() != before {
				t.Errorf("mode %d: the client left a server that works", how)
			}
		})
	}
}

// TestWritesThatFail tells of each kind of failure what became of the write, and
// how often it was tried.
func TestWritesThatFail(t *testing.T) {
	create := func(ctx context.Context, c *Client) error {
		_, err := Create(ctx, c, configMap("x"), WriteOptions{})
		return err
	}
	apply := func(ctx context.Context, c *Client) error {
		_, _, err := Apply(ctx, c, "test", configMap("x"), WriteOptions{})
		return err
	}
	remove := func(uid string) func(context.Context, *Client) error {
		return func(ctx context.Context, c *Client) error {
			_, err := Delete[*balsav1.ConfigMap](ctx, c, "default", "x", DeleteOptions{UID: uid})
			return err
		}
	}
	for _, c := range []struct {
		name    string
		how     mode
		write   func(context.Context, *Client) error
		code    connect.Code
		reason  string
		applied balsav1.ErrorDetail_Applied
		repeats bool
	}{
		{"create, nobody reached", down, create, connect.CodeUnavailable, ReasonUnreachable, notApplied, true},
		{"create, no answer to the dial", silent, create, connect.CodeUnavailable, ReasonUnreachable, notApplied, true},
		{"create, no leader", leadless, create, connect.CodeUnavailable, "NoLeader", notApplied, true},
		{"create, fate unknown", vague, create, connect.CodeUnavailable, "LeadershipLost", unknown, false},
		{"create, refused", refusing, create, connect.CodeInvalidArgument, "Invalid", notApplied, false},
		{"apply, nobody reached", down, apply, connect.CodeUnavailable, ReasonUnreachable, notApplied, true},
		{"apply, fate unknown", vague, apply, connect.CodeUnavailable, "LeadershipLost", unknown, true},
		{"apply, refused", refusing, apply, connect.CodeInvalidArgument, "Invalid", notApplied, false},
		{"delete of any, fate unknown", vague, remove(""), connect.CodeUnavailable, "LeadershipLost", unknown, false},
		{"delete of one, fate unknown", vague, remove("u1"), connect.CodeUnavailable, "LeadershipLost", unknown, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			in(t, func(t *testing.T, w *world) {
				for _, s := range w.servers {
					s.fail(c.how)
				}
				var err error
				passed := took(func() { err = c.write(t.Context(), w.client) })
				if connect.CodeOf(err) != c.code || Applied(err) != c.applied || Detail(err).GetReason() != c.reason {
					t.Errorf("got %v, %v, %q (%v); want %v, %v, %q", connect.CodeOf(err), Applied(err), Detail(err).GetReason(), err, c.code, c.applied, c.reason)
				}
				if c.repeats && (passed < DefaultRetryFor/2 || passed > DefaultRetryFor+dialTimeout) {
					t.Errorf("tried for %v, want about %v", passed, DefaultRetryFor)
				}
				if calls := w.servers["a:1"].count() + w.servers["b:1"].count() + w.servers["c:1"].count(); !c.repeats && (calls != 1 || passed > time.Second) {
					t.Errorf("made %d calls in %v, want one", calls, passed)
				}
			})
		})
	}
}

// TestLostAnswer breaks the connection after the write took place. What may be
// done twice is, what may not comes back as UNKNOWN.
func TestLostAnswer(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.servers["a:1"].fail(mute)
		_, err := Create(t.Context(), w.client, configMap("x"), WriteOptions{})
		if Applied(err) != unknown {
			t.Errorf("a create whose answer was lost is %v (%v), want UNKNOWN", Applied(err), err)
		}
		if detail := Detail(err); detail.GetReason() != ReasonConnectionLost || detail.GetApplied() != unknown {
			t.Errorf("the detail of a lost answer is %v", detail)
		}
		if writes := w.state.count(); writes != 1 {
			t.Errorf("the create was done %d times", writes)
		}
		w.client.SetServers([]string{"a:1", "b:1"})
		if _, _, err := Apply(t.Context(), w.client, "test", configMap("y"), WriteOptions{}); err != nil {
			t.Errorf("an apply whose answer was lost was not made again: %v", err)
		}
	})
}

// TestUnreachable names every server and why.
func TestUnreachable(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.servers["a:1"].fail(down)
		w.servers["b:1"].fail(silent)
		w.servers["c:1"].fail(down)
		_, err := Get[*balsav1.ConfigMap](t.Context(), w.client, "default", "x", GetOptions{})
		if !IsUnavailable(err) {
			t.Fatalf("got %v", err)
		}
		for _, want := range []string{"no server can be reached: ", "connection refused", "no answer within 2s", "tried for 1"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q does not say %q", err, want)
			}
		}
		if Applied(err) != notApplied || Detail(err).GetApplied() != 0 {
			t.Errorf("a read says that it is %v", Detail(err).GetApplied())
		}
	})
}

// TestCallerGivesUp ends a call at once when its context ends.
func TestCallerGivesUp(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		for _, s := range w.servers {
			s.fail(leadless)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		var err error
		passed := took(func() { _, err = Get[*balsav1.ConfigMap](ctx, w.client, "default", "x", GetOptions{}) })
		if err == nil || passed > 600*time.Millisecond {
			t.Errorf("after %v: %v", passed, err)
		}
	})
}

// TestRefusalsOfNew names what is wrong with a Config.
func TestRefusalsOfNew(t *testing.T) {
	dial := (&world{}).dial
	for _, c := range []struct {
		config Config
		want   string
	}{
		{Config{Dial: dial}, "no servers"},
		{Config{Servers: []string{"a:1"}}, "no Dial"},
		{Config{Servers: []string{"a"}, Dial: dial}, `"a" is not host:port`},
	} {
		if _, err := New(c.config); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("New(%v): %v, want %q", c.config.Servers, err, c.want)
		}
	}
}

// TestPlainConnectionIsRefused dials without TLS and does not say so.
func TestPlainConnectionIsRefused(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		c, err := New(Config{Servers: w.names, Dial: w.dial, RetryFor: -1})
		must(t, err)
		_, err = Get[*balsav1.ConfigMap](t.Context(), c, "default", "x", GetOptions{})
		if err == nil || !strings.Contains(err.Error(), "which is not TLS") {
			t.Errorf("got %v", err)
		}
		if w.servers["a:1"].count() != 0 {
			t.Error("the request was sent all the same")
		}
	})
}

// TestCutOff: what the library calls canceled although nobody here gave up is a
// connection that broke. Reads and streams go on elsewhere, writes whose second time
// changes nothing as well, others end with a fate that is not known; what a server
// itself calls canceled stays so.
func TestCutOff(t *testing.T) {
	broken := connect.NewError(connect.CodeCanceled, errors.New("read: connection reset by peer"))
	for want, request := range map[bool]connect.AnyRequest{
		true:  connect.NewRequest(&balsav1.EvictRequest{Uid: "u"}),
		false: connect.NewRequest(&balsav1.UpdateRequest{}),
	} {
		if got := mayRepeat(request, broken); got != want {
			t.Errorf("%T is repeated: %v", request.Any(), got)
		}
	}
	if !resumable(broken) || Applied(broken) != balsav1.ErrorDetail_APPLIED_UNKNOWN {
		t.Error("a stream is not resumed, or the fate of a write is said to be known")
	}
	in(t, func(t *testing.T, w *world) {
		w.servers["a:1"].fail(refusing)
		_, err := Create(t.Context(), w.client, configMap("x"), WriteOptions{})
		var wire *connect.Error
		if !errors.As(err, &wire) || !connect.IsWireError(wire) || cutOff(err) {
			t.Errorf("what a server says is taken for a broken connection: %v", err)
		}
	})
}
