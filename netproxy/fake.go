package netproxy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
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
	// PolicyCounters tells what the policies of this node's pods have counted,
	// sorted by pod and direction.
	PolicyCounters(ctx context.Context) ([]PolicyCount, error)
	// Forget deletes the TCP connections through services to addresses that are no
	// endpoints any more, but for those that are open, and counts them: else the next
	// connection from the same port would go where nobody is.
	Forget(ctx context.Context, gone []netip.Addr) (int, error)
	// Watch calls changed, never more than once at a time, each time somebody
	// else has touched the table, until ctx is done; it returns nil then. The
	// answer to a call is a Scrub.
	Watch(ctx context.Context, changed func()) error
}

// Result says what a Sync did.
type Result struct {
	// Replaced: the whole table was written, not a difference.
	Replaced bool
	// Elements counts the elements and chains written.
	Elements int
	// ForgottenFlows counts the flows deleted from connection tracking.
	ForgottenFlows int
	// Effective is how long it took until new connections followed the new
	// rules; the rest of Sync waits for packets under way and cleans up.
	Effective time.Duration
	// Problems name what the kernel refused and was left out.
	Problems []Problem
}

// PolicyCount is what one pod's policies have counted in one direction, since the
// table was made.
type PolicyCount struct {
	PodIP     netip.Addr
	Direction Direction
	// Allowed and Refused count first packets of connections. A connection that
	// is tried again counts again.
	Allowed, Refused uint64
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
// applied wholly or not at all, a key that exists cannot be added again, what is
// missing cannot be deleted, intervals of a set cannot overlap, and a chain that
// an element or another chain names cannot go. The zero value is an empty
// kernel.
type Fake struct {
	mu      sync.Mutex
	tables  fakeTables     // guarded by mu
	want    Ruleset        // guarded by mu; what the last Sync asked for
	synced  bool           // guarded by mu; tables is known to come from want
	fail    error          // guarded by mu; what the next transaction returns
	changed map[int]func() // guarded by mu; who watches
	watched int            // guarded by mu
	counts  map[PolicyCount][2]uint64
	gone    []netip.Addr // guarded by mu
}

// fakeTables is the content of the kernel's table.
type fakeTables struct {
	chains map[string]Chain
	sets   map[string]map[string]Element // by set and key
}

// Errors of the fake kernel, as the real one's errno.
var (
	ErrExists   = errors.New("element exists")
	ErrNotFound = errors.New("no such element")
	ErrBusy     = errors.New("chain is in use")
	ErrOverlap  = errors.New("interval overlaps another")
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

// Apply carries out one change behind Sync's back, as somebody else would who
// meddles with the table; those who watch are told.
func (f *Fake) Apply(c Change) error {
	f.mu.Lock()
	err := f.applyLocked(c)
	watchers := slices.Collect(maps.Values(f.changed))
	f.mu.Unlock()
	for _, changed := range watchers {
		changed()
	}
	return err
}

// FailNext makes the next transaction fail with err and change nothing.
func (f *Fake) FailNext(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = err
}

// Watch implements Kernel.
func (f *Fake) Watch(ctx context.Context, changed func()) error {
	f.mu.Lock()
	if f.changed == nil {
		f.changed = map[int]func(){}
	}
	f.watched++
	id := f.watched
	f.changed[id] = changed
	f.mu.Unlock()
	<-ctx.Done()
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.changed, id)
	return nil
}

// Scrub implements Kernel.
func (f *Fake) Scrub(context.Context) (ScrubReport, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.synced {
		return ScrubReport{}, nil
	}
	var wanted fakeTables
	if err := wanted.apply(Full(f.want)); err != nil {
		return ScrubReport{}, err
	}
	report := ScrubReport{Elements: f.want.Elements()}
	if !f.tables.equal(&wanted) {
		report.Find("the tables differ from the plan")
		f.tables, report.Repaired = wanted, true
	}
	return report, nil
}

// Forget implements Kernel: the fake keeps no connections, only who has gone.
func (f *Fake) Forget(_ context.Context, gone []netip.Addr) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gone = append(f.gone, gone...)
	return 0, nil
}

