package pod

import (
	"fmt"
	"net/netip"
	"strings"
)

// ndots is that of Kubernetes, so that every form of a service's name which
// works there works here, with musl's resolver as well, which never tries the
// search list for a name with ndots dots. What makes it expensive in Kubernetes
// does not exist here: the names that the search list adds are all of the
// cluster's domain, and the node's own resolver answers those from memory.
const ndots = 5

// ResolvConf is the /etc/resolv.conf of a pod.
func ResolvConf(dns netip.Addr, namespace, domain string) []byte {
	domain = strings.TrimSuffix(domain, ".")
	return fmt.Appendf(nil, "search %s.svc.%s svc.%s %s\nnameserver %s\noptions ndots:%d\n", namespace, domain, domain, domain, dns, ndots)
}

// Hosts is the /etc/hosts of a pod. Before its address is known the pod's own
// name is left out.
func Hosts(ip netip.Addr, hostname string) []byte {
	out := []byte("# Written by balsa: changes are lost with the container.\n" +
		"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	if ip.IsValid() {
		out = fmt.Appendf(out, "%s\t%s\n", ip, hostname)
	}
	return out
}

const maxHostname = 63

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
