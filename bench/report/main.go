// Report runs the benchmarks and writes docs/benchmarks.md: what `make bench`
// does. It needs root.
//
//	go run ./bench/report [-quick] [-only NAME,NAME] [-out FILE] [-balsa FILE]
//
// A run that is quick or of some measures only prints the document instead,
// unless -out is given.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/balsa-run/balsa/bench"
	"github.com/balsa-run/balsa/chaos/stage"
)

type options struct {
	quick           bool
	only            []string
	out, dir, balsa string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, parse()); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		stop()
		os.Exit(1)
	}
}

func parse() options {
	var o options
	var only string
	flag.BoolVar(&o.quick, "quick", false, "few values, to see that everything works")
	flag.StringVar(&only, "only", "", "names of measures, separated by commas")
	flag.StringVar(&o.out, "out", "", "file to write (default: docs/benchmarks.md after a full run, else standard output)")
	flag.StringVar(&o.dir, "dir", "/tmp/balsa-bench", "folder for everything that the benchmarks write")
	flag.StringVar(&o.balsa, "balsa", "", "program to measure instead of the one that is built")
	flag.Parse()
	if only != "" {
		o.only = strings.Split(only, ",")
	}
	if o.out == "" && !o.quick && only == "" {
		o.out = "docs/benchmarks.md"
	}
	return o
}

func run(ctx context.Context, o options) (err error) {
	programs, err := stage.Build(ctx, ".")
	if err != nil {
		return err
	}
	if o.balsa != "" {
		programs.Balsa = o.balsa
	}
	defer func() { err = errors.Join(err, os.RemoveAll(o.dir)) }()
	ground, err := bench.Take(programs, "bench", o.dir)
	if err != nil {
		return err
	}
	measures, err := bench.Only(bench.Suite(ground, o.quick), o.only)
	if err != nil {
		return err
	}
	document := bench.Document{Date: time.Now(), Quick: o.quick}
	if document.Machine, err = bench.ThisMachine(ground.Dir); err != nil {
		return err
	}
	if document.Version, err = version(ctx, ground.Programs.Balsa); err != nil {
		return err
	}
	if document.Results, err = bench.Run(ctx, measures, os.Stderr); err != nil {
		return err
	}
	return errors.Join(write(o.out, document), failures(document))
}

// version is what the program says of itself.
func version(ctx context.Context, program string) (string, error) {
	text, err := exec.CommandContext(ctx, program, "version", "--client").Output()
	line, _, _ := strings.Cut(string(text), "\n")
	return strings.TrimPrefix(line, "client: "), err
}

func write(out string, document bench.Document) error {
	text := document.Markdown()
	if out == "" {
		_, err := os.Stdout.WriteString(text)
		return err
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	return os.WriteFile(out, []byte(text), 0o644)
}

// failures names the measures that came to nothing; a target that is missed is
// not one.
func failures(document bench.Document) error {
	var failed []error
	for _, r := range document.Results {
		if r.Err != nil {
			failed = append(failed, fmt.Errorf("%s was not measured: %w", r.Name, r.Err))
		}
	}
	return errors.Join(failed...)
}
