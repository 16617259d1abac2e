// Package verdict is what a run of the simulation says of itself in the end: the
// guest prints it as one line of its output, and the host reads it there. It
// refuses to judge; it carries.
package verdict

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// The guest's exit codes.
const (
	Good = 0
	// Broken: a promise was broken.
	Broken = 1
	// TooLittle: nothing is wrong, but the run did too little to prove anything.
	TooLittle = 3
	// NoCluster: the cluster could not be set up, or an argument makes no sense.
	NoCluster = 4
)

// mark begins the line that has the summary.
const mark = "summary "

// Summary is a run in figures.
type Summary struct {
	Seed    uint64        `json:"seed"`
	Servers int           `json:"servers"`
	Length  time.Duration `json:"lengthNS"`
	// Schedule is what was done to the cluster, for a run with the same again.
	Schedule json.RawMessage `json:"schedule,omitempty"`
	// Workloads are the operations by workload.
	Workloads map[string]Count `json:"workloads"`
	// Faults are those that were done, by kind.
	Faults    map[string]int `json:"faults"`
	Failovers int            `json:"failovers"`
	// Reached are the states that a campaign should come to, and how often this run
	// did; also those with 0.
	Reached    map[string]int `json:"reached"`
	Violations []Violation    `json:"violations,omitempty"`
	// Left are rules that could not be judged, and why.
	Left []string `json:"left,omitempty"`
	// Missing is what the run did too little of.
	Missing []string `json:"missing,omitempty"`
}

// Count is a workload's operations by how they ended.
type Count struct {
	OK      int64 `json:"ok"`
	Refused int64 `json:"refused"`
	Unknown int64 `json:"unknown"`
}

// All is the number of operations.
func (c Count) All() int64 { return c.OK + c.Refused + c.Unknown }

// Plus is the sum of two.
func (c Count) Plus(o Count) Count {
	return Count{OK: c.OK + o.OK, Refused: c.Refused + o.Refused, Unknown: c.Unknown + o.Unknown}
}

// Violation is a promise that was broken.
type Violation struct {
	// Checker is who says so: one of chaos/check, or "world".
	Checker string `json:"checker"`
	// Rule is one word for programs.
	Rule string `json:"rule"`
	// Text is the reason and the records that prove it.
	Text string `json:"text"`
}

// Line is the summary as the guest prints it.
func (s Summary) Line() string {
	text, err := json.Marshal(s)
	if err != nil { // numbers and words; a schedule was marshalled by its owner
		panic(fmt.Sprintf("verdict: summary of seed %d: %v", s.Seed, err))
	}
	return mark + string(text)
}

// Read finds the summary in a guest's output; false when it did not come so far.
func Read(lines []string) (s Summary, found bool) {
	for _, line := range slices.Backward(lines) {
		if text, ok := strings.CutPrefix(line, mark); ok {
			return s, json.Unmarshal([]byte(text), &s) == nil
		}
	}
	return s, false
}

// Operations are those of all workloads.
func (s Summary) Operations() (all Count) {
	for _, c := range s.Workloads {
		all = all.Plus(c)
	}
	return all
}

// Add sums up the figures of several runs.
func (s *Summary) Add(o Summary) {
	if s.Workloads == nil {
		s.Workloads, s.Faults, s.Reached = map[string]Count{}, map[string]int{}, map[string]int{}
	}
	for name, c := range o.Workloads {
		s.Workloads[name] = s.Workloads[name].Plus(c)
	}
	for name, n := range o.Faults {
		s.Faults[name] += n
	}
	for name, n := range o.Reached {
		s.Reached[name] += n
	}
	s.Failovers += o.Failovers
	s.Violations = append(s.Violations, o.Violations...)
}

// Names are the keys of a map, sorted.
func Names[T any](m map[string]T) []string { return slices.Sorted(maps.Keys(m)) }
