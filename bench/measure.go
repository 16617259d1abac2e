package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// Measure answers one question by measuring.
type Measure interface {
	// Name is short and stays the same: -only takes it.
	Name() string
	// Question stands above the figures: what is measured, from when to when, in
	// which circumstances.
	Question() string
	Unit() Unit
	// Targets are what the figures are held against; none: they are only told.
	Targets() []Target
	// Run measures, and leaves nothing behind, also on failure.
	Run(ctx context.Context) (Samples, error)
}

// Unit is that of a measure's values.
type Unit struct {
	Name     string // "ms"
	Decimals int    // worth showing
}

// The units in use.
func milliseconds() Unit  { return Unit{Name: "ms"} }
func megabytes() Unit     { return Unit{Name: "MB", Decimals: 1} }
func perSecond() Unit     { return Unit{Name: "puts/s"} }
func starts() Unit        { return Unit{Name: "starts/s", Decimals: 1} }
func fineMegabytes() Unit { return Unit{Name: "MB", Decimals: 2} }
func ofACore() Unit       { return Unit{Name: "% of a core", Decimals: 2} }

func (u Unit) show(value float64) string { return fmt.Sprintf("%.*f %s", u.Decimals, value, u.Name) }

// Target is an upper bound of one statistic of a measure.
type Target struct {
	Of    Statistic
	Under float64 // in the measure's unit
	// Aim marks what is hoped for rather than promised.
	Aim bool
}

// Samples are what a measure took.
type Samples struct {
	Values []float64
	// Notes are what was seen beside the values, a sentence each.
	Notes []string
	// Load is that of the trial that took the values; nil: that of the measure.
	Load *Load
}

// Result is one measure's part of the document.
type Result struct {
	Name, Question string
	Unit           Unit
	Targets        []Target
	Samples        Samples
	// Err tells why the measure came to nothing; nil: it did not. It holds paths
	// and logs, so the document only says that there was one.
	Err  error
	Load Load
	Took time.Duration
}

// Run takes the measures one after the other. It ends early only with ctx; a
// measure that fails is part of the results.
func Run(ctx context.Context, measures []Measure, progress io.Writer) ([]Result, error) {
	var results []Result
	for _, m := range measures {
		fmt.Fprintf(progress, "== %s: %s\n", m.Name(), m.Question())
		result := take(ctx, m)
		if ctx.Err() != nil {
			return results, errors.Join(context.Cause(ctx), result.Err)
		}
		results = append(results, result)
		fmt.Fprintf(progress, "   %s (%v, %s)\n", summary(result), result.Took.Round(time.Second), result.Load)
		for _, note := range result.Samples.Notes {
			fmt.Fprintf(progress, "   %s\n", note)
		}
	}
	return results, nil
}

func take(ctx context.Context, m Measure) Result {
	result := Result{Name: m.Name(), Question: m.Question(), Unit: m.Unit(), Targets: m.Targets()}
	meter, began := startMeter(), time.Now()
	samples, err := m.Run(ctx)
	result.Took, result.Load, result.Samples = time.Since(began), meter.stop(), samples
	result.Err = err
	if samples.Load != nil {
		result.Load = *samples.Load
	}
	if err == nil && len(samples.Values) == 0 {
		result.Err = errors.New("it took no value")
	}
	return result
}

// summary is a result in a line.
func summary(r Result) string {
	if r.Err != nil {
		return "NOT MEASURED: " + r.Err.Error()
	}
	return fmt.Sprintf("median %s, min %s, max %s of %d", r.Unit.show(Median.Of(r.Samples.Values)),
		r.Unit.show(Minimum.Of(r.Samples.Values)), r.Unit.show(Maximum.Of(r.Samples.Values)), len(r.Samples.Values))
}
