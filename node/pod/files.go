package pod

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
)

// ndots is that of Kubernetes, so that every form of a service's name which
// works there works here, with musl's resolver as well, which never tries the
// search list for a name with ndots dots. What makes it expensive in Kubernetes
// does not exist here: the names that the search list adds are all of the
// cluster's domain, and the node's own resolver answers those from memory.
const ndots = 5

// Limits of resolv.conf (kubelet: MaxDNSNameservers, MaxDNSSearchPaths).
const (
	maxNameservers = 3
	maxSearches    = 32
)

// resolver is what a resolv.conf says.
type resolver struct {
	servers, searches []string
	// options by name; without a value they stand alone.
	options []option
}

type option struct {
	name  string
	value *string
}

// resolvConf is the /etc/resolv.conf of the pod.
func (s *step) resolvConf() ([]byte, error) {
	meta, spec := s.v.Pod.GetMetadata(), s.spec()
	policy := spec.GetDnsPolicy()
	var r resolver
	switch {
	case policy == object.DNSNone:
	case policy == object.DNSDefault, spec.GetHostNetwork() && policy != object.DNSClusterFirstWithHostNet:
		if len(s.v.HostFiles.ResolvConf) == 0 {
			return nil, fmt.Errorf("dnsPolicy %s: the node's resolv.conf cannot be read: %s", policy, s.v.HostFiles.Problem)
		}
		r = parseResolvConf(string(s.v.HostFiles.ResolvConf))
	default:
		r = clusterResolver(s.v.Node.DNS, meta.GetNamespace(), s.v.Node.Domain)
	}
	r.add(spec.GetDnsConfig())
	return r.text(), nil
}

// clusterResolver asks the node's resolver.
func clusterResolver(dns netip.Addr, namespace, domain string) resolver {
	domain = strings.TrimSuffix(domain, ".")
	five := fmt.Sprint(ndots)
	return resolver{servers: []string{dns.String()}, searches: []string{namespace + ".svc." + domain, "svc." + domain, domain},
		options: []option{{"ndots", &five}}}
}

// Searches are the domains that a pod's resolver tries, if it asks the node's; nil:
// it does not, or has other servers too, which may be asked instead.
func Searches(p *balsav1.Pod, domain string) []string {
	spec := p.GetSpec()
	switch policy := spec.GetDnsPolicy(); {
	case policy == object.DNSNone, policy == object.DNSDefault, spec.GetHostNetwork(), len(spec.GetDnsConfig().GetNameservers()) > 0:
		return nil
	}
	r := clusterResolver(netip.Addr{}, p.GetMetadata().GetNamespace(), domain)
	r.add(spec.GetDnsConfig())
	return r.searches[:min(len(r.searches), maxSearches)]
}

func parseResolvConf(text string) resolver {
	var r resolver
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 || strings.ContainsAny(fields[0][:1], "#;") {
			continue
		}
		switch fields[0] {
		case "nameserver":
			r.servers = append(r.servers, fields[1])
		case "search", "domain":
			r.searches = fields[1:]
		case "options":
			for _, word := range fields[1:] {
				name, value, given := strings.Cut(word, ":")
				o := option{name: name}
				if given {
					o.value = &value
				}
				r.options = append(r.options, o)
			}
		}
	}
	return r
}

// add takes in what the pod says: its servers and searches come after, its
// options count.
func (r *resolver) add(config *balsav1.PodDNSConfig) {
	for _, server := range config.GetNameservers() {
		if !slices.Contains(r.servers, server) {
			r.servers = append(r.servers, server)
		}
	}
	for _, search := range config.GetSearches() {
		if !slices.Contains(r.searches, search) {
			r.searches = append(r.searches, search)
		}
	}
	for _, o := range config.GetOptions() {
		r.options = slices.DeleteFunc(r.options, func(old option) bool { return old.name == o.GetName() })
		r.options = append(r.options, option{o.GetName(), o.Value})
	}
}

func (r *resolver) text() []byte {
	var out []byte
	if len(r.searches) > 0 {
		out = fmt.Appendf(out, "search %s\n", strings.Join(r.searches[:min(len(r.searches), maxSearches)], " "))
	}
	for _, server := range r.servers[:min(len(r.servers), maxNameservers)] {
		out = fmt.Appendf(out, "nameserver %s\n", server)
	}
	var words []string
	for _, o := range r.options {
		word := o.name
		if o.value != nil && *o.value != "" {
			word += ":" + *o.value
		}
		words = append(words, word)
	}
	if len(words) > 0 {
		out = fmt.Appendf(out, "options %s\n", strings.Join(words, " "))
	}
	return out
}

// hosts is the /etc/hosts of the pod. Before its address is known the pod's own
// name is left out. With the node's network it is the node's own.
func (s *step) hosts(ip netip.Addr) []byte {
	var out []byte
	if s.spec().GetHostNetwork() && len(s.v.HostFiles.Hosts) > 0 {
		out = append(out, s.v.HostFiles.Hosts...)
		if out[len(out)-1] != '\n' {
			out = append(out, '\n')
		}
	} else {
		out = baseHosts(ip, s.shortName(), s.fqdn())
	}
	for _, alias := range s.spec().GetHostAliases() {
		out = fmt.Appendf(out, "%s\t%s\n", alias.GetIp(), strings.Join(alias.GetHostnames(), "\t"))
	}
	return out
}

func baseHosts(ip netip.Addr, short, full string) []byte {
	out := []byte("# Written by balsa: changes are lost with the container.\n" +
		"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	if !ip.IsValid() {
		return out
	}
	out = fmt.Appendf(out, "%s\t", ip)
	if full != "" {
		out = fmt.Appendf(out, "%s\t", full) // the first name of a line is the canonical one
	}
	return fmt.Appendf(out, "%s\n", short)
}

const maxHostname = 63

// hostname is what the pod's kernel calls it.
func (s *step) hostname() string {
	if full := s.fqdn(); full != "" && s.spec().GetSetHostnameAsFqdn() {
		return full
	}
	return s.shortName()
}

// shortName is the pod's name without a domain: with the node's network the node's.
func (s *step) shortName() string {
	if s.spec().GetHostNetwork() && s.v.Node.Name != "" {
		return Hostname("", s.v.Node.Name)
	}
	return Hostname(s.spec().GetHostname(), s.v.Pod.GetMetadata().GetName())
}

// fqdn is the pod's name in DNS, which only a pod with a subdomain has.
func (s *step) fqdn() string {
	if s.spec().GetSubdomain() == "" || s.spec().GetHostNetwork() {
		return ""
	}
	return strings.Join([]string{s.shortName(), s.spec().GetSubdomain(), s.v.Pod.GetMetadata().GetNamespace(), "svc", strings.TrimSuffix(s.v.Node.Domain, ".")}, ".")
}

// Hostname is the pod's: what its spec says, else its name cut to what the
// kernel takes.
func Hostname(specHostname, name string) string {
	if specHostname != "" {
		return specHostname
	}
	if len(name) > maxHostname {
		name = strings.TrimRight(name[:maxHostname], "-.")
	}
	return name
}
