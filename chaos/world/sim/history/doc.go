// Package history records what clients asked of a cluster and were told, and
// judges it against what the members then have.
//
// The store numbers every write, and the number orders everything: instead of
// searching for an order in which the answers make sense, Check looks whether
// the order that the members agree on explains every answer. See DESIGN.md of
// chaos/world/sim for the list of what is checked.
//
// It refuses to talk to a cluster, and knows no clock.
package history
