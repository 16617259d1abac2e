package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"

	"github.com/balsa-run/balsa/node/pod"
)

// probeRunner asks containers whether they are ready: a goroutine a container,
// a bounded number of questions at once.
type probeRunner struct {
	a     *Agent
	slots chan struct{}

	mu   sync.Mutex
	pods map[string]map[string]*probing // guarded by mu; by uid and container
}

type probing struct {
	probe  pod.Probe
	cancel context.CancelFunc
	state  pod.ProbeState // guarded by the runner's mu
}

func newProbeRunner(a *Agent) *probeRunner {
	return &probeRunner{a: a, slots: make(chan struct{}, parallelProbes), pods: map[string]map[string]*probing{}}
}

// set makes these the probes of a pod: one that is asked already goes on.
func (r *probeRunner) set(uid string, probes []pod.Probe) {
	r.mu.Lock()
	defer r.mu.Unlock()
	have, want := r.pods[uid], map[string]*probing{}
	for _, p := range probes {
		if old := have[p.Container]; old != nil && old.probe.Attempt == p.Attempt && old.probe.URL == p.URL {
			want[p.Container] = old
			continue
		}
		want[p.Container] = r.beginLocked(uid, p)
	}
	for name, old := range have {
		if want[name] != old {
			old.cancel()
		}
	}
	if len(want) == 0 {
		delete(r.pods, uid)
		return
	}
	r.pods[uid] = want
}

func (r *probeRunner) beginLocked(uid string, p pod.Probe) *probing {
	ctx, cancel := context.WithCancel(r.a.work)
	b := &probing{probe: p, cancel: cancel, state: p.Start()}
	r.a.running.Go(func() {
		defer cancel()
		r.ask(ctx, uid, b)
	})
	return b
}

// states returns what the probes of a pod amount to.
func (r *probeRunner) states(uid string) map[string]pod.ProbeState {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make(map[string]pod.ProbeState, len(r.pods[uid]))
	for name, b := range r.pods[uid] {
		out[name] = b.state
	}
	return out
}

// ask goes on until the probe is no longer wanted.
func (r *probeRunner) ask(ctx context.Context, uid string, b *probing) {
	for {
		r.mu.Lock()
		state := b.state
		r.mu.Unlock()
		now := r.a.cfg.Clock.Now()
		if sleep(ctx, r.a.cfg.Clock, b.probe.Next(state, now).Sub(now)) != nil {
			return
		}
		err := r.once(ctx, b.probe)
		if ctx.Err() != nil {
			return
		}
		r.observe(uid, b, err)
	}
}

func (r *probeRunner) once(ctx context.Context, p pod.Probe) error {
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	call, cancel := context.WithTimeout(ctx, p.Timeout)
	defer cancel()
	err := r.a.cfg.Prober.Probe(call, p)
	if err != nil && errors.Is(call.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("no answer within %s", p.Timeout)
	}
	r.a.metrics.probed(err)
	return err
}

func (r *probeRunner) observe(uid string, b *probing, err error) {
	r.mu.Lock()
	before := b.state
	state, events := b.probe.Observe(before, err)
	b.state = state
	r.mu.Unlock()
	if p := r.a.set.pod(uid); p != nil {
		for _, e := range events {
			r.a.event(p, e)
		}
	}
	if before.Ready != state.Ready {
		r.a.wakeAll([]string{uid})
	}
}

// HTTPProber asks over the network, from the node to the pod. An answer of 200
// to 399 is yes. It follows redirects within the pod's host, as Kubernetes does,
// and takes one to another host for a yes.
type HTTPProber struct{}

const (
	maxProbeRedirects = 10
	maxProbeBody      = 10 << 10
	probeUserAgent    = "balsa-probe"
)

// Probe implements Prober.
func (HTTPProber) Probe(ctx context.Context, p pod.Probe) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL, nil)
	if err != nil {
		return err
	}
	request.Header = http.Header{"User-Agent": {probeUserAgent}, "Accept": {"*/*"}}
	for name, values := range p.Header {
		request.Header[http.CanonicalHeaderKey(name)] = values
	}
	if p.Host != "" {
		request.Host = p.Host
	}
	transport := &http.Transport{DisableKeepAlives: true, DisableCompression: true}
	client := &http.Client{Transport: transport, CheckRedirect: sameHost}
	response, err := client.Do(request)
	if err != nil {
		return plain(err)
	}
	defer transport.CloseIdleConnections()
	_, readErr := io.Copy(io.Discard, io.LimitReader(response.Body, maxProbeBody))
	if err := errors.Join(readErr, response.Body.Close()); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if response.StatusCode < 200 || response.StatusCode >= 400 {
		return fmt.Errorf("HTTP status %d", response.StatusCode)
	}
	return nil
}

// sameHost stops at a redirect to another host, and after too many.
func sameHost(next *http.Request, via []*http.Request) error {
	if next.URL.Hostname() != via[0].URL.Hostname() {
		return http.ErrUseLastResponse
	}
	if len(via) >= maxProbeRedirects {
		return fmt.Errorf("stopped after %d redirects", maxProbeRedirects)
	}
	return nil
}

// plain leaves out method and address, which the pod's own events need not
// repeat.
func plain(err error) error {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		return wrapped.Err
	}
	return err
}
