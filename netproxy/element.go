package netproxy

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Element is one element of a set or map of the table. Key, End and Value hold
// what the kernel holds, so that a plan is compared, written and read back
// without another form in between.
type Element struct {
	Set string
	Key string
	// End is the upper corner of an interval; empty for a single key.
	End string
	// Value is empty in a set, a verdict ("goto n3", "jump in-…", "drop") in a
	// verdict map, and encoded data in another map.
	Value string
}

// Field is one part of a key.
type Field uint8

// The parts keys are made of, each padded to four bytes.
const (
	FieldAddress Field = iota + 1
	FieldProtocol
	FieldPort
	FieldSlot
)

// Set declares a set or map.
type Set struct {
	Name string
	Key  []Field
	// Verdicts: a map to verdicts. Data: a map to these fields.
	Verdicts bool
	Data     []Field
	// Intervals: elements are ranges in every field.
	Intervals bool
	// Counted elements count the packets that matched them.
	Counted bool
	// Timeout of elements that rules add, for sets without planned elements.
	Timeout time.Duration
}

// Learned reports that rules fill the set, not the plan.
func (s *Set) Learned() bool { return s.Timeout > 0 }

// Names of the sets that every table has.
const (
	SetServices         = "services"
	SetNodePorts        = "node-ports"
	SetOutside          = "outside"
	SetOutsideNodePorts = "outside-node-ports"
	SetNoEndpoints      = "no-endpoints"
	SetNoEndpointsNode  = "node-ports-no-endpoints"
	SetRestricted       = "restricted"
	SetSources          = "sources"
	SetHairpin          = "hairpin"
	SetEgressPods       = "egress-pods"
	SetIngressPods      = "ingress-pods"
	SetEgressRefused    = "egress-refused"
	SetIngressRefused   = "ingress-refused"
)

// Table is one of the maps that a packet to a service is looked up in.
type Table uint8

// Inside tables hold every front; outside tables those that treat connections
// from outside in another way. Node tables have keys without an address.
const (
	TableServices Table = iota
	TableNodePorts
	TableOutside
	TableOutsideNodePorts
)

// Set is the name of the table's map.
func (t Table) Set() string {
	return [...]string{SetServices, SetNodePorts, SetOutside, SetOutsideNodePorts}[t]
}

// Node reports that the table's keys have no address.
func (t Table) Node() bool { return t == TableNodePorts || t == TableOutsideNodePorts }

func (t Table) prefix() string { return [...]string{"", "np-", "out-", "out-np-"}[t] }

// slotsPrefix begins the names of the maps of targets, which end with the name
// of the class chain that looks them up.
const slotsPrefix = "slots-"

func keyFields(node bool) []Field {
	if node {
		return []Field{FieldProtocol, FieldPort}
	}
	return []Field{FieldAddress, FieldProtocol, FieldPort}
}

// BaseSets are the sets that every table has.
func BaseSets() []Set {
	key, node, pair, address := keyFields(false), keyFields(true), []Field{FieldAddress, FieldAddress}, []Field{FieldAddress}
	return []Set{
		{Name: SetServices, Key: key, Verdicts: true},
		{Name: SetNodePorts, Key: node, Verdicts: true},
		{Name: SetOutside, Key: key, Verdicts: true},
		{Name: SetOutsideNodePorts, Key: node, Verdicts: true},
		{Name: SetNoEndpoints, Key: key},
		{Name: SetNoEndpointsNode, Key: node},
		{Name: SetRestricted, Key: key},
		{Name: SetSources, Key: append(keyFields(false), FieldAddress), Intervals: true},
		{Name: SetHairpin, Key: pair},
		{Name: SetEgressPods, Key: address, Verdicts: true, Counted: true},
		{Name: SetIngressPods, Key: address, Verdicts: true, Counted: true},
		{Name: SetEgressRefused, Key: address, Counted: true},
		{Name: SetIngressRefused, Key: address, Counted: true},
	}
}

// IsVerdict tells a verdict from data, which end with two zero bytes.
func IsVerdict(value string) bool {
	return value == verdictDrop || value != "" && value[len(value)-1] != 0 &&
		(strings.HasPrefix(value, verdictGoto) || strings.HasPrefix(value, verdictJump))
}

