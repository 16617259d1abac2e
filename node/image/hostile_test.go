package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/internal/ociarchive"
	"github.com/balsa-run/balsa/node/image/registry"
)

// hostileLimits are small, so that bombs go off soon.
func hostileLimits() Limits {
	return Limits{
		MaxLayerBytes: 8 << 20, MaxLayerFiles: 2000, MaxBlobBytes: 4 << 20, MaxImageBytes: 6 << 20, MinFreeBytes: 1 << 20, Linger: -1,
	}.withDefaults()
}

func hostilePuller(t *testing.T, f *fakeRegistry) *Puller {
	p := registryPuller(t, plainHTTP(f.host()))
	p.Store.opt.Limits = hostileLimits()
	return p
}

// rawTar writes headers that archive/tar would refuse to write: change gets the
// 512 bytes of the header, whose checksum is put right afterwards.
func rawTar(name string, change func(header []byte)) []byte {
	header := make([]byte, 512)
	copy(header, name)
	copy(header[100:], "0000644\x000000000\x000000000\x0000000000000\x0000000000000\x00")
	header[156] = '0'
	copy(header[257:], "ustar\x0000")
	change(header)
	copy(header[148:156], "        ")
	sum := 0
	for _, b := range header {
		sum += int(b)
	}
	copy(header[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return slices.Concat(header, make([]byte, 1024))
}

func typed(name string, kind byte, change ...func(*tar.Header)) file {
	f := file{Header: tar.Header{Name: name, Typeflag: kind, Mode: 0o666}}
	for _, c := range change {
		c(&f.Header)
	}
	return f
}

func device(major, minor int64) func(*tar.Header) {
	return func(h *tar.Header) { h.Devmajor, h.Devminor = major, minor }
}

func zst(t testing.TB, content []byte, options ...zstd.EOption) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b, options...)
	check(t, err)
	_, err = w.Write(content)
	check(t, errors.Join(err, w.Close()))
	return b.Bytes()
}

// pax is an extended header, as archive/tar would not write it.
func pax(records ...string) []byte {
	var all []byte
	for _, r := range records {
		n := len(r) + 3
		for len(fmt.Sprint(n))+len(r)+2 != n {
			n++
		}
		all = fmt.Appendf(all, "%d %s\n", n, r)
	}
	header := rawTar("x", func(h []byte) {
		h[156] = 'x'
		copy(h[124:136], fmt.Sprintf("%011o\x00", len(all)))
	})[:512]
	return append(append(header, all...), make([]byte, (512-len(all)%512)%512)...)
}

// sparseTar says that a file of a few bytes is one of 1 TiB (GNU format 1.0).
func sparseTar() []byte {
	content := "1\n0\n1\n" + strings.Repeat("\x00", 506) + "x"
	archive := pax("GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=f", "GNU.sparse.realsize=1099511627776")
	archive = append(archive, rawTar("f", func(h []byte) { copy(h[124:136], fmt.Sprintf("%011o\x00", len(content))) })[:512]...)
	archive = append(archive, content...)
	return append(archive, make([]byte, 1024+(512-len(content)%512)%512)...)
}

func manyEntries(t testing.TB, n int, name func(int) string) []byte {
	files := make([]file, 0, n)
	for i := range n {
		files = append(files, reg(name(i), ""))
	}
	return tarOf(t, files...)
}

type hostileImage struct {
	blob   []byte
	diffID string // of blob as it is, if empty
	change func(manifest, config map[string]any)
	want   string // in the error
}

