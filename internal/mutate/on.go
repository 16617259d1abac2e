//go:build mutate

package mutate

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// Built says whether this program has the planted bugs.
const Built = true

// armed is where the armed bugs are kept: the environment of the process, which
// no machine's environment reaches in the simulation.
const armed = "BALSA_PLANTED_BUGS"

// On tells whether a bug is at work.
func On(b Bug) bool {
	set := os.Getenv(armed)
	return set != "" && slices.Contains(strings.Split(set, ","), string(b))
}

// Arm plants bugs from now on.
func Arm(bugs []Bug) error {
	names := make([]string, len(bugs))
	for i, b := range bugs {
		names[i] = string(b)
	}
	if err := os.Setenv(armed, strings.Join(names, ",")); err != nil {
		return fmt.Errorf("mutate: arm %v: %w", bugs, err)
	}
	return nil
}

// Noise is a number that is another on each member.
func Noise() int64 { return time.Now().UnixNano() }

// Impatient makes a call, and does not wait longer for its answer than patience.
func Impatient(patience time.Duration, call func() error) (answered bool, err error) {
	done := make(chan error, 1)
	go func() { done <- call() }()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case err := <-done:
		return true, err
	case <-timer.C:
		return false, nil
	}
}

// Before keeps what something was one change ago.
type Before[T any] struct {
	mu   sync.Mutex
	has  bool // guarded by mu
	kept T    // guarded by mu
}

// Keep takes what it is now.
func (b *Before[T]) Keep(now T) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.kept, b.has = now, true
}

// Or is what was kept last, or now when nothing was.
func (b *Before[T]) Or(now T) T {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.has {
		return now
	}
	return b.kept
}
