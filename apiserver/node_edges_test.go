package apiserver

import (
	"context"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// A node may not stand where the cluster puts Services and pods, neither at first
// nor when it moves.
func TestNodeAddressInsideTheClusters(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		register := func(address string) error {
			said := newNode("n1")
			said.Status.Addresses = append(said.Status.Addresses, &balsav1.NodeAddress{Type: "InternalIP", Address: address})
			_, err := w.agent("n1").nodes.Register(t.Context(), &balsav1.RegisterRequest{Node: said})
			return err
		}
		for range 2 {
			for address, want := range map[string]string{"10.96.0.9": "service CIDR 10.96.0.0/24", "10.244.7.1": "pod CIDR 10.244.0.0/16"} {
				err := register(address)
				d := refused(t, err, connect.CodeInvalidArgument, "Invalid")
				if !strings.Contains(err.Error(), want) || d.GetViolations()[0].GetField() != "status.addresses[1]" || d.GetApplied() != notApplied {
					t.Errorf("%s: %v, %v", address, err, d)
				}
			}
			must(t, register("10.96.1.9")) // just beside it; the second round moves a node that is there
		}
	})
}

// A stream on which nothing happens is told so again and again, and goes on.
func TestIdleStreamsStayAlive(t *testing.T) {
	const idle = time.Hour
	run(t, func(t *testing.T, w *world) {
		w.register("n1")
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		watched, err := w.admin().objects.Watch(ctx, &balsav1.WatchRequest{Kind: "cm"})
		must(t, err)
		assigned, err := w.agent("n1").nodes.Assignments(ctx, &balsav1.AssignmentsRequest{NodeName: "n1"})
		must(t, err)
		// quiet is the longest that a stream has said nothing.
		quiet := func(receive func() bool) time.Duration {
			began, last, longest := time.Now(), time.Now(), time.Duration(0)
			for last.Sub(began) < idle && receive() {
				longest, last = max(longest, time.Since(last)), time.Now()
			}
			if last.Sub(began) < idle {
				t.Errorf("it ended after %v", last.Sub(began))
			}
			return longest
		}
		gaps := make(chan time.Duration)
		go func() { gaps <- quiet(watched.Receive) }()
		if got := quiet(assigned.Receive); got > tellAlive+w.server.limits.ProgressEvery {
			t.Errorf("Assignments said nothing for %v", got)
		}
		if got := <-gaps; got > w.server.limits.BookmarkEvery+time.Second {
			t.Errorf("Watch said nothing for %v", got)
		}
		if watched.Err() != nil || assigned.Err() != nil {
			t.Errorf("they ended: %v, %v", watched.Err(), assigned.Err())
		}
	})
}
