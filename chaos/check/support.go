package check

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/balsa-run/balsa/chaos/history"
)

// What the error of a refused operation contains, when the refusal is a promise of
// its own that a checker judges.
const (
	// ErrorCompacted: the revision that was asked for is forgotten.
	ErrorCompacted = "compacted"
	// ErrorNotFound: there is no such lease.
	ErrorNotFound = "not found"
)

// maxOfRule bounds the violations of one rule in a verdict, so that one mistake with
// many consequences does not hide the others.
const maxOfRule = 5

// findings gathers what a checker has to say, within MaxViolations.
type findings struct {
	out    Verdict
	ofRule map[string]int
	// odd counts the records that no recorder makes: a completion of what was never
	// invoked, two operations of one process at once.
	odd int64
}

func (f *findings) addf(rule string, proof []history.Record, format string, args ...any) {
	if len(f.out.Violations) == MaxViolations || f.ofRule[rule] == maxOfRule {
		f.out.Dropped++
		return
	}
	if f.ofRule == nil {
		f.ofRule = map[string]int{}
	}
	f.ofRule[rule]++
	f.out.Violations = append(f.out.Violations, Violation{Rule: rule, Reason: fmt.Sprintf(format, args...), Proof: proof})
}

func (f *findings) leftf(format string, args ...any) {
	f.out.Left = append(f.out.Left, fmt.Sprintf(format, args...))
}

func (f *findings) notef(format string, args ...any) {
	f.out.Notes = append(f.out.Notes, fmt.Sprintf(format, args...))
}

func (f *findings) verdict(checker string, odd int64) Verdict {
	f.out.Checker = checker
	if f.odd += odd; f.odd > 0 {
		f.leftf("%d records that do not fit into the history: completions of what was not invoked, or a second operation of a process that had not ended its first", f.odd)
	}
	return f.out
}

// started is an invocation and its position in the history. Positions and not
// times decide what came before what: two records may have one time.
type started struct {
	history.Record
	seq int64
}

// pairing finds the invocation that a record completes.
type pairing struct {
	seq       int64
	open      map[int32]started
	abandoned []started
	odd       int64
}

// next takes a record. The invocation is that of the record's process; ended says
// that the record completes it. A delivery does not complete its watch.
func (p *pairing) next(r history.Record) (invoke started, ended bool) {
	p.seq++
	before, running := p.open[r.Process]
	switch {
	case r.Type == history.Invoke:
		if running {
			p.odd++
			p.abandoned = append(p.abandoned, before)
		}
		if p.open == nil {
			p.open = map[int32]started{}
		}
		p.open[r.Process] = started{r, p.seq}
		return p.open[r.Process], false
	case r.F == history.Deliver && running && before.F == history.Watch:
		return before, false
	case !running || before.F != r.F:
		p.odd++
		return started{}, false
	}
	delete(p.open, r.Process)
	return before, true
}

// unended are the invocations that nobody heard of again, in order.
func (p *pairing) unended() []started {
	out := slices.Clone(p.abandoned)
	for _, s := range p.open {
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b started) int { return cmp.Compare(a.seq, b.seq) })
	return out
}

// wide is the end of a range that has none, as in etcd's API.
const wide = "\x00"

// inRange says whether a range has a key. Without an end it is of one key.
func inRange(key, from, end string) bool {
	switch end {
	case "":
		return key == from
	case wide:
		return key >= from
	}
	return from <= key && key < end
}

// scope passes on the records of one workload: operations on keys with a prefix of
// its, and transactions whose first key has one.
type scope struct {
	Checker
	prefixes []string
	// passed are the processes whose running operation was passed on, or not.
	passed map[int32]bool
}

// Scope is a checker that sees the operations on keys with one of the prefixes
// only; with PrefixLease, also those on leases.
func Scope(c Checker, prefixes ...string) Checker {
	return &scope{Checker: c, prefixes: prefixes, passed: map[int32]bool{}}
}

// Add takes the next record.
func (s *scope) Add(r history.Record) {
	if r.F == history.Fault || r.F == history.Hash {
		return // of no key, and no process
	}
	if r.Type == history.Invoke {
		s.passed[r.Process] = s.mine(r)
	}
	if pass, running := s.passed[r.Process]; pass || !running && s.mine(r) {
		s.Checker.Add(r)
	}
	if r.Type != history.Invoke && r.F != history.Deliver {
		delete(s.passed, r.Process)
	}
}

func (s *scope) mine(r history.Record) bool {
	switch r.F {
	case history.Grant, history.KeepAlive, history.Revoke:
		return slices.Contains(s.prefixes, PrefixLease)
	case history.Txn:
		return len(r.Mops) > 0 && s.has(r.Mops[0].Key)
	}
	return s.has(r.Key)
}

func (s *scope) has(key string) bool {
	return slices.ContainsFunc(s.prefixes, func(prefix string) bool { return strings.HasPrefix(key, prefix) })
}

func compareKeys(a, b history.KV) int { return strings.Compare(a.Key, b.Key) }

func compareRevisions(kv history.KV, revision int64) int {
	return cmp.Compare(kv.ModRevision, revision)
}
