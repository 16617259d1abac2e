// Package announce is how servers tell their callers, in the headers of every
// answer, where the servers of the cluster are and which of them leads. A caller
// that knows finds another server when one is gone, and writes where a write
// takes one hop less.
//
// It refuses to be an authority: an announcement is a hint. Whoever dials an
// address from one has to check, as for any other address, that a server of the
// cluster answers there.
package announce

import (
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// The headers. They are part of the wire.
const (
	HeaderLeader  = "Balsa-Leader"
	HeaderServers = "Balsa-Servers"
)

// Limits of what is told and believed.
const (
	MaxServers      = 16
	MaxAddressBytes = 261 // a host name of 255 bytes, a colon and a port
)

// Announcement is what a server knows. Empty fields are not known.
type Announcement struct {
	Leader  string   // host:port
	Servers []string // host:port, in order
}

// Put puts a into the headers of an answer. Addresses beyond MaxServers are left
// out.
func (a Announcement) Put(h http.Header) {
	if a.Leader != "" {
		h.Set(HeaderLeader, a.Leader)
	}
	if servers := a.Servers[:min(len(a.Servers), MaxServers)]; len(servers) > 0 {
		h.Set(HeaderServers, strings.Join(servers, ","))
	}
}

// From reads the headers of an answer. It leaves out what is not host:port, and
// what is beyond the limits.
func From(h http.Header) Announcement {
	var a Announcement
	if leader := h.Get(HeaderLeader); plausible(leader) {
		a.Leader = leader
	}
	told := h.Get(HeaderServers)
	if told == "" || len(told) > MaxServers*(MaxAddressBytes+1) {
		return a
	}
	for address := range strings.SplitSeq(told, ",") {
		if plausible(address) && !slices.Contains(a.Servers, address) && len(a.Servers) < MaxServers {
			a.Servers = append(a.Servers, address)
		}
	}
	return a
}

func plausible(address string) bool {
	if len(address) > MaxAddressBytes {
		return false
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil || host == "" || strings.ContainsAny(host, " /\\@?#") {
		return false
	}
	number, err := strconv.ParseUint(port, 10, 16)
	return err == nil && number != 0
}
