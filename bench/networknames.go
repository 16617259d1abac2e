package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/balsa-run/balsa/chaos/world/host"
)

// Of the load of questions.
const (
	nameServices  = 10_000
	queryClients  = 16
	queryRound    = 32_000
	resolverFor   = 20 * time.Second // to begin to answer
	resolverPause = 50 * time.Millisecond
)

// The resolvers, in the order of the document, and where each listens.
func resolvers() []resolver {
	return []resolver{
		{name: "dns", address: "127.0.0.1:1052"},
		{name: "coredns-hosts", address: "127.0.0.1:1054", peer: true},
		{name: "coredns-file", address: "127.0.0.1:1053", peer: true},
	}
}

type resolver struct {
	name, address string
	peer          bool
}

const corefile = `cluster.local:1053 {
  bind 127.0.0.1
  file %[1]s.zone cluster.local
}
cluster.local:1054 {
  bind 127.0.0.1
  hosts %[1]s.hosts cluster.local {
    ttl 30
    reload 0
  }
}
`

// names asks Balsa's resolver and CoreDNS in turns for the same names.
func (g *NetworkGround) names(rounds int) []Measure {
	t := newTrial(func(ctx context.Context, t *takings) error {
		return g.lab(func(lab *host.Lab) error {
			h, err := lab.AddHost("dns")
			if err != nil {
				return err
			}
			if err := g.startOurs(ctx, h); err != nil {
				return err
			}
			missing := g.startCoreDNS(ctx, h)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return g.queryRounds(ctx, h, t, rounds, missing)
		})
	})
	var measures []Measure
	for _, r := range resolvers() {
		who := map[string]string{"dns": "Balsa's resolver", "coredns-hosts": "CoreDNS with its plugin `hosts`", "coredns-file": "CoreDNS with its plugin `file`"}[r.name]
		load := fmt.Sprintf("It listens on loopback and has the names of %d services; %d clients on the same machine ask by UDP for the addresses of some by chance, each of which waits for its answer.", nameServices, queryClients)
		measures = append(measures,
			part{t, r.name + "-queries", "How many queries a second does " + who + " answer? " + load + " A value is a round of " + strconv.Itoa(queryRound) + "; the rounds of all resolvers alternate.", queriesPerSecond(), nil},
			part{t, r.name + "-latency", "How long does each of these answers of " + who + " take?", fineMilliseconds(), nil})
	}
	return measures
}

func (g *NetworkGround) queryRounds(ctx context.Context, h *host.Host, t *takings, rounds int, missing error) error {
	for round := range rounds {
		var turns []func() error
		for _, r := range resolvers() {
			if !r.peer || missing == nil {
				turns = append(turns, func() error { return g.queries(ctx, h, t, r) })
			}
		}
		if err := inTurn(round, turns...); err != nil {
			return err
		}
	}
	for _, r := range resolvers() {
		for _, what := range []string{"-queries", "-latency"} {
			if r.peer && missing != nil {
				t.failed[r.name+what] = missing
			}
			if r.peer {
				t.compare("dns"+what, r.name+what)
			}
		}
	}
	return nil
}

func (g *NetworkGround) queries(ctx context.Context, h *host.Host, t *takings, r resolver) error {
	var report answered
	err := g.ask(ctx, h, &report, "-address", r.address, "-services", strconv.Itoa(nameServices), "-count", strconv.Itoa(queryRound), "-size", strconv.Itoa(queryClients), "queries")
	if err != nil {
		return fmt.Errorf("%s: %w", r.name, err)
	}
	t.add(r.name+"-queries", report.rate())
	t.add(r.name+"-latency", report.TookMS...)
	return nil
}

func (g *NetworkGround) startOurs(ctx context.Context, h *host.Host) error {
	ours := resolvers()[0]
	process, err := h.Start("resolver", g.Client, "-address", ours.address, "-services", strconv.Itoa(nameServices), "-endpoints", strconv.Itoa(endpointsEach), "resolver")
	if err != nil {
		return err
	}
	return g.answers(ctx, h, process, ours.address)
}

func (g *NetworkGround) startCoreDNS(ctx context.Context, h *host.Host) error {
	if g.Peers.Missing != nil {
		return g.Peers.Missing
	}
	files := filepath.Join(h.Dir, "names")
	if _, err := h.Run(ctx, g.Client, "-out", files, "-services", strconv.Itoa(nameServices), "zone-files"); err != nil {
		return err
	}
	config := filepath.Join(h.Dir, "Corefile")
	if err := os.WriteFile(config, fmt.Appendf(nil, corefile, files), 0o644); err != nil {
		return err
	}
	process, err := h.Start("coredns", g.Peers.program("coredns"), "-conf", config)
	if err != nil {
		return err
	}
	for _, r := range resolvers() {
		if r.peer {
			err = errors.Join(err, g.answers(ctx, h, process, r.address))
		}
	}
	return err
}

// answers waits until a resolver knows all the names.
func (g *NetworkGround) answers(ctx context.Context, h *host.Host, process *host.Process, address string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, resolverFor, fmt.Errorf("%s at %s has not answered within %v", process.Name, address, resolverFor))
	defer cancel()
	for {
		err := g.ask(ctx, h, &answered{}, "-address", address, "-services", strconv.Itoa(nameServices), "-count", strconv.Itoa(nameServices), "-size", "1", "queries")
		if err == nil {
			return nil
		}
		if !process.Running() {
			return fmt.Errorf("%s has ended: %s", process.Name, process.Tail(5))
		}
		if pause(ctx, resolverPause) != nil {
			return errors.Join(context.Cause(ctx), err)
		}
	}
}
