package netproxy_test

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/netproxy"
)

func runProxy(t *testing.T, kernel netproxy.Kernel) (p *netproxy.Proxy, applied *[]int64) {
	t.Helper()
	applied = new([]int64)
	p = netproxy.NewProxy(netproxy.ProxyOptions{Kernel: kernel, Clock: clock.Real{}, Logger: slog.New(slog.DiscardHandler), Rand: rand.New(rand.NewPCG(1, 2)),
		Applied: func(r int64) { *applied = append(*applied, r) }})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("run: %v", err)
		}
	})
	return p, applied
}

func revision(n int64) netproxy.View {
	v := emptyView()
	v.Revision = n
	v.Services = []netproxy.ServicePort{{VIP: netip.MustParseAddr("10.96.0.1"), Protocol: netproxy.TCP, Port: uint16(n)}}
	return v
}

func has(k *netproxy.Fake, port uint16) bool {
	_, known := k.Lookup(netproxy.Key{VIP: netip.MustParseAddr("10.96.0.1"), Protocol: netproxy.TCP, Port: port})
	return known
}

func TestProxySettlesAndRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kernel := new(netproxy.Fake)
		p, applied := runProxy(t, kernel)
		for n := range int64(10) {
			p.Update(revision(n + 1))
		}
		time.Sleep(time.Second) // virtual
		synctest.Wait()
		if len(*applied) != 1 || p.Applied() != 10 || !has(kernel, 10) || has(kernel, 9) {
			t.Errorf("ten views at once: applied %v", *applied)
		}
		kernel.FailNext(errors.New("injected"))
		p.Update(revision(11))
		time.Sleep(10 * time.Second) // virtual; longer than any back-off of one failure
		synctest.Wait()
		if p.Applied() != 11 || !has(kernel, 11) || has(kernel, 10) {
			t.Errorf("after a failure: applied %v", *applied)
		}
	})
}

func TestProxyScrubs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kernel := new(netproxy.Fake)
		p, _ := runProxy(t, kernel)
		p.Update(revision(1))
		time.Sleep(time.Second) // virtual
		synctest.Wait()
		if err := kernel.Apply(netproxy.Full(netproxy.Plan(emptyView()))); err != nil {
			t.Fatal(err)
		}
		if has(kernel, 1) {
			t.Fatal("the damage is not there")
		}
		time.Sleep(6 * time.Minute) // virtual
		synctest.Wait()
		if !has(kernel, 1) {
			t.Error("the damage is still there after a scrub interval")
		}
	})
}
