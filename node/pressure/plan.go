// Package pressure decides what a node does when memory, disk or process numbers
// run short: what it says of itself, when unused images go, and which pod has to
// leave. Thresholds, the order of eviction and the periods are the kubelet's
// defaults (kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction).
//
// It also ends pods that use more disk than they may, at any time.
//
// The package is pure: it measures nothing and stops nothing. It refuses to evict
// more than one pod at a time for the sake of others: what the first frees may be
// enough.
package pressure

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Condition is a kind of pressure, by the name of the node's condition.
type Condition string

// The conditions, in the order in which they are dealt with.
const (
	Memory Condition = "MemoryPressure"
	Disk   Condition = "DiskPressure"
	Pids   Condition = "PIDPressure"
)

// Conditions lists them all.
func Conditions() []Condition { return []Condition{Memory, Disk, Pids} }

// Thresholds say when a node is under pressure.
type Thresholds struct {
	// MemoryAvailableBytes is the least memory that has to be available.
	MemoryAvailableBytes int64
	// DiskAvailablePercent and InodesAvailablePercent are of the file system.
	DiskAvailablePercent   int64
	InodesAvailablePercent int64
	// PidsAvailablePercent is of the kernel's limit.
	PidsAvailablePercent int64
	// ImagesHighPercent is how full the file system may be before unused images
	// go; ImagesLowPercent is how full it then shall be.
	ImagesHighPercent int64
	ImagesLowPercent  int64
	// Calm is how long a condition stays after the last sign of it, so that pods
	// do not come back in the moment in which one has left.
	Calm time.Duration
}

// Defaults are the kubelet's.
func Defaults() Thresholds {
	return Thresholds{
		MemoryAvailableBytes: 100 << 20, DiskAvailablePercent: 10, InodesAvailablePercent: 5, PidsAvailablePercent: 5,
		ImagesHighPercent: 85, ImagesLowPercent: 80, Calm: 5 * time.Minute,
	}
}

// Check refuses thresholds that contradict themselves.
func (t Thresholds) Check() error {
	for name, percent := range map[string]int64{
		"disk available": t.DiskAvailablePercent, "inodes available": t.InodesAvailablePercent, "pids available": t.PidsAvailablePercent,
		"images high": t.ImagesHighPercent, "images low": t.ImagesLowPercent,
	} {
		if percent < 0 || percent > 100 {
			return fmt.Errorf("threshold %s: found %d%%, allowed 0 to 100", name, percent)
		}
	}
	if t.ImagesLowPercent > t.ImagesHighPercent {
		return fmt.Errorf("threshold images low: found %d%%, allowed up to images high, %d%%", t.ImagesLowPercent, t.ImagesHighPercent)
	}
	if t.MemoryAvailableBytes < 0 || t.Calm < 0 {
		return fmt.Errorf("thresholds: memory available and calm must not be negative")
	}
	return nil
}

// Usage is what a node has and has left. A capacity of 0 was not measured.
type Usage struct {
	MemoryBytes, MemoryAvailableBytes int64
	DiskBytes, DiskAvailableBytes     int64
	Inodes, InodesAvailable           int64
	Pids, PidsAvailable               int64
}

// Pod is a pod that has not ended.
type Pod struct {
	UID, Namespace, Name string
	Priority             int32
	// Memory and Disk are what it uses and what it asked for.
	Memory, MemoryRequest int64
	Disk, DiskRequest     int64
	// DiskLimit bounds Disk; 0: none.
	DiskLimit int64
	// Parts are containers and volumes with limits of their own.
	Parts []Part
	// Leaving: it has been asked to end.
	Leaving bool
}

// Part is something of a pod with a limit on its disk space.
type Part struct {
	// What names it, for example `volume "cache"`.
	What        string
	Used, Limit int64
}

// State is kept from plan to plan.
type State struct {
	// Seen is when a condition was seen last.
	Seen map[Condition]time.Time
}

// View is what a plan is made from.
type View struct {
	Usage Usage
	Pods  []Pod
	State State
	// Reclaimed: unused images and old logs have been removed since the last plan
	// that asked for it.
	Reclaimed bool
}

