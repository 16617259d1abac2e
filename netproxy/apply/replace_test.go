//go:build linux

//balsa:real-processes

package apply_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"

	"github.com/balsa-run/balsa/netproxy"
	"github.com/balsa-run/balsa/netproxy/apply"
	"github.com/balsa-run/balsa/netproxy/apply/netlab"
	world "github.com/balsa-run/balsa/netproxy/netproxytest"
)

// mark puts something into the table that disturbs nobody and is not planned, so
// that the next Scrub, or the next agent, replaces the table.
func mark(t *testing.T, n *netlab.NS, name string) {
	t.Helper()
	c := conn(t, n)
	c.AddChain(&nftables.Chain{Table: &nftables.Table{Family: nftables.TableFamilyIPv4, Name: apply.DefaultTable}, Name: name})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
}

// tables names the nftables tables of a namespace.
func tables(t *testing.T, n *netlab.NS) (names []string) {
	t.Helper()
	list, err := conn(t, n).ListTablesOfFamily(nftables.TableFamilyIPv4)
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range list {
		names = append(names, table.Name)
	}
	return names
}

// loaded is the site under load: through a ClusterIP from a limited pod to limited
// pods, through a node port and a load balancer's address from outside.
type loaded struct {
	*site
	*load
	tracker *netproxy.Tracker
}

func newLoaded(t *testing.T) *loaded {
	t.Helper()
	l := &loaded{site: newSite(t, false), tracker: netproxy.NewTracker(world.New().Node)}
	l.tracker.Set(world.New().Objects())
	loadState(l.tracker, 3)
	l.sync(t)
	l.load = l.begin([2]string{world.PodB, world.VIPs[0] + ":80"}, [2]string{world.Outside, world.Node1 + ":30080"}, [2]string{world.Outside, world.Balancers[0] + ":80"})
	return l
}

func (l *loaded) sync(t *testing.T) netproxy.Result {
	t.Helper()
	r, err := l.kernel.Sync(context.Background(), l.tracker.Ruleset(1))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// No connection is lost while the table is replaced: by a repair, and by an agent
// that finds other rules than its own.
func TestReplacementsUnderLoadDropNoConnection(t *testing.T) {
	l := newLoaded(t)
	for i := range 60 {
		mark(t, l.n1, fmt.Sprint("x", i))
		if i%2 == 0 {
			if r := scrub(t, l.kernel); !r.Repaired {
				t.Fatalf("round %d: %+v, want the table replaced", i, r)
			}
			continue
		}
		l.kernel = newApplier(t, l.n1)
		if r := l.sync(t); !r.Replaced {
			t.Fatalf("round %d: %+v, want the table replaced", i, r)
		}
	}
	l.end(t)
	if diff := cmp.Diff([]string{apply.DefaultTable}, tables(t, l.n1)); diff != "" {
		t.Errorf("tables (-want +got):\n%s", diff)
	}
}

// An agent that is killed after any of the transactions of a replacement, and again
// while its successor is at it, has lost no connection, and what it leaves is tidied up.
func TestReplacementsCutShortUnderLoadDropNoConnection(t *testing.T) {
	l := newLoaded(t)
	steps := 0
	for done := false; !done; steps++ {
		for again := range steps + 1 {
			mark(t, l.n1, fmt.Sprintf("x%d-%d", steps, again))
			done = l.cutShort(t, steps)
			l.cutShort(t, again)
			l.kernel = newApplier(t, l.n1)
			l.sync(t)
			if r := scrub(t, l.kernel); len(r.Findings) > 0 {
				t.Fatalf("cut short after %d transactions and again after %d: %v", steps, again, r.Findings)
			}
			if diff := cmp.Diff([]string{apply.DefaultTable}, tables(t, l.n1)); diff != "" {
				t.Fatalf("cut short after %d transactions and again after %d: tables (-want +got):\n%s", steps, again, diff)
			}
		}
	}
	// Two tables come into force and one goes out of it, twice; nothing less than all
	// of it was tried.
	if steps < 8 {
		t.Errorf("a replacement had %d transactions, want at least 8", steps-1)
	}
	l.end(t)
}

// cutShort begins an agent that gets no further than n transactions, and reports
// that those were enough.
func (l *loaded) cutShort(t *testing.T, n int) (done bool) {
	t.Helper()
	k := newApplier(t, l.n1)
	k.CutShort(n)
	_, err := k.Sync(context.Background(), l.tracker.Ruleset(1))
	if err != nil && !errors.Is(err, apply.ErrCutShort) {
		t.Fatal(err)
	}
	return err == nil
}

// What a replacement that was cut short has left goes with the node.
func TestRemoveTakesEveryTable(t *testing.T) {
	n := netlab.New(t, "n1")
	sync(t, newApplier(t, n), view(both(webVIP, "10.244.1.10")...))
	mark(t, n, "x")
	k := newApplier(t, n)
	k.CutShort(2)
	if _, err := k.Sync(context.Background(), netproxy.Plan(view(both(webVIP, "10.244.1.10")...))); !errors.Is(err, apply.ErrCutShort) {
		t.Fatalf("sync: %v, want it cut short", err)
	}
	if names := strings.Join(tables(t, n), " "); names != "balsa balsa-stand-in" {
		t.Fatalf("tables %s, want two", names)
	}
	if err := newApplier(t, n).Remove(); err != nil {
		t.Fatal(err)
	}
	if names := tables(t, n); len(names) > 0 {
		t.Errorf("after Remove: %v", names)
	}
}
