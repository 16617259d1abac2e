//go:build linux

package raftlog_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/balsa-run/balsa/cluster"
	"github.com/balsa-run/balsa/cluster/logtest"
	"github.com/balsa-run/balsa/cluster/memlog"
	"github.com/balsa-run/balsa/cluster/memnet"
	"github.com/balsa-run/balsa/cluster/raftlog"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
)

// counter is a machine that only counts, so that the benchmark measures the way
// to agreement.
type counter struct{ n atomic.Int64 }

func (c *counter) Apply(_, _ uint64, commands []*internalv1.Command) []*internalv1.CommandResult {
	out := make([]*internalv1.CommandResult, len(commands))
	for i := range out {
		out[i] = &internalv1.CommandResult{Outcome: internalv1.CommandResult_OUTCOME_OK, Revision: c.n.Add(1)}
	}
	return out
}
func (c *counter) Snapshot() (io.WriterTo, error) { return nothing{}, nil }
func (c *counter) Restore(io.Reader) error        { return nil }

type nothing struct{}

func (nothing) WriteTo(io.Writer) (int64, error) { return 0, nil }

// direct calls the other servers of the process.
type direct struct {
	mu      sync.RWMutex
	members map[string]*cluster.Cluster // guarded by mu
}

func (d *direct) add(id string, c *cluster.Cluster) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.members[id] = c
}

func (d *direct) at(id string) *cluster.Cluster {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.members[id]
}

// leader is who leads now, nil when nobody does.
func (d *direct) leader() *cluster.Cluster {
	d.mu.RLock()
	defer d.mu.RUnlock()
	for _, c := range d.members {
		if c.Status().Leading != 0 {
			return c
		}
	}
	return nil
}

var errNobody = errors.New("nobody there")

func (d *direct) Propose(ctx context.Context, to string, q *internalv1.ProposeRequest) (*internalv1.ProposeResponse, error) {
	if c := d.at(to); c != nil {
		return c.ServePropose(ctx, q)
	}
	return nil, errNobody
}
func (d *direct) ProposeMany(ctx context.Context, to string, q *internalv1.ProposeManyRequest) (*internalv1.ProposeManyResponse, error) {
	if c := d.at(to); c != nil {
		return c.ServeProposeMany(ctx, q)
	}
	return nil, errNobody
}
func (d *direct) ReadIndex(ctx context.Context, to string, q *internalv1.ReadIndexRequest) (*internalv1.ReadIndexResponse, error) {
	if c := d.at(to); c != nil {
		return c.ServeReadIndex(ctx, q)
	}
	return nil, errNobody
}
func (d *direct) Confirm(ctx context.Context, to string, q *internalv1.ConfirmRequest) (*internalv1.ConfirmResponse, error) {
	if c := d.at(to); c != nil {
		return c.ServeConfirm(ctx, q)
	}
	return nil, errNobody
}
func (d *direct) State(ctx context.Context, to string, q *internalv1.StateRequest) (*internalv1.StateResponse, error) {
	if c := d.at(to); c != nil {
		return c.ServeState(ctx, q)
	}
	return nil, errNobody
}

// trio starts three servers and returns the leader and another. On a busy machine
// leadership may have moved meanwhile.
func trio(t testing.TB, disk func(id string) logtest.Disk, limits cluster.Limits) (leader, follower *cluster.Cluster) {
	network, peers := memnet.New(), &direct{members: map[string]*cluster.Cluster{}}
	var nonce atomic.Uint64
	for _, id := range []string{"a", "b", "c"} {
		host, err := network.Listen(id)
		if err != nil {
			t.Fatal(err)
		}
		d := disk(id)
		c, err := cluster.New(cluster.Config{ID: id, Address: id, Machine: &counter{}, LogStore: d.Log, StableStore: d.Stable,
			SnapshotStore: d.Snapshots, Stream: host, Peers: peers, Rand: func() uint64 { return nonce.Add(1) },
			Logger: slog.New(slog.DiscardHandler), Fatal: func(err error) { t.Error(err) }, Limits: limits,
			Policy: cluster.MembershipPolicy{StabilizeAfter: time.Millisecond}, Timing: cluster.Timing{Monitor: 50 * time.Millisecond}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			_ = c.Shutdown(ctx)
		})
		enter(t, peers, id, c)
	}
	wait(t, func() bool {
		leader = peers.leader()
		return leader != nil && votersOf(leader) == 3
	})
	for _, id := range []string{"a", "b", "c"} {
		if c := peers.at(id); c != leader {
			follower = c
		}
	}
	return leader, follower
}

