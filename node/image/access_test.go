package image

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/balsa-run/balsa/node/image/registry"
)

// private makes a registry that only these users, with the password "right", may
// read.
func private(f *fakeRegistry, users ...string) {
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		user, password, _ := r.BasicAuth()
		for _, known := range users {
			if user == known && password == "right" {
				return false
			}
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
}

// TestPrivateImagesStayPrivate: a pod gets what the node has only if its own
// credentials brought it before, or if the registry says now that it may.
func TestPrivateImagesStayPrivate(t *testing.T) {
	f := newRegistry(t)
	digest := f.add("v1", threeLayers(t))
	private(f, "ana", "bob")
	p := registryPuller(t, plainHTTP(f.host()))
	name := f.host() + "/team/app:v1"
	pull := func(want Request) (int, error) {
		t.Helper()
		before := f.count("")
		_, err := p.Pull(t.Context(), want, nil)
		return f.count("") - before, err
	}
	as := func(user string) [][]byte { return [][]byte{dockerConfig(f.host(), user, "right")} }
	if _, err := pull(Request{Name: name, Credentials: as("ana")}); err != nil {
		t.Fatal(err)
	}
	reuse := func(what string, want Request) {
		t.Helper()
		if asked, err := pull(want); err != nil || asked != 0 {
			t.Errorf("%s: %v, after %d requests", what, err, asked)
		}
	}
	refuse := func(what string, want Request, is error) {
		t.Helper()
		if _, err := pull(want); !errors.Is(err, is) {
			t.Errorf("%s: %v, want %v", what, err, is)
		}
	}
	reuse("the same credential", Request{Name: name, Credentials: as("ana")})
	reuse("in another secret, for the repository", Request{Name: name, Credentials: [][]byte{dockerConfig(f.host()+"/team", "ana", "right")}})
	reuse("the same credential, Never", Request{Name: name, Never: true, Credentials: as("ana")})
	refuse("no credential", Request{Name: name}, registry.ErrUnauthorized)
	refuse("a wrong one", Request{Name: name, Credentials: [][]byte{dockerConfig(f.host(), "ana", "wrong")}}, registry.ErrUnauthorized)
	refuse("no credential, Always", Request{Name: name, Always: true}, registry.ErrUnauthorized)
	refuse("no credential, Never", Request{Name: name, Never: true}, ErrDenied)
	refuse("one that is not known yet, Never", Request{Name: name, Never: true, Credentials: as("bob")}, ErrDenied)
	refuse("its digest", Request{Name: f.host() + "/team/app@" + digest}, registry.ErrUnauthorized)
	refuse("its digest in another repository, Never", Request{Name: "other.example/x@" + digest, Never: true}, ErrDenied)
	if asked, err := pull(Request{Name: name, Credentials: as("bob")}); err != nil || asked == 0 {
		t.Errorf("another credential that the registry takes: %v, after %d requests", err, asked)
	}
	reuse("from then on", Request{Name: name, Credentials: as("bob")})
	reuse("its digest, with a credential", Request{Name: f.host() + "/team/app@" + digest, Credentials: as("bob")})

	// The agent starts anew, and later the registry cannot be reached.
	p.Store.Close()
	reopened, err := Open(p.Store.opt)
	check(t, err)
	p.Store = reopened
	reuse("after a restart", Request{Name: name, Credentials: as("ana")})
	refuse("after a restart, no credential", Request{Name: name}, registry.ErrUnauthorized)
	f.before = func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	}
	reuse("while the registry is down", Request{Name: name, Credentials: as("ana")})
	refuse("while the registry is down, no credential", Request{Name: name}, ErrUnreachable)
}

