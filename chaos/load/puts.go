package load

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/client"
)

// maxPutClients bounds the clients of one load: each holds a connection.
const maxPutClients = 1024

// PutOptions say how a load of puts is made.
type PutOptions struct {
	// Connect makes the client of that number, from 0: each has a connection of
	// its own.
	Connect   func(number int) (*client.Client, error)
	Namespace string
	Prefix    string
	Clients   int
	Bytes     int // of the value
	Rounds    int // that count; one more is played first, and does not
	Round     time.Duration
}

// PutReport is how many puts a cluster acknowledged.
type PutReport struct {
	Rounds []PutRound `json:"rounds"`
}

// PutRound is one stretch of a load of puts.
type PutRound struct {
	Acknowledged int      `json:"acknowledged"`
	Failed       int      `json:"failed"`
	Errors       []string `json:"errors,omitempty"` // the first few
	Seconds      float64  `json:"seconds"`
	P50MS        float64  `json:"p50MS"` // of one put
	P99MS        float64  `json:"p99MS"`
}

// Puts has clients make ConfigMaps, each one after the other, and counts what is
// acknowledged.
func Puts(ctx context.Context, options PutOptions) (PutReport, error) {
	report := PutReport{}
	if options.Clients < 1 || options.Clients > maxPutClients {
		return report, fmt.Errorf("load of puts: %d clients: want 1 to %d", options.Clients, maxPutClients)
	}
	putters, err := connectAll(options)
	if err != nil {
		return report, err
	}
	for number := range options.Rounds + 1 {
		round := putRound(ctx, putters, options.Round)
		if err := ctx.Err(); err != nil {
			return report, context.Cause(ctx)
		}
		if number > 0 {
			report.Rounds = append(report.Rounds, round)
		}
	}
	return report, nil
}

func connectAll(options PutOptions) ([]*putter, error) {
	value := strings.Repeat("x", options.Bytes)
	putters := make([]*putter, options.Clients)
	for i := range putters {
		c, err := options.Connect(i)
		if err != nil {
			return nil, fmt.Errorf("client %d: %w", i, err)
		}
		putters[i] = &putter{client: c, namespace: options.Namespace, name: fmt.Sprintf("%s-%d", options.Prefix, i), value: value}
	}
	return putters, nil
}

// putRound lets all clients put until length has passed.
func putRound(ctx context.Context, putters []*putter, length time.Duration) PutRound {
	var group sync.WaitGroup
	began := time.Now()
	for _, p := range putters {
		group.Go(func() { p.run(ctx, began.Add(length)) })
	}
	group.Wait()
	round := PutRound{Seconds: time.Since(began).Seconds()}
	var took []time.Duration
	for _, p := range putters {
		took = append(took, p.took...)
		round.Failed += p.failed
		if p.err != nil && len(round.Errors) < maxErrorsKept {
			round.Errors = append(round.Errors, p.err.Error())
		}
	}
	slices.Sort(took)
	round.Acknowledged, round.P50MS, round.P99MS = len(took), percentile(took, 50), percentile(took, 99)
	return round
}

// percentile is the nearest-rank percentile of what is sorted, in milliseconds.
func percentile(sorted []time.Duration, percent int) float64 {
	if len(sorted) == 0 {
		return 0
	}
	rank := (len(sorted)*percent + 99) / 100
	return float64(sorted[max(rank, 1)-1]) / float64(time.Millisecond)
}

// putter is one client of a load of puts.
type putter struct {
	client    *client.Client
	namespace string
	name      string
	value     string
	made      int

	// Of the round.
	took   []time.Duration
	failed int
	err    error // the first
}

func (p *putter) run(ctx context.Context, until time.Time) {
	p.took, p.failed, p.err = p.took[:0], 0, nil
	for ctx.Err() == nil && time.Now().Before(until) {
		began := time.Now()
		if err := p.put(ctx); err != nil {
			p.failed++
			if p.err == nil {
				p.err = err
			}
			continue
		}
		p.took = append(p.took, time.Since(began))
	}
}

func (p *putter) put(ctx context.Context) error {
	p.made++
	_, err := client.Create(ctx, p.client, &balsav1.ConfigMap{
		ApiVersion: "v1", Kind: "ConfigMap",
		Metadata: &balsav1.ObjectMeta{Namespace: p.namespace, Name: fmt.Sprintf("%s-%d", p.name, p.made)},
		Data:     map[string]string{"value": p.value},
	}, client.WriteOptions{})
	return err
}
