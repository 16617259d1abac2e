package netproxy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
)

// Kernel is where a ruleset takes effect: apply.Applier in production, Fake in
// tests and in the simulator.
type Kernel interface {
	// Sync makes the kernel hold the ruleset. It is idempotent; after an error
	// the next call starts from the kernel's state unknown. The rules change
	// in one step, or not at all.
	Sync(ctx context.Context, r Ruleset) (Result, error)
	// Scrub compares the kernel with the ruleset of the last Sync, and repairs.
	Scrub(ctx context.Context) (ScrubReport, error)
}

// Result says what a Sync did.
type Result struct {
	// Replaced: the whole table was written, not a difference.
	Replaced bool
	// Elements counts the elements and chains written.
	Elements int
	// ForgottenFlows counts the UDP flows deleted from connection tracking.
	ForgottenFlows int
}

// ScrubReport says what a Scrub found. At most MaxFindings are listed.
type ScrubReport struct {
	// Elements counts what was compared.
	Elements int
	// Findings are the differences, one line each; empty if all was well.
	Findings []string
	// Omitted counts the findings beyond MaxFindings.
	Omitted int
	// Repaired is true when there were findings and they are gone.
	Repaired bool
	// ForgottenFlows counts the stale UDP flows deleted.
	ForgottenFlows int
}

// MaxFindings bounds the lines of a ScrubReport.
const MaxFindings = 50

// Find adds a finding.
func (s *ScrubReport) Find(format string, args ...any) {
	if len(s.Findings) == MaxFindings {
		s.Omitted++
		return
	}
	s.Findings = append(s.Findings, fmt.Sprintf(format, args...))
}

// Fake is a Kernel in memory with the real one's manners: a transaction is
// applied wholly or not at all, a key that exists cannot be added with another
// value, what is missing cannot be deleted, and a chain that an element names
// cannot go. The zero value is an empty kernel.
type Fake struct {
	mu     sync.Mutex
	tables tables  // guarded by mu
	want   Ruleset // guarded by mu; what the last Sync asked for
	synced bool    // guarded by mu; tables is known to come from want
	fail   error   // guarded by mu; what the next transaction returns
}

type slotKey struct {
	class int
	key   Key
	slot  int
}

// tables is the content of the kernel's sets, element by element.
type tables struct {
	classes  map[int]bool
	services map[Key]int
	slots    map[slotKey]Target
	hairpin  map[netip.Addr]bool
}

// Errors of the fake kernel, as the real one's errno.
var (
	ErrExists   = errors.New("element exists")
	ErrNotFound = errors.New("no such element")
	ErrBusy     = errors.New("chain is in use")
)

// Sync implements Kernel.
func (f *Fake) Sync(_ context.Context, r Ruleset) (Result, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := Full(r)
	if f.synced {
		c = Diff(f.want, r)
	}
	f.synced = false
	if err := f.applyLocked(c); err != nil {
		return Result{}, err
	}
	f.want, f.synced = r, true
	return Result{Replaced: c.Replace, Elements: c.Elements()}, nil
}

// Apply carries out one change; it is the transaction under Sync.
func (f *Fake) Apply(c Change) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.applyLocked(c)
}

// FailNext makes the next transaction fail with err and change nothing.
func (f *Fake) FailNext(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = err
}

// Scrub implements Kernel.
func (f *Fake) Scrub(context.Context) (ScrubReport, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.synced {
		return ScrubReport{}, nil
	}
	var wanted tables
	if err := wanted.apply(Full(f.want)); err != nil {
		return ScrubReport{}, err
	}
	report := ScrubReport{Elements: len(wanted.services) + len(wanted.slots) + len(wanted.hairpin)}
	if !f.tables.equal(&wanted) {
		report.Find("the tables differ from the plan")
		f.tables, report.Repaired = wanted, true
	}
	return report, nil
}

// Lookup says where a packet to a key may go: the targets by slot, in the way
// the kernel would find them, through the class's chain and map.
func (f *Fake) Lookup(k Key) (targets []Target, known bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	class, known := f.tables.services[k]
	for slot := range class {
		if t, found := f.tables.slots[slotKey{class, k, slot}]; found {
			targets = append(targets, t)
		}
	}
	return targets, known
}

