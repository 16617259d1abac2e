package object

import (
	"strconv"
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// Limits of resolv.conf and /etc/hosts, the first three Kubernetes'.
const (
	maxNameservers    = 3
	maxSearches       = 32
	maxSearchLength   = 2048
	maxResolverOption = 32
	maxHostAliases    = 256
	maxAliasNames     = 256
)

func (c *check) dns(path string, spec *balsav1.PodSpec) {
	c.optional(field(path, "dnsPolicy"), spec.GetDnsPolicy(), DNSClusterFirst, DNSClusterFirstWithHostNet, DNSDefault, DNSNone)
	config := spec.GetDnsConfig()
	here := field(path, "dnsConfig")
	if spec.GetDnsPolicy() == DNSNone && len(config.GetNameservers()) == 0 {
		c.required(field(here, "nameservers"), "dnsPolicy: None needs at least one")
	}
	if at := field(here, "nameservers"); c.atMost(at, len(config.GetNameservers()), maxNameservers, "servers") {
		for i, ip := range config.GetNameservers() {
			c.ipv4(index(at, i), ip, "an IPv4 address")
		}
	}
	c.searches(field(here, "searches"), config.GetSearches())
	if at := field(here, "options"); c.atMost(at, len(config.GetOptions()), maxResolverOption, "options") {
		for i, o := range config.GetOptions() {
			c.resolverOption(index(at, i), o)
		}
	}
}

func (c *check) searches(path string, searches []string) {
	if !c.atMost(path, len(searches), maxSearches, "domains") {
		return
	}
	if size := len(strings.Join(searches, " ")); size > maxSearchLength {
		c.add(Violation{Field: path, Message: "are too long together", Found: strconv.Itoa(size) + " characters", Allowed: "at most " + strconv.Itoa(maxSearchLength) + " characters"})
	}
	for i, s := range searches {
		// "." searches nothing; _ stands in names of services.
		if name := strings.ReplaceAll(strings.TrimSuffix(s, "."), "_", "x"); s != "." {
			c.text(index(path, i), s, dnsSubdomainProblem(name))
		}
	}
}

func (c *check) resolverOption(path string, o *balsav1.PodDNSConfigOption) {
	if o.GetName() == "" {
		c.required(field(path, "name"), "for example ndots")
	}
	for _, f := range []struct{ name, value string }{{"name", o.GetName()}, {"value", o.GetValue()}} {
		if strings.ContainsAny(f.value, " \t\r\n\x00:#;") {
			c.text(field(path, f.name), f.value, "one word")
		}
	}
}

func (c *check) hostAliases(path string, aliases []*balsav1.HostAlias) {
	if !c.atMost(path, len(aliases), maxHostAliases, "aliases") {
		return
	}
	seen := map[string]bool{}
	for i, a := range aliases {
		here := index(path, i)
		switch ip := a.GetIp(); {
		case ip == "":
			c.required(field(here, "ip"), "")
		case seen[ip]:
			c.duplicate(field(here, "ip"), quoted(ip))
		default:
			c.ipv4(field(here, "ip"), ip, "an IPv4 address")
		}
		seen[a.GetIp()] = true
		names := field(here, "hostnames")
		if !c.atMost(names, len(a.GetHostnames()), maxAliasNames, "names") {
			continue
		}
		for j, name := range a.GetHostnames() {
			c.text(index(names, j), name, dnsSubdomainProblem(name))
		}
	}
}
