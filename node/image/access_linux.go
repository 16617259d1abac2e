package image

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/balsa-run/balsa/internal/atomicfile"
	"github.com/balsa-run/balsa/node/image/registry"
)

// Who may run an image that the node has. A registry gave it to somebody; another
// pod must not get it for being on the same node. As Kubernetes' kubelet does since
// 1.35 (KEP-2535, policy NeverVerifyPreloadedImages) the store remembers for each
// image, by repository, whose credentials brought it:
//
//	access/HEX   {"docker.io/library/web": {"everyone": false, "credentials": ["HASH", ...]}}
//
// A pod that shows none of them asks the registry, which refuses it or not, and is
// remembered in turn. An image without such a file is everybody's: it was imported,
// it was there before, or it is of a version that kept none. The file is safe on
// disk before the image can be used, and one that cannot be read opens nothing.
type access map[string]accessEntry

type accessEntry struct {
	// Everyone: without credentials, or with the node's own, or the cluster keeps it.
	Everyone bool `json:"everyone,omitempty"`
	// Credentials are hashes of those that a registry took, the newest last.
	Credentials []string `json:"credentials,omitempty"`
}

const (
	accessDir = "access"
	saltFile  = "salt"
	saltBytes = 32
	// maxAccessRepositories and maxAccessCredentials bound a file; who falls off asks
	// the registry again.
	maxAccessRepositories = 64
	maxAccessCredentials  = 64
	maxAccessBytes        = 1 << 20
)

// repositoryOf is a normal name without its tag or digest.
func repositoryOf(name string) string {
	name, _, _ = strings.Cut(name, "@")
	if colon := strings.LastIndexByte(name, ':'); colon > strings.LastIndexByte(name, '/') {
		name = name[:colon]
	}
	return name
}

// openAccess reads the salt, or makes it: without it the hashes of weak passwords
// could be looked up.
func (s *Store) openAccess() error {
	path := filepath.Join(s.opt.Dir, saltFile)
	salt, err := os.ReadFile(path)
	if err == nil && len(salt) == saltBytes {
		s.salt = salt
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	s.salt = make([]byte, saltBytes)
	if _, err := rand.Read(s.salt); err != nil {
		return err
	}
	return atomicfile.Write(path, s.salt, 0o600)
}

func (s *Store) hash(m registry.Material) string {
	h := hmac.New(sha256.New, s.salt)
	_, _ = h.Write(m[:])
	return hex.EncodeToString(h.Sum(nil))
}

func (s *Store) accessPath(digest string) string {
	return filepath.Join(s.opt.Dir, accessDir, hexOf(digest))
}

// accessOf reads who may run an image; open: everybody, nothing is kept.
func (s *Store) accessOf(digest string) (a access, open bool) {
	text, err := os.ReadFile(s.accessPath(digest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, true
	}
	a = access{}
	if err == nil && len(text) <= maxAccessBytes {
		err = json.Unmarshal(text, &a)
	}
	if err != nil {
		s.opt.Log.Warn("who may run an image cannot be read; its registry is asked", "digest", digest, "error", err)
		return access{}, false
	}
	return a, false
}

// mayRun tells whether a pod that has these credentials may run an image under a
// name without asking.
func (s *Store) mayRun(name, digest string, has []registry.Material) bool {
	a, open := s.accessOf(digest)
	entry, known := a[repositoryOf(name)]
	switch {
	case open || entry.Everyone:
		return true
	case !known:
		return false
	}
	return slices.ContainsFunc(has, func(m registry.Material) bool { return slices.Contains(entry.Credentials, s.hash(m)) })
}

// grant remembers that a registry gave an image for a credential, or to everyone.
// The caller holds no lock: grants of one image are made one after the other.
func (s *Store) grant(name, digest string, used registry.Material, everyone bool) error {
	s.accessMu.Lock()
	defer s.accessMu.Unlock()
	a, _ := s.accessOf(digest)
	repository := repositoryOf(name)
	entry, known := a[repository]
	switch hash := s.hash(used); {
	case entry.Everyone || !everyone && slices.Contains(entry.Credentials, hash):
		return nil
	case everyone:
		entry = accessEntry{Everyone: true}
	default:
		entry.Credentials = append(entry.Credentials, hash)
		entry.Credentials = entry.Credentials[max(0, len(entry.Credentials)-maxAccessCredentials):]
	}
	if a == nil {
		a = access{}
	}
	if !known && len(a) >= maxAccessRepositories {
		for other := range a { // any: who comes by it asks again
			delete(a, other)
			break
		}
	}
	a[repository] = entry
	text, err := json.Marshal(a)
	if err == nil {
		err = atomicfile.Write(s.accessPath(digest), text, 0o600)
	}
	if err != nil {
		return fmt.Errorf("remember who may run it: %w", noSpace(err))
	}
	return nil
}

// openToAll: the cluster keeps it under this name. An image that is everybody's
// already stays so without a file.
func (s *Store) openToAll(name, digest string) error {
	if _, open := s.accessOf(digest); open {
		return nil
	}
	return s.grant(name, digest, registry.Material{}, true)
}

// sweepAccess drops the files of images that are gone.
func (s *Store) sweepAccess(known func(hex string) bool) error {
	s.accessMu.Lock()
	defer s.accessMu.Unlock()
	entries, err := os.ReadDir(filepath.Join(s.opt.Dir, accessDir))
	if err != nil {
		return err
	}
	var failed []error
	for _, e := range entries {
		if !known(e.Name()) {
			failed = append(failed, ignoreGone(os.Remove(filepath.Join(s.opt.Dir, accessDir, e.Name()))))
		}
	}
	return errors.Join(failed...)
}
