package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/internal/ociarchive"
)

// Usage tells how full the store's disk is.
func (s *Store) Usage() (Disk, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.opt.Dir, &st); err != nil {
		return Disk{}, fmt.Errorf("usage of %s: %w", s.opt.Dir, err)
	}
	return Disk{CapacityBytes: int64(st.Blocks) * st.Bsize, AvailableBytes: int64(st.Bavail) * st.Bsize}, nil
}

// Images lists the images that the node has complete, by digest. What another
// goroutine is removing may be in it or not.
func (s *Store) Images() ([]ImageInfo, error) {
	names, err := s.names()
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	digests := map[string]bool{}
	for _, digest := range names {
		digests[digest] = true
	}
	entries, err := os.ReadDir(filepath.Join(s.opt.Dir, imagesDir))
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	for _, e := range entries {
		digests["sha256:"+e.Name()] = true
	}
	var images []ImageInfo
	for _, digest := range slices.Sorted(maps.Keys(digests)) {
		r, err := s.recordOf(digest)
		if err != nil {
			continue // half of it is gone: the next sweep has it
		}
		info := s.info(r)
		for name, of := range names {
			if of == digest {
				info.Names = append(info.Names, name)
			}
		}
		slices.Sort(info.Names)
		images = append(images, info)
	}
	return images, nil
}

func (s *Store) info(r *record) ImageInfo {
	info := ImageInfo{Digest: r.Manifest}
	if st, err := os.Stat(s.path(imagesDir, r.Manifest)); err == nil {
		info.LastUsed = st.ModTime()
	}
	unpacked := map[string]bool{}
	for _, l := range r.Layers {
		if exists(s.path(layersDir, l.DiffID)) {
			unpacked[hexOf(l.Blob)] = true
		}
	}
	seen := map[part]bool{}
	for _, p := range r.parts() {
		size := s.partSize(p)
		if seen[p] || size == 0 {
			continue
		}
		seen[p] = true
		info.Parts = append(info.Parts, PartInfo{Kind: p.kind, Hex: p.hex, Bytes: size, Spare: p.kind == blobsDir && unpacked[p.hex]})
	}
	return info
}

// names are the digests that names stand for.
func (s *Store) names() (map[string]string, error) {
	entries, err := os.ReadDir(filepath.Join(s.opt.Dir, namesDir))
	if err != nil {
		return nil, err
	}
	names := map[string]string{}
	for _, e := range entries {
		content, err := os.ReadFile(filepath.Join(s.opt.Dir, namesDir, e.Name()))
		if err == nil && ociarchive.CheckDigest(string(content)) == nil {
			names[nameOf(e.Name())] = string(content)
		}
	}
	return names, nil
}

// Removed is what a garbage collection or a pruning did.
type Removed struct {
	// Images by their names, or by digest where they have none.
	Images []string
	Bytes  int64
}

// GC does what a plan says, leaving out what came into use since. What belongs
// to no image goes as well.
func (s *Store) GC(ctx context.Context, plan GCPlan, inUse func(digest string) bool) (Removed, error) {
	removed := Removed{}
	for _, blob := range plan.Blobs {
		gone, err := s.discard(blob.Kind, blob.Hex)
		if err != nil {
			return removed, fmt.Errorf("collect images: %w", err)
		}
		if gone {
			removed.Bytes += blob.Bytes
		}
	}
	doomed := map[string]bool{}
	for _, image := range plan.Images {
		doomed[image.Digest] = true
	}
	more, err := s.prune(ctx, func(digest string) bool { return !doomed[digest] || inUse(digest) })
	removed.Images = more.Images
	removed.Bytes += more.Bytes
	if err != nil {
		return removed, fmt.Errorf("collect images: %w", err)
	}
	return removed, nil
}

// Prune removes every image whose manifest keep does not want, and then the
// blobs and layers that no image refers to. It returns the names it removed.
// Images that are being pulled, or were a moment ago, stay.
func (s *Store) Prune(ctx context.Context, keep func(manifestDigest string) bool) ([]string, error) {
	removed, err := s.prune(ctx, keep)
	if err != nil {
		return removed.Images, fmt.Errorf("prune images: %w", err)
	}
	return removed.Images, nil
}

func (s *Store) prune(ctx context.Context, keep func(string) bool) (Removed, error) {
	before, err := s.Images()
	if err != nil {
		return Removed{}, err
	}
	removed := Removed{}
	for _, image := range before {
		if ctx.Err() != nil {
			return removed, context.Cause(ctx)
		}
		if keep(image.Digest) {
			continue
		}
		gone, err := s.discardImage(image)
		if err != nil {
			return removed, err
		}
		if gone {
			removed.Images = append(removed.Images, shownNames(image)...)
		}
	}
	removed.Bytes, err = s.sweep(ctx)
	return removed, errors.Join(err, s.dropPartials())
}

