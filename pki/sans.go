package pki

import (
	"net"
	"net/netip"
	"slices"
	"strings"
)

// The names that clients verify. They are the same in every server's and every
// agent's certificate, so that addresses may change without a new certificate
// and an address says nothing about who is there.
const (
	ServerName = "balsa-server"
	AgentName  = "balsa-agent"
)

// MaxSANs bounds the addresses in one certificate.
const MaxSANs = 64

const maxDNSNameBytes = 253

// SANs are the addresses a server's certificate is good for. The zero value
// means none but the fixed ones.
type SANs struct {
	DNS []string
	IPs []netip.Addr
}

// ParseSANs takes listen and advertise addresses, each "host" or "host:port".
// Unspecified addresses (":7070", "0.0.0.0:7070") name no host and are left
// out: give the addresses of the interfaces as well. The result is sorted and
// without duplicates.
func ParseSANs(addresses ...string) (SANs, error) {
	var s SANs
	for _, address := range addresses {
		host := hostOf(address)
		ip, err := netip.ParseAddr(host)
		switch {
		case host == "" || err == nil && ip.IsUnspecified():
		case err == nil:
			s.IPs = append(s.IPs, ip.Unmap().WithZone(""))
		case validHost(host):
			s.DNS = append(s.DNS, strings.ToLower(host))
		default:
			return SANs{}, refuse(ErrBadRequest, "address %q is neither an IP address nor a host name, with or without a port", clip(address))
		}
	}
	return s.normal()
}

func hostOf(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return strings.TrimSuffix(strings.TrimPrefix(address, "["), "]")
}

func validHost(host string) bool {
	if len(host) > maxDNSNameBytes {
		return false
	}
	for label := range strings.SplitSeq(strings.ToLower(host), ".") {
		if len(label) == 0 || len(label) > 63 || !wellFormed(label, "-") {
			return false
		}
	}
	return true
}

func (s SANs) normal() (SANs, error) {
	dns, ips := slices.Clone(s.DNS), slices.Clone(s.IPs)
	slices.Sort(dns)
	slices.SortFunc(ips, netip.Addr.Compare)
	s = SANs{DNS: slices.Compact(dns), IPs: slices.Compact(ips)}
	if n := len(s.DNS) + len(s.IPs); n > MaxSANs {
		return SANs{}, refuse(ErrTooMany, "%d addresses for one certificate; at most %d are allowed", n, MaxSANs)
	}
	return s, nil
}

// forRole adds the fixed names of a role and refuses addresses to roles that
// must not have any: an agent with the name of a server could pose as one to a
// client that checks only the name.
func (s SANs) forRole(role Role, name string) (SANs, error) {
	if role != RoleServer {
		if n := len(s.DNS) + len(s.IPs); n > 0 {
			return SANs{}, refuse(ErrBadRequest, "role %s asks for %d addresses in its certificate; only servers have any", role, n)
		}
		if role == RoleAgent {
			return SANs{DNS: []string{AgentName}}, nil
		}
		return SANs{}, nil
	}
	for _, d := range s.DNS {
		if !validHost(d) || d == AgentName {
			return SANs{}, refuse(ErrBadRequest, "host name %q is not allowed in a server's certificate", clip(d))
		}
	}
	for _, ip := range s.IPs {
		if !ip.IsValid() || ip.IsUnspecified() {
			return SANs{}, refuse(ErrBadRequest, "address %q is not allowed in a server's certificate", ip)
		}
	}
	return SANs{
		DNS: append([]string{ServerName, "localhost", name}, s.DNS...),
		IPs: append([]netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}, s.IPs...),
	}.normal()
}

func (s SANs) netIPs() []net.IP {
	var ips []net.IP
	for _, ip := range s.IPs {
		ips = append(ips, ip.AsSlice())
	}
	return ips
}
