// Package podnet connects pods to the node and nodes to each other: routed
// veth pairs without a bridge, a pod's address from the node's pod CIDR, and
// ways to the other nodes' pods: host routes where nodes share a link, VXLAN where
// they do not. It also answers for the addresses that the node announces, and
// repairs what somebody else breaks.
//
//	pod                              node
//	eth0  10.244.1.7/32  <------->  bls3f2a90c1d4e5 (no address)
//	default via 169.254.1.1         10.244.1.7 dev bls3f2a90c1d4e5
//	169.254.1.1 is the node's       10.244.1.7 is eth0's
//	end, a permanent neighbour      hardware address, permanent
//
//	node 1 -- one link -- node 2     10.244.2.0/24 via 192.168.1.2 dev eth0
//	node 1 -- router ---- node 3     10.244.3.0/24 via 10.244.3.1 dev bls-vxlan onlink
//
// Every call is idempotent, and what an interrupted one leaves is completed or
// removed by the next: the state is in the kernel and in one small file an
// address, never only in memory.
//
// What it refuses to do: it makes no network namespaces (the runtime does), it
// knows no services (netproxy does), it shapes no traffic, and it touches no
// device, address, route or table but its own; the one exception is the kernel's
// own rule for the main routing table, which it puts back. The types, the address
// pool, the plan of ways and the fake build anywhere; Linux, in the files *_linux.go,
// needs the system.
package podnet
