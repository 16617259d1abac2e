// Package zerodrop is `make test-zero-drop`: a load of HTTP over new and over
// kept-alive connections and of UDP goes on while Deployments are rolled, nodes
// drained, agents replaced and paused, and leaders killed, all at once. Not one
// request may fail. A build whose agents do not wait until every node has taken a
// pod out must fail the same play, or the play would prove nothing.
package zerodrop

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/balsa-run/balsa/chaos/load"
	"github.com/balsa-run/balsa/chaos/stage"
)

//go:embed app.yaml
var app []byte

const (
	namespace = "zero"
	rolled    = "rolled"
	single    = "single"
	replicas  = 3
	patience  = 120 * time.Second
	// command bounds one run of the command line, within the stage's own limit.
	command = 55 * time.Second
	// maxLogLines of each member are kept when a request failed.
	maxLogLines = 20_000
	// calm is the load before the first fault and after the last.
	calm = 2 * time.Second
	// The longest pause is shorter than the wait for acknowledgements (5 s): a node
	// that is silent for longer is given up, as the promise says.
	leastPause, mostPause = 300 * time.Millisecond, 2500 * time.Millisecond
	betweenPauses         = 3 * time.Second
)

// fewPorts leaves clients of a host two thousand ports, each of which is used again
// every few seconds, instead of by luck: what the kernel still tracks of an earlier
// connection from a port must not lead the next one to a pod that was. Ports that
// wait (TIME_WAIT) may be used, or there would soon be none.
const fewPorts = `echo 40000 41999 >/proc/sys/net/ipv4/ip_local_port_range && echo 1 >/proc/sys/net/ipv4/tcp_tw_reuse`

// Counts are how often each thing is done.
type Counts struct {
	Rollouts, Drains, Upgrades, Kills int
}

// Options say with what the play is played.
type Options struct {
	Binary  string // balsa
	Chaos   string // this program, for the loads
	Archive string // the echo image
	Dir     string
	Counts
	// Seed chooses whom it hits.
	Seed uint64
	Out  io.Writer
}

// Report is what became of the requests, by the service that was asked.
type Report struct {
	Services map[string]*load.FlowReport
	Pauses   int
	Took     time.Duration
	// TimedOut are the pods that were stopped before every node had taken them out,
	// as events tell: a request that failed may have been theirs.
	TimedOut []string
}

// Failed counts the requests that failed.
func (r *Report) Failed() (n int) {
	for _, s := range r.Services {
		n += s.Fresh.Failed + s.Kept.Failed + s.UDP.Failed
	}
	return n
}

// String is a table, a kind of client a line.
func (r *Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-22s %10s %8s %8s %12s %9s\n", "", "requests", "failed", "resent", "connections", "slowest")
	for _, name := range []string{rolled, single} {
		s := r.Services[name]
		if s == nil {
			continue
		}
		for _, k := range []struct {
			name string
			load.FlowKind
		}{{"new connections", s.Fresh}, {"kept alive", s.Kept}, {"UDP", s.UDP}} {
			fmt.Fprintf(&b, "%-22s %10d %8d %8d %12d %6d ms\n", name+", "+k.name, k.Requests, k.Failed, k.Resent, k.Connections, k.SlowestMS)
			for _, e := range k.Errors {
				fmt.Fprintf(&b, "  %s\n", e)
			}
		}
	}
	fmt.Fprintf(&b, "pods that were stopped before every node had answered: %d\n", len(r.TimedOut))
	for _, line := range r.TimedOut {
		fmt.Fprintf(&b, "  %s\n", line)
	}
	return b.String()
}

type play struct {
	Options
	stage *stage.Stage
	// touching holds an agent while something is done to its process.
	touching map[*stage.Member]*sync.Mutex
	saying   sync.Mutex
}

// Run plays, and takes everything down, also when ctx ends. That requests failed
// is for the caller to judge.
func Run(ctx context.Context, options Options) (report *Report, err error) {
	p := &play{Options: options, touching: map[*stage.Member]*sync.Mutex{}}
	p.stage, err = stage.Up(ctx, stage.Options{Prefix: "zd", Dir: options.Dir, Binary: options.Binary, Servers: 3, Agents: 3, Progress: options.Out})
	if err != nil {
		return nil, err
	}
	defer func() {
		switch {
		case err != nil:
			fmt.Fprintln(p.Out, p.stage.Logs(20))
		case report.Failed() > 0: // what the nodes did then is in the logs, and they go with the lab
			err = p.keepLogs()
		}
		err = errors.Join(err, p.stage.Down(), os.RemoveAll(options.Dir))
	}()
	for _, agent := range p.stage.Agents {
		p.touching[agent] = &sync.Mutex{}
	}
	if err := p.app(ctx); err != nil {
		return nil, err
	}
	return p.underLoad(ctx)
}