// Equal compares the content of two fake kernels.
func (f *Fake) Equal(o *Fake) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	o.mu.Lock()
	defer o.mu.Unlock()
	return f.tables.equal(&o.tables)
}

func (f *Fake) applyLocked(c Change) error {
	if err := f.fail; err != nil {
		f.fail = nil
		return err
	}
	next := f.tables.clone()
	if err := next.apply(c); err != nil {
		return err
	}
	f.tables = next
	return nil
}

func (t *tables) clone() tables {
	return tables{maps.Clone(t.classes), maps.Clone(t.services), maps.Clone(t.slots), maps.Clone(t.hairpin)}
}

func (t *tables) equal(o *tables) bool {
	return maps.Equal(t.classes, o.classes) && maps.Equal(t.services, o.services) &&
		maps.Equal(t.slots, o.slots) && maps.Equal(t.hairpin, o.hairpin)
}

func (t *tables) apply(c Change) error {
	if c.Replace || t.classes == nil {
		*t = tables{map[int]bool{}, map[Key]int{}, map[slotKey]Target{}, map[netip.Addr]bool{}}
	}
	for _, n := range c.AddClasses {
		if err := insert(t.classes, n, true); err != nil {
			return fmt.Errorf("add class n%d: %w", n, err)
		}
	}
	if err := t.first(c); err != nil {
		return err
	}
	return t.second(c)
}

func (t *tables) first(c Change) error {
	for _, e := range c.DeleteServices {
		if err := remove(t.services, e.Key, e.Class); err != nil {
			return fmt.Errorf("delete service %s: %w", e.Key, err)
		}
	}
	if err := t.deleteSlots(c.DeleteSlots); err != nil {
		return err
	}
	for _, e := range c.AddSlots {
		if !t.classes[e.Class] {
			return fmt.Errorf("add slot %s . %d: map slots%d: %w", e.Key, e.Slot, e.Class, ErrNotFound)
		}
		if err := insert(t.slots, slotKey{e.Class, e.Key, e.Slot}, e.Target); err != nil {
			return fmt.Errorf("add slot %s . %d: %w", e.Key, e.Slot, err)
		}
	}
	for _, e := range c.AddServices {
		if e.Class > 0 && !t.classes[e.Class] {
			return fmt.Errorf("add service %s: chain n%d: %w", e.Key, e.Class, ErrNotFound)
		}
		if err := insert(t.services, e.Key, e.Class); err != nil {
			return fmt.Errorf("add service %s: %w", e.Key, err)
		}
	}
	for _, a := range c.AddHairpin {
		if err := insert(t.hairpin, a, true); err != nil {
			return fmt.Errorf("add hairpin %s: %w", a, err)
		}
	}
	return nil
}

func (t *tables) deleteSlots(slots []SlotElement) error {
	for _, e := range slots {
		if err := remove(t.slots, slotKey{e.Class, e.Key, e.Slot}, e.Target); err != nil {
			return fmt.Errorf("delete slot %s . %d: %w", e.Key, e.Slot, err)
		}
	}
	return nil
}

func (t *tables) second(c Change) error {
	if err := t.deleteSlots(c.DropSlots); err != nil {
		return err
	}
	for _, a := range c.DropHairpin {
		if err := remove(t.hairpin, a, true); err != nil {
			return fmt.Errorf("delete hairpin %s: %w", a, err)
		}
	}
	return t.deleteClasses(c.DropClasses)
}

func (t *tables) deleteClasses(classes []int) error {
	for _, n := range classes {
		if !t.classes[n] {
			return fmt.Errorf("delete class n%d: %w", n, ErrNotFound)
		}
		if slices.Contains(slices.Collect(maps.Values(t.services)), n) {
			return fmt.Errorf("delete class n%d: %w", n, ErrBusy)
		}
		for k := range t.slots {
			if k.class == n {
				return fmt.Errorf("delete class n%d: slots are left: %w", n, ErrBusy)
			}
		}
		delete(t.classes, n)
	}
	return nil
}

func insert[K, V comparable](m map[K]V, k K, v V) error {
	if _, found := m[k]; found {
		return ErrExists
	}
	m[k] = v
	return nil
}

func remove[K, V comparable](m map[K]V, k K, v V) error {
	if old, found := m[k]; !found || old != v {
		return ErrNotFound
	}
	delete(m, k)
	return nil
}
