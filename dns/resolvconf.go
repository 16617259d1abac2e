package dns

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"strings"
)

// maxUpstreams bounds the upstream servers; more only make failures slower.
const maxUpstreams = 8

// ParseResolvConf reads the servers of a resolv.conf; see resolv.conf(5). Its
// options are the node's business and are not used here.
func ParseResolvConf(r io.Reader) ([]netip.AddrPort, error) {
	var servers []netip.AddrPort
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 || fields[0] != "nameserver" {
			continue
		}
		if len(fields) < 2 {
			return nil, fmt.Errorf("resolv.conf line %d: nameserver without address", n)
		}
		ip, err := netip.ParseAddr(fields[1])
		if err != nil {
			return nil, fmt.Errorf("resolv.conf line %d: nameserver %q: %w", n, fields[1], err)
		}
		if len(servers) < maxUpstreams {
			servers = append(servers, netip.AddrPortFrom(ip, 53))
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read resolv.conf: %w", err)
	}
	return servers, nil
}
