//go:build linux

// Package apply makes the kernel of one network namespace hold a
// netproxy.Ruleset: nftables by netlink, a route that lets the node itself
// reach virtual addresses, and the end of flows that point nowhere or that
// changed policies forbid.
//
// A Sync writes the difference to the Sync before it, without reading the
// kernel's tables: one transaction, before it one for chains that are new, and
// after it one that drops what packets under way could still need
// (netproxy.Change says why). The first Sync, and any after an error, compares
// the table with the plan: an agent that restarts finds it right and writes
// nothing; otherwise the table is emptied and rebuilt in a single transaction,
// without a moment in which services are unknown. Connection tracking keeps
// established connections where they are. What the kernel refuses is found, left
// out and told.
//
// What it refuses to do: it touches no table, route or flow but its own (and a
// trial table that never outlives its transaction), waits for nothing, and
// retries nothing except a failed difference, as a whole.
package apply
