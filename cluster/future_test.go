package cluster

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
)

// TestStopsWithEntriesNobodyApplies: the library may end its state machine's
// goroutine while committed entries wait for it, and would not tell who waits for
// those. Which it takes first is chance, so that a few rounds are needed.
func TestStopsWithEntriesNobodyApplies(t *testing.T) {
	for range 10 {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, nil)
			defer w.stop()
			w.start("a")
			n := w.leader()
			release := n.machine.holdApply()
			outcomes := make(chan *Error, 3)
			for range cap(outcomes) {
				go func() {
					_, _, err := n.commit([]*internalv1.Command{put("k", "v")})
					outcomes <- err
				}()
				synctest.Wait() // an entry each
			}
			stopped := make(chan error, 1)
			go func() { stopped <- n.Shutdown(context.Background()) }()
			synctest.Wait()
			release()
			if err := <-stopped; err != nil {
				t.Fatal(err)
			}
			for range cap(outcomes) {
				if err := <-outcomes; err != nil && err.Class != Unknown {
					t.Errorf("a command that is committed and perhaps applied ended with %v, expected an unknown outcome", err)
				}
			}
		})
	}
}

// TestTheLibraryHasTheField: endsWith does nothing on a library that renamed it.
func TestTheLibraryHasTheField(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		w.start("a")
		n := w.leader()
		release := n.machine.holdApply()
		defer release()
		ended := make(chan struct{})
		// One that can be decoded: at any other the member would stop by itself.
		entry, err := proto.Marshal(&internalv1.Batch{Version: batchVersion, Commands: []*internalv1.Command{{}}})
		if err != nil {
			t.Fatal(err)
		}
		futures := map[string]raft.Future{
			"Apply":    n.raft.Load().Apply(entry, time.Second),
			"AddVoter": n.raft.Load().AddNonvoter("b", "b", 0, time.Second),
		}
		close(ended)
		for name, future := range futures {
			if err := endsWith(future, ended).Error(); err != nil && !errors.Is(err, raft.ErrRaftShutdown) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}