// Eviction is a pod that has to leave, and why.
type Eviction struct {
	Pod Pod
	// For is the condition that it shall relieve; empty: the pod is over a limit.
	For     Condition
	Message string
}

// Actions is the outcome of a plan.
type Actions struct {
	// Messages of the conditions that hold.
	Conditions map[Condition]string
	// Reclaim: unused images and old logs are to go, until so many bytes are
	// freed; 0: nothing.
	Reclaim int64
	Evict   []Eviction
	State   State
}

// String prints the actions one a line.
func (a Actions) String() string {
	var b strings.Builder
	for _, c := range Conditions() {
		if message, ok := a.Conditions[c]; ok {
			fmt.Fprintf(&b, "%s: %s\n", c, message)
		}
	}
	if a.Reclaim > 0 {
		fmt.Fprintf(&b, "reclaim %s\n", Bytes(a.Reclaim))
	}
	for _, e := range a.Evict {
		fmt.Fprintf(&b, "evict %s: %s\n", e.Pod.Name, e.Message)
	}
	return b.String()
}

// Plan says what to do now.
func Plan(v View, t Thresholds, now time.Time) Actions {
	a := Actions{Conditions: map[Condition]string{}, State: State{Seen: map[Condition]time.Time{}}}
	a.overLimits(v)
	signs := t.signs(v.Usage)
	for _, c := range Conditions() {
		seen := v.State.Seen[c]
		if seen.After(now) {
			seen = now // the clock was put back
		}
		if message, short := signs[c]; short {
			a.Conditions[c], a.State.Seen[c] = message, now
		} else if !seen.IsZero() && now.Sub(seen) < t.Calm {
			a.Conditions[c] = fmt.Sprintf("was short %v ago; it has to stay well for %v", now.Sub(seen).Round(time.Second), t.Calm)
			a.State.Seen[c] = seen
		}
	}
	a.Reclaim = t.reclaim(v.Usage, signs)
	a.relieve(v, signs, t)
	return a
}

// signs are the thresholds that are crossed, in words.
func (t Thresholds) signs(u Usage) map[Condition]string {
	out := map[Condition]string{}
	if u.MemoryBytes > 0 && u.MemoryAvailableBytes < t.MemoryAvailableBytes {
		out[Memory] = fmt.Sprintf("%s of memory are available, of %s; the least is %s",
			Bytes(u.MemoryAvailableBytes), Bytes(u.MemoryBytes), Bytes(t.MemoryAvailableBytes))
	}
	if below(u.DiskAvailableBytes, u.DiskBytes, t.DiskAvailablePercent) {
		out[Disk] = fmt.Sprintf("%s of disk are available, of %s; the least is %d%%", Bytes(u.DiskAvailableBytes), Bytes(u.DiskBytes), t.DiskAvailablePercent)
	} else if below(u.InodesAvailable, u.Inodes, t.InodesAvailablePercent) {
		out[Disk] = fmt.Sprintf("%d inodes are available, of %d; the least is %d%%", u.InodesAvailable, u.Inodes, t.InodesAvailablePercent)
	}
	if below(u.PidsAvailable, u.Pids, t.PidsAvailablePercent) {
		out[Pids] = fmt.Sprintf("%d process ids are available, of %d; the least is %d%%", u.PidsAvailable, u.Pids, t.PidsAvailablePercent)
	}
	return out
}

func below(available, all, percent int64) bool {
	return all > 0 && float64(available) < float64(all)*float64(percent)/100
}

// reclaim is how much unused images and logs should give back.
func (t Thresholds) reclaim(u Usage, signs map[Condition]string) int64 {
	if u.DiskBytes == 0 {
		return 0
	}
	full := below(u.DiskAvailableBytes, u.DiskBytes, 100-t.ImagesHighPercent)
	if _, short := signs[Disk]; !full && !short {
		return 0
	}
	want := int64(float64(u.DiskBytes) * float64(100-t.ImagesLowPercent) / 100)
	return max(want-u.DiskAvailableBytes, 1)
}

