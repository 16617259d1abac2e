package main

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/balsa-run/balsa/chaos/history"
	"github.com/balsa-run/balsa/chaos/world/sim/guest/verdict"
)

const (
	maxClients = 64
	minPace    = 0.1
	maxPace    = 100.0
	// What a client waits between two operations, at the pace 1. Operations are most
	// of what a run costs: at this pace they are twice what the cluster costs at rest.
	thinkMin = 20 * time.Millisecond
	thinkMax = 2 * time.Second
	// The beat at which clients meet, at the pace 1, how close to it, and how many of
	// them do not.
	beatEvery  = 300 * time.Millisecond
	meetWithin = 2 * time.Millisecond
	aloneEvery = 8
)

// workload is a way of using a cluster.
type workload struct {
	name string
	// work is of one session of the etcd space; nil for the API's clients.
	work func(ctx context.Context, c *session)
	// most sessions, however many clients there are; 0: as many as clients.
	most int
	// ops and oks are what a minute has to have at least, to count.
	ops, oks int64
}

const (
	workAPI       = "api"
	workRegisters = "register"
	workWatch     = "watch"
)

// workloads are all, in the order in which they begin.
func workloads() []workload {
	return []workload{
		{name: workAPI, most: 2, ops: 60, oks: 25},
		{name: workRegisters, work: registers, ops: 70, oks: 25},
		{name: "txn", work: appends, most: 2, ops: 40, oks: 15},
		{name: "set", work: grow, most: 1, ops: 20, oks: 8},
		{name: "bank", work: bank, most: 2, ops: 30, oks: 10},
		{name: "range", work: ranges, most: 1, ops: 20, oks: 8},
		{name: workWatch, work: watch, ops: 8, oks: 2},
		{name: "lock", work: locks, most: 2, ops: 30, oks: 10},
		{name: "plan", work: plans, ops: 5, oks: 2},
		{name: "compact", work: compact, most: 1, ops: 4, oks: 2},
		{name: "hash", work: hashes, most: 1, ops: 60, oks: 60},
	}
}

// thinking is how long a client waits. Most clients meet: they wait for the next
// beat, which is the same for all, and go on within the time that a message takes.
// What happens at once is what can go wrong between two.
func (s *scenario) thinking(chance *rand.Rand) time.Duration {
	long := time.Duration(float64(between(chance, thinkMin, thinkMax)) / s.pace)
	alone, late := chance.IntN(aloneEvery) == 0, between(chance, 0, meetWithin)
	if alone {
		return long
	}
	beat := time.Duration(float64(beatEvery) / s.pace)
	past := (s.trace.Now() + long) % beat
	return long + (beat-past)%beat + late
}

func workloadNames() []string {
	var out []string
	for _, w := range workloads() {
		out = append(out, w.name)
	}
	return out
}

func (w workload) sessions(clients int) int {
	if w.most == 0 {
		return clients
	}
	return min(w.most, clients)
}

// count counts an operation of a workload by how it ended.
func (s *scenario) count(workload string, t history.Type) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.counts[workload]
	switch t {
	case history.OK:
		c.OK++
	case history.Refused:
		c.Refused++
	default:
		c.Unknown++
	}
	s.counts[workload] = c
}

func (s *scenario) counted() map[string]verdict.Count {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]verdict.Count{}
	for name, c := range s.counts {
		out[name] = c
	}
	return out
}
