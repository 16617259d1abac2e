package image

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/balsa-run/balsa/node/image/registry"
)

func sha(content []byte) string {
	sum := sha256.Sum256(content)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// fakeRegistry serves what it was given, true or not. Hooks make it behave badly.
type fakeRegistry struct {
	*httptest.Server
	t         testing.TB
	manifests map[string][]byte // by tag or digest
	blobs     map[string][]byte
	// before runs ahead of each request; true: it has answered.
	before func(w http.ResponseWriter, r *http.Request) bool
	// noRanges ignores Range headers.
	noRanges bool

	mu       sync.Mutex
	requests []string // guarded by mu
}

func newRegistry(t testing.TB) *fakeRegistry {
	f := &fakeRegistry{t: t, manifests: map[string][]byte{}, blobs: map[string][]byte{}}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Server.Close)
	return f
}

func (f *fakeRegistry) host() string {
	return strings.TrimPrefix(strings.TrimPrefix(f.URL, "https://"), "http://")
}

func (f *fakeRegistry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.requests = append(f.requests, r.Method+" "+r.URL.Path)
	f.mu.Unlock()
	if f.before != nil && f.before(w, r) {
		return
	}
	parts := strings.Split(r.URL.Path, "/")
	last := parts[len(parts)-1]
	switch {
	case r.URL.Path == "/v2/":
	case strings.Contains(r.URL.Path, "/manifests/"):
		f.manifest(w, r, last)
	case strings.Contains(r.URL.Path, "/blobs/"):
		f.blob(w, r, last)
	default:
		http.NotFound(w, r)
	}
}

func (f *fakeRegistry) manifest(w http.ResponseWriter, r *http.Request, ref string) {
	content, ok := f.manifests[ref]
	if !ok {
		http.Error(w, `{"errors":[{"code":"MANIFEST_UNKNOWN"}]}`, http.StatusNotFound)
		return
	}
	w.Header().Set("Docker-Content-Digest", sha(content))
	w.Header().Set("Content-Type", string(types.OCIManifestSchema1))
	http.ServeContent(w, r, "", time.Time{}, strings.NewReader(string(content)))
}

func (f *fakeRegistry) blob(w http.ResponseWriter, r *http.Request, digest string) {
	content, ok := f.blobs[digest]
	if !ok {
		http.Error(w, `{"errors":[{"code":"BLOB_UNKNOWN"}]}`, http.StatusNotFound)
		return
	}
	if f.noRanges {
		_, _ = w.Write(content)
		return
	}
	http.ServeContent(w, r, "", time.Time{}, strings.NewReader(string(content)))
}

// count is how often a request whose line has a text came.
func (f *fakeRegistry) count(text string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, r := range f.requests {
		if strings.Contains(r, text) {
			n++
		}
	}
	return n
}

// add serves an image as it is under a tag.
func (f *fakeRegistry) add(tag string, image v1.Image) string {
	f.t.Helper()
	raw, err := image.RawManifest()
	check(f.t, err)
	config, err := image.RawConfigFile()
	check(f.t, err)
	f.blobs[sha(config)] = config
	layers, err := image.Layers()
	check(f.t, err)
	for _, l := range layers {
		r, err := l.Compressed()
		check(f.t, err)
		content := readAll(f.t, r)
		f.blobs[sha(content)] = content
	}
	return f.addManifest(tag, raw)
}

func (f *fakeRegistry) addManifest(tag string, raw []byte) string {
	f.manifests[tag], f.manifests[sha(raw)] = raw, raw
	return sha(raw)
}

