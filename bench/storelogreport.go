package bench

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// logTurn is one round of both logs.
type logTurn[T any] struct {
	Boltdb T `json:"boltdb"`
	Wal    T `json:"wal"`
}

// logReport is what tools/peers/raftwal writes.
type logReport struct {
	Appends []logAppends `json:"appends"`
	Open    *logOpens    `json:"open"`
	Size    *logSizes    `json:"size"`
	Kills   *LogKills    `json:"kills"`
}

type logAppends struct {
	Shape      string               `json:"shape"`
	Entries    int                  `json:"entries"`
	EntryBytes int                  `json:"entryBytes"`
	Truncated  int                  `json:"truncated"`
	Rounds     []logTurn[logSample] `json:"rounds"`
}

type logSample struct {
	PerSecond     float64 `json:"perSecond"`
	P50MS         float64 `json:"p50MS"`
	P99MS         float64 `json:"p99MS"`
	MaxMS         float64 `json:"maxMS"`
	BytesPerEntry float64 `json:"bytesPerEntry"`
	TruncationMS  float64 `json:"truncationMS"`
}

type logOpens struct {
	Entries int                `json:"entries"`
	Warm    []logTurn[float64] `json:"warmMS"`
	Cold    []logTurn[float64] `json:"coldMS"`
}

type logSizes struct {
	Entries   int              `json:"entries"`
	Kept      int              `json:"kept"`
	Full      []logTurn[int64] `json:"fullBytes"`
	Truncated []logTurn[int64] `json:"truncatedBytes"`
}

// LogKills is what each log held after SIGKILL.
type LogKills struct {
	Boltdb LogSurvival `json:"boltdb"`
	Wal    LogSurvival `json:"wal"`
	// Sealed is what raft-wal says to an append after a kill between the append that
	// fills a segment and the note of the next one; empty: it goes on.
	Sealed string `json:"sealed"`
}

// LogSurvival counts entries, and how often the log was of no use afterwards.
type LogSurvival struct {
	Kills          int    `json:"kills"`
	Acknowledged   uint64 `json:"acknowledged"`
	Lost           uint64 `json:"lost"`
	Unacknowledged uint64 `json:"unacknowledged"`
	Unusable       int    `json:"unusable"`
	Reason         string `json:"reason"`
}

// parseLogs knows every field: what it does not know, the peer and this reader do
// not mean alike.
func parseLogs(text []byte) (report logReport, err error) {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&report); err != nil {
		return report, fmt.Errorf("report of the logs: %w", err)
	}
	return report, nil
}

// comparisons are what a part of the peer came to; failed says that it did not.
func (r logReport) comparisons(part logPart, failed error) (all []LogComparison) {
	switch {
	case failed != nil:
	case part.name == openPart && r.Open != nil:
		return r.Open.comparisons()
	case part.name == sizePart && r.Size != nil:
		return r.Size.comparisons()
	case len(r.Appends) == 1 && appendPart+r.Appends[0].Shape == part.name && r.Appends[0].Truncated == 0:
		return r.Appends[0].comparisons()
	case len(r.Appends) == 1 && oldPart+r.Appends[0].Shape == part.name && r.Appends[0].Truncated > 0:
		return r.Appends[0].beside()
	default:
		failed = errors.New("the report has no such part")
	}
	for _, name := range part.measures {
		all = append(all, LogComparison{Comparison: Comparison{Name: name, Question: "What " + name + " asks was not found out.", Err: failed}})
	}
	return all
}

func (a logAppends) batch() string {
	if a.Entries == 1 {
		return fmt.Sprintf("one entry of %d bytes", a.EntryBytes)
	}
	return fmt.Sprintf("%d entries of %d bytes", a.Entries, a.EntryBytes)
}

