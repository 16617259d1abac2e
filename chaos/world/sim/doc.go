// Package sim runs a program compiled for GOOS=wasip1 in a world that a seed
// decides: its random bytes come from the seed, its clock is a number that moves
// when the program waits, and it has one thread. So a run can be had again, event
// by event, by giving its seed again, and an hour of the program's time takes
// seconds. The Digest of a Result tells whether two runs were the same one.
//
// What runs inside is ordinary code: chaos/world/sim/guest is three servers of
// the control plane with their network, disks and clients.
//
// The package refuses to give the program anything that could differ from one
// run to the next: no files, no sockets, no environment of the machine, no real
// clock. It knows nothing of what the program does; it judges a run only by its
// exit code and its limits.
package sim
