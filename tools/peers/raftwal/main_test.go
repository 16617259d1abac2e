//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
)

var update = flag.Bool("update", false, "write the golden files")

// TestMain lets the test's program be the one that is killed, too.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "-child" {
		main()
		return
	}
	flag.Parse()
	os.Exit(m.Run())
}

// What reads the report lives in another module: its test reads this same file.
func TestReportIsWhatItsReaderExpects(t *testing.T) {
	sample := func(rate float64) Sample {
		return Sample{PerSecond: rate, P50MS: 1000 / rate, P99MS: 2000 / rate, MaxMS: 4000 / rate, BytesPerEntry: 1e6 / rate, TruncationMS: 5}
	}
	report := Report{
		Appends: []Appends{{Shape: "16", Entries: 16, EntryBytes: 300, Truncated: 5000,
			Rounds: []Turn[Sample]{{sample(1000), sample(2000)}, {sample(1250), sample(2500)}, {sample(800), sample(2000)}}}},
		Open: &Opens{Entries: 1000, Warm: []Turn[float64]{{20, 5}, {22, 5}, {24, 6}}, Cold: []Turn[float64]{{200, 50}, {220, 55}, {210, 50}}},
		Size: &Sizes{Entries: 2000, Kept: 100, Full: []Turn[int64]{{8e6, 4e6}, {8e6, 4e6}, {8e6, 4e6}}, Truncated: []Turn[int64]{{8e6, 2e6}, {8e6, 2e6}, {8e6, 2e6}}},
		Kills: &Kills{Boltdb: Survival{Kills: 20, Acknowledged: 3000, Unacknowledged: 64},
			Wal: Survival{Kills: 20, Acknowledged: 9000, Lost: 3, Unacknowledged: 1, Unusable: 2, Reason: "the log does not go on: a reason"}, Sealed: "a refusal"},
	}
	got, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	const path = "../../../bench/testdata/raftwal.json"
	if *update {
		if err := os.WriteFile(path, append(got, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != string(got)+"\n" {
		t.Errorf("%s differs from what the program writes (-update writes it):\n%s", path, got)
	}
}

func TestSampleOf(t *testing.T) {
	times := make([]time.Duration, 200)
	for i := range times {
		times[i] = time.Duration(200-i) * time.Millisecond
	}
	s := sampleOf(times)
	// 1 to 200 ms: 20.1 s in all; the 100th, the 198th and the last.
	if math.Abs(s.PerSecond-200/20.1) > 1e-9 || s.P50MS != 100 || s.P99MS != 198 || s.MaxMS != 200 {
		t.Errorf("got %+v", s)
	}
	if one := sampleOf([]time.Duration{time.Second}); one.P50MS != 1000 || one.P99MS != 1000 || one.PerSecond != 1 {
		t.Errorf("of one value: %+v", one)
	}
}

func TestWrittenIsRead(t *testing.T) {
	if n, err := parseWritten([]byte("rchar: 1\nwrite_bytes: 8192\ncancelled_write_bytes: 4096\n")); n != 8192 || err != nil {
		t.Errorf("read %d, %v", n, err)
	}
	if _, err := parseWritten([]byte("rchar: 1\ncancelled_write_bytes: 4096\n")); err == nil {
		t.Error("without write_bytes: no error")
	}
	if _, err := written(); err != nil {
		t.Error(err)
	}
}

func TestAnotherOneBeginsInEachRound(t *testing.T) {
	var turns []string
	for round := range 3 {
		_ = inTurns(round, []string{boltdb, walLog}, func(kind string) error { turns = append(turns, kind); return nil })
	}
	if want := []string{boltdb, walLog, walLog, boltdb, boltdb, walLog}; !slices.Equal(turns, want) {
		t.Errorf("turns were %v, want %v", turns, want)
	}
}

// A round leaves both logs as it found them, and appended what it says.
func TestAppendsLeaveTheBody(t *testing.T) {
	for _, old := range []int{0, 3000} {
		dir := t.TempDir()
		s := shape{Name: "x", Entries: 3, EntryBytes: 40, Appends: 50}
		all, err := takeAppends(dir, s, old > 0, 2, old)
		if err != nil {
			t.Fatal(err)
		}
		if len(all.Rounds) != 2 || all.Truncated != old || all.Entries != 3 || all.EntryBytes != 40 {
			t.Fatalf("got %+v", all)
		}
		for _, kind := range []string{boltdb, walLog} {
			sample := *all.Rounds[1].of(kind)
			if sample.PerSecond <= 0 || sample.P50MS <= 0 || sample.P99MS < sample.P50MS || sample.MaxMS < sample.P99MS || (sample.TruncationMS > 0) != (old > 0) {
				t.Errorf("%s: %+v", kind, sample)
			}
			log, err := open(kind, filepath.Join(dir, kind), 0)
			if err != nil {
				t.Fatal(err)
			}
			first, err := log.FirstIndex()
			if last := log.next - 1; err != nil || last-first+1 != body || last != uint64(body+2*(150+old)) {
				t.Errorf("%s: the log has entries %d to %d, %v", kind, first, last, err)
			}
			if err := log.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestOpensAndSizes(t *testing.T) {
	dir := t.TempDir()
	opens, err := takeOpens(filepath.Join(dir, "open"), 3, 5000)
	if err != nil {
		t.Fatal(err)
	}
	for name, rounds := range map[string][]Turn[float64]{"warm": opens.Warm, "cold": opens.Cold} {
		if len(rounds) != 3 || slices.ContainsFunc(rounds, func(r Turn[float64]) bool { return r.Boltdb <= 0 || r.Wal <= 0 }) {
			t.Errorf("%s: %+v", name, rounds)
		}
	}
	sizes, err := takeSizes(filepath.Join(dir, "size"), 2, 5000, 100)
	if err != nil {
		t.Fatal(err)
	}
	for _, full := range sizes.Full {
		if len(sizes.Full) != 2 || len(sizes.Truncated) != 2 || full.Boltdb < 5000*entryBytes || full.Wal < 5000*entryBytes {
			t.Errorf("%+v", sizes)
		}
	}
	if _, err := openTime(boltdb, filepath.Join(dir, "open", boltdb), 4999); err == nil {
		t.Error("a log that ends elsewhere was opened without an error")
	}
}

// Neither loses what it acknowledged. That raft-wal may not go on is another
// test's business.
func TestKilledLogsKeepWhatTheyAcknowledged(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	const kills = 20
	seed := rand.Uint64()
	report, err := takeKills(t.Context(), program, t.TempDir(), kills, rand.New(rand.NewPCG(seed, seed)))
	if err != nil {
		t.Fatal(err)
	}
	for kind, s := range map[string]Survival{boltdb: report.Boltdb, walLog: report.Wal} {
		if s.Kills != kills || s.Acknowledged == 0 || s.Lost > 0 || s.Unusable > 0 && kind == boltdb || s.Unusable > 0 && !strings.Contains(s.Reason, wal.ErrSealed.Error()) {
			t.Errorf("%s: %+v", kind, s)
		}
	}
	if report.Sealed != wal.ErrSealed.Error() {
		t.Errorf("after the planted kill: %q", report.Sealed)
	}
}

// raft-wal 0.4.2 seals a full segment with an append, and notes the next one in
// its metadata afterwards. A process that is killed between the two leaves a log
// that is opened and read, and refuses every append for good. When a later version
// goes on, this test fails: then the choice of a log is to be looked at again.
func TestRaftWALRefusesToGoOnAfterAKillBetweenSealAndRotation(t *testing.T) {
	dir := t.TempDir()
	refused, err := sealedKill(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !errors.Is(refused, wal.ErrSealed) {
		t.Errorf("an append after the kill: %v; raft-wal goes on now", refused)
	}
	// Neither another opening nor another attempt mends it.
	again, err := open(walLog, dir, plantedSegment)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := again.StoreLogs([]*raft.Log{{Index: again.next, Term: term}}); !errors.Is(err, wal.ErrSealed) {
			t.Errorf("an append later: %v; raft-wal goes on now", err)
		}
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

// A log that refuses to go on is counted, and another one takes its place.
func TestUnusableLogsAreCounted(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s := Survival{Kills: 1}
	if err := s.kill(t.Context(), "/bin/false", walLog, dir, 0); err != nil || s.Unusable != 1 || s.Kills != 1 || !strings.Contains(s.Reason, "does not go on") {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the log is still there: %v", err)
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s = Survival{Kills: 1}
	if err := s.kill(t.Context(), program, boltdb, dir, 0); err != nil || !strings.Contains(s.Reason, "mkdir the folder: ") || strings.Contains(s.Reason, dir) {
		t.Errorf("%+v, %v", s, err)
	}
	if err := (&Survival{}).kill(t.Context(), "/bin/false", walLog, dir, 0); err == nil {
		t.Error("a program that never appended was taken for a log that was killed")
	}
}

// What the check of a killed log is for is found.
func TestLossIsFound(t *testing.T) {
	for _, kind := range []string{boltdb, walLog} {
		dir := t.TempDir()
		log, err := open(kind, dir, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := log.StoreLogs(log.batch(100, ownData)); err != nil {
			t.Fatal(err)
		}
		checked := func(acknowledged uint64) (s Survival, err error) {
			t.Helper()
			if err := log.Close(); err != nil {
				t.Fatal(err)
			}
			err = s.check(kind, dir, acknowledged)
			var failed error
			if log, failed = open(kind, dir, 0); failed != nil {
				t.Fatal(failed)
			}
			return s, err
		}
		if s, err := checked(90); err != nil || s != (Survival{Unacknowledged: 10}) {
			t.Errorf("%s, nothing lost: %+v, %v", kind, s, err)
		}
		if s, err := checked(120); err != nil || s != (Survival{Lost: 20}) {
			t.Errorf("%s, its end lost: %+v, %v", kind, s, err)
		}
		if err := log.DeleteRange(1, 50); err != nil {
			t.Fatal(err)
		}
		if s, err := checked(100); err != nil || s != (Survival{Lost: 50}) {
			t.Errorf("%s, its beginning lost: %+v, %v", kind, s, err)
		}
		if err := log.StoreLogs([]*raft.Log{{Index: 101, Term: term, Data: ownData(102)}}); err != nil {
			t.Fatal(err)
		}
		if s, err := checked(101); err == nil || s.Lost != 51 || !strings.Contains(err.Error(), "entry 101") {
			t.Errorf("%s, an entry of other data: %+v, %v", kind, s, err)
		}
		if err := log.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestWrongArgumentsAreRefused(t *testing.T) {
	if err := run(t.Context(), options{}); err == nil {
		t.Error("no folder, no error")
	}
	taken := t.TempDir()
	if err := run(t.Context(), options{dir: taken, out: os.DevNull}); err == nil {
		t.Error("a folder that is there was taken")
	}
	if _, err := take(t.Context(), options{only: []string{"append-2"}}); err == nil || !strings.Contains(err.Error(), "append-16") {
		t.Errorf("an unknown part: %v", err)
	}
	if _, err := open("lmdb", taken, 0); err == nil || !strings.Contains(err.Error(), walLog) {
		t.Errorf("an unknown log: %v", err)
	}
}

// Every part can be taken by its name, alone, and leaves nothing behind.
func TestPartsAreTakenAlone(t *testing.T) {
	dir := t.TempDir()
	out := filepath.Join(dir, "report.json")
	if err := run(t.Context(), options{dir: filepath.Join(dir, "logs"), out: out, quick: true, only: []string{"append-64", partSize}}); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	var report Report
	if err := json.Unmarshal(text, &report); err != nil {
		t.Fatal(err)
	}
	if len(report.Appends) != 1 || report.Appends[0].Shape != "64" || len(report.Appends[0].Rounds) != 3 || report.Size == nil || report.Open != nil || report.Kills != nil {
		t.Errorf("got %s", text)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || fmt.Sprint(left) != fmt.Sprint([]string{out}) {
		t.Errorf("left are %v, %v", left, err)
	}
}
