package node_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/node"
	"github.com/balsa-run/balsa/object"
)

// onRegistry is onNode with images that come from a registry.
func onRegistry(t *testing.T, test func(l *lab, r *registry)) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		r := &registry{imageStore: l.images}
		l.store = r
		l.start()
		defer l.end()
		test(l, r)
	})
}

// registry is an imageStore that pulls with progress and looks at credentials.
type registry struct {
	*imageStore
	mu    sync.Mutex
	pulls []node.ImagePull
	down  bool
}

func (r *registry) Pull(ctx context.Context, want node.ImagePull, progress func(node.ImageProgress)) (node.PulledImage, error) {
	r.mu.Lock()
	r.pulls = append(r.pulls, want)
	down := r.down
	r.mu.Unlock()
	switch {
	case strings.Contains(want.Name, "//"):
		return node.PulledImage{}, fmt.Errorf("%q: %w", want.Name, node.ErrImageName)
	case want.Policy == object.PullNever:
		if len(want.Credentials) == 0 || string(want.Credentials[0]) != "key" {
			return node.PulledImage{}, fmt.Errorf("it is somebody else's: %w", node.ErrImageDenied)
		}
		image, err := r.Local(ctx, want.Name)
		return node.PulledImage{Image: image}, err
	case down:
		return node.PulledImage{}, fmt.Errorf("no route: %w", node.ErrImageUnreachable)
	case strings.HasPrefix(want.Name, "private/") && (len(want.Credentials) == 0 || string(want.Credentials[0]) != "key"):
		return node.PulledImage{}, fmt.Errorf("unauthorized")
	}
	progress(node.ImageProgress{Layers: 3})
	time.Sleep(2 * time.Second)
	progress(node.ImageProgress{Layers: 3, LayersDone: 2, BytesDone: 20, BytesTotal: 30})
	time.Sleep(6 * time.Second)
	return node.PulledImage{Image: imageOf(want.Name), SizeBytes: 30, Transferred: true}, nil
}

func TestPullingImages(t *testing.T) {
	onRegistry(t, func(l *lab, r *registry) {
		p := newPod("a", "forever")
		p.Spec.Containers[0].Image = "private/app:latest"
		p.Spec.Containers[0].ImagePullPolicy = ""
		p.Spec.ImagePullSecrets = []*balsav1.LocalObjectReference{{Name: "pull"}}
		l.put(p)
		l.within(3*time.Second, "without its secret it fails", func() bool { return l.statusOf("a", "c").GetState().GetWaiting().GetReason() == "ErrImagePull" })
		l.within(3*time.Second, "and rests", func() bool { return l.statusOf("a", "c").GetState().GetWaiting().GetReason() == "ImagePullBackOff" })
		l.within(time.Second, "events tell", func() bool {
			return l.hasEvent("FailedToRetrieveImagePullSecret", "default/pull") && l.hasEvent("Failed", "unauthorized") && l.hasEvent("BackOff", "Back-off pulling image")
		})
		l.server.put(&balsav1.Secret{Metadata: &balsav1.ObjectMeta{Name: "pull", Namespace: "default"}, Data: map[string][]byte{object.DockerConfigJSONKey: []byte("key")}})
		l.within(5*time.Second, "with it the image comes", func() bool {
			return l.hasEvent("Pulling", "private/app:latest") && strings.Contains(l.statusOf("a", "c").GetState().GetWaiting().GetMessage(), "pulling image private/app:latest")
		})
		l.within(12*time.Second, "and the pod runs", l.ready("a"))
		l.within(time.Second, "how long it took is told", func() bool { return l.hasEvent("Pulled", "in 8s. Image size: 30 bytes.") })
		if last := r.pulls[len(r.pulls)-1]; last.Policy != "Always" || string(last.Credentials[0]) != "key" {
			l.Errorf("it was asked for %+v", last)
		}
	})
}

func TestPullAlwaysAsksAtEachStart(t *testing.T) {
	onRegistry(t, func(l *lab, r *registry) {
		p := newPod("a", "sleep=3s", "exit=1")
		p.Spec.Containers[0].ImagePullPolicy = "Always"
		once := newPod("b", "sleep=3s", "exit=1")
		once.Spec.Containers[0].Image = "other:1"
		r.local["app:1"], r.local["other:1"] = true, true
		l.put(p)
		l.put(once)
		l.within(time.Minute, "both were run again", func() bool { return l.attempt("uid-a", "c").Attempt == 1 && l.attempt("uid-b", "c").Attempt == 1 })
		count := map[string]int{}
		r.mu.Lock()
		for _, pull := range r.pulls {
			count[pull.Name]++
		}
		r.down = true
		r.mu.Unlock()
		if count["app:1"] != 2 || count["other:1"] != 1 {
			l.Errorf("pulls %v: Always is asked at each start, IfNotPresent at the first", count)
		}
		l.within(2*time.Minute, "a restart needs no registry", func() bool { return l.attempt("uid-a", "c").Attempt >= 3 && l.attempt("uid-b", "c").Attempt >= 3 })
		if got := l.pulled("uid-b"); got != 1 {
			l.Errorf("it is told %d times that the image was pulled, which it was once", got)
		}
		if !l.hasEvent("Pulled", `"other:1" already present`) {
			l.Error("nothing is told of the image at a restart")
		}
	})
}