// discardImage forgets an image and its names. An image of an earlier version
// has no record; its names alone go.
func (s *Store) discardImage(image ImageInfo) (bool, error) {
	hex := hexOf(image.Digest)
	had := exists(filepath.Join(s.opt.Dir, imagesDir, hex))
	gone, err := s.discard(imagesDir, hex)
	if err != nil || had && !gone {
		return false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leasedLocked(imagesDir + "/" + hex) {
		return false, nil
	}
	for _, name := range image.Names {
		if now, err := s.digestOfName(name); err != nil || now != image.Digest {
			continue
		}
		if err := errors.Join(ignoreGone(os.Remove(s.namePath(name))), ignoreGone(os.Remove(s.targetPath(name)))); err != nil {
			return false, err
		}
	}
	return true, nil
}

// sweep removes what no image refers to.
func (s *Store) sweep(ctx context.Context) (int64, error) {
	images, err := s.Images()
	if err != nil {
		return 0, err
	}
	wanted := map[partKey]bool{}
	for _, image := range images {
		for _, p := range image.Parts {
			wanted[partKey{p.Kind, p.Hex}] = true
		}
	}
	total := int64(0)
	for _, kind := range []string{imagesDir, blobsDir, layersDir} {
		entries, err := os.ReadDir(filepath.Join(s.opt.Dir, kind))
		if err != nil {
			return total, err
		}
		for _, e := range entries {
			if ctx.Err() != nil {
				return total, context.Cause(ctx)
			}
			if wanted[partKey{kind, e.Name()}] {
				continue
			}
			size := s.partSize(part{kind, e.Name()})
			gone, err := s.discard(kind, e.Name())
			if err != nil {
				return total, err
			}
			if gone {
				total += size
			}
		}
	}
	return total, s.sweepAccess(func(hex string) bool {
		return wanted[partKey{imagesDir, hex}] || s.leased(imagesDir, hex)
	})
}

// dropPartials removes what nobody went on with for long.
func (s *Store) dropPartials() error {
	dir := filepath.Join(s.opt.Dir, partialDir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) || err == nil && time.Since(info.ModTime()) < s.opt.Limits.PartialAge {
			continue
		}
		if err != nil {
			return err
		}
		if err := s.dropPartial(dir, e.Name()); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) dropPartial(dir, hex string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leasedLocked(blobsDir + "/" + hex) {
		return nil
	}
	return ignoreGone(os.Remove(filepath.Join(dir, hex)))
}

// maxStatusImages is how many images a node tells of in its status.
const maxStatusImages = 50

// StatusImage is an image as a node's status tells of it.
type StatusImage struct {
	Names     []string
	SizeBytes int64
}

// StatusImages are the largest images that have a name, the largest first: their
// names and "name@digest", by which others recognise what the node has.
func (s *Store) StatusImages() ([]StatusImage, error) {
	images, err := s.Images()
	if err != nil {
		return nil, err
	}
	images = slices.DeleteFunc(images, func(i ImageInfo) bool { return len(i.Names) == 0 })
	slices.SortStableFunc(images, func(a, b ImageInfo) int { return int(min(1, max(-1, b.SizeBytes()-a.SizeBytes()))) })
	var out []StatusImage
	for _, i := range images[:min(len(images), maxStatusImages)] {
		out = append(out, StatusImage{Names: statusNames(i), SizeBytes: i.SizeBytes()})
	}
	return out, nil
}

func statusNames(i ImageInfo) []string {
	var names []string
	for _, name := range i.Names {
		repository, _, isDigest := strings.Cut(name, "@")
		if !isDigest {
			names = append(names, name)
			if colon := strings.LastIndexByte(name, ':'); colon > strings.LastIndexByte(name, '/') {
				repository = name[:colon]
			}
		}
		names = append(names, repository+"@"+i.Digest)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// PruneUnused removes, or in a dry run tells of, the images that inUse does not
// want: what AgentService.PruneImages answers.
func (s *Store) PruneUnused(ctx context.Context, dryRun bool, inUse func(digest string) bool) (Removed, error) {
	if !dryRun {
		removed, err := s.prune(ctx, inUse)
		if err != nil {
			return removed, fmt.Errorf("prune images: %w", err)
		}
		return removed, nil
	}
	images, err := s.Images()
	if err != nil {
		return Removed{}, err
	}
	users := countUsers(images)
	removed := Removed{}
	for _, image := range images {
		if inUse(image.Digest) || s.leased(imagesDir, hexOf(image.Digest)) {
			continue
		}
		removed.Images = append(removed.Images, shownNames(image)...)
		for _, p := range image.Parts {
			key := partKey{p.Kind, p.Hex}
			if users[key]--; users[key] == 0 {
				removed.Bytes += p.Bytes
			}
		}
	}
	return removed, nil
}

func (s *Store) leased(kind, hex string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leasedLocked(kind + "/" + hex)
}

// shownNames are an image's names, or its digest where it has none.
func shownNames(image ImageInfo) []string {
	if len(image.Names) == 0 {
		return []string{image.Digest}
	}
	return image.Names
}