func hostileImages(t testing.TB) map[string]hostileImage {
	plain := tarOf(t, reg("f", "content"))
	zeros := make([]byte, 64<<20)
	bomb := append(rawTar("zeros", func(h []byte) { copy(h[124:136], fmt.Sprintf("%011o\x00", len(zeros))) })[:512], zeros...)
	huge := append(pax("comment="+strings.Repeat("x", 3<<20)), plain...)
	layersOf := func(n int, size int) func(m, c map[string]any) {
		return func(m, c map[string]any) {
			var layers []any
			var ids []string
			for range n {
				layers = append(layers, map[string]any{"mediaType": types.OCILayer, "digest": sha(plain), "size": size})
				ids = append(ids, sha(plain))
			}
			m["layers"], c["rootfs"] = layers, map[string]any{"type": "layers", "diff_ids": ids}
		}
	}
	set := func(what string, in func(m, c map[string]any) map[string]any, value any) func(m, c map[string]any) {
		return func(m, c map[string]any) { in(m, c)[what] = value }
	}
	ofManifest := func(m, _ map[string]any) map[string]any { return m }
	ofConfig := func(_, c map[string]any) map[string]any { return c }
	ofRun := func(_, c map[string]any) map[string]any { return c["config"].(map[string]any) }
	return map[string]hostileImage{
		"truncated tar":              {blob: plain[:515], want: "unexpected EOF"},
		"truncated gzip":             {blob: gz(t, plain)[:60], diffID: sha(plain), want: "unexpected EOF"},
		"truncated zstd":             {blob: zst(t, plain)[:40], diffID: sha(plain), want: "unexpected EOF"},
		"trailing garbage":           {blob: append(gz(t, plain), "garbage"...), diffID: sha(plain), want: "gzip"},
		"trailing data in the tar":   {blob: append(bytes.Clone(plain), "more"...), diffID: sha(plain), want: "digest mismatch"},
		"no archive at all":          {blob: []byte(strings.Repeat("not a tar ", 100)), want: "invalid tar header"},
		"wrong diff id":              {blob: plain, diffID: sha([]byte("x")), want: "digest mismatch"},
		"gzip bomb":                  {blob: gz(t, bomb), diffID: sha(bomb), want: "more than 8388608 bytes"},
		"zstd bomb":                  {blob: zst(t, bomb), diffID: sha(bomb), want: "more than 8388608 bytes"},
		"zstd with a huge window":    {blob: zst(t, bomb, zstd.WithWindowSize(512<<20)), diffID: sha(bomb), want: "window"},
		"bomb of many entries":       {blob: gz(t, manyEntries(t, 2100, func(i int) string { return fmt.Sprint(i) })), want: "more than 2000 files", diffID: sha(plain)},
		"bomb of implied folders":    {blob: gz(t, manyEntries(t, 20, func(i int) string { return fmt.Sprint(i) + strings.Repeat("/d", 200) + "/f" })), want: "more than 2000 files", diffID: sha(plain)},
		"sparse file of a terabyte":  {blob: sparseTar(), want: "more than 8388608 bytes"},
		"file larger than the limit": {blob: rawTar("f", func(h []byte) { copy(h[124:136], "77777777777\x00") }), want: "more than 8388608 bytes"},
		"negative size":              {blob: rawTar("f", func(h []byte) { copy(h[124:136], "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff") }), want: "invalid tar header"},
		"huge header":                {blob: huge, want: "header field too long"},
		"name too deep":              {blob: tarOf(t, reg(strings.Repeat("d/", 300)+"f", "")), want: "directories are allowed"},
		"name too long":              {blob: tarOf(t, reg(strings.Repeat("n", 5000), "")), want: "at most 4096"},
		"part of a name too long":    {blob: tarOf(t, reg(strings.Repeat("n", 300), "")), want: "file name too long"},
		"link too long":              {blob: tarOf(t, sym("l", strings.Repeat("n", 5000))), want: "at most 4096"},
		"unknown type":               {blob: tarOf(t, typed("s", 's')), want: "unknown"},
		"hard link out":              {blob: tarOf(t, hard("l", "../../../../etc/passwd")), want: "no such file"},
		"hard link to the root":      {blob: tarOf(t, hard("l", "/")), want: "hard link to the root"},
		"whiteout of its folder":     {blob: tarOf(t, dir("d"), reg("d/.wh..", "")), want: "whiteout"},
		"whiteout of the parent":     {blob: tarOf(t, dir("d"), reg("d/.wh...", "")), want: "whiteout"},
		"links in a circle":          {blob: tarOf(t, sym("a", "b"), sym("b", "a"), reg("a/f", "x")), want: "symbolic links"},
		"file as a folder":           {blob: tarOf(t, reg("d", "x"), reg("d/f", "x")), want: "not a directory"},

		"wrong size of a layer, less": {blob: plain, want: "more than the 100 bytes", change: func(m, _ map[string]any) { m["layers"].([]any)[0].(map[string]any)["size"] = 100 }},
		"wrong size of a layer, more": {blob: plain, want: "unexpected EOF", change: func(m, _ map[string]any) { m["layers"].([]any)[0].(map[string]any)["size"] = 9999 }},
		"negative size of a layer":    {blob: plain, want: "bytes", change: func(m, _ map[string]any) { m["layers"].([]any)[0].(map[string]any)["size"] = -1 }},
		"layer over the limit":        {blob: plain, want: "at most 4194304", change: func(m, _ map[string]any) { m["layers"].([]any)[0].(map[string]any)["size"] = 5 << 20 }},
		"layers over the limit":       {blob: plain, want: "more than 6291456", change: layersOf(2, 4<<20)},
		"more layers than can be":     {blob: plain, want: "600 layers", change: layersOf(600, len(plain))},
		"no layers":                   {blob: plain, want: "0 layers", change: set("layers", ofManifest, []any{})},
		"index and image in one":      {blob: plain, want: "as an index and an image", change: set("manifests", ofManifest, []any{})},
		"manifest called an index":    {blob: plain, want: "does not fit", change: set("mediaType", ofManifest, types.OCIImageIndex)},
		"manifest of 2015":            {blob: plain, want: "schemaVersion", change: set("schemaVersion", ofManifest, 1)},
		"another digest algorithm": {blob: plain, want: "sha256", change: func(m, _ map[string]any) {
			m["layers"].([]any)[0].(map[string]any)["digest"] = "sha512:" + strings.Repeat("0", 128)
		}},
		"digest that is a path": {blob: plain, want: "non-hex", change: func(m, _ map[string]any) {
			m["layers"].([]any)[0].(map[string]any)["digest"] = "sha256:../../etc/passwd"
		}},
		"diff id that is a path":     {blob: plain, want: "non-hex", diffID: "sha256:../../../etc"},
		"another platform":           {blob: plain, want: "linux/arm64", change: set("architecture", ofConfig, "arm64")},
		"another system":             {blob: plain, want: "windows", change: set("os", ofConfig, "windows")},
		"fewer diff ids than layers": {blob: plain, want: "diff ids", change: set("rootfs", ofConfig, map[string]any{"type": "layers"})},
		"configuration too large":    {blob: plain, want: "at most 4194304", change: set("author", ofConfig, strings.Repeat("x", 5<<20))},
		"configuration with a NUL":   {blob: plain, want: "NUL", change: set("Env", ofRun, []string{"A=\x00"})},
		"configuration of arguments": {blob: plain, want: "arguments", change: set("Cmd", ofRun, make([]string, 20_000))},
		"configuration of a wrong kind": {blob: plain, want: "configuration",
			change: set("config", ofConfig, []any{"not", "an", "object"})},
	}
}