// enter makes c the first server of a cluster, or one more of it.
func enter(t testing.TB, peers *direct, id string, c *cluster.Cluster) {
	t.Helper()
	if id == "a" {
		peers.add(id, c)
		if err := c.Bootstrap(); err != nil {
			t.Fatal(err)
		}
		return
	}
	var last error
	wait(t, func() bool {
		last = c.Join(context.Background(), func(ctx context.Context) error {
			if leader := peers.leader(); leader != nil {
				return leader.AddNonvoter(ctx, id, id)
			}
			return errNobody
		})
		// The leader may have added it and lost its answer.
		return last == nil || errors.Is(last, cluster.ErrHasState)
	})
	peers.add(id, c)
}

func votersOf(c *cluster.Cluster) (n int) {
	for _, m := range c.Members() {
		if m.Voter {
			n++
		}
	}
	return n
}

func wait(t testing.TB, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for !done() {
		if time.Now().After(deadline) {
			t.Fatal("waited for two minutes")
		}
		<-time.After(5 * time.Millisecond)
	}
}

func inMemory(string) logtest.Disk {
	disk := memlog.New()
	return logtest.Disk{Log: disk.Log(), Stable: disk.Stable(), Snapshots: disk.Snapshots()}
}

func onDisk(t testing.TB) func(string) logtest.Disk {
	return func(string) logtest.Disk {
		store, err := raftlog.Open(raftlog.Options{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler), ReserveBytes: -1})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = store.Close() })
		return logtest.Disk{Log: store.Log(), Stable: store.Stable(), Snapshots: store.Snapshots()}
	}
}

// BenchmarkPropose asks: how many 256-byte writes a second do three servers
// commit in one process, by proposers, by where the log is, and by how many
// entries may be in flight at once?
func BenchmarkPropose(b *testing.B) {
	for _, where := range []string{"memory", "disk"} {
		for _, inFlight := range []int{1, 2, 4} {
			for _, proposers := range []int{1, 64, 256} {
				b.Run(fmt.Sprintf("%s/inflight=%d/proposers=%d", where, inFlight, proposers), func(b *testing.B) {
					disk := inMemory
					if where == "disk" {
						disk = onDisk(b)
					}
					leader, _ := trio(b, disk, cluster.Limits{BatchesInFlight: inFlight})
					proposeAll(b, leader, proposers)
				})
			}
		}
	}
}

func proposeAll(b *testing.B, c *cluster.Cluster, proposers int) {
	value := make([]byte, 256)
	var left atomic.Int64
	left.Store(int64(b.N))
	var all sync.WaitGroup
	b.ResetTimer()
	for range proposers {
		all.Go(func() {
			for left.Add(-1) >= 0 {
				if _, err := c.Propose(context.Background(), write(value)); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "writes/s")
}

func write(value []byte) *internalv1.Command {
	return &internalv1.Command{Space: "objects", Op: &internalv1.Command_Txn{Txn: &internalv1.Txn{
		Success: []*internalv1.Op{{Op: &internalv1.Op_Put{Put: &internalv1.Put{Key: []byte("k"), Value: value}}}}}}}
}

// BenchmarkReadIndex asks: how many linearizable reads a second, on the leader
// and on a follower?
func BenchmarkReadIndex(b *testing.B) {
	for _, on := range []string{"leader", "follower"} {
		for _, readers := range []int{1, 64} {
			b.Run(fmt.Sprintf("%s/readers=%d", on, readers), func(b *testing.B) {
				leader, follower := trio(b, inMemory, cluster.Limits{})
				c := leader
				if on == "follower" {
					c = follower
				}
				var left atomic.Int64
				left.Store(int64(b.N))
				var all sync.WaitGroup
				b.ResetTimer()
				for range readers {
					all.Go(func() {
						for left.Add(-1) >= 0 {
							if _, err := c.ReadIndex(context.Background()); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				all.Wait()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "reads/s")
			})
		}
	}
}

// TestOnRealFiles: three servers on real files agree, and one can shorten its
// log. The disk may be slow and leadership may move: a write whose outcome is
// unknown is written again.
func TestOnRealFiles(t *testing.T) {
	leader, follower := trio(t, onDisk(t), cluster.Limits{})
	for range 50 {
		var err error
		wait(t, func() bool {
			_, err = follower.Propose(context.Background(), write([]byte("x")))
			return err == nil
		})
	}
	if err := leader.SnapshotNow(context.Background()); err != nil {
		t.Fatal(err)
	}
	var index uint64
	wait(t, func() (done bool) {
		var err error
		index, err = follower.ReadIndex(context.Background())
		return err == nil
	})
	if index < 50 {
		t.Errorf("read index %d after 50 writes", index)
	}
}
