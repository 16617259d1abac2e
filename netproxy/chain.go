package netproxy

import (
	"fmt"
	"strings"
	"time"
)

// Mark says which connections a chain marks for masquerading: their endpoints
// answer to the node then, which alone knows the way back.
type Mark uint8

const (
	// MarkForeign marks sources that are no pods of this node.
	MarkForeign Mark = iota
	// MarkAlways marks every source.
	MarkAlways
	// MarkNever keeps the source address.
	MarkNever
)

func (m Mark) letter() string { return [...]string{"n", "e", "k"}[m] }

// ChainKind says which rules a chain has.
type ChainKind uint8

const (
	// ChainClass translates every front of a table that has N targets.
	ChainClass ChainKind = iota + 1
	// ChainAffinity chooses the endpoint that a client was led to before, or
	// else any of Members.
	ChainAffinity
	// ChainAffinityEndpoint remembers the client and leads it to Target.
	ChainAffinityEndpoint
	// ChainProfile lets pass what the set of its name holds, and refuses the
	// rest, for all pods with the same policies.
	ChainProfile
)

// Chain is a chain that elements name. But for the Members of ChainAffinity,
// its name determines its rules.
type Chain struct {
	Name string
	Kind ChainKind
	Mark Mark
	// Table and N belong to ChainClass.
	Table Table
	N     int
	// Members of ChainAffinity are names of chains, each followed by a space.
	Members string
	// Target and Timeout belong to ChainAffinityEndpoint.
	Target  Target
	Timeout time.Duration
	// Direction belongs to ChainProfile.
	Direction Direction
}

func classChain(t Table, m Mark, n int) Chain {
	return Chain{Name: fmt.Sprintf("%s%s%d", t.prefix(), m.letter(), n), Kind: ChainClass, Table: t, Mark: m, N: n}
}

// MemberNames lists the chains of the endpoints of a ChainAffinity.
func (c *Chain) MemberNames() []string { return strings.Fields(c.Members) }

// Set is the set that comes and goes with the chain, if it has one.
func (c *Chain) Set() (Set, bool) {
	switch c.Kind {
	case ChainClass:
		return Set{Name: slotsPrefix + c.Name, Key: append(keyFields(c.Table.Node()), FieldSlot), Data: []Field{FieldAddress, FieldPort}}, true
	case ChainAffinityEndpoint:
		return Set{Name: c.Name, Key: []Field{FieldAddress}, Timeout: c.Timeout}, true
	case ChainProfile:
		return Set{Name: c.Name, Key: []Field{FieldProtocol, FieldPort, FieldAddress}, Intervals: true}, true
	}
	return Set{}, false
}

// String prints the chain in one line.
func (c Chain) String() string {
	switch c.Kind {
	case ChainAffinity:
		return fmt.Sprintf("chain %s: %s", c.Name, strings.TrimSpace(c.Members))
	case ChainAffinityEndpoint:
		return fmt.Sprintf("chain %s: %s for %s", c.Name, c.Target, c.Timeout)
	}
	return "chain " + c.Name
}