// pulled counts the events of a pod that say that something was transferred.
func (l *lab) pulled(uid string) (n int32) {
	l.server.mu.Lock()
	defer l.server.mu.Unlock()
	for _, e := range l.server.events {
		if e.GetInvolvedObject().GetUid() == uid && e.GetReason() == "Pulled" && strings.Contains(e.GetMessage(), "Successfully pulled") {
			n += e.GetCount()
		}
	}
	return n
}

// TestImageOfOthers: a policy that forbids to ask is no way to an image that a
// registry gave to somebody else.
func TestImageOfOthers(t *testing.T) {
	onRegistry(t, func(l *lab, r *registry) {
		p := newPod("a", "forever")
		p.Spec.Containers[0].Image, p.Spec.Containers[0].ImagePullPolicy = "private/app:1", "Never"
		r.local["private/app:1"] = true
		l.put(p)
		l.within(3*time.Second, "it is refused", func() bool {
			w := l.statusOf("a", "c").GetState().GetWaiting()
			return w.GetReason() == "ErrImageNeverPull" && strings.Contains(w.GetMessage(), "imagePullSecrets")
		})
		p = newPod("b", "sleep=3s", "exit=1")
		p.Spec.Containers[0].Image, p.Spec.Containers[0].ImagePullPolicy = "private/app:1", "Never"
		p.Spec.ImagePullSecrets = []*balsav1.LocalObjectReference{{Name: "pull"}}
		l.server.put(&balsav1.Secret{Metadata: &balsav1.ObjectMeta{Name: "pull", Namespace: "default"}, Data: map[string][]byte{object.DockerConfigJSONKey: []byte("key")}})
		l.put(p)
		l.within(time.Minute, "one with access runs, and is run again", func() bool { return l.attempt("uid-b", "c").Attempt == 1 })
	})
}

func TestInvalidImageName(t *testing.T) {
	onRegistry(t, func(l *lab, r *registry) {
		p := newPod("a", "forever")
		p.Spec.Containers[0].Image = "a//b"
		l.put(p)
		l.within(3*time.Second, "the name is refused", func() bool { return l.statusOf("a", "c").GetState().GetWaiting().GetReason() == "InvalidImageName" })
		l.always(2*time.Minute, "and not tried again", func() bool { return len(r.pulls) == 1 })
	})
}

func TestProbesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		var mu sync.Mutex
		now, most, asked := 0, 0, 0
		l.prober.slow = func() {
			mu.Lock()
			now++
			asked++
			most = max(most, now)
			mu.Unlock()
			time.Sleep(300 * time.Millisecond)
			mu.Lock()
			now--
			mu.Unlock()
		}
		l.start()
		defer l.end()
		for i := range 80 {
			l.server.put(probed(newPod(fmt.Sprintf("p%02d", i), "ready", "forever")))
		}
		l.within(20*time.Second, "all are ready", func() bool {
			for i := range 80 {
				if !l.ready(fmt.Sprintf("p%02d", i))() {
					return false
				}
			}
			return true
		})
		if most != 32 || asked < 80 {
			l.Errorf("%d questions, %d of them at once, want 32", asked, most)
		}
	})
}

func TestExecProbeOutputIsBounded(t *testing.T) {
	onNode(t, func(l *lab) {
		p := newPod("a", "forever")
		p.Spec.Containers[0].ReadinessProbe = &balsav1.Probe{Exec: execOf("lines=100000", "exit=1")}
		l.put(p)
		l.within(3*time.Second, "it fails", func() bool { return l.hasEvent("Unhealthy", "line 0\nline 1\n") })
		l.server.mu.Lock()
		defer l.server.mu.Unlock()
		for _, e := range l.server.events {
			if len(e.GetMessage()) > 1200 {
				l.Errorf("an event of %d bytes", len(e.GetMessage()))
			}
		}
	})
}

func TestExecProbeTimesOut(t *testing.T) {
	onNode(t, func(l *lab) {
		p := newPod("a", "forever")
		p.Spec.Containers[0].ReadinessProbe = &balsav1.Probe{Exec: execOf("forever")}
		l.put(p)
		l.within(4*time.Second, "no answer is no", func() bool { return l.hasEvent("Unhealthy", "Readiness probe failed: no answer within 1s") })
	})
}
