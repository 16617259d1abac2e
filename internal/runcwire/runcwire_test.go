package runcwire

import (
	"math"
	"strings"
	"testing"
)

func FuzzStat(f *testing.F) {
	const rest = " S 17 4711 4711 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 5 6"
	for _, stat := range []string{"4711 (sh)" + rest, "4711 (a) S 1 (b) )" + rest, "", ")", "4711 (sh) S", "4711 (sh) S x 2", "4711 (sh) S -1 2"} {
		f.Add(stat)
	}
	f.Fuzz(func(t *testing.T, stat string) {
		if parent, err := ParseParent(stat); err == nil && (parent < 0 || parent > math.MaxInt32) {
			t.Errorf("parent %d of %q", parent, stat)
		}
		if _, err := ParseStartTicks(stat); err == nil && len(strings.Fields(stat)) < 22-2 {
			t.Errorf("%q has no field 22", stat)
		}
	})
}

// TestStat: the name of a program may hold anything.
func TestStat(t *testing.T) {
	const rest = " S 17 4711 4711 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 5 6"
	for _, name := range []string{"(sh)", "(a) S 1 2 3 (b)", "(\n) )"} {
		parent, err := ParseParent("4711 " + name + rest)
		ticks, err2 := ParseStartTicks("4711 " + name + rest)
		if parent != 17 || ticks != 4242 || err != nil || err2 != nil {
			t.Errorf("%q: parent %d, began at %d, %v, %v", name, parent, ticks, err, err2)
		}
	}
	for _, bad := range []string{"", "4711 (sh", "4711 (sh) S", "4711 (sh) S x 2", "4711 (sh) S -1 2", "4711 (sh) S 99999999999 2"} {
		if parent, err := ParseParent(bad); err == nil {
			t.Errorf("%q: parent %d", bad, parent)
		}
	}
}