func TestHostileImages(t *testing.T) {
	images := hostileImages(t)
	debug.FreeOSMemory()
	before := heap()
	for title, image := range images {
		t.Run(title, func(t *testing.T) {
			f := newRegistry(t)
			if image.diffID == "" {
				image.diffID = sha(image.blob)
			}
			f.addLayer("v1", image.blob, image.diffID, image.change)
			p := hostilePuller(t, f)
			_, err := p.Pull(t.Context(), Request{Name: f.host() + "/app:v1"}, nil)
			if err == nil || !strings.Contains(err.Error(), image.want) {
				t.Errorf("got %v, want an error with %q", err, image.want)
			}
			if errors.Is(err, ErrNotFound) || errors.Is(err, ErrUnreachable) {
				t.Errorf("the error counts as one of finding the image: %v", err)
			}
			t.Log(err)
			nothingHalf(t, p.Store)
		})
	}
	if after := heap(); after > before+128<<20 {
		t.Errorf("the heap grew from %d to %d MiB", before>>20, after>>20)
	}
}

// heap is what the process has of the system; what was freed a moment ago
// counts, so that a short peak shows.
func heap() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapSys - m.HeapReleased
}

// nothingHalf: no layer, no name, nothing temporary, and of what came no more
// than a manifest allows.
func nothingHalf(t *testing.T, s *Store) {
	t.Helper()
	nothingLeft(t, s)
	if entries, err := os.ReadDir(filepath.Join(s.opt.Dir, layersDir)); err != nil || len(entries) > 0 {
		t.Errorf("layers has %v, %v", entries, err)
	}
	entries, err := os.ReadDir(filepath.Join(s.opt.Dir, partialDir))
	check(t, err)
	for _, e := range entries {
		if info, err := e.Info(); err != nil || info.Size() > s.opt.Limits.MaxBlobBytes {
			t.Errorf("partial has %v, %v", info, err)
		}
	}
}

