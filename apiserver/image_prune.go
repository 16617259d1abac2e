package apiserver

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/balsa-run/balsa/apiserver/blobs"
	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/internal/ociarchive"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/store"
)

const (
	// pruneParallel bounds the nodes that are asked at once, pruneTimeout how long
	// each may take.
	pruneParallel = 16
	pruneTimeout  = 30 * time.Second
)

// PruneImages removes what no pod and no template names: records and blobs of
// the servers, and what nodes have. A node knows best what its pods use.
func (i imageService) PruneImages(ctx context.Context, req *balsav1.PruneImagesRequest) (*balsav1.PruneImagesResponse, error) {
	if req.GetMinAgeSeconds() < 0 {
		return nil, invalid("minAgeSeconds", "leave it out for 0", "found %d, which is negative", req.GetMinAgeSeconds())
	}
	minAge := time.Duration(min(req.GetMinAgeSeconds(), int64(maxAge/time.Second))) * time.Second
	images, err := i.pruneRecords(ctx, minAge, req.GetDryRun())
	if err != nil {
		return nil, err
	}
	if !req.GetDryRun() {
		if _, err := i.SweepBlobs(ctx, max(minAge, sweepMinAge)); err != nil {
			return nil, err
		}
	}
	res := &balsav1.PruneImagesResponse{Images: images}
	i.pruneNodes(ctx, req.GetDryRun(), res)
	callOf(ctx).outcome = fmt.Sprintf("%d images", len(res.GetImages()))
	return res, nil
}

const (
	maxAge = 10 * 365 * 24 * time.Hour
	// sweepMinAge of a blob that no record names: it may be on its way.
	sweepMinAge = time.Hour
)

// pruneRecords forgets the images that nothing names. A pod that is made at the
// same moment may find its image gone: it says so and waits for it.
func (i imageService) pruneRecords(ctx context.Context, minAge time.Duration, dryRun bool) ([]*balsav1.PrunedImage, error) {
	var pruned []*balsav1.PrunedImage
	_, err := i.write(ctx, store.SpaceObjects, dryRun, func(view store.View, now time.Time) (*change, error) {
		records, err := imageRecords(view)
		if err != nil {
			return nil, err
		}
		used := usedImages(view)
		c := &change{space: store.SpaceObjects}
		pruned = nil
		blobs := blobUsers(records)
		for _, r := range records {
			if used[r.GetName()] || now.Sub(r.GetImported().AsTime()) < minAge {
				continue
			}
			kv, _ := view.Get(prefixImages + r.GetName())
			c.expect(kv.Key, kv.ModRevision)
			c.remove(kv.Key)
			pruned = append(pruned, &balsav1.PrunedImage{Name: r.GetName(), Bytes: freed(r, blobs)})
		}
		return c, nil
	})
	return pruned, err
}

// blobUsers tells how many images have a blob.
func blobUsers(records []*internalv1.ImageRecord) map[string]int {
	users := map[string]int{}
	for _, r := range records {
		for _, b := range r.GetBlobs() {
			users[b.GetDigest()]++
		}
	}
	return users
}

// freed is what goes with a record; the last user of a blob frees it.
func freed(r *internalv1.ImageRecord, users map[string]int) int64 {
	bytes := int64(0)
	for _, b := range r.GetBlobs() {
		if users[b.GetDigest()]--; users[b.GetDigest()] == 0 {
			bytes += b.GetSize()
		}
	}
	return bytes
}

// usedImages are the names that pods and templates have, as records have them.
func usedImages(view store.View) map[string]bool {
	used := map[string]bool{}
	for _, kind := range object.Kinds() {
		if kind.Space != store.SpaceObjects {
			continue
		}
		for kv := range view.Prefix(object.Prefix(kind, "")) {
			if kv.Object != nil {
				collectImages(kv.Object.ProtoReflect(), used)
			}
		}
	}
	return used
}