// keepLogs puts everybody's log beside the lab's folder, which is removed.
func (p *play) keepLogs() error {
	path := p.Dir + ".log"
	fmt.Fprintf(p.Out, "everybody's log is in %s\n", path)
	return os.WriteFile(path, []byte(p.stage.Logs(maxLogLines)), 0o644)
}

func (p *play) app(ctx context.Context) error {
	manifest := filepath.Join(p.stage.Lab.Dir, "app.yaml")
	if err := os.WriteFile(manifest, app, 0o644); err != nil {
		return err
	}
	if err := p.insist(ctx, "image", "import", p.Archive); err != nil {
		return err
	}
	if err := p.insist(ctx, "apply", "-f", manifest); err != nil {
		return err
	}
	_, err := p.stage.WaitReady(ctx, namespace, replicas+1, patience)
	return err
}

func (p *play) underLoad(ctx context.Context) (*Report, error) {
	report := &Report{Services: map[string]*load.FlowReport{}}
	loads := map[string]*stage.Flows{}
	for i, name := range []string{rolled, single} {
		address, err := p.clusterIP(ctx, name)
		if err != nil {
			return nil, err
		}
		// Each from a node of its own, so that more than one node's proxy is tried.
		if _, err := p.stage.Agents[i].Host.Run(ctx, "sh", "-c", fewPorts); err != nil {
			return nil, err
		}
		if loads[name], err = p.stage.StartFlows(p.stage.Agents[i].Host, p.Chaos, address, name); err != nil {
			return nil, err
		}
	}
	began := time.Now()
	pauses, err := p.faults(ctx)
	report.Pauses, report.Took = pauses, time.Since(began)
	for name, l := range loads {
		flows, stopErr := l.Stop()
		report.Services[name] = flows
		err = errors.Join(err, stopErr)
	}
	if err == nil {
		report.TimedOut, err = p.timedOut(ctx)
	}
	return report, err
}

// timedOut asks for the events that tell of it.
func (p *play) timedOut(ctx context.Context) (lines []string, err error) {
	var events struct {
		Items []struct {
			Reason         string `json:"reason"`
			Message        string `json:"message"`
			InvolvedObject struct {
				Name string `json:"name"`
			} `json:"involvedObject"`
		} `json:"items"`
	}
	if err := p.read(ctx, &events, "get", "events", "-n", namespace); err != nil {
		return nil, err
	}
	for _, e := range events.Items {
		if e.Reason == "DrainTimedOut" {
			lines = append(lines, e.InvolvedObject.Name+": "+e.Message)
		}
	}
	return lines, nil
}

