package dns_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/balsa-run/balsa/dns"
)

// library is Go's resolver, which speaks DNS by itself, with a server of ours.
func library(t *testing.T, network string) *net.Resolver {
	t.Helper()
	s, _ := podServer(t)
	s.SetClients(dns.NewClients(map[netip.Addr][]string{netip.MustParseAddr("127.0.0.1"): {"shop.svc.cluster.local", "svc.cluster.local", "cluster.local"}}))
	tcp, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	udp, err := net.ListenPacket("udp4", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, udp, tcp) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, tcp.Addr().String())
	}}
}

// TestARealResolver asks for every kind of record of the specification.
func TestARealResolver(t *testing.T) {
	for _, network := range []string{"udp", "tcp"} {
		t.Run(network, func(t *testing.T) {
			r, ctx := library(t, network), t.Context()
			for what, test := range map[string]struct {
				ask  func() ([]string, error)
				want []string
			}{
				"a service's address":       {hosts(ctx, r, "web.shop.svc.cluster.local."), []string{"10.96.0.10"}},
				"a headless service":        {hosts(ctx, r, "db.shop.svc.cluster.local."), []string{"10.244.1.5", "10.244.2.6", "10.244.3.7"}},
				"a pod's own name":          {hosts(ctx, r, "db-0.db.shop.svc.cluster.local."), []string{"10.244.1.5"}},
				"a pod by its address":      {hosts(ctx, r, "10-244-9-1.shop.pod.cluster.local."), []string{"10.244.9.1"}},
				"another name, followed":    {hosts(ctx, r, "outside.shop.svc.cluster.local."), []string{"198.51.100.7"}},
				"a completed name":          {hosts(ctx, r, "www.example.com.shop.svc.cluster.local."), []string{"198.51.100.7"}},
				"another name":              {one(ctx, r.LookupCNAME, "outside.shop.svc.cluster.local."), []string{"www.example.com."}},
				"servers":                   {servers(ctx, r, "http", "web"), []string{"web.shop.svc.cluster.local. 80"}},
				"servers without a service": {servers(ctx, r, "sql", "db"), []string{"10-244-2-6.db.shop.svc.cluster.local. 5432", "10-244-3-7.db.shop.svc.cluster.local. 5432", "db-0.db.shop.svc.cluster.local. 5432"}},
				"a service by its address":  {many(ctx, r.LookupAddr, "10.96.0.10"), []string{"web.shop.svc.cluster.local."}},
				"the pod of a service":      {many(ctx, r.LookupAddr, "10.244.1.5"), []string{"db-0.db.shop.svc.cluster.local."}},
				"the version":               {many(ctx, r.LookupTXT, "dns-version.cluster.local."), []string{"1.1.0"}},
			} {
				got, err := test.ask()
				if slices.Sort(got); err != nil || !cmp.Equal(test.want, got) {
					t.Errorf("%s: %v %v, want %v", what, got, err, test.want)
				}
			}
			var missing *net.DNSError
			if _, err := r.LookupHost(ctx, "nothing.shop.svc.cluster.local."); !errors.As(err, &missing) || !missing.IsNotFound {
				t.Errorf("a name that does not exist: %v", err)
			}
		})
	}
}

func hosts(ctx context.Context, r *net.Resolver, name string) func() ([]string, error) {
	return many(ctx, r.LookupHost, name)
}

func many(ctx context.Context, ask func(context.Context, string) ([]string, error), name string) func() ([]string, error) {
	return func() ([]string, error) { return ask(ctx, name) }
}

func one(ctx context.Context, ask func(context.Context, string) (string, error), name string) func() ([]string, error) {
	return func() ([]string, error) {
		got, err := ask(ctx, name)
		return []string{got}, err
	}
}

func servers(ctx context.Context, r *net.Resolver, port, service string) func() ([]string, error) {
	return func() (out []string, err error) {
		_, found, err := r.LookupSRV(ctx, port, "tcp", service+".shop.svc.cluster.local.")
		for _, s := range found {
			out = append(out, fmt.Sprint(s.Target, " ", s.Port))
		}
		return out, err
	}
}
