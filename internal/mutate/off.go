//go:build !mutate

package mutate

import (
	"errors"
	"time"
)

// Built says whether this program has the planted bugs.
const Built = false

// On tells whether a bug is at work: never, in this build.
func On(Bug) bool { return false }

// Arm plants bugs from now on.
func Arm([]Bug) error {
	return errors.New("mutate: this program was built without the tag mutate, and has no planted bugs")
}

// Noise is a number that is another on each member.
func Noise() int64 { return 0 }

// Impatient makes a call, and does not wait longer for its answer than patience.
func Impatient(_ time.Duration, call func() error) (answered bool, err error) { return true, call() }

// Before keeps what something was one change ago.
type Before[T any] struct{}

// Keep takes what it is now.
func (*Before[T]) Keep(T) {}

// Or is what was kept last, or now when nothing was.
func (*Before[T]) Or(now T) T { return now }
