package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/balsa-run/balsa/chaos/world/host"
)

// NetworkGround is a Ground with what the measures of the network need besides.
type NetworkGround struct {
	*Ground
	// Client is the program bench/client.
	Client string
	Peers  Peers
}

// NetworkVersions says what the peers of the network's measures are, for the
// document.
func (p Peers) NetworkVersions() string {
	text, err := os.ReadFile(filepath.Join(p.Dir, "network-versions"))
	if err != nil {
		return "no peers"
	}
	return strings.Join(strings.Fields(string(text)), ", ")
}

// NetworkPreface says in the document what is compared with what.
func NetworkPreface(peers string) string {
	return "Rules and names are made by the agent's own packages, in a program of the benchmark that is put into a network namespace; the other figures are of\n" +
		"whole clusters. Measures that begin with `kubeproxy-` are of rules built the way kube-proxy's nftables mode builds them, a chain a service and\n" +
		"a chain an endpoint, by a program of ours without kube-proxy's bookkeeping: its time is that of writing the rules down and of the kernel. They\n" +
		"go to the kernel by `nft -f -` as kube-proxy's do, and by the library that Balsa uses; which is faster is told. Measures that begin with\n" +
		"`coredns-` are of CoreDNS, built through the Go module proxy, with the same names in its plugins `file` and `hosts`: the plugin `kubernetes`\n" +
		"needs the API server of Kubernetes. Rounds alternate. Peers: " + peers + "."
}

// NetworkSuite is every measure of the network, in the order of the document. A
// quick one takes few values.
func NetworkSuite(ground *NetworkGround, quick bool) []Measure {
	of := func(full, few int) int {
		if quick {
			return few
		}
		return full
	}
	var all []Measure
	all = append(all, ground.rules(1000, of(5, 1), of(100, 5))...)
	all = append(all, ground.rules(10_000, of(3, 1), of(100, 5))...)
	all = append(all, ground.ways(of(100, 5), of(10, 1))...)
	all = append(all, ground.many(manySizes{services: 10_000, flips: of(100, 5), readings: of(10, 1), deletions: of(10, 1)})...)
	return append(all, ground.names(of(10, 1))...)
}

// endpointsEach is how many endpoints each of the services has.
const endpointsEach = 3

// waysToKernel are those of the peer's rules.
func waysToKernel() []string { return []string{"nft", "netlink"} }

// ask plays the client on a host.
func (g *NetworkGround) ask(ctx context.Context, h *host.Host, into any, args ...string) error {
	return g.play(ctx, h, into, g.Client, args...)
}

// ruleTimes are what Balsa's and the peer's programs report of rules.
type ruleTimes struct {
	FullMS    []float64 `json:"fullMS"`
	ChangeMS  []float64 `json:"changeMS"`
	SettledMS []float64 `json:"settledMS"`
	Elements  int       `json:"elements"`
}

// fullsPerRound is how often Balsa's rules are made in a round of one of the
// peer's, which take long.
const fullsPerRound = 3

// rules makes the rules of so many services, Balsa's and kube-proxy's in turns,
// each in a namespace of its own.
func (g *NetworkGround) rules(services, rounds, changes int) []Measure {
	name := func(what string) string { return fmt.Sprintf("%s-%d", what, services) }
	t := newTrial(func(ctx context.Context, t *takings) error {
		return g.lab(func(lab *host.Lab) error {
			ours, err := lab.AddHost("ours")
			if err != nil {
				return err
			}
			theirs, err := lab.AddHost("theirs")
			if err != nil {
				return err
			}
			peers := map[string]error{"nft": g.Peers.Missing, "netlink": g.Peers.Missing}
			for round := range rounds {
				turns := []func() error{func() error { return g.ourRules(ctx, ours, t, services, changes, name) }}
				for _, by := range waysToKernel() {
					turns = append(turns, func() error {
						if peers[by] == nil {
							peers[by] = g.theirRules(ctx, theirs, t, by, services, changes, name)
						}
						return ctx.Err()
					})
				}
				if err := inTurn(round, turns...); err != nil {
					return err
				}
			}
			for _, what := range []string{"services", "endpoint-change"} {
				for _, by := range waysToKernel() {
					peer := name("kubeproxy-" + by + "-" + what)
					if err := peers[by]; err != nil {
						t.failed[peer] = err
					}
					t.compare(name(what), peer)
				}
				t.faster(name(what), name("kubeproxy-nft-"+what), name("kubeproxy-netlink-"+what))
			}
			return nil
		})
	})
	return ruleMeasures(t, services, name)
}

