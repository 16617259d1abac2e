package store

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"runtime"
	"testing"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
)

// The question of these benchmarks: does the machine itself ever limit the
// cluster? A log on a good disk gives some tens of thousands of commands a
// second; the store must be well beyond that on one core.

func benchKey(i int) string { return fmt.Sprintf("registry/bench/%09d", i) }

// filled is a store with n keys of 256 bytes each, put in scrambled order.
func filled(b *testing.B, n int) *driver {
	d := newDriver(b, Options{})
	const batch = 500
	for i := 0; i < n; i += batch {
		cmds := make([]*internalv1.Command, 0, batch)
		for j := i; j < min(i+batch, n); j++ {
			cmds = append(cmds, benchPut(benchKey(j*7919%n)))
		}
		d.Apply(d.AppliedIndex()+1, 1, cmds)
	}
	return d
}

func benchPut(key string) *internalv1.Command {
	return command(SpaceEtcd, &internalv1.Op{Op: &internalv1.Op_Put{Put: &internalv1.Put{Key: []byte(key), Value: make([]byte, 256-len(key))}}})
}

// BenchmarkPut: one put a command; an entry carries one of them, or many as a
// busy leader's does.
func BenchmarkPut(b *testing.B) {
	for _, batch := range []int{1, 100} {
		b.Run(fmt.Sprintf("entry=%d", batch), func(b *testing.B) {
			d := filled(b, 100_000)
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				cmds := make([]*internalv1.Command, batch)
				for j := range cmds {
					cmds[j] = benchPut(benchKey(n * 31 % 100_000))
					n++
				}
				d.Apply(d.AppliedIndex()+1, 1, cmds)
				if n%10_000 < batch {
					d.compact(SpaceEtcd, d.Space(SpaceEtcd).View().Revision()-1000)
				}
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "puts/s")
		})
	}
}

// BenchmarkTxn: compare and swap, the write of every reconciler.
func BenchmarkTxn(b *testing.B) {
	d := filled(b, 100_000)
	n := 0
	for b.Loop() {
		key := benchKey(n * 31 % 100_000)
		kv, _ := d.Space(SpaceEtcd).View().Get(key)
		cmd := benchPut(key)
		cmd.GetTxn().Compares = []*internalv1.Compare{{
			Key: []byte(key), Target: internalv1.Compare_TARGET_MOD, Result: internalv1.Compare_RESULT_EQUAL, Number: int64(kv.ModRevision),
		}}
		if !d.do(cmd).GetTxn().GetSucceeded() {
			b.Fatal("a compare failed")
		}
		if n++; n%10_000 == 0 {
			d.compact(SpaceEtcd, d.Space(SpaceEtcd).View().Revision()-1000)
		}
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "txns/s")
}

// BenchmarkRange: a list of 1000 keys, now and at an older revision.
func BenchmarkRange(b *testing.B) {
	d := filled(b, 100_000)
	sp := d.Space(SpaceEtcd)
	now := sp.View()
	for i := range 5000 {
		d.do(benchPut(benchKey(i)))
	}
	then, err := sp.ViewAt(now.Revision())
	if err != nil {
		b.Fatal(err)
	}
	for name, v := range map[string]View{"now": sp.View(), "then": then} {
		b.Run(name, func(b *testing.B) {
			n := 0
			for b.Loop() {
				for range v.Range(benchKey(1000), "", 1000) {
					n++
				}
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "keys/s")
		})
	}
}

// BenchmarkWatchFanout: 1,000 watches. same: all see every write. apart: each
// has a prefix of its own, and a write concerns one.
func BenchmarkWatchFanout(b *testing.B) {
	const watches = 1000
	for _, same := range []bool{true, false} {
		b.Run(map[bool]string{true: "same", false: "apart"}[same], func(b *testing.B) {
			d := newDriver(b, Options{})
			sp := d.Space(SpaceEtcd)
			got := make(chan struct{}, 1<<16)
			for i := range watches {
				prefix := "k"
				if !same {
					prefix = fmt.Sprintf("k%03d/", i)
				}
				w, err := sp.Watch(context.Background(), WatchOptions{Prefix: prefix})
				if err != nil {
					b.Fatal(err)
				}
				defer w.Stop()
				go func() {
					for range w.Events() {
						got <- struct{}{}
					}
				}()
			}
			n := 0
			for b.Loop() {
				d.put(SpaceEtcd, fmt.Sprintf("k%03d/x", n%watches), "")
				n++
				for range map[bool]int{true: watches, false: 1}[same] {
					<-got
				}
				if n%1000 == 0 {
					d.compact(SpaceEtcd, sp.View().Revision())
				}
			}
			b.ReportMetric(float64(sp.Stats().SlowWatchers), "slow")
		})
	}
}

// BenchmarkMillionKeys: what a million keys of 256 bytes, key and value, cost in
// memory, and how long a snapshot of them takes to write and to restore.
func BenchmarkMillionKeys(b *testing.B) {
	const keys = 1_000_000
	for b.Loop() {
		before := heap()
		d := filled(b, keys)
		b.ReportMetric(float64(heap()-before)/keys, "B/key+history")
		d.compact(SpaceEtcd, d.Space(SpaceEtcd).View().Revision())
		for d.Maintain() {
		}
		b.ReportMetric(float64(heap()-before)/keys, "B/key")
		var buf bytes.Buffer
		start := b.Elapsed()
		n, err := d.Snapshot().WriteTo(io.Discard)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric((b.Elapsed() - start).Seconds(), "s/snapshot")
		b.ReportMetric(float64(n)/keys, "snapshotB/key")
		if _, err := d.Snapshot().WriteTo(&buf); err != nil {
			b.Fatal(err)
		}
		before = heap()
		start = b.Elapsed()
		again := New(Options{})
		if err := again.Restore(&buf); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric((b.Elapsed() - start).Seconds(), "s/restore")
		b.ReportMetric(float64(heap()-before)/keys, "B/key-restored")
		runtime.KeepAlive(again)
	}
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
