// Package netproxy turns services, their endpoints, host ports and network
// policies into the nftables ruleset of one node: it plans, compares, explains
// and prints; the sub-package apply speaks to the kernel.
//
// The design is flat. There is no chain a service; one chain an endpoint
// count translates all services with that many endpoints, through a map from
// service and random slot to endpoint:
//
//	services { VIP . proto . port : goto n3 }
//	slots-n3 { VIP . proto . port . 0 : endpoint . port,  … 1 : …,  … 2 : … }
//	chain n3 { dnat to VIP . proto . port . numgen random mod 3 map @slots-n3 }
//
// so that a changed endpoint is one changed element whatever the number of
// services. Policies are sets of ranges, one for all pods that the same policies
// select. Service NAT and policies decide once a connection.
//
// A Tracker keeps the ruleset while objects change one by one; FromObjects and
// Plan make the same from nothing. Route and Judge say what a ruleset does with
// a packet, and Explain what policies say of a connection.
//
// What it refuses to do: it holds no sockets, knows no clock, and never reads
// the kernel's tables to find out what it wants; the wish is in memory, and
// the kernel is compared with it now and then (Kernel.Scrub), and when somebody
// has touched it (Kernel.Watch).
package netproxy