// affinityPrefix begins the names of chains and sets of session affinity.
const affinityPrefix = "aff-"

// Affinity reports an element that leads to a chain of session affinity.
func (e *Element) Affinity() bool { return strings.HasPrefix(e.Value, verdictGoto+affinityPrefix) }

// late reports that packets under way may still need an element that the next
// ruleset does not have.
func (e *Element) late() bool { return e.Set == SetHairpin || strings.HasPrefix(e.Set, slotsPrefix) }

// Every part of a concatenated key or value is padded to four bytes:
//
//	0        4      5       8        10       12
//	+--------+------+-------+--------+--------+------------------+
//	|  VIP   | proto|  0    |  port  |   0    | slot, native     |
//	+--------+------+-------+--------+--------+------------------+
//
// A key of a node table begins with the protocol.
func appendKey(b []byte, k Key) []byte {
	if k.VIP.IsValid() {
		b = appendAddr(b, k.VIP)
	}
	b = append(b, byte(k.Protocol), 0, 0, 0)
	return appendPort(b, k.Port)
}

func appendAddr(b []byte, a netip.Addr) []byte {
	ip := a.As4()
	return append(b, ip[:]...)
}

func appendPort(b []byte, port uint16) []byte {
	return append(binary.BigEndian.AppendUint16(b, port), 0, 0)
}

func keyBytes(k Key) string {
	var room [16]byte
	return string(appendKey(room[:0], k))
}

func slotBytes(k Key, slot int) string {
	var room [16]byte
	return string(binary.NativeEndian.AppendUint32(appendKey(room[:0], k), uint32(slot)))
}

func targetBytes(t Target) string {
	var room [8]byte
	return string(appendPort(appendAddr(room[:0], t.IP), t.Port))
}

func addrBytes(addrs ...netip.Addr) string {
	var room [8]byte
	b := room[:0]
	for _, a := range addrs {
		b = appendAddr(b, a)
	}
	return string(b)
}

func parseTarget(s string) Target {
	return Target{IP: netip.AddrFrom4([4]byte([]byte(s[:4]))), Port: binary.BigEndian.Uint16([]byte(s[4:6]))}
}

// fieldsOf are the parts of a set's keys, for printing.
func fieldsOf(set string) (key []Field, data bool) {
	for _, s := range BaseSets() {
		if s.Name == set {
			return s.Key, false
		}
	}
	switch {
	case strings.HasPrefix(set, slotsPrefix):
		return append(keyFields(strings.Contains(set, "np-")), FieldSlot), true
	case strings.HasPrefix(set, profilePrefix(Ingress)), strings.HasPrefix(set, profilePrefix(Egress)):
		return []Field{FieldProtocol, FieldPort, FieldAddress}, false
	}
	return []Field{FieldAddress}, false
}

// String prints the element as nftables does.
func (e Element) String() string {
	fields, data := fieldsOf(e.Set)
	text := printFields(fields, e.Key, e.End)
	switch {
	case data && len(e.Value) == 8:
		text += " : " + parseTarget(e.Value).String()
	case e.Value != "":
		text += " : " + e.Value
	}
	return e.Set + " { " + text + " }"
}

func printFields(fields []Field, key, end string) string {
	var parts []string
	for i, f := range fields {
		if len(key) < 4*i+4 {
			return fmt.Sprintf("%x", key)
		}
		part := printField(f, key[4*i:4*i+4])
		if len(end) >= 4*i+4 {
			if last := printField(f, end[4*i:4*i+4]); last != part {
				part += "-" + last
			}
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, " . ")
}

func printField(f Field, s string) string {
	b := []byte(s)
	switch f {
	case FieldAddress:
		return netip.AddrFrom4([4]byte(b)).String()
	case FieldProtocol:
		return Protocol(b[0]).String()
	case FieldPort:
		return fmt.Sprint(binary.BigEndian.Uint16(b))
	}
	return fmt.Sprint(binary.NativeEndian.Uint32(b))
}