// collectImages looks for containers wherever they are in an object, so that a
// kind that is added later is not forgotten.
func collectImages(m protoreflect.Message, used map[string]bool) {
	switch c := m.Interface().(type) {
	case *balsav1.Container:
		useImage(c.GetImage(), used)
		return
	case *balsav1.EphemeralContainer:
		useImage(c.GetImage(), used)
		return
	case *balsav1.ObjectMeta:
		return
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsList() && f.Message() != nil:
			for i := range v.List().Len() {
				collectImages(v.List().Get(i).Message(), used)
			}
		case !f.IsMap() && !f.IsList() && f.Message() != nil:
			collectImages(v.Message(), used)
		}
		return true
	})
}

func useImage(name string, used map[string]bool) {
	if normal, err := ociarchive.NormalizeName(name); err == nil {
		used[normal] = true
	}
}

// BlobSweeper is what Config.Blobs may be as well; *blobs.Dir is. Where it is
// not, no blob is ever removed.
type BlobSweeper interface {
	// List tells of all blobs that are here whole.
	List() ([]blobs.Info, error)
	// Remove forgets a blob; one that is not there is fine.
	Remove(digest string) error
}

// SweepBlobs removes the blobs of this server that no image names and that are
// older than minAge: what failed imports and pushes left, and what was pruned. It
// returns the bytes that became free. The daemon calls it now and then, on every
// server.
func (s *Server) SweepBlobs(ctx context.Context, minAge time.Duration) (int64, error) {
	keeper, ok := s.blobs.(BlobSweeper)
	if !ok {
		return 0, nil
	}
	all, err := keeper.List()
	if err != nil {
		return 0, err
	}
	// After the list: a record that comes now has its blobs from before, which are
	// in the list, and is seen.
	view, err := s.view(ctx, store.SpaceObjects, nil)
	if err != nil {
		return 0, err
	}
	records, err := imageRecords(view)
	if err != nil {
		return 0, err
	}
	users, total := blobUsers(records), int64(0)
	for _, b := range all {
		if users[b.Digest] > 0 || s.clock.Now().Sub(b.Modified) < minAge {
			continue
		}
		if err := keeper.Remove(b.Digest); err != nil {
			return total, err
		}
		total += b.Size
	}
	return total, nil
}

// pruneNodes asks all nodes, several at once.
func (i imageService) pruneNodes(ctx context.Context, dryRun bool, res *balsav1.PruneImagesResponse) {
	var mu sync.Mutex // guards res
	var wg sync.WaitGroup
	places := make(chan struct{}, pruneParallel)
	for _, n := range nodesOf(i.store.Space(store.SpaceObjects).View()) {
		wg.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			images, err := i.pruneNode(ctx, n, dryRun)
			mu.Lock()
			defer mu.Unlock()
			res.Images = append(res.Images, images...)
			if err != nil {
				res.Unavailable = append(res.Unavailable, fmt.Sprintf("%s: %v", n.GetMetadata().GetName(), err))
			}
		})
	}
	wg.Wait()
	slices.Sort(res.Unavailable)
	slices.SortStableFunc(res.Images, func(a, b *balsav1.PrunedImage) int {
		if a.GetNode() < b.GetNode() {
			return -1
		} else if a.GetNode() > b.GetNode() {
			return 1
		}
		return 0
	})
}

// pruneNode tells of a node's bytes with its first image: a node knows what all
// of them together took, as they share layers.
func (i imageService) pruneNode(ctx context.Context, n *balsav1.Node, dryRun bool) ([]*balsav1.PrunedImage, error) {
	ctx, cancel := context.WithTimeout(ctx, pruneTimeout)
	defer cancel()
	agent, err := i.nodes.Agent(ctx, n)
	if err != nil {
		return nil, err
	}
	answer, err := agent.PruneImages(ctx, &internalv1.PruneImagesRequest{DryRun: dryRun})
	if err != nil {
		return nil, err
	}
	var images []*balsav1.PrunedImage
	for at, name := range answer.GetImages() {
		pruned := &balsav1.PrunedImage{Name: name, Node: n.GetMetadata().GetName()}
		if at == 0 {
			pruned.Bytes = answer.GetBytes()
		}
		images = append(images, pruned)
	}
	return images, nil
}
