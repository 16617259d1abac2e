package main

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/balsa-run/balsa/chaos/check"
	"github.com/balsa-run/balsa/chaos/history"
	"github.com/balsa-run/balsa/chaos/world/sim/guest/verdict"
	"github.com/balsa-run/balsa/chaos/world/sim/inside"
)

// What a run has to do to count, beside what each workload asks for.
const (
	minFailovers = 1
	// leastFaults in a minute.
	leastFaults = 5
)

// judges are the checkers, which see each record as it is made.
type judges struct {
	objects, etcd []check.Checker
	export        *history.Writer
}

func newJudges() *judges {
	return &judges{
		objects: []check.Checker{check.NewLinearizable(check.LinearizableOptions{Foreign: true})},
		etcd:    check.All(check.Simulated()),
		export:  history.NewWriter(host{}),
	}
}

func (j *judges) object(r history.Record) error {
	for _, c := range j.objects {
		c.Add(r)
	}
	return nil
}

func (j *judges) key(r history.Record) error {
	for _, c := range j.etcd {
		c.Add(r)
	}
	return j.export.Write(r)
}

// judge prints the verdict.
func (s *scenario) judge(members *atRest) (summary verdict.Summary, code int) {
	summary = s.summary()
	if err := s.judges.export.Close(); err != nil {
		s.world.Wrongf("the history could not be handed out: %v", err)
	}
	if members == nil {
		members = &atRest{}
	}
	for _, err := range []error{s.objects.Err(), s.etcd.Err()} {
		if err != nil {
			s.world.Wrongf("the history is not whole: %v", err)
		}
	}
	s.ask(&summary, "objects", s.judges.objects, members.objects)
	s.ask(&summary, "etcd", s.judges.etcd, members.etcd)
	for _, wrong := range s.world.Wrongs() {
		summary.Violations = append(summary.Violations, verdict.Violation{Checker: "world", Rule: ruleOf(wrong), Text: wrong})
	}
	switch {
	case len(summary.Violations) > 0:
		return summary, verdict.Broken
	case len(summary.Missing) > 0:
		s.trace.Sayf("", "too little was done: %v", summary.Missing)
		return summary, verdict.TooLittle
	}
	s.trace.Sayf("", "nothing is wrong")
	return summary, verdict.Good
}

// ask hears the checkers of one space.
func (s *scenario) ask(summary *verdict.Summary, space string, checkers []check.Checker, members []check.Member) {
	for _, m := range members {
		s.trace.Sayf(m.Name, "%s ends at revision %d, hash %016x, %d changes from %d", space, m.Revision, m.Hash, len(m.Changes), m.First)
	}
	for _, c := range checkers {
		v := c.Verdict(members)
		name := space + "/" + v.Checker
		s.trace.Sayf("", "%s: %d judged, %d unknown, %d violations", name, v.Checked, v.Unknown, int64(len(v.Violations))+v.Dropped)
		for _, left := range v.Left {
			s.trace.Sayf("", "%s: left: %s", name, left)
			summary.Left = append(summary.Left, name+": "+left)
		}
		for _, note := range v.Notes {
			s.trace.Sayf("", "%s: %s", name, note)
		}
		for _, violation := range v.Violations {
			s.trace.Sayf("", "WRONG: %s: %v", name, violation)
			summary.Violations = append(summary.Violations, verdict.Violation{Checker: name, Rule: violation.Rule, Text: violation.String()})
		}
	}
}

// summary is the run in figures, and what it did too little of.
func (s *scenario) summary() verdict.Summary {
	out := verdict.Summary{
		Seed: s.seed, Servers: s.servers, Length: s.length, Workloads: s.counted(), Faults: map[string]int{}, Reached: s.reached(),
	}
	faults := 0
	s.mu.Lock()
	for kind, n := range s.faults {
		out.Faults[kind] = n
		faults += n
	}
	s.mu.Unlock()
	for _, e := range s.world.Elections() {
		if e.At > s.began {
			out.Failovers++
		}
	}
	var err error
	if out.Schedule, err = json.Marshal(s.schedule); err != nil {
		s.world.Wrongf("the schedule cannot be printed: %v", err)
	}
	s.trace.Sayf("", "%d operations, %d faults, %d failovers", out.Operations().All(), faults, out.Failovers)
	out.Missing = s.missing(out, faults)
	return out
}

// missing is what a run did too little of: a run that did nothing finds nothing.
func (s *scenario) missing(out verdict.Summary, faults int) (missing []string) {
	for _, w := range s.chosen {
		c := out.Workloads[w.name]
		if need := s.share(w.ops); c.All() < need {
			missing = append(missing, fmt.Sprintf("%s: %d operations of %d", w.name, c.All(), need))
		}
		if need := s.share(w.oks); c.OK < need {
			missing = append(missing, fmt.Sprintf("%s: %d successes of %d", w.name, c.OK, need))
		}
	}
	if s.calm || s.options.schedule != "" {
		return missing // what is asked for may be as little as it likes
	}
	if need := s.share(leastFaults); int64(faults) < need {
		missing = append(missing, fmt.Sprintf("%d faults of %d", faults, need))
	}
	if out.Failovers < minFailovers {
		missing = append(missing, "no failover")
	}
	return missing
}

// share is what is asked of a minute, for the length of this run.
func (s *scenario) share(ofAMinute int64) int64 {
	return int64(math.Ceil(float64(ofAMinute) * float64(s.length) / float64(time.Minute)))
}

// reached counts the states that are worth a visit.
func (s *scenario) reached() map[string]int {
	out := map[string]int{}
	for _, state := range inside.States() {
		out[state] = s.world.Reached(state)
	}
	return out
}

// ruleOf is one word for what the world itself noticed.
func ruleOf(wrong string) string {
	for _, r := range []struct{ part, rule string }{
		{"leads in term", "two-leaders"}, {"gave up", "gave-up"}, {"come to rest", "no-rest"}, {"after everything was healed", "not-recovered"},
		{"holds a vote", "vote"}, {"history", "history"},
	} {
		if strings.Contains(wrong, r.part) {
			return r.rule
		}
	}
	return "world"
}
