// Package inside is the world of chaos/world/sim as its inhabitants see it:
// machines with a disk, joined by a network, servers of daemon/core that run on
// them, and faults that are done to them. It is compiled into the guest; on
// another GOOS it runs on real time and is not repeatable.
//
// It refuses to judge: chaos/world/sim/history does. It also refuses to look
// into a server for anything but what an operator or a test would ask for.
package inside