// TestHostileLayersAreTamed: what is odd, and may be meant well, is unpacked, and
// stays inside.
func TestHostileLayersAreTamed(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	check(t, os.WriteFile(secret, []byte("secret"), 0o600))
	outside := filepath.Dir(secret)
	for title, c := range map[string]struct {
		layer []byte
		want  map[string]string // what Lstat says, or the content
	}{
		"names with ..":           {tarOf(t, reg("../../../x", "1")), map[string]string{"x": "1"}},
		"absolute names":          {tarOf(t, reg("/etc/x", "1")), map[string]string{"etc/x": "1"}},
		"a link out, then a file": {tarOf(t, sym("d", outside), reg("d/x", "1")), map[string]string{strings.TrimPrefix(outside, "/") + "/x": "1"}},
		"links up, then a file":   {tarOf(t, sym("d", "../../../../e"), reg("d/x", "1")), map[string]string{"e/x": "1"}},
		"a line feed in a name":   {tarOf(t, reg("a\nb", "1")), map[string]string{"a\nb": "1"}},
		"the same file twice":     {tarOf(t, reg("x", "1"), reg("x", "2")), map[string]string{"x": "2"}},
		"a folder for a file":     {tarOf(t, reg("x", "1"), dir("x"), reg("x/y", "2")), map[string]string{"x/y": "2"}},
		"a file for a folder":     {tarOf(t, dir("x"), reg("x/y", "1"), reg("x", "2")), map[string]string{"x": "2"}},
		"a folder for a link":     {tarOf(t, sym("x", "/y"), reg("x/f", "1"), dir("x"), reg("x/f", "2")), map[string]string{"y/f": "1", "x/f": "2"}},
		"a block device":          {tarOf(t, typed("sda", tar.TypeBlock, device(8, 0))), map[string]string{"sda": "gone"}},
		"kernel memory":           {tarOf(t, typed("kmem", tar.TypeChar, device(1, 2))), map[string]string{"kmem": "gone"}},
		"the null device":         {tarOf(t, typed("null", tar.TypeChar, device(1, 3))), map[string]string{"null": "Dcrw-rw-rw-"}},
		"a pipe":                  {tarOf(t, typed("p", tar.TypeFifo)), map[string]string{"p": "prw-rw-rw-"}},
		"the root itself":         {tarOf(t, dir("."), dir("/"), reg("x", "1")), map[string]string{"x": "1"}},
		"a global header": {tarOf(t, typed("pax_global_header", tar.TypeXGlobalHeader, func(h *tar.Header) {
			*h = tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "x"}}
		}), reg("x", "1")), map[string]string{"x": "1"}},
	} {
		t.Run(title, func(t *testing.T) {
			root := t.TempDir()
			check(t, extractTo(t, c.layer, root))
			for name, want := range c.want {
				if got := looks(filepath.Join(root, name)); got != want {
					t.Errorf("%q: found %q, want %q", name, got, want)
				}
			}
			if entries, err := os.ReadDir(outside); err != nil || len(entries) != 1 {
				t.Errorf("outside there is now %v, %v", entries, err)
			}
		})
	}
}

