// Package fake makes volumes in memory, with the semantics of package volume: the
// contents of persistent volumes outlive pods, files are replaced as a whole, and
// what is in use cannot be deleted. It builds for wasip1.
package fake

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/node/volume"
)

// Volumes implements volume.Volumes. It is what survives a crash of the agent.
type Volumes struct {
	// Root is put before all paths.
	Root string

	mu         sync.Mutex
	pods       map[runtime.PodUID]volume.Pod // guarded by mu
	persistent map[string]int64              // guarded by mu; size by name
	prepared   int                           // guarded by mu
	failures   []error                       // guarded by mu
}

var _ volume.Volumes = (*Volumes)(nil)

// New returns a node without volumes.
func New(root string) *Volumes {
	return &Volumes{Root: root, pods: map[runtime.PodUID]volume.Pod{}, persistent: map[string]int64{}}
}

// FailNext makes the next calls of Prepare and Remove fail.
func (v *Volumes) FailNext(errs ...error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.failures = append(v.failures, errs...)
}

func (v *Volumes) failureLocked() error {
	if len(v.failures) == 0 {
		return nil
	}
	err := v.failures[0]
	v.failures = v.failures[1:]
	return err
}

// Prepare implements volume.Volumes.
func (v *Volumes) Prepare(ctx context.Context, pod volume.Pod) (map[string]string, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.failureLocked(); err != nil {
		return nil, err
	}
	if err := runtime.ValidateUID(pod.UID); err != nil {
		return nil, err
	}
	v.pods[pod.UID] = pod
	v.prepared++
	paths := map[string]string{}
	for _, one := range pod.Volumes {
		paths[one.Name] = v.pathLocked(pod.UID, one)
	}
	return paths, ctx.Err()
}

func (v *Volumes) pathLocked(uid runtime.PodUID, one volume.Volume) string {
	switch {
	case one.HostPath != nil:
		return one.HostPath.Path
	case one.Persistent != nil && one.Persistent.Path != "":
		return one.Persistent.Path
	case one.Persistent != nil:
		if _, ok := v.persistent[one.Persistent.Name]; !ok {
			v.persistent[one.Persistent.Name] = one.Persistent.SizeBytes
		}
		return v.Root + "/persistent/" + one.Persistent.Name
	}
	return fmt.Sprintf("%s/%s/%s", v.Root, uid, one.Name)
}

// Remove implements volume.Volumes.
func (v *Volumes) Remove(ctx context.Context, uid runtime.PodUID) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.failureLocked(); err != nil {
		return err
	}
	delete(v.pods, uid)
	return ctx.Err()
}

// Usage implements volume.Volumes: everything is empty.
func (v *Volumes) Usage(_ context.Context, uid runtime.PodUID) (map[string]volume.Usage, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	out := map[string]volume.Usage{}
	for _, one := range v.pods[uid].Volumes {
		if one.Scratch != nil {
			out[one.Name] = volume.Usage{Memory: one.Scratch.Memory, LimitBytes: one.Scratch.SizeBytes}
		}
	}
	return out, nil
}

// Pods implements volume.Volumes.
func (v *Volumes) Pods(context.Context) ([]runtime.PodUID, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Sorted(maps.Keys(v.pods)), nil
}

// Persistent implements volume.Volumes.
func (v *Volumes) Persistent(context.Context) ([]volume.Stored, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	var out []volume.Stored
	for _, name := range slices.Sorted(maps.Keys(v.persistent)) {
		out = append(out, volume.Stored{Name: name, SizeBytes: v.persistent[name], UsedBy: v.usersLocked(name)})
	}
	return out, nil
}

func (v *Volumes) usersLocked(name string) []runtime.PodUID {
	var out []runtime.PodUID
	for _, uid := range slices.Sorted(maps.Keys(v.pods)) {
		for _, one := range v.pods[uid].Volumes {
			if one.Persistent != nil && one.Persistent.Name == name {
				out = append(out, uid)
			}
		}
	}
	return slices.Compact(out)
}

// Delete implements volume.Volumes.
func (v *Volumes) Delete(_ context.Context, name string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if users := v.usersLocked(name); len(users) > 0 {
		return fmt.Errorf("delete persistent volume %s: pods %v have it: %w", name, users, volume.ErrInUse)
	}
	delete(v.persistent, name)
	return nil
}

// Pod tells what was prepared last for a pod.
func (v *Volumes) Pod(uid runtime.PodUID) (volume.Pod, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	pod, ok := v.pods[uid]
	return pod, ok
}

// Prepared counts the calls of Prepare that succeeded.
func (v *Volumes) Prepared() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.prepared
}
