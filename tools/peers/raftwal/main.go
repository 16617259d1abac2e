//go:build linux

// Raftwal measures two logs for raft against each other, for `make bench-store` to
// choose by: the one that Balsa runs on (cluster/raftlog, which is raft-boltdb) and
// raft-wal. Both are used as raft uses them, on the same file system, every append
// synced; in each round both take their turn, another one first each time.
//
//	raftwal -dir FOLDER -out FILE [-quick] [-only append-16,truncating-16,open,size,kills]
//
// It refuses to say which is better: it reports every round as JSON. It knows
// nothing of power failures: a killed process loses nothing that the kernel has.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Turn is one round of both.
type Turn[T any] struct {
	Boltdb T `json:"boltdb"`
	Wal    T `json:"wal"`
}

func (t *Turn[T]) of(kind string) *T {
	if kind == boltdb {
		return &t.Boltdb
	}
	return &t.Wal
}

// Report is what was measured.
type Report struct {
	Appends []Appends `json:"appends,omitempty"`
	Open    *Opens    `json:"open,omitempty"`
	Size    *Sizes    `json:"size,omitempty"`
	Kills   *Kills    `json:"kills,omitempty"`
}

type options struct {
	dir, out, child string
	quick           bool
	only            []string
	// program is this one, which is started again to be killed.
	program string
}

func main() {
	var o options
	var only string
	flag.StringVar(&o.dir, "dir", "", "folder for the logs, which must not exist; it is gone at the end")
	flag.StringVar(&o.out, "out", "", "file for the report")
	flag.BoolVar(&o.quick, "quick", false, "few values, to see that everything works")
	flag.StringVar(&only, "only", "", "parts to take, separated by commas: "+strings.Join(partNames(), ", "))
	flag.StringVar(&o.child, "child", "", "boltdb or wal: append to the log in -dir until killed")
	flag.Parse()
	if only != "" {
		o.only = strings.Split(only, ",")
	}
	if err := run(context.Background(), o); err != nil {
		fmt.Fprintf(os.Stderr, "raftwal: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	if o.dir == "" {
		return errors.New("-dir: want a folder")
	}
	if o.child != "" {
		return appendUntilKilled(o.child, o.dir, os.Stdout)
	}
	if o.program, err = os.Executable(); err != nil {
		return err
	}
	if err := os.Mkdir(o.dir, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(o.dir)) }()
	report, err := take(ctx, o)
	if err != nil {
		return err
	}
	text, err := json.Marshal(report)
	if err != nil {
		return err
	}
	return os.WriteFile(o.out, append(text, '\n'), 0o644)
}

// take measures one part after the other, each on logs of its own, so that no
// figure depends on which parts ran before it.
func take(ctx context.Context, o options) (report Report, err error) {
	known := partNames()
	for _, name := range o.only {
		if !slices.Contains(known, name) {
			return report, fmt.Errorf("-only %s: there is no such part; there are %s", name, strings.Join(known, ", "))
		}
	}
	for _, name := range known {
		if len(o.only) > 0 && !slices.Contains(o.only, name) {
			continue
		}
		dir := filepath.Join(o.dir, name)
		if err := errors.Join(o.part(ctx, &report, name, dir), os.RemoveAll(dir)); err != nil {
			return report, fmt.Errorf("%s: %w", name, err)
		}
	}
	return report, nil
}

const (
	partOpen  = "open"
	partSize  = "size"
	partKills = "kills"
)

func partNames() (names []string) {
	for _, truncating := range []bool{false, true} {
		for _, s := range shapes() {
			names = append(names, s.part(truncating))
		}
	}
	return append(names, partOpen, partSize, partKills)
}

func (o options) part(ctx context.Context, report *Report, name, dir string) (err error) {
	// A segment of raft-wal holds some 200,000 entries. When it opens it reads the
	// last one, and it frees whole ones: the numbers leave one half full.
	switch name {
	case partOpen:
		report.Open, err = takeOpens(dir, o.of(7, 3), o.of(1_100_000, 20_000))
		return err
	case partSize:
		report.Size, err = takeSizes(dir, 3, o.of(300_000, 20_000), o.of(10_000, 1000))
		return err
	case partKills:
		report.Kills, err = takeKills(ctx, o.program, dir, o.of(20, 3), rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())))
		return err
	}
	for _, s := range shapes() {
		for _, truncating := range []bool{false, true} {
			if s.part(truncating) != name {
				continue
			}
			if s.Appends = o.of(s.Appends, s.Appends/30); truncating {
				s.Appends /= o.of(besideTruncation, 1)
			}
			appends, err := takeAppends(dir, s, truncating, o.of(7, 3), o.of(50_000, 5000))
			report.Appends = append(report.Appends, appends)
			return err
		}
	}
	return nil
}

func (o options) of(full, quick int) int {
	if o.quick {
		return quick
	}
	return full
}
