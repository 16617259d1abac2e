//go:build linux

package apply

import (
	"errors"

	"github.com/google/nftables"
)

// ErrCutShort is the answer to every transaction after CutShort.
var ErrCutShort = errors.New("cut short")

// CutShort lets n transactions through and none after, as SIGKILL would.
func (a *Applier) CutShort(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.commit = func(c *nftables.Conn) error {
		if n--; n < 0 {
			return ErrCutShort
		}
		return c.Flush()
	}
}
