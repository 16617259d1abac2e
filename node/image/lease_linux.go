package image

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// lease holds a blob, a layer or an image against garbage collection: for as
// long as somebody has it, and then until a moment.
type lease struct {
	holders int
	until   time.Time
}

// held is what one pull or import has leased.
type held struct {
	store *Store
	keys  []string
}

func (s *Store) hold() *held { return &held{store: s} }

// add leases KIND/HEX. What is leased before it is looked for is either there
// and stays, or is not there.
func (h *held) add(kind, digest string) {
	key := kind + "/" + hexOf(digest)
	h.store.mu.Lock()
	defer h.store.mu.Unlock()
	l := h.store.leases[key]
	if l == nil {
		l = &lease{}
		h.store.leases[key] = l
	}
	l.holders++
	h.keys = append(h.keys, key)
}

// image leases all parts of an image.
func (h *held) image(r *record) {
	for _, key := range r.parts() {
		h.add(key.kind, key.hex)
	}
}

// end gives the leases back; they linger.
func (h *held) end() {
	h.store.mu.Lock()
	defer h.store.mu.Unlock()
	until := time.Now().Add(h.store.opt.Limits.Linger)
	for _, key := range h.keys {
		if l := h.store.leases[key]; l != nil {
			l.holders--
			l.until = until
		}
	}
	h.keys = nil
}

// leasedLocked: the caller has mu.
func (s *Store) leasedLocked(key string) bool {
	l := s.leases[key]
	if l == nil {
		return false
	}
	if l.holders > 0 || time.Now().Before(l.until) {
		return true
	}
	delete(s.leases, key)
	return false
}

// discard removes KIND/HEX unless it is leased. It is moved aside under the
// lock, so that whoever leases it next finds it gone, and deleted without.
func (s *Store) discard(kind, hex string) (bool, error) {
	aside, err := os.MkdirTemp(s.temp(), "gone-")
	if err != nil {
		return false, err
	}
	gone, err := s.moveAside(kind, hex, filepath.Join(aside, hex))
	return gone, errors.Join(err, os.RemoveAll(aside))
}

func (s *Store) moveAside(kind, hex, to string) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leasedLocked(kind + "/" + hex) {
		return false, nil
	}
	// What is said of it goes first: should it come back, it is not yet safe.
	if err := ignoreGone(os.Remove(s.metaPath(kind, hex))); err != nil {
		return false, err
	}
	err := os.Rename(filepath.Join(s.opt.Dir, kind, hex), to)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