// addLayer serves an image of one layer whose blob and documents may lie.
func (f *fakeRegistry) addLayer(tag string, blob []byte, diffID string, change func(manifest, config map[string]any)) {
	f.t.Helper()
	config := map[string]any{
		"architecture": "amd64", "os": "linux", "config": map[string]any{"Cmd": []string{"/x"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{diffID}},
	}
	manifest := map[string]any{
		"schemaVersion": 2, "mediaType": types.OCIManifestSchema1,
		"layers": []any{map[string]any{"mediaType": types.OCILayer, "digest": sha(blob), "size": len(blob)}},
	}
	if change != nil {
		change(manifest, config)
	}
	rawConfig, err := json.Marshal(config)
	check(f.t, err)
	if manifest["config"] == nil {
		manifest["config"] = map[string]any{"mediaType": types.OCIConfigJSON, "digest": sha(rawConfig), "size": len(rawConfig)}
	}
	raw, err := json.Marshal(manifest)
	check(f.t, err)
	f.blobs[sha(blob)], f.blobs[sha(rawConfig)] = blob, rawConfig
	f.addManifest(tag, raw)
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// noCluster keeps no image.
type noCluster struct{}

func (noCluster) Lookup(_ context.Context, name string) (Kept, error) {
	return Kept{}, fmt.Errorf("image %s: %w", name, ErrNotFound)
}

// quick limits make faults show soon.
func quick() registry.Limits {
	return registry.Limits{
		Stall: 250 * time.Millisecond, StallBytes: 1 << 10, BackoffMin: time.Millisecond, BackoffMax: 4 * time.Millisecond,
		RetryAfterMax: time.Second,
	}
}

func registryPuller(t testing.TB, config string) *Puller { return limitedPuller(t, config, quick()) }

func limitedPuller(t testing.TB, config string, limits registry.Limits) *Puller {
	t.Helper()
	parsed, err := registry.ParseConfig([]byte(config))
	check(t, err)
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	return &Puller{
		Store: openStore(t), Cluster: noCluster{}, Log: log,
		Registries: registry.New(registry.Options{Config: parsed, Limits: limits, Log: log}),
	}
}

func plainHTTP(hosts ...string) string {
	out := "registries:\n"
	for _, host := range hosts {
		out += fmt.Sprintf("  %q: {http: true}\n", host)
	}
	return out
}

func TestPullFromARegistry(t *testing.T) {
	f := newRegistry(t)
	f.add("v1", threeLayers(t))
	p := registryPuller(t, plainHTTP(f.host()))
	name := f.host() + "/team/app:v1"
	var told []Progress
	var mu sync.Mutex
	got, err := p.Pull(t.Context(), Request{Name: name}, func(now Progress) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, now)
	})
	check(t, err)
	checkLayers(t, got.Image.Layers)
	if !got.Transferred || len(told) < 2 || told[0].BytesDone != 0 || told[len(told)-1].LayersDone != 3 || told[len(told)-1].BytesDone != told[len(told)-1].BytesTotal {
		t.Errorf("pulled %+v, progress %+v", got, told)
	}
	before := f.count("")
	if again, err := p.Pull(t.Context(), Request{Name: name}, nil); err != nil || again.Transferred || f.count("") != before {
		t.Errorf("if not present: %+v, %v, %d requests", again, err, f.count("")-before)
	}
	if again, err := p.Pull(t.Context(), Request{Name: name, Always: true}, nil); err != nil || again.Transferred || f.count("GET /v2/team") != 5 {
		t.Errorf("always, unchanged: %+v, %v, %v", again, err, f.requests)
	}
	moved := f.add("v1", imageOf(t, tarOf(t, reg("x", "x"))))
	if again, err := p.Pull(t.Context(), Request{Name: name, Always: true}, nil); err != nil || !again.Transferred || again.Image.Digest != moved {
		t.Errorf("always, moved: %+v, %v", again, err)
	}
	if _, err := p.Pull(t.Context(), Request{Name: f.host() + "/team/app:v2"}, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("a tag that is not there: %v, want ErrNotFound", err)
	}
	byDigest := f.host() + "/team/app@" + moved
	if got, err := p.Pull(t.Context(), Request{Name: byDigest}, nil); err != nil || got.Image.Digest != moved {
		t.Errorf("by digest: %+v, %v", got, err)
	}
}

func TestPullChoosesThisPlatform(t *testing.T) {
	f := newRegistry(t)
	want := f.add("amd64", threeLayers(t))
	other := sha([]byte("other"))
	entry := func(arch, os, digest string, kind types.MediaType) map[string]any {
		return map[string]any{"mediaType": kind, "digest": digest, "size": 1, "platform": map[string]any{"architecture": arch, "os": os}}
	}
	index := func(entries ...any) []byte {
		raw, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": types.OCIImageIndex, "manifests": entries})
		check(t, err)
		return raw
	}
	inner := index(entry("amd64", "linux", want, types.OCIManifestSchema1))
	f.addManifest("inner", inner)
	outer := f.addManifest("v1", index(
		entry("unknown", "unknown", other, types.OCIManifestSchema1), entry("arm64", "linux", other, types.OCIManifestSchema1),
		entry("amd64", "windows", other, types.OCIManifestSchema1), entry("amd64", "linux", sha(inner), types.OCIImageIndex)))
	p := registryPuller(t, plainHTTP(f.host()))
	for _, ref := range []string{":v1", "@" + outer} {
		for _, always := range []bool{false, true} {
			got, err := p.Pull(t.Context(), Request{Name: f.host() + "/app" + ref, Always: always}, nil)
			if err != nil || got.Image.Digest != want {
				t.Errorf("%s: %s, %v, want %s", ref, got.Image.Digest, err, want)
			}
		}
	}
	f.addManifest("arm", index(entry("arm64", "linux", want, types.OCIManifestSchema1)))
	if _, err := p.Pull(t.Context(), Request{Name: f.host() + "/app:arm"}, nil); err == nil || !strings.Contains(err.Error(), "linux/arm64") {
		t.Errorf("no manifest for this platform: %v", err)
	}
}

