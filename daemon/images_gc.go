package daemon

import (
	"context"
	"time"

	"github.com/balsa-run/balsa/node"
	"github.com/balsa-run/balsa/node/image"
	"github.com/balsa-run/balsa/node/runtime/runc"
)

var (
	_ node.ImageReclaimer = (*images)(nil)
	_ node.ImageLister    = (*images)(nil)
	_ node.LogReclaimer   = (*runc.Runtime)(nil)
	_ node.ImagePruner    = (*images)(nil)
)

// Reclaim implements node.ImageReclaimer with the store's garbage collection.
func (i *images) Reclaim(ctx context.Context, want int64, inUse func(digest string) bool) (int64, []string, error) {
	disk, err := i.store.Usage()
	if err != nil {
		return 0, nil, err
	}
	list, err := i.store.Images()
	if err != nil {
		return 0, nil, err
	}
	plan := image.PlanGC(image.GCInput{Now: time.Now(), Disk: disk, Images: list, InUse: inUse, Policy: gcPolicy(disk, want)})
	removed, err := i.store.GC(ctx, plan, inUse)
	return removed.Bytes, removed.Images, err
}

// PruneUnused implements node.ImagePruner.
func (i *images) PruneUnused(ctx context.Context, dryRun bool, inUse func(digest string) bool) ([]string, int64, error) {
	removed, err := i.store.PruneUnused(ctx, dryRun, inUse)
	return removed.Images, removed.Bytes, err
}

// gcPolicy asks for so many bytes, however full the disk is: the node has decided
// that they are needed.
func gcPolicy(disk image.Disk, want int64) image.GCPolicy {
	policy := image.DefaultGCPolicy()
	policy.HighPercent, policy.LowPercent = 0, 0
	if used := disk.CapacityBytes - disk.AvailableBytes; disk.CapacityBytes > 0 && used > want {
		policy.LowPercent = 100 * float64(used-want) / float64(disk.CapacityBytes)
	}
	return policy
}
