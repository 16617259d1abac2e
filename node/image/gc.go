package image

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Disk is how full the store's file system is.
type Disk struct {
	CapacityBytes, AvailableBytes int64
}

// UsedPercent counts what is reserved for root as used, as what fills the disk
// cannot use it.
func (d Disk) UsedPercent() float64 {
	if d.CapacityBytes <= 0 {
		return 0
	}
	return 100 * float64(d.CapacityBytes-d.AvailableBytes) / float64(d.CapacityBytes)
}

// ImageInfo is an image that the node has complete.
type ImageInfo struct {
	Digest string
	// Names under which the node knows it, sorted; none if its name stands for
	// another image by now.
	Names    []string
	LastUsed time.Time
	// Parts with their sizes on disk; images share them.
	Parts []PartInfo
}

// PartInfo is one blob or layer.
type PartInfo struct {
	// Kind is "blobs", "layers" or "images".
	Kind, Hex string
	Bytes     int64
	// Spare is a blob whose layer is unpacked: it is kept for other nodes only.
	Spare bool
}

// SizeBytes of the image on this node's disk.
func (i ImageInfo) SizeBytes() int64 {
	size := int64(0)
	for _, p := range i.Parts {
		size += p.Bytes
	}
	return size
}

// GCPolicy says when images go. The kubelet's defaults are 85, 80 and 2 minutes.
type GCPolicy struct {
	// Above HighPercent of the disk, images go until LowPercent is reached.
	HighPercent, LowPercent float64
	// MinAge is the time since the last use before an image may go.
	MinAge time.Duration
}

// DefaultGCPolicy is the kubelet's.
func DefaultGCPolicy() GCPolicy {
	return GCPolicy{HighPercent: 85, LowPercent: 80, MinAge: 2 * time.Minute}
}

// Check refuses percentages that make no sense.
func (p GCPolicy) Check() error {
	if p.HighPercent < 0 || p.HighPercent > 100 || p.LowPercent < 0 || p.LowPercent > p.HighPercent || p.MinAge < 0 {
		return fmt.Errorf("image garbage collection: found high %g%%, low %g%%, minimum age %s; want 0 <= low <= high <= 100 and an age that is not negative",
			p.HighPercent, p.LowPercent, p.MinAge)
	}
	return nil
}

// GCInput is what a plan is made from.
type GCInput struct {
	Now    time.Time
	Disk   Disk
	Images []ImageInfo
	// InUse tells manifests that a pod of this node uses, or may start any time.
	InUse  func(digest string) bool
	Policy GCPolicy
}

// GCPlan is what shall go, in this order. It can be printed.
type GCPlan struct {
	// Blobs, compressed, of layers that are unpacked.
	Blobs []PartInfo
	// Images as a whole.
	Images []ImageInfo
	// WantBytes is what shall become free, FreesBytes what the plan frees.
	WantBytes, FreesBytes int64
}

// Empty: there is nothing to do.
func (p GCPlan) Empty() bool { return len(p.Blobs) == 0 && len(p.Images) == 0 }

// PlanGC decides what goes: nothing below the high mark; above it first what
// other nodes alone need, then whole images that are not in use, those first
// that were used longest ago, until the low mark is reached.
func PlanGC(in GCInput) GCPlan {
	plan := GCPlan{}
	if in.Disk.CapacityBytes <= 0 || in.Disk.UsedPercent() < in.Policy.HighPercent {
		return plan
	}
	goal := int64(float64(in.Disk.CapacityBytes) * in.Policy.LowPercent / 100)
	plan.WantBytes = max(0, in.Disk.CapacityBytes-in.Disk.AvailableBytes-goal)
	images := slices.Clone(in.Images)
	slices.SortFunc(images, func(a, b ImageInfo) int {
		return cmp.Or(a.LastUsed.Compare(b.LastUsed), cmp.Compare(a.Digest, b.Digest))
	})
	users := countUsers(images)
	plan.dropSpares(images, users)
	plan.dropImages(in, images, users)
	return plan
}

type partKey struct{ kind, hex string }

// countUsers tells how many images have a part: one that others have too is not
// freed.
func countUsers(images []ImageInfo) map[partKey]int {
	users := map[partKey]int{}
	for _, i := range images {
		for _, p := range i.Parts {
			users[partKey{p.Kind, p.Hex}]++
		}
	}
	return users
}

// dropSpares sets the users of what goes to 0, so that it does not count again.
func (p *GCPlan) dropSpares(images []ImageInfo, users map[partKey]int) {
	for _, image := range images {
		for _, part := range image.Parts {
			key := partKey{part.Kind, part.Hex}
			if !part.Spare || users[key] == 0 || p.FreesBytes >= p.WantBytes {
				continue
			}
			users[key] = 0
			p.Blobs = append(p.Blobs, part)
			p.FreesBytes += part.Bytes
		}
	}
}

func (p *GCPlan) dropImages(in GCInput, images []ImageInfo, users map[partKey]int) {
	for _, image := range images {
		if p.FreesBytes >= p.WantBytes {
			return
		}
		if in.InUse(image.Digest) || in.Now.Sub(image.LastUsed) < in.Policy.MinAge {
			continue
		}
		p.Images = append(p.Images, image)
		for _, part := range image.Parts {
			key := partKey{part.Kind, part.Hex}
			if users[key]--; users[key] == 0 {
				p.FreesBytes += part.Bytes
			}
		}
	}
}
