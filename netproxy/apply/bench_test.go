//go:build linux

//balsa:real-processes

package apply_test

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/nftables"
	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/netproxy"
	"github.com/balsa-run/balsa/netproxy/apply"
	"github.com/balsa-run/balsa/netproxy/apply/netlab"
	"github.com/balsa-run/balsa/object"
)

// How long until the kernel knows, from objects: everything from nothing, and one
// changed endpoint among many services. "effective" is the time until new
// connections follow, plan and difference included; the rest of an operation waits
// for packets under way.
func BenchmarkSync(b *testing.B) {
	node := netproxy.NodeParams{Name: "n1", PodCIDR: view().PodCIDR, ServiceCIDR: view().ServiceCIDR, NodeIP: view().NodeIP}
	for _, n := range []int{1000, 10_000} {
		o := manyObjects(n, 3)
		b.Run(fmt.Sprintf("full/%d", n), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				k := newApplier(b, netlab.New(b, "bench"))
				b.StartTimer()
				t := netproxy.NewTracker(node)
				t.Set(o)
				if _, err := k.Sync(context.Background(), t.Ruleset(1)); err != nil {
					b.Fatal(err)
				}
			}
		})
		n1 := netlab.New(b, "n1")
		k := newApplier(b, n1)
		t := netproxy.NewTracker(node)
		t.Set(o)
		if _, err := k.Sync(context.Background(), t.Ruleset(1)); err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("one-endpoint/%d", n), func(b *testing.B) {
			var effective time.Duration
			for i := 0; b.Loop(); i++ {
				s := proto.CloneOf(o.Slices[(i*37)%n])
				s.Endpoints[0].Addresses[0] = netip.AddrFrom4([4]byte{10, 245, byte(i >> 8), byte(i)}).String()
				start := time.Now()
				t.SetSlice(s)
				r := t.Ruleset(int64(i))
				planned := time.Since(start)
				result, err := k.Sync(context.Background(), r)
				if err != nil {
					b.Fatal(err)
				}
				effective += planned + result.Effective
			}
			b.ReportMetric(float64(effective.Microseconds())/float64(b.N), "effective-µs/op")
		})
		b.Run(fmt.Sprintf("scrub-repair/%d", n), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				deleteTable(b, n1)
				b.StartTimer()
				if _, err := k.Scrub(context.Background()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func deleteTable(b *testing.B, n *netlab.NS) {
	b.Helper()
	err := n.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		c.DelTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: apply.DefaultTable})
		return c.Flush()
	})
	if err != nil {
		b.Fatal(err)
	}
}

func manyObjects(services, endpoints int) (o netproxy.Objects) {
	for i := range services {
		name := fmt.Sprint("s", i)
		o.Services = append(o.Services, &balsav1.Service{Metadata: &balsav1.ObjectMeta{Namespace: "default", Name: name},
			Spec: &balsav1.ServiceSpec{ClusterIp: netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}).String(), Ports: []*balsav1.ServicePort{{Port: 80}}}})
		slice := &balsav1.EndpointSlice{Metadata: &balsav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{object.LabelServiceName: name}},
			Ports: []*balsav1.EndpointPort{{Port: 8080}}}
		for j := range endpoints {
			k := i*endpoints + j
			slice.Endpoints = append(slice.Endpoints, &balsav1.Endpoint{Addresses: []string{netip.AddrFrom4([4]byte{10, 244 + byte(k>>16), byte(k >> 8), byte(k)}).String()}})
		}
		o.Slices = append(o.Slices, slice)
	}
	return o
}
