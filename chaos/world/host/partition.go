package host

import (
	"fmt"
	"strings"
)

// Cut drops what the hosts of from send to those of to, and only that: call it
// twice for both ways. It lasts until Heal.
func (l *Lab) Cut(from, to []*Host) error {
	var pairs []string
	for _, a := range from {
		for _, b := range to {
			if a != b {
				pairs = append(pairs, a.Address+" . "+b.Address)
			}
		}
	}
	if len(pairs) == 0 {
		return nil
	}
	return l.nft(fmt.Sprintf("add element bridge lab cut { %s }", strings.Join(pairs, ", ")))
}

// Partition drops everything between two groups of hosts, both ways.
func (l *Lab) Partition(one, other []*Host) error {
	if err := l.Cut(one, other); err != nil {
		return err
	}
	return l.Cut(other, one)
}

// Heal joins all hosts again.
func (l *Lab) Heal() error { return l.nft("flush set bridge lab cut") }
