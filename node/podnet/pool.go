package podnet

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/balsa-run/balsa/internal/atomicfile"
)

// reservedAtStart keeps the network's address, and one for the node itself
// (tunnels want one), out of the pool; the last address is reserved as well.
const reservedAtStart = 2

// smallestPool is the most specific pod CIDR that leaves addresses for pods.
const smallestPool = 30

// cursorFile remembers the address given last, so that a freed address rests
// as long as possible before the next pod gets it. Losing it does no harm.
const cursorFile = "last"

// Pool hands out the addresses of a pod CIDR. In its folder lies one file an
// address in use, named after it, with the pod's uid as its line; what a killed
// agent has given is found there again. A Pool without folder keeps nothing.
type Pool struct {
	cidr netip.Prefix
	dir  string

	mu      sync.Mutex
	byUID   map[string]netip.Addr // guarded by mu; always the inverse of byAddr
	byAddr  map[netip.Addr]string // guarded by mu; "" for a file that names no uid
	last    netip.Addr            // guarded by mu; given last
	skipped []string              // guarded by mu; files of the folder that are not ours
}

// OpenPool reads the folder, which is made if it is missing; dir "" means a
// pool in memory.
func OpenPool(cidr netip.Prefix, dir string) (*Pool, error) {
	if !cidr.Addr().Is4() || cidr.Bits() > smallestPool {
		return nil, fmt.Errorf("pod CIDR %s: need an IPv4 network of /%d or larger", cidr, smallestPool)
	}
	p := &Pool{cidr: cidr.Masked(), dir: dir, byUID: map[string]netip.Addr{}, byAddr: map[netip.Addr]string{}}
	p.last = p.first().Prev()
	if dir == "" {
		return p, nil
	}
	if err := p.load(); err != nil {
		return nil, fmt.Errorf("address pool %s: %w", dir, err)
	}
	return p, nil
}

func (p *Pool) load() error {
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return err
	}
	if _, err := atomicfile.RemoveTemps(p.dir); err != nil {
		return err
	}
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := p.loadFile(e.Name()); err != nil {
			return err
		}
	}
	return nil
}

// loadFile takes one file in. A file without a usable uid still keeps its
// address from being given twice, until Cleanup frees it.
func (p *Pool) loadFile(name string) error {
	if name == cursorFile {
		return p.loadCursor()
	}
	addr, ok := p.addressOf(name)
	if !ok {
		p.skipped = append(p.skipped, name)
		return nil
	}
	data, err := os.ReadFile(filepath.Join(p.dir, name))
	if err != nil {
		return err
	}
	uid := strings.TrimSuffix(string(data), "\n")
	if _, twice := p.byUID[uid]; twice || CheckUID(uid) != nil {
		uid = ""
	}
	p.byAddr[addr] = uid
	if uid != "" {
		p.byUID[uid] = addr
	}
	return nil
}

// addressOf reads the name of a file that stands for an address.
func (p *Pool) addressOf(name string) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(name)
	return addr, err == nil && p.usable(addr)
}

func (p *Pool) loadCursor() error {
	data, err := os.ReadFile(filepath.Join(p.dir, cursorFile))
	if err != nil {
		return err
	}
	if a, err := netip.ParseAddr(strings.TrimSpace(string(data))); err == nil && p.usable(a) {
		p.last = a
	}
	return nil
}

// Skipped names files in the folder that were not understood, for a warning:
// another pod CIDR's, after the node got a new one, for instance.
func (p *Pool) Skipped() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.skipped)
}

// Acquire returns the pod's address, a new one if it has none. When it returns,
// the address is on disk.
func (p *Pool) Acquire(uid string) (netip.Addr, error) {
	if err := CheckUID(uid); err != nil {
		return netip.Addr{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if a, found := p.byUID[uid]; found {
		return a, nil
	}
	a, err := p.nextLocked()
	if err != nil {
		return netip.Addr{}, fmt.Errorf("address for pod %s: %w", uid, err)
	}
	if err := p.writeLocked(a, uid); err != nil {
		return netip.Addr{}, fmt.Errorf("address %s for pod %s: %w", a, uid, err)
	}
	p.byUID[uid], p.byAddr[a], p.last = a, uid, a
	return a, nil
}

func (p *Pool) writeLocked(a netip.Addr, uid string) error {
	if p.dir == "" {
		return nil
	}
	if err := atomicfile.Write(filepath.Join(p.dir, a.String()), []byte(uid+"\n"), 0o600); err != nil {
		return err
	}
	// Only a hint: not synced, and nothing depends on it.
	if err := os.WriteFile(filepath.Join(p.dir, cursorFile), []byte(a.String()+"\n"), 0o600); err != nil {
		return fmt.Errorf("remember last address: %w", err)
	}
	return nil
}

// nextLocked goes round from the address given last.
func (p *Pool) nextLocked() (netip.Addr, error) {
	for a := p.last.Next(); ; a = a.Next() {
		if !p.usable(a) {
			a = p.first()
		}
		if _, taken := p.byAddr[a]; !taken {
			return a, nil
		}
		if len(p.byAddr) >= p.Size() {
			return netip.Addr{}, fmt.Errorf("%w: all %d addresses of %s are in use", ErrExhausted, p.Size(), p.cidr)
		}
	}
}

// Size is the number of addresses for pods.
func (p *Pool) Size() int { return 1<<(32-p.cidr.Bits()) - reservedAtStart - 1 }

func (p *Pool) first() netip.Addr {
	a := p.cidr.Addr()
	for range reservedAtStart {
		a = a.Next()
	}
	return a
}

func (p *Pool) usable(a netip.Addr) bool {
	return p.cidr.Contains(a) && p.cidr.Contains(a.Next()) && a.Compare(p.first()) >= 0
}

// Release frees the pod's address; without one it does nothing.
func (p *Pool) Release(uid string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	a, found := p.byUID[uid]
	if !found {
		return nil
	}
	if err := p.freeLocked(a); err != nil {
		return fmt.Errorf("free address %s of pod %s: %w", a, uid, err)
	}
	return nil
}

func (p *Pool) freeLocked(a netip.Addr) error {
	if p.dir != "" {
		// Not synced: after a power cut the pod is gone as well, and Cleanup
		// frees the address again.
		if err := os.Remove(filepath.Join(p.dir, a.String())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	delete(p.byUID, p.byAddr[a])
	delete(p.byAddr, a)
	return nil
}

// ReleaseNameless frees addresses whose files name no pod.
func (p *Pool) ReleaseNameless() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for a, uid := range p.byAddr {
		if uid != "" {
			continue
		}
		if err := p.freeLocked(a); err != nil {
			return fmt.Errorf("free address %s of no pod: %w", a, err)
		}
	}
	return nil
}

// Lookup returns a pod's address.
func (p *Pool) Lookup(uid string) (netip.Addr, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	a, found := p.byUID[uid]
	return a, found
}

// Addresses returns all that are given, by uid.
func (p *Pool) Addresses() map[string]netip.Addr {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.byUID)
}

// UIDs lists the pods with an address, sorted.
func (p *Pool) UIDs() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Sorted(maps.Keys(p.byUID))
}