// looks is a file's content, or the mode of what is none.
func looks(path string) string {
	info, err := os.Lstat(path)
	if err != nil {
		return "gone"
	}
	if !info.Mode().IsRegular() {
		return info.Mode().String()
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(content)
}

func TestWhiteoutsHideLowerLayersOnly(t *testing.T) {
	capable := reg("capable", "x")
	capable.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}
	root := t.TempDir()
	check(t, extractTo(t, tarOf(t,
		reg(".wh.replaced", ""), dir("replaced"), reg("replaced/new", "1"), // a folder that hides the lower one
		dir("made"), reg("made/new", "1"), reg(".wh.made", ""), // the same, the other way round
		reg("kept", "1"), reg(".wh.kept", ""), // this layer's file stays
		reg(".wh.gone", ""), reg("deep/.wh.gone", ""), reg(".wh..wh.plnk", ""), capable), root))
	opaque := func(name string) string {
		value := make([]byte, 8)
		n, err := unix.Lgetxattr(filepath.Join(root, name), opaqueXattr, value)
		if err != nil {
			return err.Error()
		}
		return string(value[:n])
	}
	for name, want := range map[string]string{"replaced/new": "1", "made/new": "1", "kept": "1", "gone": "Dc---------", "deep/gone": "Dc---------", ".wh..wh.plnk": "gone"} {
		if got := looks(filepath.Join(root, name)); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if opaque("replaced") != "y" || opaque("made") != "y" || opaque("deep") == "y" {
		t.Errorf("opaque: replaced %q, made %q, deep %q", opaque("replaced"), opaque("made"), opaque("deep"))
	}
	value := make([]byte, 64)
	if n, err := unix.Lgetxattr(filepath.Join(root, "capable"), "security.capability", value); err != nil || string(value[:n]) != capable.PAXRecords["SCHILY.xattr.security.capability"] {
		t.Errorf("file capability: %q, %v", value[:max(n, 0)], err)
	}
}

func TestAFullDiskIsToldBeforeAndMeanwhile(t *testing.T) {
	f := newRegistry(t)
	f.add("v1", threeLayers(t))
	p := hostilePuller(t, f)
	p.Store.opt.Limits.MinFreeBytes = 1 << 60
	_, err := p.Pull(t.Context(), Request{Name: f.host() + "/app:v1"}, nil)
	if !errors.Is(err, ErrNoSpace) {
		t.Errorf("got %v, want ErrNoSpace", err)
	}
	nothingHalf(t, p.Store)
	x := &extraction{limits: hostileLimits(), checkFree: func() error { return ErrNoSpace }, log: p.Log}
	x.limits.MaxLayerBytes = 1 << 30
	if err := x.extract(bytes.NewReader(tarOf(t, reg("f", strings.Repeat("x", spaceEvery)))), t.TempDir()); !errors.Is(err, ErrNoSpace) {
		t.Errorf("while unpacking: %v, want ErrNoSpace", err)
	}
}

// hostileRegistry is one way for a registry to be bad.
type hostileRegistry struct {
	before func(t *testing.T, f *fakeRegistry, w http.ResponseWriter, r *http.Request) bool
	want   string
	is     error
}

func isBlob(r *http.Request) bool     { return strings.Contains(r.URL.Path, "/blobs/") }
func isManifest(r *http.Request) bool { return strings.Contains(r.URL.Path, "/manifests/") }

func stall(w http.ResponseWriter, r *http.Request) {
	w.(http.Flusher).Flush()
	<-r.Context().Done()
}

func hostileRegistries() map[string]hostileRegistry {
	type answer = func(t *testing.T, f *fakeRegistry, w http.ResponseWriter, r *http.Request) bool
	on := func(which func(*http.Request) bool, do func(w http.ResponseWriter, r *http.Request)) answer {
		return func(_ *testing.T, _ *fakeRegistry, w http.ResponseWriter, r *http.Request) bool {
			if !which(r) {
				return false
			}
			do(w, r)
			return true
		}
	}
	always := func(*http.Request) bool { return true }
	redirect := func(to string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, to, http.StatusTemporaryRedirect) }
	}
	status := func(code int, header ...string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) {
			if len(header) == 2 {
				w.Header().Set(header[0], header[1])
			}
			w.WriteHeader(code)
		}
	}
	endless := func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		block := make([]byte, 64<<10)
		for r.Context().Err() == nil {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
	}
	return map[string]hostileRegistry{
		"says nothing": {on(always, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }), "timeout", ErrUnreachable},
		"stalls in a blob": {on(isBlob, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "100")
			stall(w, r)
		}), "stalls", registry.ErrStalled},
		"drips": {on(isBlob, func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				_, _ = w.Write([]byte("x"))
				w.(http.Flusher).Flush()
				select {
				case <-r.Context().Done():
				case <-time.After(20 * time.Millisecond):
				}
			}
		}), "stalls", registry.ErrStalled},
		"stalls in a manifest": {on(isManifest, func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodHead {
				w.WriteHeader(http.StatusMethodNotAllowed)
				return
			}
			stall(w, r)
		}), "stalls", registry.ErrStalled},
		"breaks every blob off": {on(isBlob, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write([]byte("x"))
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}), "", nil},
		"sends other blobs":          {on(isBlob, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("other")) }), "", nil},
		"sends an endless blob":      {on(isBlob, endless), "more than", ErrDigest},
		"sends an endless manifest":  {on(isManifest, endless), "more than 4194304 bytes", registry.ErrRefused},
		"sends an endless token":     {on(always, endless), "", nil},
		"sends a page for people":    {on(isManifest, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>log in</html>") }), "invalid", ociarchive.ErrInvalid},
		"lies about the digest":      {on(func(r *http.Request) bool { return r.Method == http.MethodHead }, status(200, "Docker-Content-Digest", sha([]byte("x")))), "404", nil},
		"redirects in a circle":      {on(isBlob, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }), "redirects more than 5 times", registry.ErrRefused},
		"redirects to the metadata":  {on(isBlob, redirect("http://169.254.169.254/latest/meta-data/")), "169.254.169.254", registry.ErrRefused},
		"redirects to an IPv6 one":   {on(isBlob, redirect("http://[fd00:ec2::254]/")), "fd00:ec2::254", registry.ErrRefused},
		"redirects to a mapped one":  {on(isBlob, redirect("http://[::ffff:169.254.169.254]/")), "169.254.169.254", registry.ErrRefused},
		"redirects to 0.0.0.0":       {on(isBlob, redirect("http://0.0.0.0:1/")), "0.0.0.0", registry.ErrRefused},
		"redirects to a file":        {on(isBlob, redirect("file:///etc/passwd")), "only https", registry.ErrRefused},
		"redirects to no URL":        {on(isBlob, status(302, "Location", "http://[::1")), "no URL", registry.ErrRefused},
		"is overloaded for an hour":  {on(isManifest, status(429, "Retry-After", "3600")), "asks to wait for 1h0m0s", ErrUnreachable},
		"is down":                    {on(isManifest, status(503)), "503", ErrUnreachable},
		"forbids":                    {on(isManifest, status(403)), "403", registry.ErrUnauthorized},
		"wants tokens from metadata": {on(always, status(401, "WWW-Authenticate", `Bearer realm="http://169.254.169.254/token"`)), "link-local", nil},
		"answers another range": {on(isBlob, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") == "" {
				w.Header().Set("Content-Length", "100")
				_, _ = w.Write([]byte("x"))
				w.(http.Flusher).Flush()
				panic(http.ErrAbortHandler)
			}
			w.Header().Set("Content-Range", "bytes 5-99/100")
			w.WriteHeader(http.StatusPartialContent)
		}), "", nil},
	}
}

