// Package check judges histories (chaos/history): whether what clients were told
// can be true of a cluster that keeps its promises. A checker reads a history once
// and in order, holds no more of it than it needs, and proves a violation with the
// two or three records that cannot all be true.
//
// The package refuses to know the cluster: it has the history, and for some rules
// what the members say in the end that they hold. What is unknown stays unknown:
// no checker calls an operation wrong that may have taken effect, or not.
package check

import (
	"fmt"
	"strings"

	"github.com/balsa-run/balsa/chaos/history"
)

// MaxViolations bounds what a verdict carries: the first ones tell most.
const MaxViolations = 20

// Checker judges one promise.
type Checker interface {
	// Add takes the next record.
	Add(r history.Record)
	// Verdict is called once, after the last record. Members are what was read from
	// each member at rest, and may be empty: then rules that need them are not
	// judged, and Verdict.Left says so.
	Verdict(members []Member) Verdict
}

// Member is what one member holds at rest.
type Member struct {
	Name     string
	Revision int64
	Hash     uint64
	// Changes are all that the history of the member holds, in order. First is the
	// oldest revision that they are complete from.
	First   int64
	Changes []history.KV
}

// Verdict is what a checker found.
type Verdict struct {
	Checker string
	// Checked counts the operations that were judged, Unknown those among them of
	// which it is not known whether they took effect.
	Checked, Unknown int64
	Violations       []Violation
	// Dropped counts the violations beyond MaxViolations.
	Dropped int64
	// Left are rules that could not be judged, each with the reason.
	Left []string
	// Notes are no violations, but worth telling: how late a lease expired, what was
	// recovered.
	Notes []string
}

// Violation is a contradiction.
type Violation struct {
	// Rule is one word for programs, such as "stale".
	Rule string
	// Reason is what is wrong, in one sentence.
	Reason string
	// Proof are the records that cannot all be true.
	Proof []history.Record
}

// String is the rule, the reason, and a line for each record of the proof.
func (v Violation) String() string {
	var out strings.Builder
	fmt.Fprintf(&out, "%s: %s", v.Rule, v.Reason)
	for _, r := range v.Proof {
		fmt.Fprintf(&out, "\n  %v", r)
	}
	return out.String()
}
