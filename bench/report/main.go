// Report runs the benchmarks and writes docs/benchmarks.md: what `make bench`
// does; with -suite pods docs/benchmarks-pods.md: what `make bench-pods` does; with
// -suite network docs/benchmarks-network.md: what `make bench-network` does; with
// -suite store the part of docs/benchmarks.md that compares the store with etcd:
// what `make bench-store` does. It needs root.
//
//	go run ./bench/report [-suite all|pods|network|store] [-quick] [-only NAME,NAME] [-out FILE] [-balsa FILE]
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
	suite           string
	peers           string
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
	flag.StringVar(&o.suite, "suite", suiteAll, "all, pods, network or store")
	flag.StringVar(&o.peers, "peers", ".tools/peers", "folder for what pods and network are measured against")
	flag.StringVar(&o.out, "out", "", "file to write (default: docs/benchmarks.md, docs/benchmarks-pods.md or docs/benchmarks-network.md after a full run, else standard output)")
	flag.StringVar(&o.dir, "dir", "/tmp/balsa-bench", "folder for everything that the benchmarks write")
	flag.StringVar(&o.balsa, "balsa", "", "program to measure instead of the one that is built")
	flag.Parse()
	if only != "" {
		o.only = strings.Split(only, ",")
	}
	if o.out == "" && !o.quick && only == "" {
		o.out = map[string]string{suiteAll: "docs/benchmarks.md", suitePods: "docs/benchmarks-pods.md", suiteNetwork: "docs/benchmarks-network.md", suiteStore: "docs/benchmarks.md"}[o.suite]
	}
	return o
}

// The suites.
const (
	suiteAll     = "all"
	suitePods    = "pods"
	suiteNetwork = "network"
	suiteStore   = "store"
)

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
	if o.suite == suiteStore {
		return store(ctx, o, ground)
	}
	measures, document, err := suite(ctx, o, programs, ground)
	if err != nil {
		return err
	}
	if measures, err = bench.Only(measures, o.only); err != nil {
		return err
	}
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

// suite is the measures that were asked for, and the document's beginning.
func suite(ctx context.Context, o options, programs stage.Programs, ground *bench.Ground) ([]bench.Measure, bench.Document, error) {
	document := bench.Document{Title: "Benchmarks", Maker: "make bench", Date: time.Now(), Quick: o.quick}
	switch o.suite {
	case suiteAll:
		return bench.Suite(ground, o.quick), document, nil
	case suitePods:
		pods, err := podGround(ctx, o, programs, ground)
		if err != nil {
			return nil, document, err
		}
		document.Title, document.Maker, document.Preface = "Benchmarks of pods", "make bench-pods", bench.PodPreface(pods.Peers.Versions())
		return bench.PodSuite(pods, o.quick), document, nil
	case suiteNetwork:
		network, err := networkGround(ctx, o, ground)
		if err != nil {
			return nil, document, err
		}
		document.Title, document.Maker, document.Preface = "Benchmarks of the network", "make bench-network", bench.NetworkPreface(network.Peers.NetworkVersions())
		return bench.NetworkSuite(network, o.quick), document, nil
	}
	return nil, document, fmt.Errorf("-suite %s: want %s, %s, %s or %s", o.suite, suiteAll, suitePods, suiteNetwork, suiteStore)
}

// shell is the program of the container that others are run in.
const shell = "/bin/busybox"

// podGround makes and fetches what the measures of pods need. Without peers, for
// example because there is no network, Balsa is measured alone.
func podGround(ctx context.Context, o options, programs stage.Programs, ground *bench.Ground) (*bench.PodGround, error) {
	peers, err := fetchPeers(ctx, o)
	if err != nil {
		return nil, err
	}
	bin := filepath.Join(ground.Dir, "bin")
	g := &bench.PodGround{
		Ground: ground, Client: filepath.Join(bin, "bench-client"), Peers: peers,
		EchoProgram: filepath.Join(filepath.Dir(programs.Echo), "echo"), Shell: shell, ShellImage: filepath.Join(bin, "busybox.tar"),
	}
	return g, errors.Join(
		buildClient(ctx, g.Client),
		command(ctx, "go", "run", "./examples/image", "-name", "balsa/busybox:1", "-out", g.ShellImage, shell),
		// Whoever pulls trusts the registry of the lab.
		os.Setenv("SSL_CERT_FILE", g.Authority()))
}

// networkGround makes and fetches what the measures of the network need. Without
// peers Balsa is measured alone.
func networkGround(ctx context.Context, o options, ground *bench.Ground) (*bench.NetworkGround, error) {
	peers, err := fetchPeers(ctx, o)
	if err != nil {
		return nil, err
	}
	g := &bench.NetworkGround{Ground: ground, Client: filepath.Join(ground.Dir, "bin", "bench-client"), Peers: peers}
	return g, buildClient(ctx, g.Client)
}

// fetchPeers brings what the suite measures Balsa against; that it cannot is said
// in the peers.
func fetchPeers(ctx context.Context, o options) (bench.Peers, error) {
	dir, err := filepath.Abs(o.peers)
	peers := bench.Peers{Dir: dir}
	if failed := command(ctx, "tools/peers/fetch", dir, o.suite); failed != nil {
		peers.Missing = fmt.Errorf("the peers are not there: %w", failed)
		fmt.Fprintf(os.Stderr, "bench: %v\n", peers.Missing)
	}
	return peers, err
}

func buildClient(ctx context.Context, to string) error {
	return command(ctx, "go", "build", "-trimpath", "-o", to, "./bench/client")
}

func command(ctx context.Context, program string, args ...string) error {
	if out, err := exec.CommandContext(ctx, program, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, out)
	}
	return nil
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
	return os.WriteFile(out, []byte(bench.KeepStore(out, text)), 0o644)
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