func TestHostileRegistries(t *testing.T) {
	debug.FreeOSMemory()
	before := heap()
	for title, h := range hostileRegistries() {
		t.Run(title, func(t *testing.T) {
			f := newRegistry(t)
			f.add("v1", threeLayers(t))
			f.before = func(w http.ResponseWriter, r *http.Request) bool { return h.before(t, f, w, r) }
			p := hostilePuller(t, f)
			began := time.Now()
			_, err := p.Pull(t.Context(), Request{Name: f.host() + "/app:v1"}, nil)
			if err == nil || !strings.Contains(err.Error(), h.want) || h.is != nil && !errors.Is(err, h.is) {
				t.Errorf("got %v, want an error with %q that is %v", err, h.want, h.is)
			}
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("it took %s", took)
			}
			t.Log(err)
			nothingHalf(t, p.Store)
		})
	}
	if after := heap(); after > before+128<<20 {
		t.Errorf("the heap grew from %d to %d MiB", before>>20, after>>20)
	}
}

func TestCredentialsStayWithTheirRegistry(t *testing.T) {
	for _, scheme := range []string{"basic", "bearer"} {
		t.Run(scheme, func(t *testing.T) {
			// The same host name, another port: net/http would send the header along.
			var leaked []string
			f := newRegistry(t)
			other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if v := r.Header.Get("Authorization"); v != "" {
					leaked = append(leaked, v)
				}
				f.blob(w, r, r.URL.Path[1:])
			}))
			t.Cleanup(other.Close)
			f.add("v1", threeLayers(t))
			f.before = func(w http.ResponseWriter, r *http.Request) bool {
				_, password, _ := r.BasicAuth()
				switch {
				case r.URL.Path == "/token":
					fmt.Fprint(w, `{"token":"t0ken"}`)
				case r.Header.Get("Authorization") == "" && scheme == "basic":
					w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
					w.WriteHeader(http.StatusUnauthorized)
				case scheme == "bearer" && r.Header.Get("Authorization") != "Bearer t0ken":
					w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token"`, f.URL))
					w.WriteHeader(http.StatusUnauthorized)
				case isBlob(r) && (password == "right" || scheme == "bearer"):
					http.Redirect(w, r, other.URL+"/"+filepath.Base(r.URL.Path), http.StatusTemporaryRedirect)
				default:
					return false
				}
				return true
			}
			p := registryPuller(t, plainHTTP(f.host()))
			_, err := p.Pull(t.Context(), Request{Name: f.host() + "/app:v1", Credentials: [][]byte{dockerConfig(f.host(), "ana", "right")}}, nil)
			check(t, err)
			if len(leaked) > 0 {
				t.Errorf("credentials went to another server: %q", leaked)
			}
		})
	}
}

