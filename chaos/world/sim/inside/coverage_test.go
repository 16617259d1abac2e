package inside

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/balsa-run/balsa/client"
)

// A leader that is cut off takes in writes that no majority will ever have. It
// drops them when it is back, and nobody was told that they were done.
func TestWritesOfALeaderThatIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3)
		defer end(t, w)
		leader := w.Leader()
		c, err := w.Client("c1", []string{leader.Address()}, -1)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), testLimit)
		defer cancel()
		if err := write(ctx, c, "before"); err != nil {
			t.Fatal(err)
		}
		heal := w.Inject(Fault{Kind: Isolate, Target: Leader}, rand.New(rand.NewPCG(1, 1)))
		told := make(chan error, 1)
		go func() { told <- write(ctx, c, "never") }()
		if err := Await(ctx, func() (bool, string) { return w.Leader() != nil && w.Leader() != leader, "no other leader" }); err != nil {
			t.Fatal(err)
		}
		heal()
		if err := Await(ctx, func() (bool, string) {
			return w.Trace.Seen("clearing log suffix") > 0, "the former leader has kept its own writes"
		}); err != nil {
			t.Error(err)
		}
		if err := <-told; err == nil {
			t.Error("a write was acknowledged by a leader alone")
		} else {
			t.Logf("it was told %v: %v", client.Applied(err), err)
		}
	})
}

// A member that was away for long gets a snapshot.
func TestMemberThatWasAwayGetsASnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3)
		defer end(t, w)
		c := w.testClient(t, "c1")
		ctx, cancel := context.WithTimeout(t.Context(), testLimit)
		defer cancel()
		heal := w.Inject(Fault{Kind: PowerCut, Target: Follower}, rand.New(rand.NewPCG(1, 1)))
		for i := range 3 * snapshotEntries {
			if err := write(ctx, c, fmt.Sprint("w", i)); err != nil {
				t.Fatal(err)
			}
		}
		Sleep(ctx, 5*time.Second) // the log's size is looked at now and then
		heal()
		if err := Await(ctx, func() (bool, string) {
			return w.Trace.Seen("Installed remote snapshot") > 0, fmt.Sprintf("no snapshot was sent, %d were made", w.Trace.Seen("snapshot complete up to"))
		}); err != nil {
			t.Error(err)
		}
	})
}
