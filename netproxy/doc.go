// Package netproxy turns services and their endpoints into the nftables
// ruleset of one node: it plans, compares and prints; the sub-package apply
// speaks to the kernel.
//
// The design is flat. There is no chain a service; one chain an endpoint
// count translates all services with that many endpoints, through a map from
// service and random slot to endpoint:
//
//	services { VIP . proto . port : goto n3 }
//	slots3   { VIP . proto . port . 0 : endpoint . port,  … 1 : …,  … 2 : … }
//	chain n3 { dnat to VIP . proto . port . numgen random mod 3 map @slots3 }
//
// so that a changed endpoint is one changed element whatever the number of
// services. Service NAT is decided once a connection.
//
// What it refuses to do: it holds no sockets, knows no clock, and never reads
// the kernel's tables to find out what it wants; the wish is in memory, and
// the kernel is compared with it now and then (Kernel.Scrub).
package netproxy