func (a logAppends) comparisons() []LogComparison {
	return []LogComparison{
		{Comparison: Comparison{
			Name: appendName + a.Shape, Unit: Unit{Name: "appends/s"}, Pairs: pairsOf(a.Rounds, func(s logSample) float64 { return s.PerSecond }),
			Question: fmt.Sprintf("How many appends a second of %s does the log take, one after the other, each on the disk before the next?", a.batch()),
			Notes:    []string{a.percentiles()},
		}},
		{Less: true, Comparison: Comparison{
			Name: bytesName + a.Shape, Unit: Unit{Name: "bytes/entry"}, Pairs: pairsOf(a.Rounds, func(s logSample) float64 { return s.BytesPerEntry }),
			Question: fmt.Sprintf("How many bytes for an entry does the kernel get to write (write_bytes of /proc/PID/io, so without the file system's journal), in appends of %s?", a.batch()),
		}},
	}
}

// beside is what a truncation meanwhile makes of the appends.
func (a logAppends) beside() []LogComparison {
	truncation := func(s logSample) float64 { return s.TruncationMS }
	ours, theirs := medians(a.Rounds, truncation)
	return []LogComparison{{Comparison: Comparison{
		Name: oldName + a.Shape, Unit: Unit{Name: "appends/s"}, Pairs: pairsOf(a.Rounds, func(s logSample) float64 { return s.PerSecond }),
		Question: fmt.Sprintf("The same of %s, while %d old entries are deleted, as after a snapshot. How many appends a second?", a.batch(), a.Truncated),
		Notes:    []string{a.percentiles(), fmt.Sprintf("the deletion took %.1f ms of raft-boltdb, %.1f ms of raft-wal, in the median round", ours, theirs)},
	}}}
}

func (a logAppends) percentiles() string {
	p50, theirP50 := medians(a.Rounds, func(s logSample) float64 { return s.P50MS })
	p99, theirP99 := medians(a.Rounds, func(s logSample) float64 { return s.P99MS })
	return fmt.Sprintf("one took %.2f ms (p50) and %.2f ms (p99) of raft-boltdb, %.2f ms and %.2f ms of raft-wal, in the median round", p50, p99, theirP50, theirP99)
}

func (o logOpens) comparisons() []LogComparison {
	same := func(ms float64) float64 { return ms }
	question := fmt.Sprintf("How long does it take to open a log of %d entries of 300 bytes, written %d at once, until its last entry is read", o.Entries, logFillAt)
	return []LogComparison{
		{Less: true, Comparison: Comparison{Name: openName + "warm", Unit: fineMilliseconds(), Pairs: pairsOf(o.Warm, same), Question: question + ", with its files in the kernel's memory?"}},
		{Less: true, Comparison: Comparison{Name: openName + "cold", Unit: fineMilliseconds(), Pairs: pairsOf(o.Cold, same), Question: question + ", with its files on the disk alone?"}},
	}
}

// logFillAt is how many entries the peer appends at once where it does not count.
const logFillAt = 1024

func (s logSizes) comparisons() []LogComparison {
	megabytesOf := func(n int64) float64 { return float64(n) / 1e6 }
	return []LogComparison{
		{Less: true, Comparison: Comparison{Name: sizeName + "full", Unit: megabytes(), Pairs: pairsOf(s.Full, megabytesOf),
			Question: fmt.Sprintf("How much of the disk do the files of a log occupy that was given %d entries of 300 bytes, 64 at once?", s.Entries)}},
		{Less: true, Comparison: Comparison{Name: sizeName + "truncated", Unit: megabytes(), Pairs: pairsOf(s.Truncated, megabytesOf),
			Question: fmt.Sprintf("How much when all but the newest %d were deleted again? raft-boltdb's file never shrinks; raft-wal frees whole segments of 64 MiB.", s.Kept)}},
	}
}

func pairsOf[T any](rounds []logTurn[T], value func(T) float64) (pairs []Pair) {
	for _, r := range rounds {
		pairs = append(pairs, Pair{Ours: value(r.Boltdb), Theirs: value(r.Wal)})
	}
	return pairs
}

// medians of both. There must be a round.
func medians[T any](rounds []logTurn[T], value func(T) float64) (ours, theirs float64) {
	a, b := Comparison{Pairs: pairsOf(rounds, value)}.sides()
	return Median.Of(a), Median.Of(b)
}
