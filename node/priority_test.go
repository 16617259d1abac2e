package node_test

import (
	"testing"
	"time"
)

// TestLowPriorityIsEvictedFirst has a pod of high priority use more above what it
// asked for than one of low priority does.
func TestLowPriorityIsEvictedFirst(t *testing.T) {
	onScales(t, func(s *scales) {
		s.run("high", "1Gi", 7)
		s.run("low", "1Gi", -3)
		s.set(func() {
			s.memory = map[string]int64{"uid-high": 5 * gib, "uid-low": 2 * gib}
			s.usage.MemoryAvailable = 50 * mib
		})
		s.within(15*time.Second, "the low one goes", s.evicted("low", "50.0 MiB of memory are available"))
		s.set(func() { s.usage.MemoryAvailable = 3 * gib })
		s.always(2*time.Minute, "the high one stays", s.ready("high"))
	})
}