// Forgotten are the addresses that Forget was told of.
func (f *Fake) Forgotten() []netip.Addr {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.gone)
}

// PolicyCounters implements Kernel.
func (f *Fake) PolicyCounters(context.Context) ([]PolicyCount, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []PolicyCount
	for set, direction := range map[string]Direction{SetEgressPods: Egress, SetIngressPods: Ingress} {
		for key := range f.tables.sets[set] {
			c := PolicyCount{PodIP: netip.AddrFrom4([4]byte([]byte(key))), Direction: direction}
			c.Allowed, c.Refused = f.counts[c][0], f.counts[c][1]
			out = append(out, c)
		}
	}
	SortPolicyCounts(out)
	return out, nil
}

// SortPolicyCounts orders counts by pod and direction.
func SortPolicyCounts(counts []PolicyCount) {
	slices.SortFunc(counts, func(a, b PolicyCount) int {
		if c := a.PodIP.Compare(b.PodIP); c != 0 {
			return c
		}
		return int(a.Direction) - int(b.Direction)
	})
}

// Route walks the kernel's content with the first packet of a connection.
func (f *Fake) Route(p Packet) Path {
	f.mu.Lock()
	defer f.mu.Unlock()
	return walk(&f.tables, f.want.Params, p)
}

// Judge asks the kernel's policies about a connection, and counts as they do.
func (f *Fake) Judge(c Connection) (egress, ingress bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	egress, ingress = judge(&f.tables, c)
	f.countLocked(Egress, c.From, egress)
	if egress {
		f.countLocked(Ingress, c.To, ingress)
	}
	return egress, ingress
}

func (f *Fake) countLocked(d Direction, pod netip.Addr, allowed bool) {
	if f.counts == nil {
		f.counts = map[PolicyCount][2]uint64{}
	}
	key := PolicyCount{PodIP: pod, Direction: d}
	n := f.counts[key]
	if allowed {
		n[0]++
	} else {
		n[1]++
	}
	f.counts[key] = n
}

