package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/node/pod"
	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/object"
)

// imageCache resolves the images that pods wait for, beside the pods' own turns:
// a transfer may take minutes, in which a pod can still be deleted.
//
// A container's first run asks the servers what the name means now, so that an
// image that was imported again under the same name is used everywhere; what
// the node has will do when they cannot be asked. Later runs take what the node
// has, so that a restart needs no server.
type imageCache struct {
	a     *Agent
	slots chan struct{}

	mu      sync.Mutex
	entries map[imageKey]*imageEntry // guarded by mu
}

// imageKey: what a name means to those who may ask the servers, and to those who
// may not, differs.
type imageKey struct {
	name  string
	local bool
}

type imageEntry struct {
	state      pod.Image
	resolvedAt time.Time
	busy       bool
	failures   int
	retryAt    time.Time
	// users are the uids of pods that wait for the image or may start it again.
	users map[string]bool
}

func newImageCache(a *Agent) *imageCache {
	return &imageCache{a: a, slots: make(chan struct{}, parallelFetches), entries: map[imageKey]*imageEntry{}}
}

// states tells what is known of the images of a pod's containers. What was
// resolved before the pod came does not count.
func (c *imageCache) states(p *balsav1.Pod, since time.Time) map[string]pod.Image {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string]pod.Image{}
	for _, container := range p.GetSpec().GetContainers() {
		e := c.entries[imageKey{container.GetImage(), container.GetImagePullPolicy() == object.PullNever}]
		if e != nil && !e.resolvedAt.Before(since) {
			out[container.GetName()] = e.state
		}
	}
	return out
}

// want makes images be resolved that a pod waits for.
func (c *imageCache) want(uid string, wants []pod.ImageWant, since time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.a.cfg.Clock.Now()
	for _, w := range wants {
		key := imageKey{w.Name, w.LocalOnly}
		e := c.entries[key]
		if e == nil {
			e = &imageEntry{users: map[string]bool{}}
			c.entries[key] = e
		}
		e.users[uid] = true
		current := e.state.Ready && !e.resolvedAt.Before(since)
		if e.busy || current || now.Before(e.retryAt) && !e.resolvedAt.Before(since) {
			continue
		}
		e.busy = true
		c.a.running.Go(func() { c.resolve(c.a.work, key, w.First) })
	}
}

// resolve finds an image and tells the pods that wait for it.
func (c *imageCache) resolve(ctx context.Context, key imageKey, first bool) {
	began := c.a.cfg.Clock.Now()
	image, err := c.find(ctx, key, first)
	if ctx.Err() != nil {
		return
	}
	now := c.a.cfg.Clock.Now()
	c.mu.Lock()
	e := c.entries[key]
	e.busy, e.resolvedAt = false, began
	if err == nil {
		e.state, e.failures = pod.Image{Ready: true, Image: image}, 0
	} else {
		e.failures++
		e.state = pod.Image{Reason: reasonOf(err), Message: messageOf(key.name, err)}
		e.retryAt = now.Add(imageDelay(e.failures))
	}
	delay := imageDelay(e.failures)
	users := sortedKeys(e.users)
	c.mu.Unlock()
	c.a.metrics.fetched(now.Sub(began), err)
	c.a.wakeAll(users)
	if err != nil {
		c.a.running.Go(func() {
			if sleep(ctx, c.a.cfg.Clock, delay) == nil {
				c.a.wakeAll(users)
			}
		})
	}
}

func (c *imageCache) find(ctx context.Context, key imageKey, first bool) (runtime.Image, error) {
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return runtime.Image{}, context.Cause(ctx)
	}
	if key.local || !first {
		image, err := c.a.cfg.Images.Local(ctx, key.name)
		if err == nil || key.local || !errors.Is(err, ErrImageNotPresent) {
			return image, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	return c.a.cfg.Images.Fetch(ctx, key.name)
}

func reasonOf(err error) string {
	if errors.Is(err, ErrImageNotPresent) {
		return pod.ReasonImageNotPresent
	}
	return pod.ReasonImagePull
}

func messageOf(name string, err error) string {
	if errors.Is(err, ErrImageNotPresent) {
		return fmt.Sprintf("image %q is not in the cluster: import it with \"balsa image import\"", name)
	}
	return fmt.Sprintf("image %q could not be brought to the node: %v", name, err)
}

// Images that are not there are asked for again soon: importing one is often
// what happens next, and nothing announces it.
const (
	imageDelayMin = time.Second
	imageDelayMax = 15 * time.Second
)

func imageDelay(failures int) time.Duration {
	d := imageDelayMin
	for ; failures > 1 && d < imageDelayMax; failures-- {
		d *= 2
	}
	return min(d, imageDelayMax)
}

// doubt makes an image be resolved again: a container could not be made of it,
// perhaps because it was just removed.
func (c *imageCache) doubt(digest string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.entries {
		if e.state.Ready && e.state.Image.Digest == digest {
			e.resolvedAt = time.Time{}
		}
	}
}

// release forgets a pod that has gone, and images that only it used.
func (c *imageCache) release(uid string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, e := range c.entries {
		delete(e.users, uid)
		if len(e.users) == 0 && !e.busy {
			delete(c.entries, key)
		}
	}
}

// digests are the images that may be started any time.
func (c *imageCache) digests() map[string]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string]bool{}
	for _, e := range c.entries {
		if e.state.Ready {
			out[e.state.Image.Digest] = true
		}
	}
	return out
}
