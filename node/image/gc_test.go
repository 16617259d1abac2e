package image

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func names(images []ImageInfo) []string {
	var out []string
	for _, i := range images {
		out = append(out, i.Digest)
	}
	return out
}

func TestPlanGC(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	layer := func(hex string, bytes int64) PartInfo { return PartInfo{Kind: layersDir, Hex: hex, Bytes: bytes} }
	spare := func(hex string, bytes int64) PartInfo {
		return PartInfo{Kind: blobsDir, Hex: hex, Bytes: bytes, Spare: true}
	}
	image := func(digest string, age time.Duration, parts ...PartInfo) ImageInfo {
		return ImageInfo{Digest: digest, LastUsed: now.Add(-age), Parts: parts}
	}
	images := []ImageInfo{
		image("young", time.Minute, layer("y", 10)),
		image("new", time.Hour, layer("base", 20), layer("n", 4), spare("nb", 2)),
		image("old", 3*time.Hour, layer("base", 20), layer("o", 4), spare("ob", 1)),
		image("used", 9*time.Hour, layer("u", 30)),
	}
	for title, c := range map[string]struct {
		available    int64
		blobs, whole []string
		want, frees  int64
	}{
		"below the high mark":        {available: 16},
		"a little above":             {available: 15, blobs: []string{"ob", "nb"}, whole: []string{"old"}, want: 5, frees: 7},
		"what is shared goes last":   {available: 10, blobs: []string{"ob", "nb"}, whole: []string{"old", "new"}, want: 10, frees: 31},
		"more than there is to free": {available: 0, blobs: []string{"ob", "nb"}, whole: []string{"old", "new"}, want: 20, frees: 31},
	} {
		t.Run(title, func(t *testing.T) {
			plan := PlanGC(GCInput{
				Now: now, Disk: Disk{CapacityBytes: 100, AvailableBytes: c.available}, Images: images, Policy: DefaultGCPolicy(),
				InUse: func(digest string) bool { return digest == "used" },
			})
			var blobs []string
			for _, b := range plan.Blobs {
				blobs = append(blobs, b.Hex)
			}
			if !slices.Equal(blobs, c.blobs) || !slices.Equal(names(plan.Images), c.whole) || plan.WantBytes != c.want || plan.FreesBytes != c.frees {
				t.Errorf("plan: blobs %v, images %v, wants %d, frees %d; want %+v", blobs, names(plan.Images), plan.WantBytes, plan.FreesBytes, c)
			}
			if plan.Empty() != (len(c.blobs)+len(c.whole) == 0) {
				t.Errorf("Empty: %v", plan.Empty())
			}
		})
	}
}

// TestPlanGCProperties compares what a plan says it frees with what is gone when
// it is carried out in a plain model.
func TestPlanGCProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.Unix(1_000_000, 0)
		sizes := map[string]int64{}
		var images []ImageInfo
		used := map[string]bool{}
		for i := range rapid.IntRange(0, 8).Draw(t, "images") {
			image := ImageInfo{Digest: fmt.Sprint(i), LastUsed: now.Add(-time.Duration(rapid.IntRange(0, 600).Draw(t, "age")) * time.Second)}
			for _, n := range rapid.SliceOfDistinct(rapid.IntRange(0, 9), rapid.ID[int]).Draw(t, "parts") {
				key := fmt.Sprint(n)
				if sizes[key] == 0 {
					sizes[key] = rapid.Int64Range(1, 20).Draw(t, "size")
				}
				image.Parts = append(image.Parts, PartInfo{Kind: blobsDir, Hex: key, Bytes: sizes[key], Spare: n%2 == 0})
			}
			images = append(images, image)
			used[image.Digest] = rapid.Bool().Draw(t, "used")
		}
		in := GCInput{
			Now: now, Disk: Disk{CapacityBytes: 100, AvailableBytes: rapid.Int64Range(0, 100).Draw(t, "available")},
			Images: images, InUse: func(d string) bool { return used[d] }, Policy: DefaultGCPolicy(),
		}
		plan := PlanGC(in)
		gone := map[string]bool{}
		for _, b := range plan.Blobs {
			if !b.Spare {
				t.Fatalf("blob %s is not spare", b.Hex)
			}
			gone[b.Hex] = true
		}
		doomed := map[string]bool{}
		for _, i := range plan.Images {
			if used[i.Digest] || now.Sub(i.LastUsed) < in.Policy.MinAge {
				t.Fatalf("image %s is in use or young", i.Digest)
			}
			doomed[i.Digest] = true
		}
		left := map[string]bool{}
		for _, i := range images {
			for _, p := range i.Parts {
				left[p.Hex] = left[p.Hex] || !doomed[i.Digest]
			}
		}
		freed := int64(0)
		for hex, stays := range left {
			if !stays || gone[hex] {
				freed += sizes[hex]
			}
		}
		if freed != plan.FreesBytes {
			t.Fatalf("frees %d, the plan says %d", freed, plan.FreesBytes)
		}
		if in.Disk.UsedPercent() < 85 && !plan.Empty() {
			t.Fatal("a plan below the high mark")
		}
	})
}

