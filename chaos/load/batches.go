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

// BatchOptions say which pods are started at once. Of the PodOptions, Count is
// the number of batches.
type BatchOptions struct {
	PodOptions
	// Size is how many pods are in a batch.
	Size int
}

// maxBatch bounds the pods that are created at once, each by a goroutine.
const maxBatch = 200

// BatchReport is how long the pods of each batch took to start.
type BatchReport struct {
	Batches []Batch `json:"batches"`
}

// Batch is pods that were started at once.
type Batch struct {
	Pods []PodStart `json:"pods"`
	// AllMS is from the first Create until the last pod was seen Running.
	AllMS float64 `json:"allMS"`
}

// Batches makes pods, all of a batch at once, tells when a watch saw each of them
// Running, and takes them away before the next batch.
func Batches(ctx context.Context, c *client.Client, options BatchOptions) (BatchReport, error) {
	report := BatchReport{}
	if options.Size < 1 || options.Size > maxBatch {
		return report, fmt.Errorf("a batch of %d pods: want 1 to %d", options.Size, maxBatch)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p := &podStarter{client: c, options: options.PodOptions, seen: make(chan podSeen, podEvents)}
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
		batch, err := p.batch(ctx, fmt.Sprintf("%s-%d", options.Prefix, i), options.Size)
		if err != nil {
			return report, fmt.Errorf("batch %d: %w", i, err)
		}
		report.Batches = append(report.Batches, batch)
	}
	return report, nil
}

// created is how the Create of one pod went.
type created struct {
	name            string
	began, answered time.Time
	err             error
}

func (p *podStarter) batch(ctx context.Context, prefix string, size int) (Batch, error) {
	batch := Batch{}
	starts, first, err := p.createAll(ctx, prefix, size)
	if err != nil {
		return batch, err
	}
	last, err := p.untilRunning(ctx, starts)
	if err != nil {
		return batch, err
	}
	batch.AllMS = milliseconds(last.Sub(first))
	for _, s := range starts {
		batch.Pods = append(batch.Pods, s.start)
	}
	return batch, p.deleteAll(ctx, starts)
}

// batchPod is a pod that is on its way; events that came before its Create was
// answered count from the time they came.
type batchPod struct {
	start PodStart
	began time.Time
}

// createAll sends every Create at once. Events meanwhile wait in the watch's
// channel, with the time at which they came.
func (p *podStarter) createAll(ctx context.Context, prefix string, size int) (map[string]*batchPod, time.Time, error) {
	answers := make(chan created, size)
	for i := range size {
		go func() {
			c := created{name: fmt.Sprintf("%s-%d", prefix, i), began: time.Now()}
			_, c.err = client.Create(ctx, p.client, p.pod(c.name, ""), client.WriteOptions{})
			c.answered = time.Now()
			answers <- c
		}()
	}
	starts, first := map[string]*batchPod{}, time.Time{}
	var failed error
	for range size {
		c := <-answers
		if c.err != nil {
			failed = errors.Join(failed, fmt.Errorf("create pod %s: %w", c.name, c.err))
			continue
		}
		if first.IsZero() || c.began.Before(first) {
			first = c.began
		}
		starts[c.name] = &batchPod{began: c.began, start: PodStart{AcknowledgedMS: milliseconds(c.answered.Sub(c.began))}}
	}
	return starts, first, failed
}

// untilRunning returns when the last pod was seen Running.
func (p *podStarter) untilRunning(ctx context.Context, starts map[string]*batchPod) (time.Time, error) {
	missing, failed := len(starts), error(nil)
	last, err := p.until(ctx, func(seen podSeen) bool {
		pod := seen.event.Object
		b := starts[pod.GetMetadata().GetName()]
		if b == nil || seen.event.Type == client.Deleted {
			return false
		}
		if node := pod.GetSpec().GetNodeName(); node != "" && b.start.BoundMS == 0 {
			b.start.Node, b.start.BoundMS = node, milliseconds(seen.at.Sub(b.began))
		}
		phase := pod.GetStatus().GetPhase()
		if object.IsFinalPhase(phase) {
			failed = fmt.Errorf("pod %s is %s", pod.GetMetadata().GetName(), phase)
		}
		if phase == object.PodRunning && b.start.RunningMS == 0 {
			b.start.RunningMS = milliseconds(seen.at.Sub(b.began))
			missing--
		}
		return missing == 0 || failed != nil
	})
	if err != nil {
		return last.at, fmt.Errorf("%d of %d pods are not Running: %w", missing, len(starts), err)
	}
	return last.at, failed
}

// deleteAll returns when every pod is gone.
func (p *podStarter) deleteAll(ctx context.Context, starts map[string]*batchPod) error {
	answers := make(chan error, len(starts))
	for name := range starts {
		go func() {
			_, err := client.Delete[*balsav1.Pod](ctx, p.client, p.options.Namespace, name, client.DeleteOptions{})
			answers <- err
		}()
	}
	var failed error
	for range starts {
		failed = errors.Join(failed, <-answers)
	}
	if failed != nil {
		return failed
	}
	left := len(starts)
	_, err := p.until(ctx, func(seen podSeen) bool {
		if seen.event.Type == client.Deleted && starts[seen.event.Object.GetMetadata().GetName()] != nil {
			left--
		}
		return left == 0
	})
	if err != nil {
		return fmt.Errorf("%d of %d pods are still there: %w", left, len(starts), err)
	}
	return nil
}
