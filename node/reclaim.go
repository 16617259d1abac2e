package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/node/pod"
	"github.com/balsa-run/balsa/node/pressure"
	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/node/volume"
	"github.com/balsa-run/balsa/object"
)

// What a node gives back: images and logs when its disk fills, the contents of
// persistent volumes that were released, and the volumes of pods that are gone.

// ImageReclaimer is Images that gives disk space back.
type ImageReclaimer interface {
	// Reclaim removes images that are not in use, those first that were used
	// longest ago, until so many bytes are freed. It returns what it freed, and
	// the names of what it removed.
	Reclaim(ctx context.Context, want int64, inUse func(manifestDigest string) bool) (freed int64, removed []string, err error)
}

// ImageLister is Images that tells what the node has.
type ImageLister interface {
	Status() ([]*balsav1.ContainerImage, error)
}

// LogReclaimer is a Runtime that gives back the disk space of logs.
type LogReclaimer interface {
	// ReclaimLogs removes logs of a pod: all of them if it has ended, else those
	// that were rotated.
	ReclaimLogs(ctx context.Context, uid runtime.PodUID, ended bool) (freed int64, err error)
}

// orphanAge is how long a server's set must lack a persistent volume for its
// contents to count as orphaned.
const orphanAge = 10 * time.Minute

func (g *guard) hasReclaimed() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.reclaimed
}

// reclaim begins to give disk space back, beside the loop: it may take long.
func (g *guard) reclaim(ctx context.Context, plan pressure.Actions) {
	now := g.a.cfg.Clock.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	if plan.Reclaim == 0 {
		g.reclaimed = false
		return
	}
	if g.reclaiming || now.Sub(g.reclaimAt) < reclaimEvery && !g.reclaimAt.After(now) {
		return
	}
	g.reclaiming, g.reclaimAt = true, now
	_, short := plan.Conditions[pressure.Disk]
	g.a.running.Go(func() {
		g.a.giveBack(ctx, plan.Reclaim, short)
		g.mu.Lock()
		defer g.mu.Unlock()
		g.reclaiming, g.reclaimed = false, true
		g.wake.raise()
	})
}

// giveBack removes unused images, and logs if the disk is short. What fails is
// logged: the next plan sees what came of it.
func (a *Agent) giveBack(ctx context.Context, want int64, logs bool) {
	freed, removed, err := a.giveBackImages(ctx, want)
	a.guard.metrics.reclaimed.WithLabelValues("images").Add(float64(freed))
	if err != nil && ctx.Err() == nil {
		a.log.Warn("unused images cannot be removed; trying again later", "error", err)
	}
	cleared := int64(0)
	if logs && freed < want {
		cleared, err = a.giveBackLogs(ctx)
		a.guard.metrics.reclaimed.WithLabelValues("logs").Add(float64(cleared))
		if err != nil && ctx.Err() == nil {
			a.log.Warn("old logs cannot be removed; trying again later", "error", err)
		}
	}
	a.log.Info("the disk fills; gave space back", "wanted", want, "fromImages", freed, "fromLogs", cleared, "images", removed)
	if freed+cleared < want && logs {
		a.nodeEvent(pod.Event{Warning: true, Reason: "FreeDiskSpaceFailed", Message: fmt.Sprintf(
			"unused images and old logs gave back %s of the %s that are wanted", pressure.Bytes(freed+cleared), pressure.Bytes(want))})
	}
}

func (a *Agent) giveBackImages(ctx context.Context, want int64) (int64, []string, error) {
	reclaimer, ok := a.cfg.Images.(ImageReclaimer)
	synced, _, _ := a.set.known()
	if !ok || !synced {
		return 0, nil, nil // without a set every image is unused
	}
	used, err := a.usedImages(ctx)
	if err != nil {
		return 0, nil, err
	}
	return reclaimer.Reclaim(ctx, want, used)
}

// usedImages are those that containers run or wait for, and those that the pods
// of the set name: after a reboot they have to be there although nothing runs
// and no server can be reached.
func (a *Agent) usedImages(ctx context.Context) (func(digest string) bool, error) {
	pods, err := a.cfg.Runtime.Pods(ctx)
	if err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	used := a.images.digests()
	for _, p := range pods {
		for _, c := range p.Containers {
			used[c.ImageDigest] = true
		}
	}
	for _, p := range a.set.allPods() {
		if object.PodFinished(p) {
			continue
		}
		for _, c := range object.AllContainers(p.GetSpec()) {
			if image, err := a.cfg.Images.Local(ctx, c.GetImage()); err == nil {
				used[image.Digest] = true
			}
		}
	}
	return func(digest string) bool { return used[digest] || a.images.digests()[digest] }, ctx.Err()
}

func (a *Agent) giveBackLogs(ctx context.Context) (int64, error) {
	reclaimer, ok := a.cfg.Runtime.(LogReclaimer)
	if !ok {
		return 0, nil
	}
	pods, err := a.cfg.Runtime.Pods(ctx)
	if err != nil {
		return 0, fmt.Errorf("list pods: %w", err)
	}
	total, errs := int64(0), []error(nil)
	for _, p := range pods {
		assigned := a.set.pod(string(p.UID))
		freed, err := reclaimer.ReclaimLogs(ctx, p.UID, assigned != nil && object.PodFinished(assigned) && !anyRunning(p))
		total += freed
		if err != nil && !errors.Is(err, runtime.ErrPodNotFound) {
			errs = append(errs, err)
		}
	}
	return total, errors.Join(errs...)
}

