// Guest is what chaos/world/sim runs: three servers of daemon/core, their disks
// and network, clients that write and read through the API, and a schedule of
// faults that the seed decides. In the end all faults are healed, the cluster
// has to come to rest, and what the clients were told is held against what the
// members have.
//
// Standard output tells what happened, in the order of the world's time. It is
// an ordinary program: run on the machine itself it does the same on real time,
// only not twice.
//
// Exit codes: 0 nothing is wrong; 1 a promise was broken; 3 the run did too
// little to prove anything; 4 the cluster could not be set up.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/balsa-run/balsa/chaos/world/sim/inside"
)

const (
	exitBroken    = 1
	exitTooLittle = 3
	exitSetup     = 4
)

// options are a run's arguments.
type options struct {
	seed    uint64
	length  time.Duration
	clients int
	calm    bool
	plant   string
	verbose bool
}

func main() {
	var o options
	flag.Uint64Var(&o.seed, "seed", 0, "decides everything")
	flag.DurationVar(&o.length, "length", 15*time.Second, "how long faults are done")
	flag.IntVar(&o.clients, "clients", 3, "clients at work")
	flag.BoolVar(&o.calm, "calm", false, "do no faults, and do not ask for a failover")
	flag.StringVar(&o.plant, "plant", "", "a lie to plant in what a client records: "+fmt.Sprint(plants()))
	flag.BoolVar(&o.verbose, "v", false, "print every operation and what the servers log")
	flag.Parse()
	os.Exit(run(context.Background(), o))
}

func run(ctx context.Context, o options) (code int) {
	level := slog.LevelError + 1
	if o.verbose {
		level = slog.LevelInfo
	}
	trace := inside.NewTrace(os.Stdout, level)
	s, err := newScenario(trace, o)
	if err == nil {
		err = s.setUp(ctx)
	}
	if err != nil {
		trace.Sayf("", "not set up: %v", err)
		return exitSetup
	}
	s.trouble(ctx)
	members, err := s.rest(ctx)
	if err != nil {
		s.world.Wrongf("the cluster does not come to rest: %v", err)
	}
	code = s.judge(members)
	trace.Mark()
	return code
}
