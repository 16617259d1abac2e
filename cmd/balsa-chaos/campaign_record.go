package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/balsa-run/balsa/chaos/world/sim/guest/verdict"
)

// recordName is the file of a campaign that counts; what lies beside it are runs to
// play again.
const recordName = "record.jsonl"

// played is what the record says of one run: a line.
type played struct {
	Seed  uint64 `json:"seed"`
	Build build  `json:"build"`
	// Sitting counts the stretches of a campaign, from 1; SittingS is how long this one
	// had lasted when the run was written down. The last run of each tells its length,
	// however it ended.
	Sitting  int     `json:"sitting"`
	SittingS float64 `json:"sittingS"`
	// Script is the directed script that was played; "": what the seed decides.
	Script     string              `json:"script,omitempty"`
	Digest     string              `json:"digest"`
	Servers    int                 `json:"servers"`
	SimulatedS float64             `json:"simulatedS"`
	WallS      float64             `json:"wallS"`
	ProcessorS float64             `json:"processorS"`
	Operations verdict.Count       `json:"operations"`
	Faults     map[string]int      `json:"faults,omitempty"`
	Failovers  int                 `json:"failovers"`
	Reached    map[string]int      `json:"reached,omitempty"`
	Violations []verdict.Violation `json:"violations,omitempty"`
	// Missing is what a run did too little of, Died why it has no verdict.
	Missing []string `json:"missing,omitempty"`
	Died    string   `json:"died,omitempty"`
}

// book is the record of a campaign, open for more. One process has it at a time.
type book struct {
	dir  string
	file *os.File
	runs []played
}

// openBook makes the folder and its record when there is none. What a process that
// was killed has left of a last line is cut off: its run is played again.
func openBook(dir string) (*book, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("folder of the campaign: %w", err)
	}
	file, err := os.OpenFile(filepath.Join(dir, recordName), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("record of the campaign: %w", err)
	}
	b := &book{dir: dir, file: file}
	if err := b.begin(); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return b, nil
}

func (b *book) begin() error {
	if err := syscall.Flock(int(b.file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return fmt.Errorf("%s is in use: another sitting plays this campaign: %w", b.file.Name(), err)
	}
	text, err := io.ReadAll(b.file)
	if err != nil {
		return fmt.Errorf("read %s: %w", b.file.Name(), err)
	}
	runs, whole, err := parseBook(text)
	if err != nil {
		return fmt.Errorf("%s: %w", b.file.Name(), err)
	}
	b.runs = runs
	if whole == len(text) {
		return syncFolder(b.dir)
	}
	if err := b.file.Truncate(int64(whole)); err != nil {
		return fmt.Errorf("cut the torn end off %s: %w", b.file.Name(), err)
	}
	return errors.Join(b.file.Sync(), syncFolder(b.dir))
}

// readBook is the record as it is, for who only reads: also while it is written.
func readBook(dir string) ([]played, error) {
	text, err := readFile(filepath.Join(dir, recordName))
	if err != nil {
		return nil, err
	}
	runs, _, err := parseBook(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, recordName), err)
	}
	return runs, nil
}

// parseBook reads lines; whole is up to where they are. Only the last may be torn: a
// line is written at once and synced before the next.
func parseBook(text []byte) (runs []played, whole int, err error) {
	for number := 1; whole < len(text); number++ {
		line, rest, ended := bytes.Cut(text[whole:], []byte("\n"))
		var r played
		switch err := json.Unmarshal(line, &r); {
		case !ended, err != nil && len(rest) == 0:
			return runs, whole, nil
		case err != nil:
			return nil, 0, fmt.Errorf("line %d is no run: %w", number, err)
		}
		runs = append(runs, r)
		whole += len(line) + 1
	}
	return runs, whole, nil
}

// write adds a run, and returns when it is on the disk.
func (b *book) write(r played) error {
	line, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("record seed %d: %w", r.Seed, err)
	}
	if _, err := b.file.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("record seed %d: %w", r.Seed, err)
	}
	if err := b.file.Sync(); err != nil {
		return fmt.Errorf("record seed %d: %w", r.Seed, err)
	}
	b.runs = append(b.runs, r)
	return nil
}

// Close lets others have the record.
func (b *book) Close() error { return b.file.Close() }

func (b *book) all() []played { return b.runs }

func (b *book) lastSitting() (last int) {
	for _, r := range b.runs {
		last = max(last, r.Sitting)
	}
	return last
}

func (b *book) next() uint64 {
	for seed := range b.unplayed() {
		return seed
	}
	return 0
}

// unplayed are the seeds from 1 that the record does not have, without end. An
// interrupt may leave a hole: runs end in another order than they begin in.
func (b *book) unplayed() iter.Seq[uint64] {
	var had []uint64
	for _, r := range b.runs {
		had = append(had, r.Seed)
	}
	slices.Sort(had)
	return func(yield func(uint64) bool) {
		for seed := uint64(1); ; seed++ {
			if _, has := slices.BinarySearch(had, seed); !has && !yield(seed) {
				return
			}
		}
	}
}

func syncFolder(dir string) error {
	folder, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("folder of the campaign: %w", err)
	}
	return errors.Join(folder.Sync(), folder.Close())
}
