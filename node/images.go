package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/balsa-run/balsa/node/pod"
	"github.com/balsa-run/balsa/object"
)

// imageCache resolves the images that pods wait for, beside the pods' own turns:
// a transfer may take minutes, in which a pod can still be deleted.
//
// A container's first run asks what the name means now, so that an image that was
// imported again under the same name is used everywhere; what the node has will
// do when nobody can be asked. Later runs take what the node has, unless the
// policy is Always, and even then when nobody can be asked: a restart needs no
// server.
type imageCache struct {
	a     *Agent
	slots chan struct{}

	mu      sync.Mutex
	entries map[imageKey]*imageEntry        // guarded by mu
	pods    map[string]map[string]*imageUse // guarded by mu; by uid and container
}

// imageKey: what a name means to those who may ask, to those who may not, and to
// those with other credentials, differs.
type imageKey struct {
	name, policy string
	credentials  string // a digest
}

type imageEntry struct {
	state    pod.Image
	busy     bool
	failures int
	retryAt  time.Time
	// telling: the event Pulling is out.
	telling bool
	toldAt  time.Time
}

// imageUse is a container's wish for an image.
type imageUse struct {
	key  imageKey
	want pod.ImageWant
	// fresh: an answer from before does not do.
	fresh time.Time
}

func newImageCache(a *Agent) *imageCache {
	return &imageCache{a: a, slots: make(chan struct{}, parallelFetches), entries: map[imageKey]*imageEntry{}, pods: map[string]map[string]*imageUse{}}
}

// states tells what is known of the images of a pod's containers.
func (c *imageCache) states(uid string) map[string]pod.Image {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string]pod.Image{}
	for name, use := range c.pods[uid] {
		e := c.entries[use.key]
		if e != nil && (!e.state.At.Before(use.fresh) || e.busy && e.state.Progress != nil) {
			out[name] = e.state
		}
	}
	return out
}

// want makes images be resolved that a pod waits for. What was resolved before
// the agent began with the pod does not count.
func (c *imageCache) want(uid string, wants []pod.ImageWant, since time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.a.cfg.Clock.Now()
	for _, w := range wants {
		use := &imageUse{key: imageKey{w.Name, w.Policy, digest(w.Credentials)}, want: w, fresh: since}
		if w.Fresh.After(since) {
			use.fresh = w.Fresh
		}
		if c.pods[uid] == nil {
			c.pods[uid] = map[string]*imageUse{}
		}
		c.pods[uid][w.Container] = use
		e := c.entries[use.key]
		if e == nil {
			e = &imageEntry{}
			c.entries[use.key] = e
		}
		current := !e.state.At.Before(use.fresh)
		if e.busy || current && e.state.Ready || current && now.Before(e.retryAt) || current && e.state.Reason == pod.ReasonImageName {
			continue
		}
		e.busy, e.telling = true, false
		c.a.running.Go(func() { c.resolve(c.a.work, use) })
	}
}

