package bench

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

const putRound = 2 * time.Second

// Suite is every measure, in the order of the document. A quick one takes few
// values, to see that it works.
func Suite(ground *Ground, quick bool) []Measure {
	of := func(full, few int) int {
		if quick {
			return few
		}
		return full
	}
	puts := func(clients int, follower bool) Measure {
		return Puts{Ground: ground, Clients: clients, Rounds: of(7, 1), Round: putRound, Follower: follower}
	}
	return []Measure{
		DevStart{Ground: ground, Count: of(20, 2)},
		PodStart{Ground: ground, Count: of(100, 5)},
		ServerMemory{Ground: ground, Readings: of(10, 1)},
		AgentMemory{Ground: ground, Readings: of(10, 1)},
		ShimMemory{Ground: ground, Readings: of(5, 1)},
		puts(1, false), puts(1, true), puts(64, false), puts(256, false),
		Failover{Ground: ground, Kills: of(20, 2)},
	}
}

// Only is the measures of those names; none: all.
func Only(measures []Measure, names []string) ([]Measure, error) {
	if len(names) == 0 {
		return measures, nil
	}
	var chosen []Measure
	var known []string
	for _, m := range measures {
		known = append(known, m.Name())
		if slices.Contains(names, m.Name()) {
			chosen = append(chosen, m)
		}
	}
	for _, name := range names {
		if !slices.Contains(known, name) {
			return nil, fmt.Errorf("-only %s: there is no such measure; there are %s", name, strings.Join(known, ", "))
		}
	}
	return chosen, nil
}