// faults does everything at once, and returns when all is done and calm again.
func (p *play) faults(ctx context.Context) (pauses int, err error) {
	if !rest(ctx, calm) {
		return 0, context.Cause(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var busy sync.WaitGroup
	var errs []error
	var mu sync.Mutex
	for number, actor := range []struct {
		name  string
		count int
		once  func(ctx context.Context, r *rand.Rand) error
	}{{"rollout", p.Rollouts, p.rollout}, {"drain", p.Drains, p.drain}, {"upgrade", p.Upgrades, p.upgrade}, {"kill", p.Kills, p.kill}} {
		r := rand.New(rand.NewPCG(p.Seed, uint64(number)))
		busy.Go(func() {
			if err := p.repeat(ctx, actor.name, actor.count, func() error { return actor.once(ctx, r) }); err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
				cancel(err)
			}
		})
	}
	pausing, stopPausing := context.WithCancel(ctx)
	paused := make(chan int, 1)
	go func() { paused <- p.pauses(pausing, rand.New(rand.NewPCG(p.Seed, 99))) }()
	busy.Wait()
	stopPausing()
	pauses = <-paused
	if len(errs) > 0 {
		return pauses, errors.Join(errs...)
	}
	rest(ctx, calm)
	return pauses, nil
}

func (p *play) repeat(ctx context.Context, name string, count int, once func() error) error {
	for i := range count {
		began := time.Now()
		if err := once(); err != nil {
			return fmt.Errorf("%s %d of %d: %w", name, i+1, count, err)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		p.say("%s %d of %d took %v", name, i+1, count, time.Since(began).Round(10*time.Millisecond))
	}
	return nil
}

func (p *play) say(format string, args ...any) {
	p.saying.Lock()
	defer p.saying.Unlock()
	fmt.Fprintf(p.Out, "  "+format+"\n", args...)
}

// rollout replaces every pod of a Deployment.
func (p *play) rollout(ctx context.Context, _ *rand.Rand) error {
	if err := p.insist(ctx, "rollout", "restart", "deployment/"+rolled, "-n", namespace); err != nil {
		return err
	}
	return p.insist(ctx, "rollout", "status", "deployment/"+rolled, "-n", namespace, "--timeout", command.String())
}

// insist repeats a command until it succeeds. The server that it asks may be the one
// that is killed, and then it does not know what became of what it asked for; what
// is asked for here may be done twice.
func (p *play) insist(ctx context.Context, args ...string) error {
	return p.stage.Until(ctx, patience, "success of balsa "+strings.Join(args, " "), func(ctx context.Context) error {
		_, err := p.stage.Balsa(ctx, args...)
		return err
	})
}

// read is insist for a command whose output is wanted.
func (p *play) read(ctx context.Context, into any, args ...string) error {
	return p.stage.Until(ctx, patience, "an answer to balsa "+strings.Join(args, " "), func(ctx context.Context) error {
		return p.stage.Decode(ctx, into, args...)
	})
}

// drain empties the node of the only pod of a Deployment, and lets pods in again.
func (p *play) drain(ctx context.Context, _ *rand.Rand) error {
	var node string
	err := p.stage.Until(ctx, patience, "the single pod to be ready", func(ctx context.Context) error {
		pods, err := p.stage.Pods(ctx, namespace)
		if err != nil {
			return err
		}
		for _, pod := range pods {
			if strings.HasPrefix(pod.Metadata.Name, single) && pod.Metadata.DeletionTimestamp == "" && pod.Ready() {
				node = pod.Spec.NodeName
				return nil
			}
		}
		return errors.New("none is")
	})
	if err != nil {
		return err
	}
	if err := p.insist(ctx, "node", "drain", node, "--timeout", command.String()); err != nil {
		return err
	}
	return p.insist(ctx, "node", "uncordon", node)
}

// upgrade replaces an agent's process, as a new version would, half of the times with
// other rules: what is in the table and not planned has it replaced.
func (p *play) upgrade(ctx context.Context, r *rand.Rand) error {
	agent := p.stage.Agents[r.IntN(len(p.stage.Agents))]
	if r.IntN(2) == 0 {
		if _, err := agent.Host.Run(ctx, "nft", "add", "chain", "ip", "balsa", "of-another-version"); err != nil {
			return err
		}
	}
	p.touching[agent].Lock()
	err := agent.Upgrade(p.Binary)
	p.touching[agent].Unlock()
	if err != nil {
		return err
	}
	return p.stage.WaitNodes(ctx, len(p.stage.Agents))
}

// kill ends the leader and starts it again once another leads.
func (p *play) kill(ctx context.Context, _ *rand.Rand) error {
	var leader *stage.Member
	err := p.stage.Until(ctx, patience, "a whole cluster", func(ctx context.Context) (err error) {
		status, err := p.stage.Status(ctx)
		if err != nil {
			return err
		}
		if err := status.Whole(len(p.stage.Servers)); err != nil {
			return err
		}
		leader, err = p.stage.Leader(ctx)
		return err
	})
	if err != nil {
		return err
	}
	if err := leader.Process.Kill(); err != nil {
		return err
	}
	err = p.stage.Until(ctx, patience, "another leader", func(ctx context.Context) error {
		next, err := p.stage.Leader(ctx)
		if err == nil && next == leader {
			return errors.New("the dead one is still named")
		}
		return err
	})
	if err != nil {
		return err
	}
	return leader.Restart()
}

// pauses stops an agent's process for a moment, again and again: its proxy then
// lags behind the others'.
func (p *play) pauses(ctx context.Context, r *rand.Rand) (count int) {
	for rest(ctx, betweenPauses) {
		agent := p.stage.Agents[r.IntN(len(p.stage.Agents))]
		p.touching[agent].Lock()
		if err := agent.Process.Signal(syscall.SIGSTOP); err == nil {
			rest(ctx, leastPause+time.Duration(r.Int64N(int64(mostPause-leastPause))))
			count++
		}
		err := agent.Process.Signal(syscall.SIGCONT)
		p.touching[agent].Unlock()
		if err != nil {
			p.say("agent %s cannot go on: %v", agent.Host.Name, err)
		}
	}
	return count
}

func rest(ctx context.Context, t time.Duration) bool {
	timer := time.NewTimer(t)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (p *play) clusterIP(ctx context.Context, name string) (string, error) {
	var service struct {
		Spec struct {
			ClusterIP string `json:"clusterIP"`
		} `json:"spec"`
	}
	err := p.read(ctx, &service, "get", "service", name, "-n", namespace)
	return service.Spec.ClusterIP, err
}
