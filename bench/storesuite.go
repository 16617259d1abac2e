package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/balsa-run/balsa/chaos/load"
)

const (
	storeRounds    = 7
	storeKills     = 5
	storeKeys      = 1_000_000
	storeFill      = 256 // clients that write the keys
	storeValue     = 256 // bytes
	storeKey       = 16  // bytes
	watchStreams   = 10
	watchPerStream = 100
	watchPuts      = 300
	gapSettle      = time.Second
	restartLimit   = 8 * time.Second
)

// StoreGround is a Ground with what the measures of the store need besides.
type StoreGround struct {
	*Ground
	// Client is the program bench/client.
	Client string
	Peers  StorePeers
}

// Comparison is one question that Balsa and etcd answered in turns.
type Comparison struct {
	Name, Question string
	Unit           Unit
	Pairs          []Pair
	// Floor is what is promised of the ratio; nil: it is only told.
	Floor *Floor
	// Limit is what ours must stay under, in the unit; 0: none.
	Limit float64
	Notes []string
	// Err tells why the comparison came to nothing.
	Err error
}

// Verdict is "held" or "below floor", when the whole interval says so; else why it
// is neither.
func (c Comparison) Verdict() string {
	ratio, err := RatioOf(c.Pairs)
	switch {
	case c.Err != nil:
		return "not measured"
	case c.Limit > 0 && slices.ContainsFunc(c.Pairs, func(p Pair) bool { return p.Ours >= c.Limit }):
		return "below floor"
	case c.Floor != nil && err != nil:
		return "too few rounds to tell"
	case c.Floor != nil && c.Floor.Broken(ratio):
		return "below floor"
	case c.Floor != nil && !c.Floor.Held(ratio):
		return "not decided"
	case c.Floor != nil || c.Limit > 0:
		return "held"
	}
	return "-"
}

// StoreSuite is every comparison, taken in one lab in which both clusters run.
type StoreSuite struct {
	Ground *StoreGround
	// Only are names of comparisons, StoreNames lists them; none: all.
	Only []string
	// Quick takes few values, to see that everything works.
	Quick    bool
	Progress io.Writer
}

// The names of the comparisons, as far as they are not made of a number of clients.
const (
	watchName   = "watch-events"
	gapName     = "write-gap"
	memoryName  = "rss-many-keys"
	restartName = "restart-many-keys"
)

func putsName(clients int) string { return fmt.Sprintf("puts-%d", clients) }

func rangesName(kind string, clients int) string { return fmt.Sprintf("%s-ranges-%d", kind, clients) }

// StoreNames are the names of all comparisons.
func StoreNames() (all []string) {
	for _, clients := range storeClients() {
		all = append(all, putsName(clients), rangesName("linearizable", clients), rangesName("serializable", clients))
	}
	return append(all, watchName, gapName, memoryName, restartName)
}

func (s StoreSuite) wants(name string) bool { return len(s.Only) == 0 || slices.Contains(s.Only, name) }

// Run takes all comparisons. One that fails is part of the results; the error is
// of the lab.
func (s StoreSuite) Run(ctx context.Context) (all []Comparison, err error) {
	err = s.Ground.both(ctx, func(r *rivals) error {
		for _, take := range []func(context.Context, *rivals) []Comparison{s.puts, s.ranges, s.watch, s.gap, s.many} {
			taken := take(ctx, r)
			for _, c := range taken {
				fmt.Fprintf(s.Progress, "== %s: %s\n   %s\n", c.Name, c.Question, c.summary())
			}
			if all = append(all, taken...); ctx.Err() != nil {
				return context.Cause(ctx)
			}
		}
		return nil
	})
	return all, err
}

func (s StoreSuite) of(full, quick int) int {
	if s.Quick {
		return quick
	}
	return full
}

// compare takes rounds; value is what a round of one of the two came to.
func (s StoreSuite) compare(c Comparison, r *rivals, rounds int, value func(*rival) (float64, error)) Comparison {
	for round := range rounds {
		var pair Pair
		c.Err = r.inTurns(round, func(one *rival) error {
			got, err := value(one)
			if one == r.ours {
				pair.Ours = got
			} else {
				pair.Theirs = got
			}
			if err != nil {
				err = fmt.Errorf("%s, round %d: %w", one.name, round+1, err)
			}
			return err
		})
		if c.Err != nil {
			return c
		}
		c.Pairs = append(c.Pairs, pair)
	}
	return c
}

