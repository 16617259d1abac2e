package podnet

import (
	"encoding/binary"
	"net"
	"net/netip"
)

// An ARP packet over Ethernet (RFC 826):
//
//	0        hardware type: 1           8   sender's hardware address
//	2        protocol type: 0x0800      14  sender's address
//	4, 5     their lengths: 6, 4        18  target's hardware address
//	6        operation                  24  target's address
const (
	arpLength  = 28
	macLength  = 6
	arpRequest = 1
	arpReply   = 2
)

type arpPacket struct {
	op     uint16
	sender net.HardwareAddr
	from   netip.Addr // the zero value: 0.0.0.0, as in a probe
	to     net.HardwareAddr
	target netip.Addr
}

func broadcast() net.HardwareAddr { return net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff} }

func (p arpPacket) encode() []byte {
	b := make([]byte, arpLength)
	binary.BigEndian.PutUint16(b, 1)
	binary.BigEndian.PutUint16(b[2:], 0x0800)
	b[4], b[5] = macLength, 4
	binary.BigEndian.PutUint16(b[6:], p.op)
	copy(b[8:14], p.sender)
	if p.from.Is4() {
		copy(b[14:18], p.from.AsSlice())
	}
	copy(b[18:24], p.to)
	copy(b[24:28], p.target.AsSlice())
	return b
}

// decodeARP reads what came from the link; what is not ARP for IPv4 over Ethernet
// is not ok.
func decodeARP(b []byte) (p arpPacket, ok bool) {
	if len(b) < arpLength || binary.BigEndian.Uint16(b) != 1 || binary.BigEndian.Uint16(b[2:]) != 0x0800 || b[4] != macLength || b[5] != 4 {
		return arpPacket{}, false
	}
	at := func(i int) netip.Addr { return netip.AddrFrom4([4]byte(b[i : i+4])) }
	return arpPacket{op: binary.BigEndian.Uint16(b[6:]), sender: net.HardwareAddr(b[8:14]), from: at(14), to: net.HardwareAddr(b[18:24]), target: at(24)}, true
}
