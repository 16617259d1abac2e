// Guest is what chaos/world/sim runs: three to five servers of daemon/core, their
// disks and network, clients that write and read in many ways, and a schedule of
// faults that the seed decides, or that is given. In the end all faults are healed,
// the cluster has to come to rest, and what the clients were told is held against
// the promises by the checkers of chaos/check, inside of the run.
//
// Standard output tells what happened, in the order of the world's time, and ends
// with a line for programs (package verdict). It is an ordinary program: run on the
// machine itself it does the same on real time, only not twice.
//
// Exit codes: 0 nothing is wrong; 1 a promise was broken; 3 the run did too
// little to prove anything; 4 the cluster could not be set up.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/balsa-run/balsa/chaos/world/sim/guest/verdict"
	"github.com/balsa-run/balsa/chaos/world/sim/inside"
	"github.com/balsa-run/balsa/internal/mutate"
)

// collectAt lets the heap grow to this much of what is alive: memory is cheap here,
// and a collection is not.
const collectAt = 400

// options are a run's arguments: they decide all that happens in it.
type options struct {
	seed      uint64
	length    time.Duration
	servers   int
	clients   int
	pace      float64
	workloads string
	schedule  string
	calm      bool
	plant     string
	bugs      string
	verbose   bool
}

func (o *options) flags(f *flag.FlagSet) {
	f.Uint64Var(&o.seed, "seed", 0, "decides everything")
	f.DurationVar(&o.length, "length", time.Minute, "how long faults are done")
	f.IntVar(&o.servers, "servers", 3, "servers of the cluster, 3 to 5")
	f.IntVar(&o.clients, "clients", 3, "clients of each workload")
	f.Float64Var(&o.pace, "pace", 1, "how much faster than usual clients ask")
	f.StringVar(&o.workloads, "workloads", "", "only these, with commas; all: "+fmt.Sprint(workloadNames()))
	f.StringVar(&o.schedule, "schedule", "", "what goes wrong, as JSON; empty: the seed decides")
	f.BoolVar(&o.calm, "calm", false, "do no faults, and do not ask for a failover")
	f.StringVar(&o.plant, "plant", "", "a lie to plant in what a client records: "+fmt.Sprint(plants()))
	f.StringVar(&o.bugs, "mutate", "", "planted bugs, with commas, in a build with the tag mutate: "+fmt.Sprint(mutate.Bugs()))
	f.BoolVar(&o.verbose, "v", false, "print every operation and what the servers log; another run than without")
}

// checked are the options as they are used.
type checked struct {
	options
	chosen   []workload
	schedule inside.Schedule // nil: the seed decides
	bugs     []mutate.Bug
}

func (o options) check() (checked, error) {
	c := checked{options: o}
	switch {
	case o.servers < 3 || o.servers > 5:
		return c, fmt.Errorf("-servers %d: a simulated cluster has 3 to 5", o.servers)
	case o.clients < 1 || o.clients > maxClients:
		return c, fmt.Errorf("-clients %d: 1 to %d", o.clients, maxClients)
	case !(o.pace >= minPace && o.pace <= maxPace): // also what is no number
		return c, fmt.Errorf("-pace %v: %v to %v", o.pace, minPace, maxPace)
	case o.length <= 0:
		return c, fmt.Errorf("-length %v: it has to be more than nothing", o.length)
	case o.plant != "" && !slices.Contains(plants(), o.plant):
		return c, fmt.Errorf("-plant %s: there are %v", o.plant, plants())
	}
	for _, w := range workloads() {
		if o.workloads == "" || slices.Contains(strings.Split(o.workloads, ","), w.name) {
			c.chosen = append(c.chosen, w)
		}
	}
	for name := range strings.SplitSeq(o.workloads, ",") {
		if name != "" && !slices.Contains(workloadNames(), name) {
			return c, fmt.Errorf("-workloads: there is no %q; there are %v", name, workloadNames())
		}
	}
	if o.schedule != "" {
		if err := json.Unmarshal([]byte(o.schedule), &c.schedule); err != nil {
			return c, fmt.Errorf("-schedule: %w", err)
		}
	}
	var err error
	c.bugs, err = mutate.Parse(o.bugs)
	return c, err
}

func main() {
	debug.SetGCPercent(collectAt)
	var o options
	o.flags(flag.CommandLine)
	flag.Parse()
	os.Exit(run(context.Background(), o))
}

func run(ctx context.Context, o options) (code int) {
	level := slog.LevelError + 1
	if o.verbose {
		level = slog.LevelInfo
	}
	trace := inside.NewTrace(os.Stdout, level)
	s, err := setUp(ctx, trace, o)
	if err != nil {
		trace.Sayf("", "not set up: %v", err)
		return verdict.NoCluster
	}
	s.trouble(ctx)
	members, err := s.rest(ctx)
	if err != nil {
		s.world.Wrongf("the cluster does not come to rest: %v", err)
	}
	summary, code := s.judge(members)
	trace.Mark()
	fmt.Println(summary.Line())
	return code
}

func setUp(ctx context.Context, trace *inside.Trace, o options) (*scenario, error) {
	c, err := o.check()
	if err != nil {
		return nil, err
	}
	s, err := newScenario(trace, c)
	if err != nil {
		return nil, err
	}
	return s, s.setUp(ctx)
}
