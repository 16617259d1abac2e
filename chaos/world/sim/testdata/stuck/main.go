// Stuck runs the program that its argument names, which computes without end, and
// says what Run says of it. It is a process of its own because the run can only be
// ended with the process.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/balsa-run/balsa/chaos/world/sim"
)

func main() {
	if err := run(context.Background(), os.Args[1]); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func run(ctx context.Context, path string) error {
	wasm, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	m, err := sim.New(ctx, wasm, sim.Config{Grace: 100 * time.Millisecond})
	if err != nil {
		return err
	}
	sim.KeepWatch()
	jobs := func(yield func(sim.Options) bool) {
		for seed := uint64(1); seed <= 2; seed++ {
			if !yield(sim.Options{Seed: seed, Args: []string{"-mode=spin"}, WallLimit: 100 * time.Millisecond}) {
				return
			}
		}
	}
	for f := range m.RunAll(ctx, jobs, 0) {
		if !errors.Is(f.Err, sim.ErrStuck) || !errors.Is(f.Err, sim.ErrWallLimit) {
			return fmt.Errorf("seed %d: %w", f.Options.Seed, f.Err)
		}
		fmt.Println("stuck:", f.Options.Seed)
	}
	if err := m.Close(ctx); !errors.Is(err, sim.ErrStuck) {
		return fmt.Errorf("closed under a run that goes on: %w", err)
	}
	return nil
}
