package bench

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// trial is one undertaking that several measures take their values from, because
// they belong to the same pods, or because they are to be compared: whose turns
// alternate shares what the machine does meanwhile.
type trial struct {
	run func(context.Context, *takings) error

	once    sync.Once
	takings *takings
	load    Load
}

// takings are what a trial took, by the names of the measures.
type takings struct {
	samples map[string]Samples
	// failed tells of the measures that came to nothing though the trial went on.
	failed map[string]error
}

func newTrial(run func(context.Context, *takings) error) *trial { return &trial{run: run} }

func (t *takings) add(name string, values ...float64) {
	s := t.samples[name]
	s.Values = append(s.Values, values...)
	t.samples[name] = s
}

func (t *takings) note(name, format string, args ...any) {
	s := t.samples[name]
	s.Notes = append(s.Notes, fmt.Sprintf(format, args...))
	t.samples[name] = s
}

// compare says on the first measure how its median relates to the other one's.
func (t *takings) compare(name, other string) {
	mine, theirs := t.samples[name].Values, t.samples[other].Values
	if len(mine) == 0 || len(theirs) == 0 || t.failed[other] != nil {
		t.note(name, "there is nothing to compare with: %s was not measured", other)
		return
	}
	ratio, decimals := Median.Of(mine)/Median.Of(theirs), 2
	if ratio < 0.1 {
		decimals = 4
	}
	t.note(name, "median of %s / median of %s = %.*f", name, other, decimals, ratio)
}

// take runs the trial, the first time it is asked.
func (t *trial) take(ctx context.Context, name string) (Samples, error) {
	t.once.Do(func() {
		t.takings = &takings{samples: map[string]Samples{}, failed: map[string]error{}}
		meter := startMeter()
		err := t.run(ctx, t.takings)
		t.load = meter.stop()
		if err != nil {
			t.takings.failed[""] = err
		}
	})
	samples := t.takings.samples[name]
	samples.Load = &t.load
	return samples, errors.Join(t.takings.failed[""], t.takings.failed[name])
}

// part is a measure whose values a trial takes.
type part struct {
	trial    *trial
	name     string
	question string
	unit     Unit
	targets  []Target
}

func (p part) Name() string                             { return p.name }
func (p part) Question() string                         { return p.question }
func (p part) Unit() Unit                               { return p.unit }
func (p part) Targets() []Target                        { return p.targets }
func (p part) Run(ctx context.Context) (Samples, error) { return p.trial.take(ctx, p.name) }
