package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
)

// text writes transactions for nft.
type text struct{}

func (text) full(services []service) error {
	var b strings.Builder
	for i := range services {
		s := &services[i]
		fmt.Fprintf(&b, "add chain ip kube-proxy %s\n", s.chain)
		for _, e := range s.endpoints {
			writeEndpoint(&b, e)
		}
		writeService(&b, s)
		fmt.Fprintf(&b, "add element ip kube-proxy cluster-ips { %v }\n", s.address)
		fmt.Fprintf(&b, "add element ip kube-proxy service-ips { %v . tcp . %d : goto %s }\n", s.address, servicePort, s.chain)
	}
	return nft(b.String())
}

func (text) change(s service, gone endpoint) error {
	var b strings.Builder
	fmt.Fprintf(&b, "flush chain ip kube-proxy %s\n", s.chain)
	for i, e := range s.endpoints {
		if i > 0 {
			fmt.Fprintf(&b, "flush chain ip kube-proxy %s\n", e.chain)
		}
		writeEndpoint(&b, e)
	}
	writeService(&b, &s)
	fmt.Fprintf(&b, "flush chain ip kube-proxy %s\n", gone.chain)
	return nft(b.String())
}

func writeEndpoint(b *strings.Builder, e endpoint) {
	fmt.Fprintf(b, "add chain ip kube-proxy %s\n", e.chain)
	fmt.Fprintf(b, "add rule ip kube-proxy %s ip saddr %v jump mark-for-masquerade\n", e.chain, e.address)
	fmt.Fprintf(b, "add rule ip kube-proxy %s meta l4proto tcp dnat to %v:%d\n", e.chain, e.address, endpointPort)
}

func writeService(b *strings.Builder, s *service) {
	fmt.Fprintf(b, "add rule ip kube-proxy %s ip daddr %v ip saddr != 10.244.0.0/15 jump mark-for-masquerade\n", s.chain, s.address)
	fmt.Fprintf(b, "add rule ip kube-proxy %s numgen random mod %d vmap {", s.chain, len(s.endpoints))
	for i, e := range s.endpoints {
		if i > 0 {
			b.WriteString(",")
		}
		fmt.Fprintf(b, " %d : goto %s", i, e.chain)
	}
	b.WriteString(" }\n")
}

// verify holds the kernel's table against the services by numbers, and its first
// service by its rules.
func verify(services []service) error {
	chains, err := list("chains", "ip")
	if err != nil {
		return err
	}
	endpoints := 0
	for i := range services {
		endpoints += len(services[i].endpoints)
	}
	fixed := strings.Count(base, "\tchain ")
	if want := len(services) + endpoints + fixed; len(chains) != want {
		return fmt.Errorf("the kernel has %d chains, want %d", len(chains), want)
	}
	out, err := exec.Command("nft", "list", "chain", "ip", "kube-proxy", services[0].chain).Output()
	if err != nil {
		return fmt.Errorf("list chain %s: %w", services[0].chain, err)
	}
	for _, e := range services[0].endpoints {
		if !strings.Contains(string(out), "goto "+e.chain) {
			return fmt.Errorf("chain %s does not lead to %s:\n%s", services[0].chain, e.chain, out)
		}
	}
	return nil
}

// list is what nft has of the table's kind of object.
func list(what ...string) ([]json.RawMessage, error) {
	out, err := exec.Command("nft", append([]string{"-j", "list"}, what...)...).Output()
	if err != nil {
		return nil, fmt.Errorf("nft list %s: %w", strings.Join(what, " "), err)
	}
	var listed struct {
		Nftables []map[string]json.RawMessage `json:"nftables"`
	}
	if err := json.Unmarshal(out, &listed); err != nil {
		return nil, err
	}
	var found []json.RawMessage
	for _, item := range listed.Nftables {
		if c, is := item["chain"]; is {
			found = append(found, c)
		}
	}
	if len(found) == 0 {
		return nil, errors.New("nft lists nothing")
	}
	return found, nil
}