// TestOpenImagesStayOpen: what anybody may have, and what no registry gave.
func TestOpenImagesStayOpen(t *testing.T) {
	f := newRegistry(t)
	f.add("v1", threeLayers(t))
	p := registryPuller(t, plainHTTP(f.host()))
	name := f.host() + "/team/app:v1"
	if _, err := p.Pull(t.Context(), Request{Name: name}, nil); err != nil {
		t.Fatal(err)
	}
	private(f, "ana")
	for _, want := range []Request{{Name: name}, {Name: name, Never: true}, {Name: name, Credentials: [][]byte{dockerConfig(f.host(), "eve", "x")}}} {
		if _, err := p.Pull(t.Context(), want, nil); err != nil {
			t.Errorf("an image that everybody could have: %v", err)
		}
	}
	// Imported, by the cluster, under a name that a private image had on this node.
	owned := f.host() + "/team/owned:v1"
	f.add("v1", imageOf(t, tarOf(t, reg("who", "ana"))))
	if _, err := p.Pull(t.Context(), Request{Name: owned, Credentials: [][]byte{dockerConfig(f.host(), "ana", "right")}}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Pull(t.Context(), Request{Name: owned, Never: true}, nil); !errors.Is(err, ErrDenied) {
		t.Fatalf("a private image: %v", err)
	}
	c, _ := newCluster(t, owned, imageOf(t, tarOf(t, reg("who", "ana"))))
	p.Cluster = c
	for _, want := range []Request{{Name: owned}, {Name: owned, Never: true}} {
		if _, err := p.Pull(t.Context(), want, nil); err != nil {
			t.Errorf("an image that the cluster keeps: %v", err)
		}
	}
	c.down = true
	if _, err := p.Pull(t.Context(), Request{Name: owned}, nil); err != nil {
		t.Errorf("an image that the cluster kept: %v", err)
	}
}

// TestPrivateWhileTheClusterIsAway: the local image is no way round.
func TestPrivateWhileTheClusterIsAway(t *testing.T) {
	f := newRegistry(t)
	f.add("v1", threeLayers(t))
	private(f, "ana")
	p := registryPuller(t, plainHTTP(f.host()))
	name, ana := f.host()+"/team/app:v1", [][]byte{dockerConfig(f.host(), "ana", "right")}
	if _, err := p.Pull(t.Context(), Request{Name: name, Credentials: ana}, nil); err != nil {
		t.Fatal(err)
	}
	c, _ := newCluster(t, f.host()+"/else:v1", imageOf(t, tarOf(t, reg("x", "x"))))
	c.down = true
	p.Cluster = c
	if _, err := p.Pull(t.Context(), Request{Name: name, Credentials: ana}, nil); err != nil {
		t.Errorf("with the credential: %v", err)
	}
	if _, err := p.Pull(t.Context(), Request{Name: name}, nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("without: %v, want ErrUnreachable", err)
	}
}

// TestAccessFiles: what cannot be read opens nothing, no secret is on disk, files
// are bounded and go with their image.
func TestAccessFiles(t *testing.T) {
	s := openStore(t)
	digest := "sha256:" + strings.Repeat("ab", 32)
	if _, open := s.accessOf(digest); !open || !s.mayRun("a.example/x:v1", digest, nil) {
		t.Error("an image without a file is not everybody's")
	}
	var used registry.Material
	copy(used[:], "secret material of thirty-two by")
	check(t, s.grant("a.example/x:v1", digest, used, false))
	text, err := os.ReadFile(s.accessPath(digest))
	check(t, err)
	if strings.Contains(string(text), fmt.Sprintf("%x", used[:])) {
		t.Error("the credential's own hash is on disk, without the salt")
	}
	for _, bad := range []string{"", "{", `{"a.example/x": 3}`} {
		check(t, os.WriteFile(s.accessPath(digest), []byte(bad), 0o600))
		if s.mayRun("a.example/x:v1", digest, []registry.Material{used}) {
			t.Errorf("a file with %q opens the image", bad)
		}
	}
	for i := range 2 * maxAccessRepositories {
		for range 2 {
			check(t, s.grant(fmt.Sprintf("a.example/x%d:v1", i), digest, used, false))
		}
	}
	for i := range 2 * maxAccessCredentials {
		used[0], used[1] = byte(i), byte(i>>8)
		check(t, s.grant("a.example/x1:v1", digest, used, false))
	}
	a, _ := s.accessOf(digest)
	if len(a) != maxAccessRepositories || len(a["a.example/x1"].Credentials) > maxAccessCredentials || !s.mayRun("a.example/x1", digest, []registry.Material{used}) {
		t.Errorf("%d repositories, %d credentials", len(a), len(a["a.example/x1"].Credentials))
	}
	if _, err := s.Prune(t.Context(), func(string) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(filepath.Join(s.opt.Dir, accessDir)); err != nil || len(entries) != 0 {
		t.Errorf("left of images that are gone: %v, %v", entries, err)
	}
}

func TestRepositoryOf(t *testing.T) {
	for name, want := range map[string]string{
		"docker.io/library/web:v1": "docker.io/library/web", "host:5000/a/b": "host:5000/a/b", "host:5000/a/b:v1": "host:5000/a/b",
		"host:5000/a@sha256:" + strings.Repeat("0", 64): "host:5000/a", "host:5000/a:v1@sha256:" + strings.Repeat("0", 64): "host:5000/a",
	} {
		if got := repositoryOf(name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}