// dockerConfig is a pull secret.
func dockerConfig(host, user, password string) []byte {
	auth := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	return fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, host, auth)
}

func TestPullWithBasicAuth(t *testing.T) {
	f := newRegistry(t)
	f.add("v1", threeLayers(t))
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		user, password, _ := r.BasicAuth()
		if user == "ana" && password == "right" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	name := f.host() + "/team/app:v1"
	pull := func(secrets ...[]byte) error {
		_, err := registryPuller(t, plainHTTP(f.host())).Pull(t.Context(), Request{Name: name, Credentials: secrets}, nil)
		return err
	}
	if err := pull(); !errors.Is(err, registry.ErrUnauthorized) || errors.Is(err, ErrNotFound) || errors.Is(err, ErrUnreachable) {
		t.Errorf("without a secret: %v, want ErrUnauthorized", err)
	}
	if err := pull(dockerConfig(f.host(), "ana", "wrong")); !errors.Is(err, registry.ErrUnauthorized) || strings.Contains(err.Error(), "wrong") {
		t.Errorf("with a wrong password: %v", err)
	}
	check(t, pull([]byte("no secret at all"), dockerConfig("other.example", "x", "y"), dockerConfig(f.host(), "ana", "wrong"), dockerConfig(f.host()+"/team", "ana", "right")))
	if err := pull([]byte("no secret at all")); err == nil || !strings.Contains(err.Error(), "pull secret 1 of 1") {
		t.Errorf("with a secret that is none: %v", err)
	}
}

