package bench

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
)

// LogDocument is the comparison of the logs, a section of the store's part.
type LogDocument struct {
	Versions string
	Results  []LogComparison
	// Kills is nil unless the logs were killed.
	Kills    *LogKills
	KillsErr error
}

// logWorth is what the other log would have to bring: that of the floor of puts.
const logWorth = 1.2

// logAppendsOfPut is how often a put waits for an append: the leader's, then the
// fastest follower's, which gets the entry when the leader has it on its disk.
const logAppendsOfPut = 2

func (d LogDocument) empty() bool { return len(d.Results) == 0 && d.Kills == nil && d.KillsErr == nil }

// Markdown renders the section; puts are the comparisons of the store, of which it
// needs those of one client.
func (d LogDocument) Markdown(puts []Comparison) string {
	if d.empty() {
		return ""
	}
	var text strings.Builder
	fmt.Fprintf(&text, "### The log\n\nBalsa's log is raft-boltdb. Here `cluster/raftlog` stands beside raft-wal (%s): both are appended to as raft\n"+
		"does, by a program of its own without a cluster, in turns on the same disk, every append synced, each measure on new logs. `wide` is what Balsa makes of 256 writes\n"+
		"that come together: one entry, since one is in flight at a time; 16, 64 and 256 are batches of entries, as a follower gets them that catches up. raft-wal builds only with a\n"+
		"stand-in for a package that go-metrics dropped. The rule: **raft-boltdb stays the log unless raft-wal can be used after every kill with all that it acknowledged, and would make\n"+
		"puts of one client, in which an append weighs most, at least %.1f times as fast with the whole interval, since less would not pay for a library that its authors call\n"+
		"experimental and that needs a replaced module.**\n\n", d.Versions, logWorth)
	if len(d.Results) > 0 {
		text.WriteString("| measure | raft-boltdb | raft-wal | raft-boltdb / raft-wal | better |\n|---|---|---|---|---|\n")
		for _, c := range d.Results {
			text.WriteString(c.row())
		}
		text.WriteString("\n")
	}
	if saves := d.saves(puts); saves != "" {
		text.WriteString("* " + saves + "\n")
	}
	if d.Kills != nil || d.KillsErr != nil {
		text.WriteString("* " + d.kills() + "\n")
	}
	if decision := d.decision(puts); decision != "" {
		text.WriteString("\n" + decision + "\n")
	}
	text.WriteString("\n")
	for _, c := range d.Results {
		text.WriteString(c.section())
	}
	return text.String()
}

func (c LogComparison) row() string {
	if c.Err != nil || len(c.Pairs) == 0 {
		return fmt.Sprintf("| %s | | | | not measured |\n", c.Name)
	}
	ours, theirs := c.sides()
	ratio := "-"
	if r, err := RatioOf(c.Pairs); err == nil {
		ratio = r.String()
	}
	return fmt.Sprintf("| %s | %s | %s | %s | %s |\n", c.Name, c.Unit.show(Median.Of(ours)), c.Unit.show(Median.Of(theirs)), ratio, c.Better())
}

func (c LogComparison) summary() string {
	if c.Err != nil {
		return "NOT MEASURED: " + c.Err.Error()
	}
	return strings.TrimSpace(strings.ReplaceAll(c.row(), "|", " "))
}

// section publishes every round, as those of the store do.
func (c LogComparison) section() string {
	text := strings.Replace(c.Comparison.section(), "### ", "#### ", 1)
	return strings.Replace(text, "every round, Balsa / etcd in ", "every round, raft-boltdb / raft-wal in ", 1)
}

// kills says what the logs held afterwards.
func (d LogDocument) kills() string {
	if d.KillsErr != nil || d.Kills == nil {
		return "log-kills was not measured: it failed, and the run said why"
	}
	return fmt.Sprintf("log-kills: each log's process got SIGKILL again and again at random points of appending and truncating, with segments of 256 KiB for raft-wal, so that kills hit its changes of segment. "+
		"raft-boltdb: %s. raft-wal: %s. Killed on purpose between the append that fills a segment and the note of the next one, raft-wal %s. "+
		"A killed process loses nothing that the kernel has: this tells nothing of a power failure.", d.Kills.Boltdb, d.Kills.Wal, d.Kills.sealed())
}

func (k LogKills) sealed() string {
	if k.Sealed == "" {
		return "goes on"
	}
	return fmt.Sprintf("is opened and read, and refuses every append for good (%s)", k.Sealed)
}

func (s LogSurvival) String() string {
	text := fmt.Sprintf("%d kills, %d of %d acknowledged entries lost", s.Kills, s.Lost, s.Acknowledged)
	if s.Unusable == 0 {
		return text + ", always usable afterwards"
	}
	return text + fmt.Sprintf(", %d times of no use afterwards (the first time: %s)", s.Unusable, s.Reason)
}

