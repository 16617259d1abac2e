package check_test

import (
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/balsa-run/balsa/chaos/check"
	"github.com/balsa-run/balsa/chaos/history"
)

// benchHistory is a history of n operations of 32 processes that overlap: half
// reads, of which one in twenty is stale, a quarter puts, a fifth CAS, some
// deletions; one write in a hundred ends as unknown.
func benchHistory(n, keys int) []history.Record {
	rng := rand.New(rand.NewPCG(1, uint64(keys)))
	live := make([]history.KV, keys)
	records := make([]history.Record, 0, 2*n)
	rev, now, process := int64(1), time.Duration(0), int32(0)
	emit := func(r history.Record) {
		now += time.Microsecond
		r.Index, r.Time = int64(len(records)), now
		records = append(records, r)
	}
	names := make([]string, keys)
	for i := range names {
		names[i] = fmt.Sprintf("key-%05d", i)
	}
	open := make([]history.Record, 0, 32)
	for done := 0; done < n; {
		if len(open) < 32 {
			key := rng.IntN(keys)
			process++
			r := history.Record{Type: history.Invoke, Process: process, Key: names[key], Server: "s1"}
			switch p := rng.IntN(100); {
			case p < 48:
				r.F = history.Read
			case p < 50:
				r.F = history.StaleRead
			case p < 75:
				r.F, r.Value = history.Put, fmt.Sprintf("value-%d", len(records))
			case p < 95:
				r.F, r.Value, r.Base = history.CAS, fmt.Sprintf("value-%d", len(records)), live[key].ModRevision
			default:
				r.F = history.Delete
			}
			emit(r)
			// It takes effect at once or not at all, and ends later.
			r.Type = history.OK
			switch now := live[key]; {
			case r.F == history.Read || r.F == history.StaleRead:
				r.Revision, r.Value, r.At = now.ModRevision, now.Value, rev
			case r.F == history.CAS && now.ModRevision != r.Base:
				r.Type = history.Refused
			case r.F == history.Delete && now.ModRevision == 0:
			default:
				rev++
				r.Revision = rev
				if live[key] = (history.KV{ModRevision: rev, Value: r.Value}); r.F == history.Delete {
					live[key] = history.KV{}
				}
				if rng.IntN(100) == 0 {
					r.Type, r.Revision = history.Unknown, 0
				}
			}
			open = append(open, r)
			continue
		}
		at := rng.IntN(len(open))
		emit(open[at])
		open[at] = open[len(open)-1]
		open = open[:len(open)-1]
		done++
	}
	return records
}

// BenchmarkLinearizable tells operations a second: of the wall clock, and of the
// time of a core.
func BenchmarkLinearizable(b *testing.B) {
	for _, keys := range []int{5, 5000} {
		b.Run(fmt.Sprintf("keys=%d", keys), func(b *testing.B) {
			records := benchHistory(500_000, keys)
			b.ReportAllocs()
			operations, before := int64(0), cpuTime(b)
			for b.Loop() {
				c := check.NewLinearizable(check.LinearizableOptions{})
				for i := range records {
					c.Add(records[i])
				}
				v := c.Verdict(nil)
				if len(v.Violations) > 0 {
					b.Fatal(v.Violations[0])
				}
				operations += v.Checked
			}
			b.ReportMetric(float64(operations)/b.Elapsed().Seconds(), "ops/s")
			b.ReportMetric(float64(operations)/(cpuTime(b)-before).Seconds(), "ops/cpu-s")
		})
	}
}

// cpuTime is what this process has used of all cores: what a shared machine gives
// to others is not ours.
func cpuTime(b *testing.B) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
