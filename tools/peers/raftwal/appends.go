//go:build linux

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	entryBytes = 300
	// wideEntries in one: what Balsa makes of as many writes that come together.
	wideEntries = 256
	// body is how many entries the log has at the least.
	body = 20_000
	// fillAt is how many entries are appended at once where it does not count.
	fillAt = 1024
	// besideTruncation of the appends of a round fit beside a truncation.
	besideTruncation = 3
)

// shape is a batch, and how many of it are a round.
type shape struct {
	Name                         string
	Entries, EntryBytes, Appends int
}

func shapes() []shape {
	return []shape{
		{"1", 1, entryBytes, 3000},
		{"16", 16, entryBytes, 1500},
		{"64", 64, entryBytes, 900},
		{"256", 256, entryBytes, 450},
		{"wide", 1, wideEntries * entryBytes, 900},
	}
}

func (s shape) part(truncating bool) string {
	if truncating {
		return "truncating-" + s.Name
	}
	return "append-" + s.Name
}

// Appends are the rounds of one shape.
type Appends struct {
	Shape      string `json:"shape"`
	Entries    int    `json:"entries"`
	EntryBytes int    `json:"entryBytes"`
	// Truncated is how many old entries went meanwhile.
	Truncated int            `json:"truncated"`
	Rounds    []Turn[Sample] `json:"rounds"`
}

// Sample is one log's turn.
type Sample struct {
	PerSecond float64 `json:"perSecond"`
	P50MS     float64 `json:"p50MS"`
	P99MS     float64 `json:"p99MS"`
	MaxMS     float64 `json:"maxMS"`
	// BytesPerEntry is what the kernel was given to write for an entry; the file
	// system's own journal is not in it.
	BytesPerEntry float64 `json:"bytesPerEntry"`
	// TruncationMS is how long the truncation took that went on meanwhile.
	TruncationMS float64 `json:"truncationMS"`
}

func takeAppends(dir string, s shape, truncating bool, rounds, old int) (all Appends, err error) {
	all = Appends{Shape: s.Name, Entries: s.Entries, EntryBytes: s.EntryBytes}
	if truncating {
		all.Truncated = old
	}
	err = both(dir, func(sides []*side) error {
		for _, one := range sides {
			if err := one.fill(body, fillAt); err != nil {
				return err
			}
		}
		for round := range rounds {
			var turn Turn[Sample]
			err := inTurns(round, sides, func(one *side) (err error) {
				*turn.of(one.kind), err = one.turn(s, all.Truncated)
				return err
			})
			if err != nil {
				return err
			}
			all.Rounds = append(all.Rounds, turn)
		}
		return nil
	})
	return all, err
}

// turn appends to a log of body entries, and old ones besides that go meanwhile;
// the log is left as it was found.
func (s *side) turn(of shape, old int) (sample Sample, err error) {
	if err := s.fill(old, fillAt); err != nil {
		return sample, err
	}
	first, err := s.FirstIndex()
	if err != nil {
		return sample, err
	}
	truncated := make(chan error, 1)
	var took time.Duration
	before, err := written()
	if err != nil {
		return sample, err
	}
	go func() {
		began := time.Now()
		var err error
		if old > 0 {
			err = s.DeleteRange(first, first+uint64(old)-1)
		}
		took = time.Since(began)
		truncated <- err
	}()
	times, err := s.appends(of)
	if err := errors.Join(err, <-truncated); err != nil {
		return sample, fmt.Errorf("%s: %w", s.kind, err)
	}
	after, err := written()
	if err != nil {
		return sample, err
	}
	sample = sampleOf(times)
	sample.BytesPerEntry = float64(after-before) / float64(of.Appends*of.Entries)
	if old > 0 {
		sample.TruncationMS = milliseconds(took)
	}
	return sample, s.trim(body)
}

func (s *side) appends(of shape) (times []time.Duration, err error) {
	data := constant(of.EntryBytes)
	for range of.Appends {
		logs := s.batch(of.Entries, data)
		began := time.Now()
		if err := s.StoreLogs(logs); err != nil {
			return nil, err
		}
		times = append(times, time.Since(began))
	}
	return times, nil
}

// sampleOf counts only the time in which an append was under way. There must be
// one.
func sampleOf(times []time.Duration) Sample {
	slices.Sort(times)
	var sum time.Duration
	for _, t := range times {
		sum += t
	}
	return Sample{PerSecond: float64(len(times)) / sum.Seconds(), P50MS: percentile(times, 50), P99MS: percentile(times, 99), MaxMS: percentile(times, 100)}
}

// percentile is the nearest rank's.
func percentile(sorted []time.Duration, percent int) float64 {
	return milliseconds(sorted[(len(sorted)*percent+99)/100-1])
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// noise does not compress.
func noise(size int) []byte {
	data := make([]byte, size)
	chance := rand.New(rand.NewPCG(1, 2))
	for i := range data {
		data[i] = byte(chance.Uint32())
	}
	return data
}

// written is how many bytes this process made the kernel write to disks.
func written() (int64, error) {
	text, err := os.ReadFile("/proc/self/io")
	if err != nil {
		return 0, err
	}
	return parseWritten(text)
}

func parseWritten(text []byte) (int64, error) {
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), "write_bytes: "); ok {
			return strconv.ParseInt(value, 10, 64)
		}
	}
	return 0, errors.New("/proc/self/io has no write_bytes")
}
