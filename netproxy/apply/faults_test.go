//go:build linux

//balsa:real-processes

package apply_test

import (
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"

	"github.com/balsa-run/balsa/netproxy"
	"github.com/balsa-run/balsa/netproxy/apply"
	"github.com/balsa-run/balsa/netproxy/apply/netlab"
)

// What the kernel refuses is left out and named; the rest works, before and
// after, and once it is no longer asked for, nothing remembers it.
func TestRefusedPartsAreLeftOut(t *testing.T) {
	l := newLab(t)
	k := newApplier(t, l.n1)
	good := netproxy.Plan(view(both(webVIP, "10.244.1.10")...))
	bad := netproxy.Element{Set: netproxy.SetServices, Key: "short", Value: "drop"}
	for name, broken := range map[string]netproxy.Ruleset{
		"malformed": good.With(&netproxy.Unit{ID: "x1", Elements: []netproxy.Element{bad}}),
		"no chain":  good.With(&netproxy.Unit{ID: "x2", Elements: []netproxy.Element{{Set: netproxy.SetNodePorts, Key: "\x06\x00\x00\x00\x00\x50\x00\x00", Value: "goto nowhere"}}}),
		"no set":    good.With(&netproxy.Unit{ID: "x3", Elements: []netproxy.Element{{Set: "nonesuch", Key: "1234"}}}),
	} {
		t.Run(name, func(t *testing.T) {
			for step := range 2 { // the second time it is known
				result, err := k.Sync(context.Background(), broken)
				if err != nil || len(result.Problems) != 1 || !strings.Contains(result.Problems[0].String(), "the kernel refuses it") {
					t.Fatalf("step %d: %+v, %v; want one problem", step, result, err)
				}
				answers(t, l.b, "tcp4", webVIP+":80", 2)
			}
			if r := scrub(t, k); len(r.Findings) > 0 {
				t.Error(r.Findings)
			}
			if result, err := k.Sync(context.Background(), good); err != nil || len(result.Problems) > 0 {
				t.Errorf("without it: %+v, %v", result, err)
			}
		})
	}
	if out, err := exec.Command("nsenter", "--net="+l.n1.Path, "nft", "list", "tables").CombinedOutput(); err != nil || strings.Contains(string(out), "trial") {
		t.Errorf("%s, %v: the trials left something behind", out, err)
	}
}

// With many services one that is refused is found among them, and two that are
// refused only together are told apart.
func TestRefusedAmongMany(t *testing.T) {
	n := netlab.New(t, "n1")
	k := newApplier(t, n)
	r := netproxy.Plan(view(many(1500, 3)...))
	twin := *r.Unit("f\x0a\x60\x00\x07\x06\x00\x00\x00\x00\x50\x00\x00")
	twin.ID = "twin"
	twin.Elements = append([]netproxy.Element(nil), twin.Elements...)
	twin.Elements[0].Value = "drop" // the same key with another value
	r = r.With(&twin)
	result, err := k.Sync(context.Background(), r)
	if err != nil || len(result.Problems) != 1 {
		t.Fatalf("%+v, %v; want one problem", result, err)
	}
	if report := scrub(t, k); len(report.Findings) > 0 || report.Elements < 6000 {
		t.Errorf("%d elements, %v", report.Elements, report.Findings)
	}
}

// Somebody who touches the table is noticed at once; our own writes and other
// tables are not.
func TestWatch(t *testing.T) {
	n := netlab.New(t, "n1")
	k := newApplier(t, n)
	sync(t, k, view(both(webVIP, "10.244.1.10", "10.244.2.10")...))
	changed := make(chan struct{}, 100)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- k.Watch(ctx, func() { changed <- struct{}{} }) }()
	c := conn(t, n)
	table := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: apply.DefaultTable}
	touch := func() {
		t.Helper()
		c.FlushSet(&nftables.Set{Table: table, Name: netproxy.SetHairpin})
		if err := c.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	// Until the watch has begun, touching may go unnoticed.
	deadline := time.After(5 * time.Second)
	for noticed := false; !noticed; {
		sync(t, k, view(both(webVIP, "10.244.1.10")...))
		sync(t, k, view(both(webVIP, "10.244.1.10", "10.244.2.10")...))
		touch()
		select {
		case <-changed:
			noticed = true
		case <-time.After(20 * time.Millisecond):
		case <-deadline:
			t.Fatal("a flushed set went unnoticed")
		}
		scrub(t, k)
	}
	drain(changed)
	other := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "other"})
	c.AddChain(&nftables.Chain{Table: other, Name: "x"})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	sync(t, k, view(both(webVIP, "10.244.1.10")...))
	sync(t, k, view(many(3000, 3)...))
	select {
	case <-changed:
		t.Error("our own writes, or another table's, woke the watch")
	case <-time.After(50 * time.Millisecond):
	}
	c.DelTable(table)
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	case <-time.After(5 * time.Second):
		t.Error("a deleted table went unnoticed")
	}
	if r := scrub(t, k); !r.Repaired {
		t.Errorf("%+v", r)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func drain(c chan struct{}) {
	for {
		select {
		case <-c:
		case <-time.After(20 * time.Millisecond):
			return
		}
	}
}

// nft must be able to list what we write: an operator will. Protocols are numbers on a
// machine without /etc/protocols.
func TestNftLists(t *testing.T) {
	s := newSite(t, false)
	limits(t, s, ingress(1, block("10.244.0.0/16")), denyEgress("b"))
	v := siteView(func(p *netproxy.ServicePort) { p.Affinity, p.Restricted, p.ExternalLocal = time.Hour, true, true }, "10.244.1.10", "10.244.2.10")
	sync(t, s.kernel, v)
	out, err := exec.Command("nsenter", "--net="+s.n1.Path, "nft", "--numeric-protocol", "list", "table", "ip", apply.DefaultTable).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"10.96.0.10 . 6 . 80 : goto aff-", "dnat", "numgen random mod 2", "update @aff-", "fib daddr type local", "masquerade", "reject with tcp reset"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("nft lists no %q:\n%s", want, out)
		}
	}
}
