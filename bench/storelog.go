package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// LogComparison is one question that raft-boltdb (ours) and raft-wal (theirs)
// answered in turns.
type LogComparison struct {
	Comparison
	// Less: less is better.
	Less bool
}

// Better names the log that the whole interval speaks for.
func (c LogComparison) Better() string {
	ratio, err := RatioOf(c.Pairs)
	switch {
	case c.Err != nil:
		return "not measured"
	case err != nil:
		return "too few rounds to tell"
	case ratio.Low <= 1 && ratio.High >= 1:
		return "not decided"
	case (ratio.High < 1) == c.Less:
		return logOurs
	}
	return logTheirs
}

const (
	logOurs   = "raft-boltdb"
	logTheirs = "raft-wal"

	// Names of measures, or how they begin; log-kills has no ratio.
	logName    = "log-"
	appendName = "log-append-"
	bytesName  = "log-append-bytes-"
	oldName    = "log-append-truncating-"
	openName   = "log-open-"
	sizeName   = "log-size-"
	killsName  = "log-kills"

	// Names of the peer's parts, or how they begin.
	appendPart = "append-"
	oldPart    = "truncating-"
	openPart   = "open"
	sizePart   = "size"
	killsPart  = "kills"
)

// logShapes are the batches that the peer knows.
func logShapes() []string { return []string{"1", "16", "64", "256", "wide"} }

// logParts are the peer's parts in the order of the document, each with the
// measures that are taken from it.
func logParts() (parts []logPart) {
	for _, shape := range logShapes() {
		parts = append(parts, logPart{appendPart + shape, []string{appendName + shape, bytesName + shape}})
	}
	for _, shape := range logShapes() {
		parts = append(parts, logPart{oldPart + shape, []string{oldName + shape}})
	}
	return append(parts, logPart{openPart, []string{openName + "warm", openName + "cold"}},
		logPart{sizePart, []string{sizeName + "full", sizeName + "truncated"}}, logPart{killsPart, []string{killsName}})
}

type logPart struct {
	name     string
	measures []string
}

// IsOfLog tells whether a measure's name is one of the log's.
func IsOfLog(name string) bool { return strings.HasPrefix(name, logName) }

// LogSuite compares the two logs, without a cluster: the peer opens both in its
// own process.
type LogSuite struct {
	// Program is tools/peers/raftwal, built; Missing says why it is not there.
	Program string
	Missing error
	// Dir lies on the disk in question.
	Dir string
	// Only are names of measures; none: all.
	Only     []string
	Quick    bool
	Progress io.Writer
}

// Run takes all comparisons. One that fails is part of the results; the error is
// of what was asked for.
func (s LogSuite) Run(ctx context.Context) (LogDocument, error) {
	d := LogDocument{Versions: s.versions()}
	var known []string
	for _, part := range logParts() {
		known = append(known, part.measures...)
	}
	for _, name := range s.Only {
		if !slices.Contains(known, name) {
			return d, fmt.Errorf("-only %s: there is no such measure of the log; there are %s", name, strings.Join(known, ", "))
		}
	}
	for _, part := range logParts() {
		if len(s.Only) > 0 && !slices.ContainsFunc(part.measures, func(name string) bool { return slices.Contains(s.Only, name) }) {
			continue
		}
		report, err := s.take(ctx, part)
		if ctx.Err() != nil {
			return d, context.Cause(ctx)
		}
		s.add(&d, part, report, err)
	}
	return d, nil
}

func (s LogSuite) add(d *LogDocument, part logPart, report logReport, err error) {
	if part.name == killsPart {
		d.Kills, d.KillsErr = report.Kills, err
		fmt.Fprintf(s.Progress, "== %s\n   %s\n", killsName, d.kills())
		return
	}
	for _, c := range report.comparisons(part, err) {
		if len(s.Only) > 0 && !slices.Contains(s.Only, c.Name) {
			continue
		}
		d.Results = append(d.Results, c)
		fmt.Fprintf(s.Progress, "== %s: %s\n   %s\n", c.Name, c.Question, c.summary())
	}
}

// take has the peer measure one part in a process of its own.
func (s LogSuite) take(ctx context.Context, part logPart) (report logReport, err error) {
	if s.Missing != nil {
		return report, s.Missing
	}
	out := filepath.Join(s.Dir, "raftwal.json")
	args := []string{"-dir", filepath.Join(s.Dir, "raftwal"), "-out", out, "-only", part.name}
	if s.Quick {
		args = append(args, "-quick")
	}
	if err := errors.Join(os.RemoveAll(filepath.Join(s.Dir, "raftwal")), os.MkdirAll(s.Dir, 0o700)); err != nil {
		return report, err
	}
	if said, err := exec.CommandContext(ctx, s.Program, args...).CombinedOutput(); err != nil {
		return report, fmt.Errorf("%s: %w: %s", filepath.Base(s.Program), err, said)
	}
	text, err := os.ReadFile(out)
	if err != nil {
		return report, err
	}
	report, err = parseLogs(text)
	return report, errors.Join(err, os.Remove(out))
}

// versions are the peer's own words.
func (s LogSuite) versions() string {
	text, err := os.ReadFile(s.Program + "-versions")
	if err != nil {
		return "raft-wal of an unknown version"
	}
	return strings.Join(strings.Split(strings.TrimSpace(string(text)), "\n"), ", ")
}
