package load

import (
	"context"
	"errors"
	"fmt"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"

	"github.com/balsa-run/balsa/client"
)

const (
	podPatience = 60 * time.Second // for each step of one pod
	podEvents   = 256              // that wait for whoever measures
	podGrace    = 5                // seconds
)

// PodOptions say which pods are started.
type PodOptions struct {
	Namespace string
	Prefix    string
	Image     string
	Count     int
	// Nodes get one pod each beforehand, which does not count: the image is
	// there then.
	Nodes []string
	// Selector is that of the pods that count; empty: any node will do.
	Selector map[string]string
}

// PodReport is how long each pod took to start.
type PodReport struct {
	Pods []PodStart `json:"pods"`
}

// PodStart is one pod's way to Running, in milliseconds since its Create was
// sent.
type PodStart struct {
	AcknowledgedMS float64 `json:"acknowledgedMS"`
	BoundMS        float64 `json:"boundMS"` // a watch told of its node
	RunningMS      float64 `json:"runningMS"`
	Node           string  `json:"node"`
}

// Pods makes one pod after the other, each once the one before is gone, and
// tells when a watch saw it Running.
func Pods(ctx context.Context, c *client.Client, options PodOptions) (PodReport, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	report := PodReport{}
	p := &podStarter{client: c, options: options, seen: make(chan podSeen, podEvents)}
	go p.watch(ctx)
	if _, err := p.until(ctx, func(seen podSeen) bool { return seen.event.Type == client.Synced }); err != nil {
		return report, fmt.Errorf("watch pods: %w", err)
	}
	for i, node := range options.Nodes {
		if _, err := p.one(ctx, fmt.Sprintf("%s-first-%d", options.Prefix, i), node); err != nil {
			return report, err
		}
	}
	for i := range options.Count {
		start, err := p.one(ctx, fmt.Sprintf("%s-%d", options.Prefix, i), "")
		if err != nil {
			return report, err
		}
		report.Pods = append(report.Pods, start)
	}
	return report, nil
}

type podStarter struct {
	client  *client.Client
	options PodOptions
	seen    chan podSeen
}

// podSeen is an event of the watch and when it came, or how the watch ended.
type podSeen struct {
	event client.Event[*balsav1.Pod]
	at    time.Time
	err   error
}

func (p *podStarter) watch(ctx context.Context) {
	for event, err := range client.Watch[*balsav1.Pod](ctx, p.client, p.options.Namespace, client.WatchOptions{}) {
		select {
		case p.seen <- podSeen{event: event, at: time.Now(), err: err}:
		case <-ctx.Done():
			return
		}
	}
}

// until reads events to the first that fits.
func (p *podStarter) until(ctx context.Context, fits func(podSeen) bool) (podSeen, error) {
	timer := time.NewTimer(podPatience)
	defer timer.Stop()
	for {
		select {
		case seen := <-p.seen:
			if seen.err != nil || fits(seen) {
				return seen, seen.err
			}
		case <-timer.C:
			return podSeen{}, fmt.Errorf("nothing came within %v", podPatience)
		case <-ctx.Done():
			return podSeen{}, context.Cause(ctx)
		}
	}
}

// one starts a pod and takes it away again.
func (p *podStarter) one(ctx context.Context, name, node string) (PodStart, error) {
	start, err := p.start(ctx, name, node)
	if err != nil {
		return start, fmt.Errorf("start pod %s: %w", name, err)
	}
	if _, err := client.Delete[*balsav1.Pod](ctx, p.client, p.options.Namespace, name, client.DeleteOptions{}); err != nil {
		return start, fmt.Errorf("delete pod %s: %w", name, err)
	}
	_, err = p.until(ctx, func(seen podSeen) bool { return seen.of(name) && seen.event.Type == client.Deleted })
	if err != nil {
		return start, fmt.Errorf("wait for the end of pod %s: %w", name, err)
	}
	return start, nil
}

func (s podSeen) of(name string) bool { return s.event.Object.GetMetadata().GetName() == name }

func (p *podStarter) start(ctx context.Context, name, node string) (PodStart, error) {
	start, began := PodStart{}, time.Now()
	if _, err := client.Create(ctx, p.client, p.pod(name, node), client.WriteOptions{}); err != nil {
		return start, err
	}
	start.AcknowledgedMS = milliseconds(time.Since(began))
	failed := ""
	running, err := p.until(ctx, func(seen podSeen) bool {
		if !seen.of(name) {
			return false
		}
		pod := seen.event.Object
		if start.Node = pod.GetSpec().GetNodeName(); start.Node != "" && start.BoundMS == 0 {
			start.BoundMS = milliseconds(seen.at.Sub(began))
		}
		phase := pod.GetStatus().GetPhase()
		if object.IsFinalPhase(phase) {
			failed = phase
		}
		return phase == object.PodRunning || failed != ""
	})
	if err == nil && failed != "" {
		err = errors.New("it is " + failed)
	}
	start.RunningMS = milliseconds(running.at.Sub(began))
	return start, err
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func (p *podStarter) pod(name, node string) *balsav1.Pod {
	grace := int64(podGrace)
	return &balsav1.Pod{
		ApiVersion: "v1", Kind: "Pod",
		Metadata: &balsav1.ObjectMeta{Namespace: p.options.Namespace, Name: name},
		Spec: &balsav1.PodSpec{
			NodeName: node, NodeSelector: p.options.Selector, TerminationGracePeriodSeconds: &grace,
			Containers: []*balsav1.Container{{Name: "main", Image: p.options.Image}},
		},
	}
}