func digest(credentials [][]byte) string {
	if len(credentials) == 0 {
		return ""
	}
	h := sha256.New()
	for _, data := range credentials {
		fmt.Fprintf(h, "%d\n%s\n", len(data), data)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// usersLocked are the pods that wait for an image, or may start it again.
func (c *imageCache) usersLocked(key imageKey) map[string]string {
	out := map[string]string{}
	for uid, uses := range c.pods {
		for container, use := range uses {
			if use.key == key {
				out[uid] = container
			}
		}
	}
	return out
}

// resolve finds an image and tells the pods that wait for it.
func (c *imageCache) resolve(ctx context.Context, use *imageUse) {
	began := c.a.cfg.Clock.Now()
	found, err := c.find(ctx, use)
	if ctx.Err() != nil {
		return
	}
	now := c.a.cfg.Clock.Now()
	c.mu.Lock()
	e := c.entries[use.key]
	e.busy = false
	delay := time.Duration(0)
	if err == nil {
		e.state, e.failures = pod.Image{Ready: true, Image: found.Image, At: began, Note: noteOf(use.key.name, found, now.Sub(began))}, 0
	} else {
		e.failures++
		delay = imageDelay(e.failures, err)
		e.state = pod.Image{Reason: reasonOf(use.key, err), Message: messageOf(use.key, c.a.cfg.Name, err), At: began, Last: now}
		e.retryAt = now.Add(delay)
	}
	users := c.usersLocked(use.key)
	c.mu.Unlock()
	c.a.metrics.fetched(now.Sub(began), err)
	if err != nil && use.key.policy != object.PullNever {
		c.tell(users, pod.Event{Warning: true, Reason: "Failed", Message: fmt.Sprintf("Failed to pull image %q: %v", use.key.name, err)})
	}
	c.a.wakeAll(sortedKeys(users))
	if err != nil {
		c.a.running.Go(func() {
			if sleep(ctx, c.a.cfg.Clock, delay) == nil {
				c.a.wakeAll(sortedKeys(users))
			}
		})
	}
}

// tell makes an event of every pod that waits.
func (c *imageCache) tell(users map[string]string, e pod.Event) {
	for _, uid := range sortedKeys(users) {
		if p := c.a.set.pod(uid); p != nil {
			e.Container = users[uid]
			c.a.event(p, e)
		}
	}
}

// find takes an image from the node if that will do, else from elsewhere.
func (c *imageCache) find(ctx context.Context, use *imageUse) (PulledImage, error) {
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return PulledImage{}, context.Cause(ctx)
	}
	local := func() (PulledImage, error) {
		image, err := c.a.cfg.Images.Local(ctx, use.key.name)
		return PulledImage{Image: image}, err
	}
	never := use.key.policy == object.PullNever
	if !use.want.First && use.key.policy != object.PullAlways {
		found, err := local()
		if err == nil || never || !errors.Is(err, ErrImageNotPresent) {
			return found, err
		}
	}
	call, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	found, err := c.pull(call, use)
	if err != nil && !use.want.First && errors.Is(err, ErrImageUnreachable) {
		if found, localErr := local(); localErr == nil {
			return found, nil
		}
	}
	return found, err
}

func (c *imageCache) pull(ctx context.Context, use *imageUse) (PulledImage, error) {
	want := ImagePull{Name: use.key.name, Policy: use.key.policy, Credentials: use.want.Credentials}
	return c.a.cfg.Images.Pull(ctx, want, func(p ImageProgress) { c.progress(use.key, p) })
}

// progress tells of a transfer: once as an event, then in what the containers
// that wait say.
func (c *imageCache) progress(key imageKey, p ImageProgress) {
	now := c.a.cfg.Clock.Now()
	c.mu.Lock()
	e := c.entries[key]
	if e == nil || !e.busy {
		c.mu.Unlock()
		return
	}
	first := !e.telling
	wake := first || now.Sub(e.toldAt) >= progressEvery
	e.telling, e.state = true, pod.Image{Progress: &p, At: e.state.At}
	if wake {
		e.toldAt = now
	}
	users := c.usersLocked(key)
	c.mu.Unlock()
	if first {
		c.tell(users, pod.Event{Reason: "Pulling", Message: fmt.Sprintf("Pulling image %q", key.name)})
	}
	if wake {
		c.a.wakeAll(sortedKeys(users))
	}
}

// noteOf uses the kubelet's words.
func noteOf(name string, found PulledImage, took time.Duration) string {
	if !found.Transferred {
		return pod.AlreadyPresent(name)
	}
	return fmt.Sprintf("Successfully pulled image %q in %s. Image size: %d bytes.", name, took.Round(time.Millisecond), found.SizeBytes)
}

func reasonOf(key imageKey, err error) string {
	switch {
	case errors.Is(err, ErrImageName):
		return pod.ReasonImageName
	case key.policy == object.PullNever && (errors.Is(err, ErrImageNotPresent) || errors.Is(err, ErrImageDenied)):
		return pod.ReasonImageNeverPull
	}
	return pod.ReasonImagePull
}

// messageOf tells who was asked for an image, and what to try.
func messageOf(key imageKey, node string, err error) string {
	missing := errors.Is(err, ErrImageNotPresent)
	switch {
	case errors.Is(err, ErrImageDenied):
		return fmt.Sprintf("%v: give the pod its imagePullSecrets, or choose another imagePullPolicy", err)
	case missing && key.policy == object.PullNever:
		return fmt.Sprintf("image %q is not on node %s, and imagePullPolicy Never forbids to bring it there: choose another policy", key.name, node)
	case missing || errors.Is(err, ErrImageUnreachable) && key.policy != object.PullAlways:
		return fmt.Sprintf("image %q is not on node %s: %v; import it with \"balsa image import\", or name one that a registry gives", key.name, node, err)
	}
	return fmt.Sprintf("image %q could not be brought to node %s: %v", key.name, node, err)
}

// Images that are not there are asked for again soon: importing one is often
// what happens next, and nothing announces it.
const (
	imageDelayMin    = time.Second
	imageDelayAbsent = 15 * time.Second
	imageDelayMax    = time.Minute
)

func imageDelay(failures int, err error) time.Duration {
	most := imageDelayMax
	if errors.Is(err, ErrImageNotPresent) {
		most = imageDelayAbsent
	}
	d := imageDelayMin
	for ; failures > 1 && d < most; failures-- {
		d *= 2
	}
	return min(d, most)
}

// doubt makes an image be resolved again: a container could not be made of it,
// perhaps because it was just removed.
func (c *imageCache) doubt(digest string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.entries {
		if e.state.Ready && e.state.Image.Digest == digest {
			e.state.At = time.Time{}
		}
	}
}

// release forgets a pod that has gone, and images that only it used.
func (c *imageCache) release(uid string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pods, uid)
	for key, e := range c.entries {
		if len(c.usersLocked(key)) == 0 && !e.busy {
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