// decision applies the rule; "" while one of its figures is missing.
func (d LogDocument) decision(puts []Comparison) string {
	worth, err := d.worth(puts)
	if err != nil || d.Kills == nil {
		return ""
	}
	var against []string
	if lost := d.Kills.Wal.Lost; lost > 0 {
		against = append(against, fmt.Sprintf("raft-wal lost %d acknowledged entries", lost))
	}
	if d.Kills.Wal.Unusable > 0 || d.Kills.Sealed != "" {
		against = append(against, "raft-wal is of no use after some kills")
	}
	if worth.Low < logWorth {
		against = append(against, fmt.Sprintf("puts of one client would be %.2f times as fast (%.2f to %.2f), not %.1f with the whole interval", worth.Mean, worth.Low, worth.High, logWorth))
	}
	if len(against) == 0 {
		return "By these figures **raft-wal should take the place of raft-boltdb.**"
	}
	return "By these figures **raft-boltdb stays**: " + strings.Join(against, "; ") + "."
}

// worth is how many times as fast the other log would make a put of one client: it
// is shorter by what the appends in its way are.
func (d LogDocument) worth(puts []Comparison) (Ratio, error) {
	saved, put, err := d.savedOfPut(puts)
	if err != nil {
		return Ratio{}, err
	}
	faster := func(ms float64) float64 { return put / (put - ms) }
	return Ratio{Mean: faster(saved.Mean), Low: faster(saved.Low), High: faster(saved.High), Pairs: saved.Pairs}, nil
}

// saves tells what worth comes from.
func (d LogDocument) saves(puts []Comparison) string {
	saved, put, err := d.savedOfPut(puts)
	if err != nil {
		return ""
	}
	worth, err := d.worth(puts)
	if err != nil {
		return ""
	}
	return fmt.Sprintf("an append of one entry takes raft-wal %.3f ms less (%.3f to %.3f). Of the %.2f ms of a put of one client (puts-1) it would save %d times that, first the leader's, then a follower's: "+
		"puts would be %.2f times as fast (%.2f to %.2f). This is an estimate; the interval is that of the appends", saved.Mean/logAppendsOfPut, saved.Low/logAppendsOfPut, saved.High/logAppendsOfPut, put, logAppendsOfPut,
		worth.Mean, worth.Low, worth.High)
}

// savedOfPut is how many milliseconds of a put of one client, which takes put, the
// other log would save.
func (d LogDocument) savedOfPut(puts []Comparison) (saved Ratio, put float64, err error) {
	i := slices.IndexFunc(d.Results, func(c LogComparison) bool { return c.Name == appendName+"1" && c.Err == nil })
	j := slices.IndexFunc(puts, func(c Comparison) bool { return c.Name == "puts-1" && c.Err == nil && len(c.Pairs) > 0 })
	if i < 0 || j < 0 {
		return saved, 0, fmt.Errorf("%s1 or puts-1 was not measured", appendName)
	}
	rates, _ := puts[j].sides()
	put = 1000 / Median.Of(rates)
	if saved, err = savedOf(d.Results[i].Pairs); err != nil {
		return saved, put, err
	}
	if saved.High >= put {
		return saved, put, fmt.Errorf("the appends of a put take longer than a put of %.2f ms", put)
	}
	return saved, put, nil
}

// savedOf is how many milliseconds less a put waits for its appends of theirs: the
// mean of the rounds' differences, and the interval that holds the true one in 95
// of 100 such series. Pairs are rates a second.
func savedOf(pairs []Pair) (saved Ratio, err error) {
	if len(pairs) < 3 {
		return saved, fmt.Errorf("%d rounds: an interval needs three", len(pairs))
	}
	var differences []float64
	sum, squares, n := 0.0, 0.0, float64(len(pairs))
	for i, p := range pairs {
		if p.Ours <= 0 || p.Theirs <= 0 {
			return saved, fmt.Errorf("round %d: %g and %g are no rates", i+1, p.Ours, p.Theirs)
		}
		differences = append(differences, logAppendsOfPut*(1000/p.Ours-1000/p.Theirs))
		sum += differences[i]
	}
	mean := sum / n
	for _, d := range differences {
		squares += (d - mean) * (d - mean)
	}
	half := studentT[min(len(pairs)-1, len(studentT))-1] * math.Sqrt(squares/(n-1)) / math.Sqrt(n)
	return Ratio{Mean: mean, Low: mean - half, High: mean + half, Pairs: len(pairs)}, nil
}

// Missed is an error that names what was not measured.
func (d LogDocument) Missed() error {
	var all []error
	for _, c := range d.Results {
		if c.Err != nil {
			all = append(all, fmt.Errorf("%s was not measured: %w", c.Name, c.Err))
		}
	}
	if d.KillsErr != nil {
		all = append(all, fmt.Errorf("%s was not measured: %w", killsName, d.KillsErr))
	}
	return errors.Join(all...)
}
