package cluster

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/balsa-run/balsa/cluster/memlog"
)

func TestOneServerProposesReadsAndLeads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		n := w.open("a", memlog.New())
		if n.Phase() != PhaseUninitialised {
			t.Fatalf("an empty disk is in phase %s", n.Phase())
		}
		if err := n.Bootstrap(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		changes := n.Leadership(ctx)
		state := <-changes
		for !state.Leader {
			state = <-changes
		}
		if state.Epoch == 0 || state.Epoch != n.Status().Term {
			t.Errorf("epoch %d, term %d", state.Epoch, n.Status().Term)
		}
		result, err := n.Propose(ctx, put("k", "1"))
		if err != nil {
			t.Fatal(err)
		}
		if result.GetRevision() != 1 {
			t.Errorf("revision %d, expected 1", result.GetRevision())
		}
		if got := n.read("k"); got != "1" {
			t.Errorf("read %q", got)
		}
		if err := n.Bootstrap(); !errors.Is(err, ErrHasState) {
			t.Errorf("second bootstrap: %v", err)
		}
	})
}

func TestThreeServersForwardAndReadYourWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		w.start("a", "b", "c")
		for i, id := range w.names {
			n := w.nodes[id]
			n.put("k", id)
			// The forwarded write waited until this member has applied it.
			if got, _ := n.machine.get("k"); got != id {
				t.Errorf("write %d through %s: local value %q", i, id, got)
			}
			for _, other := range w.names {
				if got := w.nodes[other].read("k"); got != id {
					t.Errorf("read on %s after write through %s: %q", other, id, got)
				}
			}
		}
	})
}

func TestRestartKeepsWhatWasAcknowledged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		w.start("a", "b", "c")
		w.leader().put("k", "1")
		disks := map[string]*memlog.Disk{}
		for _, id := range w.names {
			disks[id] = w.nodes[id].disk.Crash()
			w.nodes[id].kill()
		}
		for id, disk := range disks {
			w.open(id, disk)
		}
		w.leader()
		for _, id := range w.names {
			if got := w.nodes[id].read("k"); got != "1" {
				t.Errorf("%s reads %q after a power cut", id, got)
			}
		}
	})
}
