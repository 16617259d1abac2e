package reconciler

import (
	"context"

	"github.com/balsa-run/balsa/internal/loop"
)

// RunCounted is Run that tells of every step of a concern.
func RunCounted(ctx context.Context, d Deps, count func(concern string)) error {
	r, err := newRunner(d)
	if err != nil {
		return err
	}
	for i, c := range r.concerns {
		r.concerns[i].Step = func(ctx context.Context, keys []string) []loop.Again {
			count(c.Name)
			return c.Step(ctx, keys)
		}
	}
	return r.run(ctx)
}

// BackedOff is backedOff for tests.
func BackedOff(step func(context.Context, []string) []loop.Again) func(context.Context, []string) []loop.Again {
	return backedOff(step)
}
