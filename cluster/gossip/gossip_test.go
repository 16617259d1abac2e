//go:build !wasip1

package gossip_test

import (
	"bytes"
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/balsa-run/balsa/cluster"
	"github.com/balsa-run/balsa/cluster/gossip"
)

var key = bytes.Repeat([]byte{7}, gossip.KeyBytes)

func start(t *testing.T, name string, key []byte) *gossip.Gossip {
	t.Helper()
	g, err := gossip.Start(gossip.Options{Name: name, Bind: "127.0.0.1:0", Key: key, Logger: slog.New(slog.DiscardHandler),
		Tags: cluster.GossipTags{ID: name, Role: "server", Address: name + ":7443", Version: "v1", MaxFeatureLevel: 3}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Shutdown(); err != nil {
			t.Error(err)
		}
	})
	return g
}

func join(t *testing.T, g *gossip.Gossip, to ...string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err := g.Join(ctx, to)
	return err
}

// waitFor reads events until one matches.
func waitFor(t *testing.T, g *gossip.Gossip, kind cluster.GossipEventKind, name string) cluster.GossipMember {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		select {
		case e, ok := <-g.Events():
			if !ok {
				t.Fatalf("events ended before %s %s", kind, name)
			}
			if e.Kind == kind && e.Member.Name == name {
				return e.Member
			}
		case <-deadline:
			t.Fatalf("no %s of %s; members %+v", kind, name, g.Members())
		}
	}
}

func TestMembersComeChangeFailAndLeave(t *testing.T) {
	a, b, c := start(t, "a", key), start(t, "b", key), start(t, "c", key)
	for _, g := range []*gossip.Gossip{b, c} {
		if err := join(t, g, a.Address()); err != nil {
			t.Fatal(err)
		}
	}
	got := waitFor(t, a, cluster.GossipJoin, "b")
	want := cluster.GossipMember{Name: "b", GossipAddress: b.Address(), Status: cluster.GossipAlive,
		GossipTags: cluster.GossipTags{ID: "b", Role: "server", Address: "b:7443", Version: "v1", MaxFeatureLevel: 3}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("member (-want +got):\n%s", diff)
	}
	waitFor(t, a, cluster.GossipJoin, "c")

	if err := b.SetTags(cluster.GossipTags{ID: "b", Role: "server", Version: "v2", MaxFeatureLevel: 4}); err != nil {
		t.Fatal(err)
	}
	if m := waitFor(t, a, cluster.GossipUpdate, "b"); m.MaxFeatureLevel != 4 || m.Version != "v2" {
		t.Errorf("after the update: %+v", m)
	}

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := b.Leave(ctx); err != nil {
		t.Fatal(err)
	}
	if m := waitFor(t, a, cluster.GossipLeave, "b"); m.Status != cluster.GossipLeft {
		t.Errorf("after leaving: %+v", m)
	}

	gone := time.Now()
	if err := c.Shutdown(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, a, cluster.GossipFail, "c")
	t.Logf("a crash was noticed after %v", time.Since(gone).Round(100*time.Millisecond))
}

func TestAnotherKeyStaysOutside(t *testing.T) {
	a := start(t, "a", key)
	stranger := start(t, "s", bytes.Repeat([]byte{8}, gossip.KeyBytes))
	if err := join(t, stranger, a.Address()); err == nil {
		t.Error("a member with another key was let in")
	}
	if got := len(a.Members()); got != 1 {
		t.Errorf("%d members, expected only a itself", got)
	}
}

func TestAShortKeyIsRefused(t *testing.T) {
	if _, err := gossip.Start(gossip.Options{Name: "a", Bind: "127.0.0.1:0", Key: []byte("short"), Logger: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("a short key was accepted")
	}
}
