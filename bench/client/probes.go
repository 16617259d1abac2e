package main

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

// Of probes: datagrams to a service, each from a socket of its own, so that each
// is a new connection to the rules.
const (
	probeEvery    = 2 * time.Millisecond
	probePatience = 500 * time.Millisecond
	probePending  = 512
	probeFor      = 30 * time.Second
)

// probe is one datagram and its answer.
type probe struct {
	sent, answered time.Time
	by             string // the pod; empty: nobody answered
}

// prober sends probes until stopped and keeps what became of them.
type prober struct {
	address string
	cancel  context.CancelFunc
	ends    sync.WaitGroup

	mu     sync.Mutex
	probes []probe       // in the order of their answers; guarded by mu
	heard  chan struct{} // closed and made anew with each probe that ends; guarded by mu
}

func startProber(ctx context.Context, address string) *prober {
	ctx, cancel := context.WithCancel(ctx)
	p := &prober{address: address, cancel: cancel, heard: make(chan struct{})}
	p.ends.Go(func() { p.run(ctx) })
	return p
}

func (p *prober) run(ctx context.Context) {
	ticker := time.NewTicker(probeEvery)
	defer ticker.Stop()
	pending := make(chan struct{}, probePending)
	for {
		select {
		case <-ctx.Done():
			return
		case pending <- struct{}{}:
		}
		p.ends.Go(func() {
			p.keep(ask(ctx, p.address))
			<-pending
		})
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

func (p *prober) keep(one probe) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.probes = append(p.probes, one)
	close(p.heard)
	p.heard = make(chan struct{})
}

// ask sends one datagram; that nobody answers is no error.
func ask(ctx context.Context, address string) probe {
	one := probe{sent: time.Now()}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "udp4", address)
	if err != nil {
		return one // such as: no route to the service, yet
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Now()) })
	defer stop()
	if conn.SetReadDeadline(one.sent.Add(probePatience)) != nil {
		return one
	}
	if _, err := conn.Write([]byte("?")); err != nil {
		return one
	}
	buffer := make([]byte, 512)
	n, err := conn.Read(buffer)
	if err != nil {
		return one
	}
	one.answered = time.Now()
	_, one.by, _ = strings.Cut(string(buffer[:n]), " ")
	return one
}

// until waits until what has come so far is enough.
func (p *prober) until(ctx context.Context, what string, enough func([]probe) bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, probeFor, fmt.Errorf("%s: not within %v", what, probeFor))
	defer cancel()
	for {
		p.mu.Lock()
		done, heard := enough(p.probes), p.heard
		p.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-heard:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// stop returns all probes in the order in which they were sent.
func (p *prober) stop() []probe {
	p.cancel()
	p.ends.Wait()
	slices.SortFunc(p.probes, func(a, b probe) int { return a.sent.Compare(b.sent) })
	return p.probes
}

// outage is the longest time between two probes in succession that were answered.
func outage(probes []probe) (longest time.Duration) {
	var last time.Time
	for _, one := range probes {
		if one.by == "" {
			continue
		}
		if !last.IsZero() {
			longest = max(longest, one.sent.Sub(last))
		}
		last = one.sent
	}
	return longest
}
