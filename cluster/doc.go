// Package cluster turns commands into an agreed order: it runs hashicorp/raft
// for one member, feeds the committed commands to a Machine (the store), and
// tells the rest of Balsa who leads, in which term, and up to which index a read
// is safe.
//
// It owns what the library does not do: a read index that late answers cannot
// fool, epochs, a vote in one write, a watchdog on the member's own disk,
// membership plans, and an honest class for every failed write.
//
// It refuses: to answer a read because it believes to be the leader; to call a
// write failed that may have happened; to go on after a write error; to start a
// server whose disk was lost under its old name. It makes no system call: disk,
// network, time and chance come by interface, and the package builds for wasip1.
package cluster
