// Package inside is the world of chaos/world/sim as its inhabitants see it:
// machines with a disk, joined by a network, servers of daemon/core that run on
// them, and faults that are done to them. It is compiled into the guest; on
// another GOOS it runs on real time and is not repeatable.
//
// What a run does to its servers is a Schedule of Faults: Generate draws one,
// Scripts has those with a purpose, JSON reads and writes them, World.Inject does
// one. World.Reached tells which states worth a visit a run has seen.
//
// It refuses to judge: chaos/check does. It also refuses to look
// into a server for anything but what an operator or a test would ask for.
package inside