// overLimits evicts every pod that uses more disk than it may.
func (a *Actions) overLimits(v View) {
	for _, p := range v.Pods {
		if p.Leaving {
			continue
		}
		if why := p.over(); why != "" {
			a.Evict = append(a.Evict, Eviction{Pod: p, Message: why})
		}
	}
}

func (p Pod) over() string {
	for _, part := range p.Parts {
		if part.Limit > 0 && part.Used > part.Limit {
			return fmt.Sprintf("%s uses %s of ephemeral storage; its limit is %s", part.What, Bytes(part.Used), Bytes(part.Limit))
		}
	}
	if p.DiskLimit > 0 && p.Disk > p.DiskLimit {
		return fmt.Sprintf("the pod uses %s of ephemeral storage; its containers' limits are %s together", Bytes(p.Disk), Bytes(p.DiskLimit))
	}
	return ""
}

// relieve evicts one pod for the first condition that holds, once nothing else
// can be given back, and while no other is on its way out.
func (a *Actions) relieve(v View, signs map[Condition]string, t Thresholds) {
	if len(a.Evict) > 0 || slices.ContainsFunc(v.Pods, func(p Pod) bool { return p.Leaving }) {
		return
	}
	for _, c := range Conditions() {
		message, short := signs[c]
		if !short || c == Disk && !v.Reclaimed {
			continue
		}
		if p, found := first(worth(v, c, t), c); found {
			a.Evict = append(a.Evict, Eviction{p, c, fmt.Sprintf("the node was short: %s; %s", message, p.share(c))})
		}
		return
	}
}

// leastWorth is the disk space for which a pod is ended at all: that of a log that
// has hardly begun.
const leastWorth = 1 << 20

// worth leaves out the pods whose end would not help: those that hold less than a
// thousandth of the disk space that is missing, or next to nothing. When something else has filled
// the disk, pods that write nothing go on; the kubelet ends them too.
func worth(v View, c Condition, t Thresholds) []Pod {
	missing := int64(float64(v.Usage.DiskBytes)*float64(t.DiskAvailablePercent)/100) - v.Usage.DiskAvailableBytes
	if c != Disk || missing <= 0 { // not disk, or inodes, of which nobody knows who has them
		return v.Pods
	}
	return slices.DeleteFunc(slices.Clone(v.Pods), func(p Pod) bool { return p.Disk < max(missing/1000, leastWorth) })
}

func (p Pod) share(c Condition) string {
	switch c {
	case Memory:
		return fmt.Sprintf("the pod used %s of memory and asked for %s", Bytes(p.Memory), Bytes(p.MemoryRequest))
	case Disk:
		return fmt.Sprintf("the pod used %s of ephemeral storage and asked for %s", Bytes(p.Disk), Bytes(p.DiskRequest))
	case Pids:
		return "the pod was of the lowest priority"
	}
	return ""
}

// excess is what a pod uses beyond what it asked for.
func (p Pod) excess(c Condition) int64 {
	switch c {
	case Memory:
		return p.Memory - p.MemoryRequest
	case Disk:
		return p.Disk - p.DiskRequest
	case Pids:
	}
	return 0
}

// first is the pod to go: those that use more than they asked for before the
// others, then by priority, the lowest first, then by how much more they use.
// A QoS class follows from that: BestEffort asked for nothing, Guaranteed cannot
// use more than it asked for.
func first(pods []Pod, c Condition) (Pod, bool) {
	if len(pods) == 0 {
		return Pod{}, false
	}
	within := func(p Pod) int {
		if p.excess(c) > 0 {
			return 0
		}
		return 1
	}
	return slices.MinFunc(pods, func(a, b Pod) int {
		return cmp.Or(
			cmp.Compare(within(a), within(b)),
			cmp.Compare(a.Priority, b.Priority),
			cmp.Compare(b.excess(c), a.excess(c)),
			strings.Compare(a.UID, b.UID),
		)
	}), true
}

// Bytes is a size for people.
func Bytes(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	f, i := float64(n), 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, units[i])
}