// Lookup says where a packet to a key from a pod of the node may go: the targets
// in the way the kernel would find them, through the class's chain and map.
func (f *Fake) Lookup(k Key) (targets []Target, known bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := walk(&f.tables, f.want.Params, Packet{From: f.want.Params.PodCIDR.Addr(), To: k.VIP, Protocol: k.Protocol, Port: k.Port})
	_, refused := f.tables.value("", SetNoEndpoints, keyBytes(k))
	return p.Targets, refused || p.Outcome == Translates || p.Outcome == Drops
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

func (t *fakeTables) clone() fakeTables {
	out := fakeTables{chains: maps.Clone(t.chains), sets: maps.Clone(t.sets)}
	for name, s := range t.sets {
		out.sets[name] = maps.Clone(s)
	}
	return out
}

func (t *fakeTables) equal(o *fakeTables) bool {
	return maps.Equal(t.chains, o.chains) && maps.EqualFunc(t.sets, o.sets, func(a, b map[string]Element) bool { return maps.Equal(a, b) })
}

func (t *fakeTables) apply(c Change) error {
	if c.Replace || t.chains == nil {
		*t = fakeTables{map[string]Chain{}, map[string]map[string]Element{}}
		for _, s := range BaseSets() {
			t.sets[s.Name] = map[string]Element{}
		}
	}
	for _, chain := range c.AddChains {
		if err := t.addChain(chain); err != nil {
			return fmt.Errorf("add chain %s: %w", chain.Name, err)
		}
	}
	for _, e := range c.Prepare {
		if err := t.add(e); err != nil {
			return err
		}
	}
	for _, chain := range c.RewriteChains {
		if _, found := t.chains[chain.Name]; !found {
			return fmt.Errorf("rewrite chain %s: %w", chain.Name, ErrNotFound)
		}
		if err := t.memberExist(chain); err != nil {
			return err
		}
		t.chains[chain.Name] = chain
	}
	return t.elements(c)
}

func (t *fakeTables) elements(c Change) error {
	for _, e := range c.Delete {
		if err := t.remove(e); err != nil {
			return err
		}
	}
	for _, e := range c.Add {
		if err := t.add(e); err != nil {
			return err
		}
	}
	for _, e := range c.Drop {
		if err := t.remove(e); err != nil {
			return err
		}
	}
	for _, chain := range c.DropChains {
		if err := t.dropChain(chain); err != nil {
			return fmt.Errorf("delete chain %s: %w", chain.Name, err)
		}
	}
	return nil
}

func (t *fakeTables) addChain(c Chain) error {
	if _, found := t.chains[c.Name]; found {
		return ErrExists
	}
	if err := t.memberExist(c); err != nil {
		return err
	}
	t.chains[c.Name] = c
	if s, has := c.Set(); has {
		t.sets[s.Name] = map[string]Element{}
	}
	return nil
}

func (t *fakeTables) memberExist(c Chain) error {
	for _, m := range c.MemberNames() {
		if _, found := t.chains[m]; !found {
			return fmt.Errorf("chain %s names %s: %w", c.Name, m, ErrNotFound)
		}
	}
	return nil
}

func (t *fakeTables) dropChain(c Chain) error {
	if _, found := t.chains[c.Name]; !found {
		return ErrNotFound
	}
	for _, set := range t.sets {
		for _, e := range set {
			if chainOf(e.Value) == c.Name {
				return ErrBusy
			}
		}
	}
	for _, other := range t.chains {
		if slices.Contains(other.MemberNames(), c.Name) {
			return ErrBusy
		}
	}
	delete(t.chains, c.Name)
	if s, has := c.Set(); has {
		if len(t.sets[s.Name]) > 0 {
			return fmt.Errorf("elements of set %s are left: %w", s.Name, ErrBusy)
		}
		delete(t.sets, s.Name)
	}
	return nil
}

// chainOf is the chain that a verdict leads to.
func chainOf(verdict string) string {
	if !IsVerdict(verdict) {
		return ""
	}
	for _, kind := range []string{verdictGoto, verdictJump} {
		if name, found := strings.CutPrefix(verdict, kind); found {
			return name
		}
	}
	return ""
}

func (t *fakeTables) add(e Element) error {
	set, found := t.sets[e.Set]
	if !found {
		return fmt.Errorf("add %s: set: %w", e, ErrNotFound)
	}
	if _, found := set[e.Key]; found {
		return fmt.Errorf("add %s: %w", e, ErrExists)
	}
	if name := chainOf(e.Value); name != "" {
		if _, found := t.chains[name]; !found {
			return fmt.Errorf("add %s: chain: %w", e, ErrNotFound)
		}
	}
	for _, o := range set {
		if e.End != "" && overlap(&e, &o) {
			return fmt.Errorf("add %s to %s: %w", e, o, ErrOverlap)
		}
	}
	set[e.Key] = e
	return nil
}

func overlap(a, b *Element) bool {
	for i := 0; i+4 <= len(a.Key); i += 4 {
		if a.Key[i:i+4] > b.End[i:i+4] || b.Key[i:i+4] > a.End[i:i+4] {
			return false
		}
	}
	return true
}

func (t *fakeTables) remove(e Element) error {
	if old, found := t.sets[e.Set][e.Key]; !found || old != e {
		return fmt.Errorf("delete %s: %w", e, ErrNotFound)
	}
	delete(t.sets[e.Set], e.Key)
	return nil
}

// value implements tables.
func (t *fakeTables) value(_, set, key string) (string, bool) {
	e, found := t.sets[set][key]
	return e.Value, found
}

// covers implements tables.
func (t *fakeTables) covers(_, set, key string) bool {
	for _, e := range t.sets[set] {
		if within(&e, key) {
			return true
		}
	}
	return false
}

// chain implements tables.
func (t *fakeTables) chain(name string) (Chain, bool) {
	c, found := t.chains[name]
	return c, found
}
