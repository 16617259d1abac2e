package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-metrics"
)

func TestRaftWritesToSlog(t *testing.T) {
	var out bytes.Buffer
	handler := slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelInfo, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})
	l := NewRaftLogger(slog.New(handler)).With("peer", "b")
	l.Info("an operator does not want this")
	l.Warn("heartbeat timeout", "servers", hclog.Fmt("%+v", []int{1, 2}))
	l.Error("failed to heartbeat", "error", errors.New("refused"))
	want := "level=WARN msg=\"heartbeat timeout\" peer=b servers=\"[1 2]\"\nlevel=WARN msg=\"failed to heartbeat\" peer=b error=refused\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
}

type metricsLog struct{ lines []string }

func (m *metricsLog) Add(name string, delta float64, labels ...Label) {
	m.lines = append(m.lines, fmt.Sprint("add ", name, " ", delta, " ", labels))
}
func (m *metricsLog) Set(name string, value float64, labels ...Label) {
	m.lines = append(m.lines, fmt.Sprint("set ", name, " ", value, " ", labels))
}
func (m *metricsLog) Observe(name string, value float64, labels ...Label) {
	m.lines = append(m.lines, fmt.Sprint("observe ", name, " ", value, " ", labels))
}

func TestRaftMetricsArrive(t *testing.T) {
	got := &metricsLog{}
	m, err := metrics.New(RaftMetricsConfig(), RaftSink(got))
	if err != nil {
		t.Fatal(err)
	}
	m.IncrCounterWithLabels([]string{"raft", "replication", "appendEntries"}, 2, []metrics.Label{{Name: "peer_id", Value: "b"}})
	m.SetGauge([]string{"raft", "peers"}, 3)
	m.AddSample([]string{"raft", "commitTime"}, 0.5)
	want := []string{"add raft_replication_appendentries 2 [{peer_id b}]", "set raft_peers 3 []", "observe raft_committime 0.5 []"}
	if diff := cmp.Diff(want, got.lines); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}

func FuzzReadSnapshotHeader(f *testing.F) {
	var whole bytes.Buffer
	if err := (SnapshotHeader{Index: 7, Term: 3}).write(&whole); err != nil {
		f.Fatal(err)
	}
	f.Add(append(whole.Bytes(), "state"...))
	f.Add([]byte("BALSA"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		from := bytes.NewReader(raw)
		header, err := ReadSnapshotHeader(from)
		if err != nil {
			return
		}
		var again bytes.Buffer
		if err := header.write(&again); err != nil {
			t.Fatal(err)
		}
		rest, err := io.ReadAll(from)
		if err != nil || !bytes.Equal(append(again.Bytes(), rest...), raw) {
			t.Errorf("%q was read as %+v", raw, header)
		}
	})
}

func TestASnapshotOfAnotherKindIsRefused(t *testing.T) {
	_, err := ReadSnapshotHeader(strings.NewReader(strings.Repeat("x", snapshotHeaderSize)))
	if err == nil || !strings.Contains(err.Error(), "not a snapshot of this version") {
		t.Errorf("error %v", err)
	}
}