// rates compares what the tool says of a rate, with its percentiles as notes.
func (s StoreSuite) rates(ctx context.Context, c Comparison, r *rivals, clients int, args ...string) Comparison {
	p50, p99 := map[*rival][]float64{}, map[*rival][]float64{}
	c = s.compare(c, r, s.of(storeRounds, 3), func(one *rival) (float64, error) {
		report, err := r.tool(ctx, one, clients, args...)
		p50[one], p99[one] = append(p50[one], report.p50MS), append(p99[one], report.p99MS)
		return report.perSecond, err
	})
	if c.Err == nil && slices.Max(p50[r.ours]) > 0 {
		c.Notes = append(c.Notes, fmt.Sprintf("one took %.1f ms (p50) and %.1f ms (p99) of Balsa, %.1f ms and %.1f ms of etcd, in the median round",
			Median.Of(p50[r.ours]), Median.Of(p99[r.ours]), Median.Of(p50[r.theirs]), Median.Of(p99[r.theirs])))
	}
	return c
}

// totals are how many requests make some seconds of so many clients.
func (s StoreSuite) total(clients int, one, many int) int {
	total := many
	if clients == 1 {
		total = one
	}
	return s.of(total, total/10)
}

func storeClients() []int { return []int{1, 64, 256, 1000} }

func (s StoreSuite) puts(ctx context.Context, r *rivals) (all []Comparison) {
	for _, clients := range storeClients() {
		if !s.wants(putsName(clients)) {
			continue
		}
		c := Comparison{
			Name: putsName(clients), Unit: Unit{Name: "puts/s"},
			Question: fmt.Sprintf("How many puts a second of %d bytes to random keys do three members acknowledge to %d clients of etcd's benchmark tool?", storeValue, clients),
		}
		if clients >= 64 {
			c.Floor = &Floor{Ratio: 1.2}
		}
		all = append(all, s.rates(ctx, c, r, clients, "put", "--total", strconv.Itoa(s.total(clients, 2000, 20_000)),
			"--key-size", strconv.Itoa(storeKey), "--val-size", strconv.Itoa(storeValue), "--key-space-size", "10000"))
	}
	return all
}

func (s StoreSuite) ranges(ctx context.Context, r *rivals) (all []Comparison) {
	for _, one := range []*rival{r.ours, r.theirs} {
		if _, err := r.ctl(ctx, one, "put", "bench", strings.Repeat("v", storeValue)); err != nil {
			return []Comparison{{Name: "ranges", Err: err}}
		}
	}
	for _, kind := range []struct{ name, flag string }{{"linearizable", "l"}, {"serializable", "s"}} {
		for _, clients := range storeClients() {
			if !s.wants(rangesName(kind.name, clients)) {
				continue
			}
			c := Comparison{
				Name: rangesName(kind.name, clients), Unit: Unit{Name: "ranges/s"}, Floor: &Floor{Ratio: 1},
				Question: fmt.Sprintf("How many %s ranges of one key a second do three members answer to %d clients?", kind.name, clients),
			}
			all = append(all, s.rates(ctx, c, r, clients, "range", "bench", "--consistency", kind.flag, "--total", strconv.Itoa(s.total(clients, 5000, 50_000))))
		}
	}
	return all
}

func (s StoreSuite) watch(ctx context.Context, r *rivals) []Comparison {
	if !s.wants(watchName) {
		return nil
	}
	return []Comparison{s.rates(ctx, Comparison{
		Name: watchName, Unit: Unit{Name: "events/s"},
		Question: fmt.Sprintf("How many events a second reach %d watches of one key, in %d streams, while it is put as fast as it goes?", watchStreams*watchPerStream, watchStreams),
	}, r, 10, "watch", "--streams", strconv.Itoa(watchStreams), "--watch-per-stream", strconv.Itoa(watchPerStream),
		"--watched-key-total", "1", "--put-total", strconv.Itoa(s.of(watchPuts, watchPuts/10)))}
}

// gap kills the leader under a writer.
func (s StoreSuite) gap(ctx context.Context, r *rivals) []Comparison {
	if !s.wants(gapName) {
		return nil
	}
	return []Comparison{s.compare(Comparison{
		Name: gapName, Unit: milliseconds(), Floor: &Floor{Ratio: 0.6, AtMost: true},
		Question: "One client puts one key after the other, to each member in turn, and gives up on a put after 250 ms; the leader gets SIGKILL. How long from the signal to the first acknowledgement of a put that began after it?",
	}, r, s.of(storeKills, 3), func(one *rival) (float64, error) { return s.Ground.kill(ctx, r, one) })}
}

