package sim

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/tetratelabs/wazero/experimental"
)

// reserve is the memory of one run: all that it may ever use, of which the system
// gives a page when it is first touched. A memory that grows by being copied costs
// as much as a second of simulated time, and leaves the copies to our collector.
// wazero takes no error from here, and a host without addresses can play nothing.
func reserve(_, most uint64) experimental.LinearMemory {
	all, err := unix.Mmap(-1, 0, int(most), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_NORESERVE)
	if err != nil {
		panic(fmt.Errorf("sim: reserve %d bytes of addresses for a run: %w", most, err))
	}
	return &reserved{all: all}
}

type reserved struct{ all []byte }

// Reallocate never moves the memory. wazero asks for no more than the most.
func (r *reserved) Reallocate(size uint64) []byte { return r.all[:size] }

func (r *reserved) Free() {
	all := r.all
	r.all = nil
	if err := unix.Munmap(all); err != nil {
		panic(fmt.Errorf("sim: give back the memory of a run: %w", err)) // it was ours, whole
	}
}