func TestPullWithTokens(t *testing.T) {
	f := newRegistry(t)
	f.add("v1", threeLayers(t))
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.URL.Path == "/token":
			if user, password, _ := r.BasicAuth(); user != "ana" || password != "right" {
				w.WriteHeader(http.StatusUnauthorized)
			} else if scope := r.URL.Query().Get("scope"); scope != "repository:team/app:pull" {
				t.Errorf("scope %q", scope)
			} else {
				fmt.Fprint(w, `{"token":"t0ken"}`)
			}
			return true
		case r.Header.Get("Authorization") == "Bearer t0ken":
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="test"`, f.URL))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	p := registryPuller(t, plainHTTP(f.host()))
	_, err := p.Pull(t.Context(), Request{Name: f.host() + "/team/app:v1", Credentials: [][]byte{dockerConfig(f.host(), "ana", "right")}}, nil)
	check(t, err)
	_, err = p.Pull(t.Context(), Request{Name: f.host() + "/team/app:other", Credentials: [][]byte{dockerConfig(f.host(), "ana", "wrong")}}, nil)
	if !errors.Is(err, registry.ErrUnauthorized) {
		t.Errorf("with a wrong password: %v", err)
	}
}

func TestMirrorsComeFirst(t *testing.T) {
	own, mirror, dead := newRegistry(t), newRegistry(t), newRegistry(t)
	dead.Close()
	image := threeLayers(t)
	own.add("v1", image)
	own.add("v2", image)
	mirror.add("v1", image)
	config := fmt.Sprintf("registries:\n  %q: {http: true, mirrors: [%q, %q]}\n  %q: {http: true}\n  %q: {http: true}\n",
		own.host(), dead.host(), mirror.host()+"/cache", mirror.host(), dead.host())
	p := registryPuller(t, config)
	_, err := p.Pull(t.Context(), Request{Name: own.host() + "/app:v1"}, nil)
	check(t, err)
	if own.count("") != 0 || mirror.count("/v2/cache/app/blobs/") == 0 {
		t.Errorf("asked the registry %v, the mirror %v", own.requests, mirror.requests)
	}
	// What the mirror lacks comes from the registry.
	_, err = p.Pull(t.Context(), Request{Name: own.host() + "/app:v2"}, nil)
	check(t, err)
	if own.count("manifests/v2") == 0 {
		t.Error("the registry was not asked for what the mirror lacks")
	}
}

func TestTheClusterComesFirst(t *testing.T) {
	f := newRegistry(t)
	f.add("v1", imageOf(t, tarOf(t, reg("from", "registry"))))
	p := registryPuller(t, plainHTTP(f.host()))
	name := f.host() + "/app:v1"
	c, kept := newCluster(t, name, imageOf(t, tarOf(t, reg("from", "cluster"))))
	p.Cluster = c
	got, err := p.Pull(t.Context(), Request{Name: name, Always: true}, nil)
	if err != nil || got.Image.Digest != kept.Manifest.Digest || f.count("") != 0 {
		t.Errorf("got %+v, %v; the registry was asked %v", got, err, f.requests)
	}
	// While the cluster cannot be asked, the registry is not either: it could have
	// something else under that name.
	c.down = true
	if _, err := p.Pull(t.Context(), Request{Name: f.host() + "/other:v1"}, nil); !errors.Is(err, ErrUnreachable) || f.count("") != 0 {
		t.Errorf("without the cluster: %v; the registry was asked %v", err, f.requests)
	}
}

// largeContent is content that does not compress, for transfers that take several steps.
func largeContent(bytes int) string {
	var b strings.Builder
	for block := sha([]byte("seed")); b.Len() < bytes; block = sha([]byte(block)) {
		b.WriteString(block)
	}
	return b.String()[:bytes]
}

func TestTransfersGoOn(t *testing.T) {
	for title, noRanges := range map[string]bool{"with ranges": false, "without": true} {
		t.Run(title, func(t *testing.T) {
			f := newRegistry(t)
			f.noRanges = noRanges
			blob := tarOf(t, reg("big", largeContent(400_000)))
			f.addLayer("v1", blob, sha(blob), nil)
			cut := 0
			sent := 0
			f.before = func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasSuffix(r.URL.Path, sha(blob)) || cut >= 3 {
					return false
				}
				cut++
				// The connection breaks after 100,000 bytes more.
				var from int
				_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from)
				status := http.StatusOK
				if noRanges {
					from = 0
				} else if from > 0 {
					status = http.StatusPartialContent
					w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(blob)-1, len(blob)))
				}
				w.Header().Set("Content-Length", fmt.Sprint(len(blob)-from))
				w.WriteHeader(status)
				upTo := min(len(blob), 100_000*cut)
				n, _ := w.Write(blob[from:upTo])
				sent += n
				w.(http.Flusher).Flush()
				panic(http.ErrAbortHandler)
			}
			p := registryPuller(t, plainHTTP(f.host()))
			got, err := p.Pull(t.Context(), Request{Name: f.host() + "/app:v1"}, nil)
			check(t, err)
			if len(got.Image.Layers) != 1 || cut != 3 {
				t.Errorf("pulled %+v after %d cuts", got, cut)
			}
			if !noRanges && sent > 310_000 {
				t.Errorf("%d bytes were sent in three parts of 100,000", sent)
			}
		})
	}
}

func TestTransfersGoOnAfterARestart(t *testing.T) {
	f := newRegistry(t)
	blob := tarOf(t, reg("big", largeContent(300_000)))
	f.addLayer("v1", blob, sha(blob), nil)
	var ranges []string
	healthy := false
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, sha(blob)) {
			return false
		}
		f.mu.Lock()
		ranges = append(ranges, r.Header.Get("Range"))
		well, first := healthy, len(ranges) == 1
		f.mu.Unlock()
		if well {
			return false
		}
		if first {
			w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
			_, _ = w.Write(blob[:200_000])
			w.(http.Flusher).Flush()
		}
		panic(http.ErrAbortHandler)
	}
	p := registryPuller(t, plainHTTP(f.host()))
	if _, err := p.Pull(t.Context(), Request{Name: f.host() + "/app:v1"}, nil); err == nil {
		t.Fatal("a transfer that never ends has succeeded")
	}
	nothingLeft(t, p.Store)
	// The agent is started again.
	p.Store.Close()
	var err error
	p.Store, err = Open(p.Store.opt)
	check(t, err)
	t.Cleanup(p.Store.Close)
	f.mu.Lock()
	healthy, ranges = true, nil
	f.mu.Unlock()
	_, err = p.Pull(t.Context(), Request{Name: f.host() + "/app:v1"}, nil)
	check(t, err)
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(ranges) != 1 || ranges[0] != "bytes=200000-" {
		t.Errorf("asked for %q after the restart", ranges)
	}
}

func TestADamagedPartialIsFetchedAnew(t *testing.T) {
	f := newRegistry(t)
	blob := tarOf(t, reg("big", largeContent(300_000)))
	f.addLayer("v1", blob, sha(blob), nil)
	p := registryPuller(t, plainHTTP(f.host()))
	for title, left := range map[string]string{"other content": strings.Repeat("x", 1000), "too long": strings.Repeat("x", len(blob)+1)} {
		check(t, p.Store.writeSmall(p.Store.path(partialDir, sha(blob)), []byte(left)))
		if _, err := p.Pull(t.Context(), Request{Name: f.host() + "/app:v1"}, nil); err != nil {
			t.Errorf("%s: %v", title, err)
		}
		_, err := p.Store.Prune(t.Context(), func(string) bool { return false })
		check(t, err)
	}
}

func pemOf(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