func TestAnOverloadedRegistryIsWaitedFor(t *testing.T) {
	f := newRegistry(t)
	f.add("v1", threeLayers(t))
	var refused time.Time
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if !isManifest(r) || !refused.IsZero() {
			return false
		}
		refused = time.Now()
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusTooManyRequests)
		return true
	}
	p := hostilePuller(t, f)
	_, err := p.Pull(t.Context(), Request{Name: f.host() + "/app:v1"}, nil)
	check(t, err)
	if waited := time.Since(refused); waited < time.Second {
		t.Errorf("asked again after %s", waited)
	}
}

func TestPlainHTTPIsForThoseThatTheConfigurationNames(t *testing.T) {
	f := newRegistry(t)
	f.add("v1", threeLayers(t))
	p := registryPuller(t, "")
	if _, err := p.Pull(t.Context(), Request{Name: f.host() + "/app:v1"}, nil); err == nil || f.count("") > 0 {
		t.Errorf("got %v, the registry was asked %v", err, f.requests)
	}
	// Nor may a registry with TLS lead there.
	tls := httptest.NewTLSServer(http.RedirectHandler(f.URL, http.StatusTemporaryRedirect))
	t.Cleanup(tls.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	check(t, os.WriteFile(ca, pemOf(tls.Certificate().Raw), 0o600))
	host := strings.TrimPrefix(tls.URL, "https://")
	p = registryPuller(t, fmt.Sprintf("registries: {%q: {caFile: %q}}", host, ca))
	if _, err := p.Pull(t.Context(), Request{Name: host + "/app:v1"}, nil); !errors.Is(err, registry.ErrRefused) || f.count("") > 0 {
		t.Errorf("got %v, want ErrRefused; the registry was asked %v", err, f.requests)
	}
}
