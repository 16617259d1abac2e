package pki

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/balsa-run/balsa/internal/clock"
)

// flaky is a source that fails as often as it is told to.
type flaky struct {
	LocalSource
	mu       sync.Mutex
	failures int         // guarded by mu; still to come
	calls    []time.Time // guarded by mu
}

var errNoServer = errors.New("no server answers")

func (f *flaky) Renew(ctx context.Context, c *Credential) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, time.Now())
	if f.failures > 0 {
		f.failures--
		return nil, errNoServer
	}
	return f.LocalSource.Renew(ctx, c)
}

type renewerTest struct {
	source *flaky
	creds  *Credentials
	r      *Renewer

	mu    sync.Mutex
	saved []*Credential // guarded by mu
}

func (x *renewerTest) save(c *Credential) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.saved = append(x.saved, c)
	return nil
}

func (x *renewerTest) seen() (calls []time.Time, saved []*Credential) {
	x.source.mu.Lock()
	defer x.source.mu.Unlock()
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Clone(x.source.calls), slices.Clone(x.saved)
}

// runRenewer starts a renewer on virtual time.
func runRenewer(t *testing.T, failures int) *renewerTest {
	clk := clock.Real{}
	ca := must(NewCA("c1", time.Now()))(t)
	x := &renewerTest{creds: NewCredentials(issue(t, ca, RoleAgent, "n1", time.Now()))}
	x.source = &flaky{failures: failures, LocalSource: LocalSource{CA: ca, Guard: NewGuard(clk, nil), Clock: clk}}
	x.r = NewRenewer(RenewerOptions{
		Credentials: x.creds,
		Source:      x.source,
		Save:        x.save,
		Clock:       clk,
		Jitter:      func() float64 { return 0.5 },
		Log:         testLog(),
	})
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { x.r.Run(ctx) })
	t.Cleanup(func() { stop(); wg.Wait() })
	return x
}

// pass lets virtual time go by.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func TestRenewerRenewsAtTwoThirds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := runRenewer(t, 0)
		begin, first := time.Now(), x.creds.Current()
		pass(57 * day)
		if calls, _ := x.seen(); len(calls) != 0 {
			t.Fatalf("renewed after %v", calls[0].Sub(begin))
		}
		pass(3 * day)
		if _, saved := x.seen(); x.creds.Current() == first || len(saved) != 1 || saved[0] != x.creds.Current() {
			t.Fatalf("not renewed after 60 days; saved %d", len(saved))
		}
		pass(3 * 365 * day)
		if left := time.Until(x.creds.Current().Expires()); left < 25*day {
			t.Errorf("after years %v are left", left)
		}
		if s := x.r.Status(); s.Failures != 0 || s.LastErr != nil || !s.Expires.Equal(x.creds.Current().Expires()) {
			t.Errorf("status is %+v", s)
		}
	})
}

func TestRenewerBacksOffAndNeverGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := runRenewer(t, 20)
		first := x.creds.Current()
		pass(59 * day)
		calls, _ := x.seen()
		if x.creds.Current() == first {
			t.Fatalf("not renewed after %d attempts", len(calls))
		}
		if len(calls) != 21 {
			t.Fatalf("%d attempts, want 21", len(calls))
		}
		for i := 1; i < len(calls); i++ {
			pause := calls[i].Sub(calls[i-1])
			want := min(RenewRetryMin<<min(i-1, 10), RenewRetryMax) * 3 / 4
			if pause != want {
				t.Errorf("pause %d is %v, want %v", i, pause, want)
			}
		}
	})
}

func TestRenewerReportsFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := runRenewer(t, 1_000_000)
		pass(100 * day)
		if s := x.r.Status(); s.Failures < 1000 || !errors.Is(s.LastErr, errNoServer) {
			t.Errorf("status is %+v", s)
		}
	})
}

// TestRenewerStartsExpired: the machine was off for months; the first act is to
// renew, at once.
func TestRenewerStartsExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := must(NewCA("c1", time.Now()))(t)
		old := issue(t, ca, RoleAgent, "n1", time.Now())
		pass(200 * day)
		clk := clock.Real{}
		nonces, guard := NewNonces(clk), NewGuard(clk, nil)
		client := &directClient{ca: ca, nonces: nonces, guard: guard, holder: &Holder{Role: RoleAgent, Name: "n1", KeyHash: old.KeyHash()}}
		creds := NewCredentials(old)
		r := NewRenewer(RenewerOptions{
			Credentials: creds, Source: RemoteSource{client}, Save: func(*Credential) error { return nil },
			Clock: clk, Jitter: func() float64 { return 0 }, Log: testLog(),
		})
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { r.Run(ctx) })
		pass(time.Second)
		if !creds.Current().Expires().After(time.Now()) {
			t.Error("still expired")
		}
		stop()
		wg.Wait()
	})
}

// directClient is a server without the wire.
type directClient struct {
	ca     *CA
	nonces *Nonces
	guard  *Guard
	holder *Holder
}

func (d *directClient) Nonce(context.Context) ([]byte, error) { return d.nonces.Issue(), nil }

func (d *directClient) Renew(_ context.Context, req RenewRequest) ([]byte, error) {
	a, err := d.ca.Renew(req, d.holder, d.nonces, d.guard, time.Now())
	if err != nil {
		return nil, err
	}
	return a.CertPEM, nil
}

// TestRenewerKeepsOldOnBadAnswers: what cannot be saved, is for somebody else or
// lives no longer is not put in use.
func TestRenewerKeepsOldOnBadAnswers(t *testing.T) {
	ca, clk := newTestCA(t), clock.NewFake(t0)
	old := issue(t, ca, RoleAgent, "n1", t0)
	local := LocalSource{CA: ca, Guard: NewGuard(clk, nil), Clock: clk}
	tests := map[string]struct {
		source Source
		save   error
		want   error
	}{
		"cannot save":   {local, errNoServer, errNoServer},
		"somebody else": {fixed(issue(t, ca, RoleAgent, "n2", t0).CertPEM()), nil, ErrKeyMismatch},
		"other cluster": {fixed(issue(t, newTestCA(t), RoleAgent, "n1", t0).CertPEM()), nil, ErrOtherCluster},
		"no longer":     {fixed(old.CertPEM()), nil, ErrBadMaterial},
		"rubbish":       {fixed("rubbish"), nil, ErrBadMaterial},
		"removed":       {LocalSource{CA: ca, Guard: NewGuard(clk, must(NewRemoved([]Removal{{Role: RoleAgent, Name: "n1", At: t0}}))(t)), Clock: clk}, nil, ErrRemoved},
	}
	clk.Set(t0.Add(70 * day))
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			creds := NewCredentials(old)
			r := NewRenewer(RenewerOptions{
				Credentials: creds, Source: tt.source, Save: func(*Credential) error { return tt.save },
				Clock: clk, Jitter: func() float64 { return 0 }, Log: testLog(),
			})
			r.step(t.Context())
			if s := r.Status(); s.Failures != 1 || !errors.Is(s.LastErr, tt.want) {
				t.Errorf("status is %+v", s)
			}
			if creds.Current() != old {
				t.Error("the certificate was replaced")
			}
		})
	}
}

type fixed []byte

func (f fixed) Renew(context.Context, *Credential) ([]byte, error) { return f, nil }
