// Package demo is what `make demo` shows: a cluster of three servers and two
// agents on this machine, an app on it, and what becomes of both when the raft
// leader and then an agent are killed. Each promise is checked; a broken one
// ends the demo with an error.
package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/balsa-run/balsa/chaos/load"
	"github.com/balsa-run/balsa/chaos/stage"
	"github.com/balsa-run/balsa/chaos/world/host"
)

const (
	namespace     = "hello"
	serviceURL    = "http://hello.hello.svc.cluster.local/"
	rolloutWait   = 60 * time.Second
	settle        = 2 * time.Second // of load before and after a fault
	maxWriteGapMS = 2000
)

// Options say with what the demo is played.
type Options struct {
	Binary   string // balsa
	Chaos    string // this program, for the loads
	Archive  string // the echo image
	Manifest string // examples/hello.yaml
	Dir      string
	Keep     bool // leave the cluster up
	// Slow multiplies the deadlines, on a machine whose processor is emulated;
	// at least 1.
	Slow int
	Out  io.Writer
}

type demo struct {
	Options
	stage *stage.Stage
}

// Run plays the demo and takes everything down, also when ctx ends.
func Run(ctx context.Context, options Options) (err error) {
	if options.Slow < 1 {
		return fmt.Errorf("--slow %d: at least 1 is allowed", options.Slow)
	}
	d := &demo{Options: options}
	d.step("Three servers and two agents, each host in a network namespace")
	d.stage, err = stage.Up(ctx, stage.Options{
		Prefix: "demo", Dir: options.Dir, Binary: options.Binary, Servers: 3, Agents: 2, Progress: options.Out,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.down(err)) }()
	for _, scene := range []func(context.Context) error{d.app, d.reach, d.leaderKilled, d.agentKilled, d.scale} {
		if err := scene(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) down(failed error) error {
	if failed != nil {
		fmt.Fprintln(d.Out, d.stage.Logs(20))
	}
	if d.Keep {
		d.step("Left up, as KEEP=1 asks. Talk to it with")
		fmt.Fprintf(d.Out, "  nsenter --net=%s %s --config %s get pods -A\n", d.stage.Operator.NamespacePath(), d.Binary, d.stage.Admin())
		fmt.Fprintf(d.Out, "and take it down with\n  %s clean --prefix demo --dir %s\n", d.Chaos, d.Dir)
		return nil
	}
	d.step("Taking everything down")
	if err := d.stage.Down(); err != nil {
		return err
	}
	if err := os.RemoveAll(d.Dir); err != nil {
		return err
	}
	fmt.Fprintln(d.Out, "  no namespace, mount, cgroup, rule or process is left")
	return nil
}

func (d *demo) rolloutWait() time.Duration { return rolloutWait * time.Duration(d.Slow) }

func (d *demo) step(format string, args ...any) {
	fmt.Fprintf(d.Out, "\n== "+format+"\n", args...)
}

func (d *demo) tell(format string, args ...any) { fmt.Fprintf(d.Out, "  "+format+"\n", args...) }

// app brings the image in and the manifest up.
func (d *demo) app(ctx context.Context) error {
	d.step("balsa image import, balsa apply -f examples/hello.yaml")
	out, err := d.stage.Balsa(ctx, "image", "import", d.Archive)
	if err != nil {
		return err
	}
	d.quote(out)
	if out, err = d.stage.Balsa(ctx, "apply", "-f", d.Manifest); err != nil {
		return err
	}
	d.quote(out)
	started := time.Now()
	pods, err := d.stage.WaitReady(ctx, namespace, 3, d.rolloutWait())
	if err != nil {
		return err
	}
	d.tell("%d pods are ready after %v", len(pods), time.Since(started).Round(time.Millisecond))
	return d.show(ctx, "get", "pods", "-n", namespace, "-o", "wide")
}

func (d *demo) show(ctx context.Context, args ...string) error {
	out, err := d.stage.Balsa(ctx, args...)
	d.quote(out)
	return err
}

func (d *demo) quote(text string) {
	for line := range strings.Lines(text) {
		fmt.Fprint(d.Out, "  | ", line)
	}
}

// reach asks the Service by name from inside a pod, and by address from a host.
func (d *demo) reach(ctx context.Context) error {
	pods, err := d.stage.Pods(ctx, namespace)
	if err != nil {
		return err
	}
	d.step("The Service by its DNS name, asked from pod %s", pods[0].Metadata.Name)
	out, err := d.curl(ctx, d.hostOf(pods[0]), "http://"+pods[0].Status.PodIP+":8080/fetch?u="+serviceURL)
	if err != nil {
		return err
	}
	d.quote(out)
	address, err := d.clusterIP(ctx)
	if err != nil {
		return err
	}
	d.step("The Service by its ClusterIP %s, asked from host n1", address)
	if out, err = d.curl(ctx, d.stage.Agents[0].Host, "http://"+address+"/"); err != nil {
		return err
	}
	d.quote(out)
	return nil
}

func (d *demo) hostOf(pod stage.Pod) *host.Host {
	for _, agent := range d.stage.Agents {
		if agent.Host.Name == pod.Spec.NodeName {
			return agent.Host
		}
	}
	return d.stage.Agents[0].Host
}

func (d *demo) curl(ctx context.Context, from *host.Host, url string) (string, error) {
	return from.Run(ctx, "curl", "--silent", "--show-error", "--fail", "--max-time", "5", url)
}

func (d *demo) clusterIP(ctx context.Context) (string, error) {
	out, err := d.stage.Balsa(ctx, "get", "service", "hello", "-n", namespace, "-o", "json")
	if err != nil {
		return "", err
	}
	var service struct {
		Spec struct {
			ClusterIP string `json:"clusterIP"`
		} `json:"spec"`
	}
	if err := json.Unmarshal([]byte(out), &service); err != nil {
		return "", fmt.Errorf("get service hello: %w", err)
	}
	return service.Spec.ClusterIP, nil
}

// loads are requests and writes that go on while something is killed.
type loads struct {
	requests *stage.Requests
	writes   *stage.Writes
}

func (d *demo) startLoads(ctx context.Context, name string) (*loads, error) {
	address, err := d.clusterIP(ctx)
	if err != nil {
		return nil, err
	}
	l := &loads{}
	if l.requests, err = d.stage.StartRequests(d.stage.Agents[0].Host, d.Chaos, "http://"+address+"/", name); err != nil {
		return nil, err
	}
	l.writes, err = d.stage.StartWrites(d.Chaos, namespace, name)
	return l, err
}

// stop ends the loads and judges what they report.
func (l *loads) stop(d *demo) (*load.WriteReport, error) {
	requests, err := l.requests.Stop()
	writes, writesErr := l.writes.Stop()
	if err := errors.Join(err, writesErr); err != nil {
		return nil, err
	}
	d.tell("requests to the Service: %d, failed: %d", requests.Requests, requests.Failed)
	d.tell("writes acknowledged: %d, lost: %d, invented: %d, of unknown fate: %d, longest gap: %d ms",
		writes.Acknowledged, len(writes.Lost), len(writes.Phantoms), writes.Unknown, writes.LongestGapMS)
	if requests.Failed > 0 {
		return nil, fmt.Errorf("%d service requests failed: %s", requests.Failed, strings.Join(requests.Errors, "; "))
	}
	return writes, nil
}

func (d *demo) leaderKilled(ctx context.Context) error {
	leader, err := d.stage.Leader(ctx)
	if err != nil {
		return err
	}
	d.step("SIGKILL for the leader %s, while requests and writes go on", leader.Host.Name)
	running, err := d.startLoads(ctx, "leader")
	if err != nil {
		return err
	}
	if err := d.pause(ctx); err != nil {
		return err
	}
	if err := leader.Process.Kill(); err != nil {
		return err
	}
	var next *stage.Member
	err = d.stage.Until(ctx, d.rolloutWait(), "another leader", func(ctx context.Context) error {
		if next, err = d.stage.Leader(ctx); err == nil && next == leader {
			return errors.New("the dead one is still named")
		}
		return err
	})
	if err != nil {
		return err
	}
	d.tell("%s leads now", next.Host.Name)
	if err := d.pause(ctx); err != nil {
		return err
	}
	writes, err := running.stop(d)
	if err != nil {
		return err
	}
	if promise := int64(maxWriteGapMS * d.Slow); writes.LongestGapMS > promise {
		return fmt.Errorf("no write was acknowledged for %d ms; the promise is %d", writes.LongestGapMS, promise)
	}
	if err := leader.Restart(); err != nil {
		return err
	}
	d.tell("%s is started again", leader.Host.Name)
	return nil
}

func (d *demo) agentKilled(ctx context.Context) error {
	agent := d.stage.Agents[1]
	d.step("SIGKILL for the agent of %s", agent.Host.Name)
	before, err := d.containers(ctx, agent.Host.Name)
	if err != nil {
		return err
	}
	running, err := d.startLoads(ctx, "agent")
	if err != nil {
		return err
	}
	if err := agent.Process.Kill(); err != nil {
		return err
	}
	if err := d.pause(ctx); err != nil {
		return err
	}
	if err := agent.Restart(); err != nil {
		return err
	}
	if _, err := d.stage.WaitReady(ctx, namespace, 3, d.rolloutWait()); err != nil {
		return err
	}
	if err := d.pause(ctx); err != nil {
		return err
	}
	if _, err := running.stop(d); err != nil {
		return err
	}
	after, err := d.containers(ctx, agent.Host.Name)
	if err != nil {
		return err
	}
	if before != after {
		return fmt.Errorf("containers of %s changed while its agent was dead:\nbefore: %s\nafter:  %s", agent.Host.Name, before, after)
	}
	d.tell("the agent is back and has adopted its containers, started as before: %s", after)
	return nil
}

// containers names the containers of a node with the instant each was started.
func (d *demo) containers(ctx context.Context, node string) (string, error) {
	pods, err := d.stage.Pods(ctx, namespace)
	if err != nil {
		return "", err
	}
	var names []string
	for _, pod := range pods {
		if pod.Spec.NodeName != node {
			continue
		}
		for _, container := range pod.Status.ContainerStatuses {
			if container.State.Running == nil {
				return "", fmt.Errorf("pod %s: its container does not run", pod.Metadata.Name)
			}
			names = append(names, fmt.Sprintf("%s since %s, restarts %d", pod.Metadata.Name, container.State.Running.StartedAt, container.RestartCount))
		}
	}
	if len(names) == 0 {
		return "", fmt.Errorf("no pod runs on %s: nothing to adopt", node)
	}
	return strings.Join(names, "; "), nil
}

func (d *demo) scale(ctx context.Context) error {
	d.step("balsa scale deployment/hello --replicas 6")
	if err := d.show(ctx, "scale", "deployment/hello", "-n", namespace, "--replicas", "6"); err != nil {
		return err
	}
	if _, err := d.stage.WaitReady(ctx, namespace, 6, d.rolloutWait()); err != nil {
		return err
	}
	return d.show(ctx, "get", "deployments,pods,services", "-n", namespace, "-o", "wide")
}

// pause lets the load run for a while.
func (d *demo) pause(ctx context.Context) error {
	timer := time.NewTimer(settle)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