// node is what the set has of a node; nil: nothing.
func (s *set) node(name string) *balsav1.Node {
	s.mu.RLock()
	defer s.mu.RUnlock()
	n, _ := s.objects["nodes/"+name].(*balsav1.Node)
	return n
}

// persistent lists the PersistentVolumes of the set.
func (s *set) persistent() []*balsav1.PersistentVolume {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []*balsav1.PersistentVolume
	for key, m := range s.objects {
		if v, ok := m.(*balsav1.PersistentVolume); ok && strings.HasPrefix(key, "persistentvolumes/") {
			out = append(out, v)
		}
	}
	slices.SortFunc(out, func(a, b *balsav1.PersistentVolume) int {
		return strings.Compare(a.GetMetadata().GetName(), b.GetMetadata().GetName())
	})
	return out
}

// reclaim removes the contents of persistent volumes that were released, which a
// server has to have confirmed: they are gone for good. One that a pod has is
// left for later. The deletion is reported for as long as the volume shows.
func (a *Agent) reclaim(ctx context.Context) error {
	if _, fromServer, _ := a.set.known(); a.cfg.Volumes == nil || !fromServer {
		return nil
	}
	var errs []error
	for _, v := range a.set.persistent() {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !released(v, a.cfg.Name) {
			continue
		}
		name := v.GetMetadata().GetName()
		err := a.cfg.Volumes.Delete(ctx, name)
		switch {
		case errors.Is(err, volume.ErrInUse):
		case err != nil:
			errs = append(errs, fmt.Errorf("remove the contents of persistent volume %s: %w", name, err))
		default:
			a.log.Info("removed the contents of a released persistent volume", "volume", name)
			a.reports.deletedVolume(name)
		}
	}
	return errors.Join(append(errs, a.orphans.look(ctx, a))...)
}

// released tells whether the contents of a volume are this node's to remove: the
// servers check the same when they are told.
func released(v *balsav1.PersistentVolume, node string) bool {
	return object.VolumeNode(v.GetSpec()) == node && v.GetStatus().GetPhase() == object.VolumeReleased &&
		v.GetSpec().GetPersistentVolumeReclaimPolicy() == object.ReclaimDelete && v.GetSpec().GetLocal().GetPath() == ""
}

// orphans are contents of persistent volumes without an object. They are left
// alone: the object may have been lost, or restored from a backup without them.
type orphans struct {
	// since when the servers' sets lack the object; by name.
	since  map[string]time.Time
	listed string
}

// look belongs to the cleaning loop.
func (o *orphans) look(ctx context.Context, a *Agent) error {
	stored, err := a.cfg.Volumes.Persistent(ctx)
	if err != nil {
		return fmt.Errorf("list persistent volumes: %w", err)
	}
	known := map[string]bool{}
	for _, v := range a.set.persistent() {
		known[v.GetMetadata().GetName()] = true
	}
	now, since := a.cfg.Clock.Now(), map[string]time.Time{}
	var old []string
	for _, s := range stored {
		if known[s.Name] {
			continue
		}
		since[s.Name] = now
		if first, before := o.since[s.Name]; before && first.Before(now) {
			since[s.Name] = first
		}
		if now.Sub(since[s.Name]) >= orphanAge {
			old = append(old, s.Name)
		}
	}
	o.since = since
	a.guard.metrics.orphaned.Set(float64(len(old)))
	if text := strings.Join(old, " "); text != o.listed {
		o.listed = text
		a.log.Warn("contents of persistent volumes that do not exist; they are left alone", "volumes", old)
	}
	return nil
}

// cleanVolumes removes the volumes of pods that neither exist nor are assigned. A
// set from the disk proves nothing: it may be older than the pod.
func (a *Agent) cleanVolumes(ctx context.Context, exists map[string]bool) error {
	if _, fromServer, _ := a.set.known(); a.cfg.Volumes == nil || !fromServer {
		return nil
	}
	uids, err := a.cfg.Volumes.Pods(ctx)
	if err != nil {
		return fmt.Errorf("list volumes: %w", err)
	}
	var errs []error
	for _, uid := range uids {
		if !exists[string(uid)] && !a.knows(string(uid)) {
			errs = append(errs, a.cfg.Volumes.Remove(ctx, uid))
		}
	}
	return errors.Join(errs...)
}

// pruneLoop removes images that nothing uses, once a server has confirmed what
// is used. Images that can be reclaimed stay until the disk fills.
func (a *Agent) pruneLoop(ctx context.Context) error {
	if _, ok := a.cfg.Images.(ImageReclaimer); ok && !a.guard.off() {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	for {
		if err := sleep(ctx, a.cfg.Clock, imagesEvery); err != nil {
			return err
		}
		if _, fromServer, _ := a.set.known(); !fromServer {
			continue
		}
		if err := a.prune(ctx); err != nil && ctx.Err() == nil {
			a.log.Warn("unused images cannot be removed; trying again later", "error", err)
		}
	}
}

func (a *Agent) prune(ctx context.Context) error {
	used, err := a.usedImages(ctx)
	if err != nil {
		return err
	}
	removed, err := a.cfg.Images.Prune(ctx, used)
	if len(removed) > 0 {
		a.log.Info("removed images that nothing uses", "images", removed)
	}
	return err
}
