// Package reconciler is what the leader does: it runs the concerns, each a small
// package of its own, for as long as one leadership term lasts. A concern looks
// at the store, plans, and writes what differs; all they know of one another is
// what stands in the store.
//
// The package refuses to run without leadership (see loop.Gate), to write
// without naming the revisions a write is based on, and to keep state that a new
// leader would miss: what is in memory are heartbeats, for which every node is
// granted a full lease, and explanations, which are made anew.
package reconciler
