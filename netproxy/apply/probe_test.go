//go:build linux

//balsa:real-processes

package apply

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/netproxy"
	"github.com/balsa-run/balsa/netproxy/apply/netlab"
)

// nonesuch is what no kernel knows of a packet. Old ones look at eight bits alone.
const nonesuch = 255

// This kernel has all; one that lacks something names it. What no kernel has
// stands for that.
func TestMissingFeatureIsNamed(t *testing.T) {
	a, err := New(Options{NetNS: netlab.New(t, "n1").Path})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, f := range a.features {
		if err := a.probeLocked(f); err != nil {
			t.Errorf("%s: %v", f.name, err)
		}
	}
	bogus := a.features[0]
	bogus.name, bogus.option = "time travel", "NFT_TIME_TRAVEL"
	bogus.hook.rules = [][]expr.Any{{&expr.Meta{Key: nonesuch, Register: reg(0)}}}
	a.features = append(a.features, bogus)
	if text := a.missingLocked(); !strings.Contains(text, "lacks time travel (CONFIG_NFT_TIME_TRAVEL)") || strings.Count(text, "lacks") != 1 {
		t.Errorf("%q", text)
	}
	// A part that needs it carries the name to whoever asked for it.
	r := netproxy.Plan(netproxy.View{PodCIDR: prefix("10.244.1.0/24"), ServiceCIDR: prefix("10.96.0.0/12")})
	r = r.With(&netproxy.Unit{ID: "x", Elements: []netproxy.Element{{Set: "nonesuch", Key: "1234"}}})
	result, err := a.syncLocked(context.Background(), r)
	if err != nil || len(result.Problems) != 1 || !strings.Contains(result.Problems[0].Reason, "time travel") {
		t.Errorf("%+v, %v", result, err)
	}
}

// Without dynset services with affinity are left out, however many they are; the
// others work.
func TestWithoutDynset(t *testing.T) {
	a, err := New(Options{NetNS: netlab.New(t, "n1").Path})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range a.features {
		if a.features[i].name == featureAffinity {
			a.features[i].hook.rules = [][]expr.Any{{&expr.Meta{Key: nonesuch, Register: reg(0)}}}
		}
	}
	v := netproxy.View{PodCIDR: prefix("10.244.1.0/24"), ServiceCIDR: prefix("10.96.0.0/12")}
	for i := range 2 * maxRefused {
		v.Services = append(v.Services, netproxy.ServicePort{Name: fmt.Sprint("s", i), VIP: netip.AddrFrom4([4]byte{10, 96, 0, byte(i)}), Protocol: netproxy.TCP, Port: 80,
			Affinity: time.Duration(i%2) * time.Hour, Endpoints: []netproxy.Endpoint{{IP: netip.AddrFrom4([4]byte{10, 244, 1, 1}), Port: 80, Ready: true}}})
	}
	r := netproxy.Plan(v)
	broken := r.With(&netproxy.Unit{ID: "x", Elements: []netproxy.Element{{Set: "nonesuch", Key: "1234"}}}) // what brings the refusal about
	result, err := a.syncLocked(context.Background(), broken)
	if err != nil || len(result.Problems) != 1+3*maxRefused || !strings.Contains(result.Problems[0].Reason, "dynset") {
		t.Fatalf("%d problems, %v, %v", len(result.Problems), result.Problems[:min(2, len(result.Problems))], err)
	}
	for i, s := range v.Services {
		if got := a.have.Known(netproxy.Key{VIP: s.VIP, Protocol: s.Protocol, Port: s.Port}); got != (i%2 == 0) {
			t.Errorf("service %d: known %v", i, got)
		}
	}
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func TestRefusedByKernel(t *testing.T) {
	for _, err := range []error{nil, context.Canceled, unix.ENOMEM, unix.ENOBUFS, unix.EPERM} {
		if refusedByKernel(err) {
			t.Errorf("%v is no refusal of the rules", err)
		}
	}
	if !refusedByKernel(errors.Join(errors.New("x"), unix.EINVAL)) {
		t.Error("EINVAL is one")
	}
}
