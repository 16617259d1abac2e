package netproxy

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
)

const (
	verdictGoto = "goto "
	verdictJump = "jump "
	verdictDrop = "drop"
)

// Packet is the first of a connection.
type Packet struct {
	From, To netip.Addr
	Protocol Protocol
	Port     uint16
	// FromNode and ToNode say that the address is one of the node itself.
	FromNode, ToNode bool
}

// Outcome is what becomes of a packet.
type Outcome uint8

// The outcomes of Route.
const (
	Passes Outcome = iota
	Translates
	Refuses
	Drops
)

// String is one word.
func (o Outcome) String() string {
	return [...]string{"passes", "translates", "refuses", "drops"}[o]
}

// Path is where the rules lead a packet.
type Path struct {
	Outcome Outcome
	// Targets are those it may be translated to.
	Targets []Target
	// Masqueraded: the target sees an address of the node.
	Masqueraded bool
}

// Allows reports whether the path may end at a target.
func (p *Path) Allows(t Target) bool { return slices.Contains(p.Targets, t) }

// tables is a table's content, of a plan or of a kernel.
type tables interface {
	// value of an element, with the ID of the unit that has it if it exists.
	value(unit, set, key string) (string, bool)
	// covers reports that an interval of the set holds the key.
	covers(unit, set, key string) bool
	chain(name string) (Chain, bool)
}

// Route walks the rules with the first packet of a connection, as the kernel does
// it in apply: the fixed rules there and this function say the same.
func (r *Ruleset) Route(p Packet) Path { return walk(r, r.Params, p) }

func walk(t tables, params Params, p Packet) Path {
	if !p.From.Is4() || !p.To.Is4() {
		return Path{}
	}
	exact := Key{p.To, p.Protocol, p.Port}
	node := Key{netip.Addr{}, p.Protocol, p.Port}
	key, unit := keyBytes(exact), frontID(exact)
	if _, restricted := t.value(unit, SetRestricted, key); restricted && !t.covers(unit, SetSources, key+addrBytes(p.From)) {
		return Path{Outcome: Drops}
	}
	w := walker{tables: t, params: params, packet: p}
	toNode := p.ToNode && !p.To.IsLoopback()
	if !params.PodCIDR.Contains(p.From) && !p.FromNode {
		if w.follow(TableOutside, exact) || toNode && w.follow(TableOutsideNodePorts, node) {
			return w.path
		}
	}
	if w.follow(TableServices, exact) || toNode && w.follow(TableNodePorts, node) {
		return w.path
	}
	_, refused := t.value(unit, SetNoEndpoints, key)
	if toNode && !refused {
		_, refused = t.value(frontID(node), SetNoEndpointsNode, keyBytes(node))
	}
	if refused || params.ServiceCIDR.Contains(p.To) && !p.ToNode {
		return Path{Outcome: Refuses}
	}
	return Path{}
}

type walker struct {
	tables tables
	params Params
	packet Packet
	path   Path
}

func (w *walker) follow(t Table, k Key) bool {
	verdict, found := w.tables.value(frontID(k), t.Set(), keyBytes(k))
	if !found {
		return false
	}
	name, isGoto := strings.CutPrefix(verdict, verdictGoto)
	if !isGoto {
		w.path = Path{Outcome: Drops}
		return true
	}
	w.path = Path{Outcome: Translates}
	c, found := w.tables.chain(name)
	if !found {
		return true
	}
	w.path.Masqueraded = c.Mark == MarkAlways || c.Mark == MarkForeign && !w.params.PodCIDR.Contains(w.packet.From)
	for _, member := range c.MemberNames() {
		if e, found := w.tables.chain(member); found {
			w.path.Targets = append(w.path.Targets, e.Target)
		}
	}
	for slot := range c.N {
		if v, found := w.tables.value(frontID(k), slotsPrefix+name, slotBytes(k, slot)); found {
			w.path.Targets = append(w.path.Targets, parseTarget(v))
		}
	}
	return true
}

// Judge says what the policies of this node's pods say of a connection whose
// translation is done: whether it may leave its pod, and enter the other. What
// is not of a pod of this node is allowed here.
func (r *Ruleset) Judge(c Connection) (egress, ingress bool) { return judge(r, c) }

func judge(t tables, c Connection) (egress, ingress bool) {
	if c.From == c.To || !c.From.Is4() || !c.To.Is4() {
		return true, true
	}
	port := string(appendPort([]byte{byte(c.Protocol), 0, 0, 0}, c.Port))
	return pass(t, sortEgress, SetEgressPods, c.From, port+addrBytes(c.To)), pass(t, sortIngress, SetIngressPods, c.To, port+addrBytes(c.From))
}

func pass(t tables, sort, dispatch string, pod netip.Addr, key string) bool {
	verdict, limited := t.value(sort+addrBytes(pod), dispatch, addrBytes(pod))
	if !limited {
		return true
	}
	name := strings.TrimPrefix(verdict, verdictJump)
	return t.covers(profileID(name), name, key)
}

// value implements tables.
func (r *Ruleset) value(unit, set, key string) (string, bool) {
	u := r.content.get(unit)
	if u == nil {
		return "", false
	}
	for i := range u.Elements {
		if u.Elements[i].Key == key && u.Elements[i].Set == set {
			return u.Elements[i].Value, true
		}
	}
	return "", false
}

// covers implements tables.
func (r *Ruleset) covers(unit, set, key string) bool {
	u := r.content.get(unit)
	return u != nil && slices.ContainsFunc(u.Elements, func(e Element) bool { return e.Set == set && within(&e, key) })
}

// chain implements tables.
func (r *Ruleset) chain(name string) (Chain, bool) {
	u := r.content.get(chainID(name))
	if u == nil {
		return Chain{}, false
	}
	return *u.Chain, true
}

// within compares every field of the key with the interval's; fields of an
// interval set are big-endian, or of one byte.
func within(e *Element, key string) bool {
	for i := 0; i+4 <= len(key); i += 4 {
		v := binary.BigEndian.Uint32([]byte(key[i : i+4]))
		if v < binary.BigEndian.Uint32([]byte(e.Key[i:i+4])) || v > binary.BigEndian.Uint32([]byte(e.End[i:i+4])) {
			return false
		}
	}
	return true
}