func (g *NetworkGround) ourRules(ctx context.Context, h *host.Host, t *takings, services, changes int, name func(string) string) error {
	var report ruleTimes
	err := g.ask(ctx, h, &report, "-address", h.Address, "-services", strconv.Itoa(services), "-endpoints", strconv.Itoa(endpointsEach),
		"-count", strconv.Itoa(fullsPerRound), "-changes", strconv.Itoa(changes), "rules")
	t.add(name("services"), report.FullMS...)
	t.add(name("endpoint-change"), report.ChangeMS...)
	t.add(name("endpoint-change-settled"), report.SettledMS...)
	return err
}

func (g *NetworkGround) theirRules(ctx context.Context, h *host.Host, t *takings, by string, services, changes int, name func(string) string) error {
	var report ruleTimes
	err := g.play(ctx, h, &report, g.Peers.program("kubeproxy"), "-services", strconv.Itoa(services), "-endpoints", strconv.Itoa(endpointsEach),
		"-changes", strconv.Itoa(min(changes, changesOfPeer)), "-by", by)
	t.add(name("kubeproxy-"+by+"-services"), report.FullMS...)
	t.add(name("kubeproxy-"+by+"-endpoint-change"), report.ChangeMS...)
	return err
}

// faster says on a measure which way to the kernel is the better one for its peer.
func (t *takings) faster(name, one, other string) {
	a, b := t.samples[one].Values, t.samples[other].Values
	if len(a) == 0 || len(b) == 0 || t.failed[one] != nil || t.failed[other] != nil {
		return
	}
	if Median.Of(b) < Median.Of(a) {
		one = other
	}
	t.note(name, "of the peer's two ways to the kernel, %s was the faster one", one)
}

// changesOfPeer in a round are enough; each takes hundreds of milliseconds.
const changesOfPeer = 20

func ruleMeasures(t *trial, services int, name func(string) string) []Measure {
	full, change := []Target(nil), []Target(nil)
	if services == 10_000 {
		full, change = []Target{{Of: Median, Under: 500}}, []Target{{Of: Median, Under: 1}}
	}
	size := fmt.Sprintf("%d services of %d endpoints", services, endpointsEach)
	measures := []Measure{
		part{t, name("services"), "In an empty network namespace: how long from the API's objects of " + size + ", the plan included, until the kernel has all rules and nothing is left to do?", milliseconds(), full},
		part{t, name("endpoint-change"), "With " + size + ": how long from an EndpointSlice of which one endpoint is another one, the plan included, until new connections go to it? Without the time in which the agent gathers changes.", fineMilliseconds(), change},
		part{t, name("endpoint-change-settled"), "Of the same changes: how long until also no packet follows the rules before, and what was replaced is gone? It contains a grace period of the kernel, on which the agent's acknowledgement to those who drain a pod stands.", fineMilliseconds(), nil},
	}
	for _, by := range waysToKernel() {
		how := map[string]string{"nft": "by `nft -f -`", "netlink": "by the library google/nftables"}[by]
		measures = append(measures,
			part{t, name("kubeproxy-" + by + "-services"), "Rules as kube-proxy's, " + how + ": how long until the kernel has those of " + size + ", after the part that does not depend on services? In turns with " + name("services") + ".", milliseconds(), nil},
			part{t, name("kubeproxy-" + by + "-endpoint-change"), "Rules as kube-proxy's, " + how + ", of " + size + ": how long until the kernel has those of a service of which one endpoint is another one? In turns with " + name("endpoint-change") + ".", fineMilliseconds(), nil})
	}
	return measures
}

func fineMilliseconds() Unit { return Unit{Name: "ms", Decimals: 3} }
