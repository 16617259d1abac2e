//go:build !wasip1

package gossip_test

import (
	"bytes"
	"context"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/balsa-run/balsa/cluster"
	"github.com/balsa-run/balsa/cluster/gossip"
)

var key = bytes.Repeat([]byte{7}, gossip.KeyBytes)

// patience is for a machine that does much else; nothing takes long by itself.
const patience = 2 * time.Minute

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
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err := g.Join(ctx, to)
	return err
}

// reader takes a member's events in any order: two servers that join at once
// may be heard of either way round.
type reader struct {
	g     *gossip.Gossip
	later []cluster.GossipEvent // read and not asked for yet
}

func (r *reader) waitFor(t *testing.T, kind cluster.GossipEventKind, name string) cluster.GossipMember {
	t.Helper()
	wanted := func(e cluster.GossipEvent) bool { return e.Kind == kind && e.Member.Name == name }
	if i := slices.IndexFunc(r.later, wanted); i >= 0 {
		e := r.later[i]
		r.later = slices.Delete(r.later, i, i+1)
		return e.Member
	}
	deadline := time.After(patience)
	for {
		select {
		case e, ok := <-r.g.Events():
			if !ok {
				t.Fatalf("events ended before %s %s", kind, name)
			}
			if wanted(e) {
				return e.Member
			}
			r.later = append(r.later, e)
		case <-deadline:
			t.Fatalf("no %s of %s; events %+v, members %+v", kind, name, r.later, r.g.Members())
		}
	}
}

func TestMembersComeChangeFailAndLeave(t *testing.T) {
	a, b, c := start(t, "a", key), start(t, "b", key), start(t, "c", key)
	events := &reader{g: a}
	for _, g := range []*gossip.Gossip{b, c} {
		if err := join(t, g, a.Address()); err != nil {
			t.Fatal(err)
		}
	}
	got := events.waitFor(t, cluster.GossipJoin, "b")
	want := cluster.GossipMember{Name: "b", GossipAddress: b.Address(), Status: cluster.GossipAlive,
		GossipTags: cluster.GossipTags{ID: "b", Role: "server", Address: "b:7443", Version: "v1", MaxFeatureLevel: 3}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("member (-want +got):\n%s", diff)
	}
	events.waitFor(t, cluster.GossipJoin, "c")

	if err := b.SetTags(cluster.GossipTags{ID: "b", Role: "server", Version: "v2", MaxFeatureLevel: 4}); err != nil {
		t.Fatal(err)
	}
	if m := events.waitFor(t, cluster.GossipUpdate, "b"); m.MaxFeatureLevel != 4 || m.Version != "v2" {
		t.Errorf("after the update: %+v", m)
	}

	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := b.Leave(ctx); err != nil {
		t.Fatal(err)
	}
	if m := events.waitFor(t, cluster.GossipLeave, "b"); m.Status != cluster.GossipLeft {
		t.Errorf("after leaving: %+v", m)
	}

	gone := time.Now()
	if err := c.Shutdown(); err != nil {
		t.Fatal(err)
	}
	events.waitFor(t, cluster.GossipFail, "c")
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
