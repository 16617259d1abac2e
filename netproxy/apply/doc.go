//go:build linux

// Package apply makes the kernel of one network namespace hold a
// netproxy.Ruleset: nftables by netlink, a route that lets the node itself
// reach virtual addresses, and the end of UDP flows that point nowhere.
//
// A Sync writes the difference to the Sync before it, without reading the
// kernel's tables: one transaction, and a second one that drops what packets
// under way could still need (netproxy.Change says why). The first Sync, and
// any after an error, compares the table with the plan: an agent that restarts
// finds it right and writes nothing; otherwise the table is emptied and rebuilt
// in a single transaction, without a moment in which services are unknown.
// Connection tracking keeps established connections where they are.
//
// What it refuses to do: it touches no table, route or flow but its own, waits
// for nothing, and retries nothing except a failed difference, as a whole.
package apply
