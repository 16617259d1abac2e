package main

import (
	"encoding/binary"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	mdnetlink "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// socketBuffer holds a transaction of ten thousand services.
	socketBuffer = 1 << 30
	// elementsPerMessage: see the package that Balsa's rules are applied by.
	elementsPerMessage = 400
)

// binaryRules writes transactions by the library google/nftables.
type binaryRules struct {
	conn  *nftables.Conn
	table *nftables.Table
}

func dial() (kernel, func(), error) {
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(
		func(c *mdnetlink.Conn) error { return c.SetWriteBuffer(socketBuffer) },
		func(c *mdnetlink.Conn) error { return c.SetReadBuffer(socketBuffer) }))
	if err != nil {
		return nil, nil, err
	}
	return &binaryRules{conn, &nftables.Table{Family: nftables.TableFamilyIPv4, Name: "kube-proxy"}}, func() { _ = conn.CloseLasting() }, nil
}

func (k *binaryRules) chain(name string) *nftables.Chain {
	return &nftables.Chain{Table: k.table, Name: name}
}

func (k *binaryRules) full(services []service) error {
	var addresses, fronts []nftables.SetElement
	for i := range services {
		s := &services[i]
		k.conn.AddChain(k.chain(s.chain))
		for _, e := range s.endpoints {
			k.endpoint(e)
		}
		if err := k.service(s); err != nil {
			return err
		}
		addresses = append(addresses, nftables.SetElement{Key: s.address.AsSlice()})
		fronts = append(fronts, nftables.SetElement{Key: front(s), VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: s.chain}})
	}
	for name, elements := range map[string][]nftables.SetElement{"cluster-ips": addresses, "service-ips": fronts} {
		for len(elements) > 0 {
			n := min(len(elements), elementsPerMessage)
			if err := k.conn.SetAddElements(&nftables.Set{Table: k.table, Name: name, IsMap: name == "service-ips"}, elements[:n]); err != nil {
				return err
			}
			elements = elements[n:]
		}
	}
	return k.conn.Flush()
}

func (k *binaryRules) change(s service, gone endpoint) error {
	k.conn.FlushChain(k.chain(s.chain))
	for i, e := range s.endpoints {
		if i > 0 {
			k.conn.FlushChain(k.chain(e.chain))
		}
		k.endpoint(e)
	}
	if err := k.service(&s); err != nil {
		return err
	}
	k.conn.FlushChain(k.chain(gone.chain))
	return k.conn.Flush()
}

// front is the key of service-ips, each field padded to four bytes.
func front(s *service) []byte {
	key := s.address.AsSlice()
	key = append(key, unix.IPPROTO_TCP, 0, 0, 0)
	return append(binary.BigEndian.AppendUint16(key, servicePort), 0, 0)
}

// Offsets in the IPv4 header.
const (
	sourceAddress      = 12
	destinationAddress = 16
)

func header(offset uint32) expr.Any {
	return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4}
}

func is(data []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }

func (k *binaryRules) rule(chain string, exprs ...expr.Any) {
	k.conn.AddRule(&nftables.Rule{Table: k.table, Chain: k.chain(chain), Exprs: exprs})
}

func mark() expr.Any { return &expr.Verdict{Kind: expr.VerdictJump, Chain: "mark-for-masquerade"} }

func (k *binaryRules) endpoint(e endpoint) {
	k.conn.AddChain(k.chain(e.chain))
	k.rule(e.chain, header(sourceAddress), is(e.address.AsSlice()), mark())
	k.rule(e.chain, &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, is([]byte{unix.IPPROTO_TCP}),
		&expr.Immediate{Register: 1, Data: e.address.AsSlice()},
		&expr.Immediate{Register: 2, Data: binary.BigEndian.AppendUint16(nil, endpointPort)},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, RegProtoMin: 2, Specified: true})
}

func (k *binaryRules) service(s *service) error {
	k.rule(s.chain,
		header(destinationAddress), is(s.address.AsSlice()),
		header(sourceAddress),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: []byte{255, 254, 0, 0}, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{10, 244, 0, 0}}, mark())
	set := &nftables.Set{Table: k.table, Anonymous: true, Constant: true, IsMap: true, KeyType: nftables.TypeInteger, DataType: nftables.TypeVerdict}
	var slots []nftables.SetElement
	for i, e := range s.endpoints {
		slots = append(slots, nftables.SetElement{Key: binary.NativeEndian.AppendUint32(nil, uint32(i)), VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: e.chain}})
	}
	if err := k.conn.AddSet(set, slots); err != nil {
		return err
	}
	k.rule(s.chain, &expr.Numgen{Register: 1, Modulus: uint32(len(s.endpoints)), Type: unix.NFT_NG_RANDOM},
		&expr.Lookup{SourceRegister: 1, DestRegister: 0, IsDestRegSet: true, SetName: set.Name, SetID: set.ID})
	return nil
}