// kill times one leader's death, and brings the member back.
func (g *StoreGround) kill(ctx context.Context, r *rivals, one *rival) (float64, error) {
	out := filepath.Join(r.dir, one.name+"-gap.json")
	writes, err := r.operator.Start(one.name+"-gap", g.Client, "-out", out, "-address", one.endpoints(), "-ca", one.authority, "-cert", one.certificate, "-key", one.key, "etcd-writes")
	if err != nil {
		return 0, err
	}
	if err := pause(ctx, gapSettle); err != nil {
		return 0, errors.Join(err, writes.Kill())
	}
	leader, err := r.leader(ctx, one)
	if err != nil {
		return 0, errors.Join(err, writes.Kill())
	}
	at := time.Now()
	if err := leader.process().Kill(); err != nil {
		return 0, errors.Join(err, writes.Kill())
	}
	// Whoever has not written again by then failed.
	if err := errors.Join(pause(ctx, 5*gapSettle), writes.Stop(rivalPatience)); err != nil {
		return 0, err
	}
	var spans []load.Span
	if err := readJSON(out, &spans); err != nil {
		return 0, err
	}
	took, err := outage(spans, at)
	if err != nil {
		return 0, err
	}
	if err := leader.restart(); err != nil {
		return 0, err
	}
	return took, r.ready(ctx, one)
}

// many fills both with keys, reads their memory, and restarts a member of each.
func (s StoreSuite) many(ctx context.Context, r *rivals) []Comparison {
	if !s.wants(memoryName) && !s.wants(restartName) {
		return nil
	}
	keys := s.of(storeKeys, storeKeys/100)
	memory := Comparison{
		Name: memoryName, Unit: megabytes(), Floor: &Floor{Ratio: 1.5, AtMost: true},
		Question: fmt.Sprintf("How much resident memory (RSS) has a member with %d keys of %d bytes, written once, %v later? A round compares a member of each.", keys, storeValue, idleFor),
	}
	restart := Comparison{
		Name: restartName, Unit: milliseconds(), Limit: float64(restartLimit / time.Millisecond),
		Question: fmt.Sprintf("A member with %d keys of %d bytes gets SIGKILL and is started again. How long until it answers a linearizable read?", keys, storeValue),
	}
	for _, one := range []*rival{r.ours, r.theirs} {
		if _, err := r.tool(ctx, one, storeFill, "put", "--total", strconv.Itoa(keys), "--key-size", strconv.Itoa(storeKey), "--val-size", strconv.Itoa(storeValue),
			"--key-space-size", strconv.Itoa(keys), "--sequential-keys"); err != nil {
			memory.Err, restart.Err = err, err
			return []Comparison{memory, restart}
		}
	}
	ours, theirs, err := s.idleMemories(ctx, r)
	if memory.Err = err; err == nil {
		for i := range ours {
			memory.Pairs = append(memory.Pairs, Pair{Ours: ours[i], Theirs: theirs[i]})
		}
	}
	restart = s.compare(restart, r, s.of(storeKills, 3), func(one *rival) (float64, error) { return s.Ground.restartOne(ctx, r, one) })
	return []Comparison{memory, restart}
}

func (s StoreSuite) idleMemories(ctx context.Context, r *rivals) (ours, theirs []float64, err error) {
	if err := pause(ctx, idleFor); err != nil {
		return nil, nil, err
	}
	if ours, err = r.ours.memories(); err != nil {
		return nil, nil, err
	}
	theirs, err = r.theirs.memories()
	return ours, theirs, err
}

// restartOne kills a follower and times its way back.
func (g *StoreGround) restartOne(ctx context.Context, r *rivals, one *rival) (float64, error) {
	leader, err := r.leader(ctx, one)
	if err != nil {
		return 0, err
	}
	i := slices.IndexFunc(one.members, func(m rivalMember) bool { return m.host != leader.host })
	m := one.members[i]
	if err := m.process().Kill(); err != nil {
		return 0, err
	}
	began := time.Now()
	if err := m.restart(); err != nil {
		return 0, err
	}
	answered, err := g.awaitAnswer(ctx, r, one, m)
	if err != nil {
		return 0, err
	}
	return float64(answered.Sub(began)) / float64(time.Millisecond), r.ready(ctx, one)
}

// Versions are the peers' own words.
func (p StorePeers) Versions() string {
	text, err := os.ReadFile(p.Program("etcd-versions"))
	if err != nil {
		return "etcd of an unknown version"
	}
	return strings.Join(strings.Split(strings.TrimSpace(string(text)), "\n"), ", ")
}