func importOne(t testing.TB, s *Store, ref string, layers ...[]byte) string {
	t.Helper()
	images, err := s.Import(t.Context(), bytes.NewReader(dockerArchive(t, ref, imageOf(t, layers...))), "")
	check(t, err)
	return images[0].Manifest.Digest
}

func TestGCKeepsWhatCameIntoUse(t *testing.T) {
	s := openStore(t)
	shared := tarOf(t, reg("shared", largeContent(10_000)))
	one := importOne(t, s, "one:v1", shared, tarOf(t, reg("own", "1")))
	two := importOne(t, s, "two:v1", shared, tarOf(t, reg("own", "2")))
	three := importOne(t, s, "three:v1", tarOf(t, reg("own", "3")))
	s.opt.Limits.Linger = time.Hour
	images, err := s.Images()
	check(t, err)
	disk, err := s.Usage()
	check(t, err)
	if disk.CapacityBytes <= 0 || disk.AvailableBytes > disk.CapacityBytes || len(images) != 3 {
		t.Fatalf("usage %+v, images %+v", disk, images)
	}
	plan := PlanGC(GCInput{
		Now: time.Now().Add(time.Hour), Disk: Disk{CapacityBytes: disk.CapacityBytes}, Images: images, Policy: DefaultGCPolicy(),
		InUse: func(string) bool { return false },
	})
	if len(plan.Images) != 3 || len(plan.Blobs) != 4 {
		t.Fatalf("plan %+v", plan)
	}
	// Between plan and deed one is resolved and another is put to use.
	_, err = s.Resolve(t.Context(), "one:v1")
	check(t, err)
	removed, err := s.GC(t.Context(), plan, func(digest string) bool { return digest == two })
	check(t, err)
	if diff := cmp.Diff([]string{"three:v1"}, removed.Images); diff != "" || removed.Bytes == 0 {
		t.Errorf("removed (-want +got):\n%s", diff)
	}
	for name, digest := range map[string]string{"one:v1": one, "two:v1": two} {
		if got, err := s.Resolve(t.Context(), name); err != nil || got.Digest != digest || len(got.Layers) != 2 {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	if _, err := s.Resolve(t.Context(), "three:v1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("three:v1 (%s): %v", three, err)
	}
}

func TestSpareBlobsMayGo(t *testing.T) {
	s := openStore(t)
	importOne(t, s, "one:v1", tarOf(t, reg("own", largeContent(10_000))))
	images, err := s.Images()
	check(t, err)
	plan := GCPlan{}
	for _, p := range images[0].Parts {
		if p.Spare {
			plan.Blobs = append(plan.Blobs, p)
		}
	}
	removed, err := s.GC(t.Context(), plan, func(string) bool { return true })
	if err != nil || removed.Bytes < 5000 || len(removed.Images) > 0 {
		t.Errorf("removed %+v, %v", removed, err)
	}
	if got, err := s.Resolve(t.Context(), "one:v1"); err != nil || len(got.Layers) != 1 {
		t.Errorf("the image: %+v, %v", got, err)
	}
}

func TestAnImageWhoseNameMovedStaysWhileInUse(t *testing.T) {
	s := openStore(t)
	before := importOne(t, s, "app:v1", tarOf(t, reg("own", "1")))
	importOne(t, s, "app:v1", tarOf(t, reg("own", "2")))
	_, err := s.Prune(t.Context(), func(string) bool { return true })
	check(t, err)
	if got, err := s.Resolve(t.Context(), "app@"+before); err != nil || !exists(got.Layers[0]) {
		t.Errorf("by digest: %+v, %v", got, err)
	}
	unused := func(digest string) bool { return digest != before }
	would, err := s.PruneUnused(t.Context(), true, unused)
	if err != nil || !slices.Equal(would.Images, []string{before}) || would.Bytes == 0 {
		t.Errorf("would remove %+v, %v", would, err)
	}
	removed, err := s.Prune(t.Context(), unused)
	if err != nil || !slices.Equal(removed, []string{before}) {
		t.Errorf("removed %v, %v", removed, err)
	}
}

func TestStatusImages(t *testing.T) {
	s := openStore(t)
	small := importOne(t, s, "small:v1", tarOf(t, reg("own", "1")))
	large := importOne(t, s, "registry.example:5000/large:v1", tarOf(t, reg("own", largeContent(100_000))))
	got, err := s.StatusImages()
	check(t, err)
	var names [][]string
	for _, i := range got {
		names = append(names, i.Names)
	}
	want := [][]string{
		{"registry.example:5000/large:v1", "registry.example:5000/large@" + large}, {"small:v1", "small@" + small},
	}
	if diff := cmp.Diff(want, names); diff != "" || got[0].SizeBytes < 100_000 {
		t.Errorf("status (-want +got):\n%s%+v", diff, got)
	}
}

// boot makes a store believe that it was last used in another boot.
func boot(t *testing.T, s *Store) *Store {
	t.Helper()
	check(t, s.writeSmall(filepath.Join(s.opt.Dir, bootFile), []byte("another boot")))
	again, err := Open(s.opt)
	check(t, err)
	t.Cleanup(again.Close)
	return again
}

func TestWhatWasNotSafeIsDroppedAfterABoot(t *testing.T) {
	s := openStore(t)
	importOne(t, s, "safe:v1", tarOf(t, reg("own", "1")))
	s.Close()
	importOne(t, s, "unsafe:v1", tarOf(t, reg("own", "2")))
	s.Close()
	unsafe, err := s.Resolve(t.Context(), "unsafe:v1")
	check(t, err)
	// The machine stops before syncfs.
	hex := filepath.Base(unsafe.Layers[0])
	check(t, s.writeMeta(layersDir, hex, 1, unsafeMark))
	check(t, os.RemoveAll(filepath.Join(unsafe.Layers[0], "own")))
	same, err := Open(s.opt)
	check(t, err)
	if _, err := same.Resolve(t.Context(), "unsafe:v1"); err != nil {
		t.Errorf("in the same boot: %v", err)
	}
	same.flush.take() // nothing makes it safe now either
	s = boot(t, s)
	if _, err := s.Resolve(t.Context(), "unsafe:v1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("after a boot: %v, want ErrNotFound", err)
	}
	if _, err := s.Resolve(t.Context(), "safe:v1"); err != nil {
		t.Errorf("what was safe: %v", err)
	}
}

func TestImagesOfAnEarlierVersionAreFound(t *testing.T) {
	s := openStore(t)
	digest := importOne(t, s, "app:v1", tarOf(t, reg("own", "1")))
	s.Close()
	// It had no records, no meta files, and no blobs of layers.
	r, err := s.recordOf(digest)
	check(t, err)
	for _, dir := range []string{imagesDir, targetsDir, metaDir, bootFile} {
		check(t, os.RemoveAll(filepath.Join(s.opt.Dir, dir)))
	}
	check(t, os.Remove(s.path(blobsDir, r.Layers[0].Blob)))
	s, err = Open(s.opt)
	check(t, err)
	t.Cleanup(s.Close)
	if got, err := s.Resolve(t.Context(), "app:v1"); err != nil || got.Digest != digest || len(got.Layers) != 1 {
		t.Errorf("resolved %+v, %v", got, err)
	}
	if removed, err := s.Prune(t.Context(), func(string) bool { return false }); err != nil || !slices.Equal(removed, []string{"app:v1"}) {
		t.Errorf("pruned %v, %v", removed, err)
	}
}

func TestOldPartialsGo(t *testing.T) {
	s := openStore(t)
	for hex, age := range map[string]time.Duration{strings.Repeat("a", 64): time.Minute, strings.Repeat("b", 64): 48 * time.Hour} {
		path := filepath.Join(s.opt.Dir, partialDir, hex)
		check(t, os.WriteFile(path, []byte("x"), 0o600))
		check(t, os.Chtimes(path, time.Now().Add(-age), time.Now().Add(-age)))
	}
	_, err := s.Prune(t.Context(), func(string) bool { return true })
	check(t, err)
	entries, err := os.ReadDir(filepath.Join(s.opt.Dir, partialDir))
	if err != nil || len(entries) != 1 || entries[0].Name()[0] != 'a' {
		t.Errorf("left: %v, %v", entries, err)
	}
}

func TestALyingSourceIsNotAskedAgain(t *testing.T) {
	c, image := newCluster(t, "app:v1", threeLayers(t))
	liar := &cluster{Store: c.Store, damage: image.Layers[0].Digest}
	s := openStore(t)
	got, err := s.Transfer(t.Context(), Transfer{Name: "app:v1", Digest: image.Manifest.Digest, Sources: []Source{liar, c}})
	if err != nil || len(got.Image.Layers) != 3 {
		t.Fatalf("%+v, %v", got, err)
	}
	checkLayers(t, got.Image.Layers)
	if c.fetched.Load() == 0 || liar.fetched.Load() > int64(s.opt.Limits.Resumes)+5 {
		t.Errorf("the liar was asked %d times, the honest one %d", liar.fetched.Load(), c.fetched.Load())
	}
}

func TestGCPolicyCheck(t *testing.T) {
	check(t, DefaultGCPolicy().Check())
	for _, p := range []GCPolicy{{HighPercent: 101}, {HighPercent: 50, LowPercent: 60}, {HighPercent: 85, LowPercent: -1}, {HighPercent: 85, MinAge: -1}} {
		if p.Check() == nil {
			t.Errorf("%+v was taken", p)
		}
	}
}
