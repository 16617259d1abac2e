package inside

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// carryOut does a schedule while a client writes, and waits for rest.
func carryOut(t *testing.T, w *World, schedule Schedule) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	var clients, healed sync.WaitGroup
	for i := range 3 {
		c := w.testClient(t, fmt.Sprint("c", i))
		clients.Go(func() {
			for n := 0; Sleep(ctx, 60*time.Millisecond); n++ {
				var burst sync.WaitGroup
				for k := range 4 {
					burst.Go(func() {
						each, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
						defer cancel()
						_ = write(each, c, fmt.Sprintf("w%d-%d-%d", i, n, k))
					})
				}
				burst.Wait()
			}
		})
	}
	start, chance := w.Trace.Now(), rand.New(rand.NewPCG(1, 1))
	for _, step := range schedule {
		Sleep(ctx, step.At-(w.Trace.Now()-start))
		if heal := w.Inject(step.Fault, chance); heal != nil { //nolint:contextcheck // what is undone later outlives the schedule
			healed.Go(func() {
				Sleep(context.WithoutCancel(ctx), step.For)
				heal()
			})
		}
	}
	healed.Wait()
	stop()
	clients.Wait()
	rest, cancel := context.WithTimeout(context.WithoutCancel(ctx), testLimit)
	defer cancel()
	if err := Await(rest, func() (bool, string) { return w.atRest() }); err != nil {
		t.Error(err)
	}
}

// atRest: all run, vote and have the same.
func (w *World) atRest() (bool, string) {
	var last uint64
	for _, s := range w.Servers() {
		running := s.Core()
		if running == nil {
			return false, s.Name + " is off"
		}
		status := running.Cluster().Status()
		if !status.Voter || last != 0 && status.AppliedIndex != last {
			return false, fmt.Sprintf("%s votes: %t, applied %d, another %d", s.Name, status.Voter, status.AppliedIndex, last)
		}
		last = status.AppliedIndex
	}
	return w.Leader() != nil, "no leader"
}

// beginning is a round or three of a script: enough for a test.
func beginning(of Schedule) Schedule {
	const until = 21 * time.Second
	return of[:slices.IndexFunc(of, func(s Step) bool { return s.At >= until })]
}

// attempts: outside of the guest goroutines run in no fixed order, and what a
// script is after takes the right moment.
const attempts = 8

// Each script comes where it wants to, and all is well in the end.
func TestScriptsReach(t *testing.T) {
	aims := map[string][]string{
		"late answers":                           {ReachedLateAnswer, ReachedElection},
		"deposed leader with pending reads":      {ReachedNoQuorum},
		"vote then crash":                        {ReachedVoteThenCrash, ReachedCrashAtWrite},
		"snapshot install cut short":             {ReachedSnapshot, ReachedReset},
		"leader killed with uncommitted entries": {ReachedKilledWithEntries},
		"new leader that is behind":              {ReachedElection},
		"watch across compaction":                {ReachedElection},
		"disk hang":                              {ReachedStalledDisk},
		"full disk":                              {ReachedGaveUp, ReachedWaitedForRoom},
		"membership change in a partition":       {ReachedAdded, ReachedRemoved, ReachedChangedInPartition},
		"power cut of all":                       {ReachedPowerLost, ReachedCrashAtWrite},
		"server without memory":                  {ReachedAmnesiac, ReachedReplaced},
		"torn appends":                           {ReachedCrashAtWrite, ReachedTornAppend},
		"wrong clocks":                           {ReachedClockWrong, ReachedTransfer},
	}
	for _, script := range Scripts() {
		t.Run(script.Name, func(t *testing.T) {
			missing := slices.Clone(aims[script.Name])
			if len(missing) == 0 {
				t.Error("nobody says what it is to reach")
			}
			for range attempts {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, script.Servers)
					defer end(t, w)
					carryOut(t, w, beginning(script.Schedule))
					missing = slices.DeleteFunc(missing, func(state string) bool { return w.Reached(state) > 0 })
				})
				if len(missing) == 0 {
					return
				}
			}
			t.Errorf("in %d attempts it did not come to %q", attempts, missing)
		})
	}
}

// What Generate draws leaves a cluster that is well.
func TestGeneratedSchedulesHeal(t *testing.T) {
	for seed := range uint64(2) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 3+2*int(seed%2))
				defer end(t, w)
				carryOut(t, w, Generate(rand.New(rand.NewPCG(seed, 3)), 20*time.Second))
			})
		})
	}
}

func TestReachedKnowsItsNames(t *testing.T) {
	w := &World{Trace: NewTrace(t.Output(), 0), reached: map[string]int{}}
	for _, state := range States() {
		w.Reach(state)
		if n := w.Reached(state); n != 1 {
			t.Errorf("%s was reached %d times", state, n)
		}
	}
	for _, call := range []func(){func() { w.Reach("nirvana") }, func() { w.Reached("nirvana") }} {
		func() {
			defer func() {
				if recover() == nil {
					t.Error("a state that does not exist was taken")
				}
			}()
			call()
		}()
	}
}

// No more than a minority lacks something at once.
func TestBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3)
		defer end(t, w)
		chance := rand.New(rand.NewPCG(1, 1))
		heal := w.Inject(Fault{Kind: DiskLost, Target: "s2"}, chance)
		if heal == nil {
			t.Fatal("one of three may lose its disk")
		}
		for _, kind := range []Kind{DiskLost, FlipSnapshot, FlipEntry, ReplaceServer, RemoveServer} {
			if w.Inject(Fault{Kind: kind, Target: "s3"}, chance) != nil {
				t.Errorf("%s: two of three have lost what they had", kind)
			}
		}
		if w.Inject(Fault{Kind: Isolate, Target: "s9"}, chance) != nil {
			t.Error("a server that does not exist was isolated")
		}
		heal()
		if again := w.Inject(Fault{Kind: DiskLost, Target: Same}, chance); again == nil {
			t.Error("s2 is well again, and may lose its disk again")
		} else {
			again()
		}
		if id := w.Server("s2").ID(); id != "s2-3" {
			t.Errorf("its id is %s", id)
		}
	})
}
