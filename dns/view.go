package dns

import (
	"net/netip"
	"strings"

	mdns "github.com/miekg/dns"
)

// View is what a zone is built from.
type View struct {
	// Revision is the store's revision that the view is of.
	Revision int64
	ZoneParams
	// Namespaces that exist, also without services.
	Namespaces []string
	// Services, no two of one namespace and name.
	Services []Service
}

// ZoneParams are the parts of a view that do not change.
type ZoneParams struct {
	// Domain is the cluster's domain, such as "cluster.local".
	Domain string
	// Pods holds the addresses of all pods of the cluster: those have names under
	// pod.DOMAIN. The zero value: no pod has one.
	Pods netip.Prefix
	// Reverse lists the networks whose reverse names are answered here even
	// where there is no record: the service CIDR and the cluster's pod CIDR.
	Reverse []netip.Prefix
}

// Service is a service with an address, a headless one, or a name for another
// name.
type Service struct {
	Namespace, Name string
	// External is the name that the service stands for; nothing else counts then.
	External string
	// ClusterIP is the zero value for a headless service.
	ClusterIP netip.Addr
	// Ports matter for services with an address; headless ones use those of
	// their endpoints.
	Ports     []Port
	Endpoints []Endpoint
}

// Port is a named port. Ports without name have no SRV record.
type Port struct {
	Name string
	// Protocol is "tcp" or "udp".
	Protocol string
	Port     uint16
}

// Endpoint is one pod of a headless service.
type Endpoint struct {
	IP netip.Addr
	// Hostname may be empty: then the address with dashes takes its place.
	Hostname string
	Ready    bool
	Ports    []Port
}

// Canonical is the form in which names are compared.
func Canonical(name string) string { return strings.ToLower(mdns.Fqdn(name)) }
