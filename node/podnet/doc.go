// Package podnet connects pods to the node and nodes to each other: routed
// veth pairs without a bridge, a pod's address from the node's pod CIDR, and
// host routes to the other nodes' pods.
//
//	pod                              node
//	eth0  10.244.1.7/32  <------->  bls3f2a90c1d4e5 (no address)
//	default via 169.254.1.1         10.244.1.7 dev bls3f2a90c1d4e5
//	169.254.1.1 is the node's       10.244.1.7 is eth0's
//	end, a permanent neighbour      hardware address, permanent
//
// Every call is idempotent, and what an interrupted one leaves is completed or
// removed by the next: the state is in the kernel and in one small file an
// address, never only in memory.
//
// What it refuses to do: it makes no network namespaces (the runtime does), it
// knows no services (netproxy does), and it touches no device, route or table
// but its own. The types, the address pool and the fake build anywhere;
// Linux, in linux.go, needs the system.
package podnet
