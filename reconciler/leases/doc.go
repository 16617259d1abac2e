// Package leases counts down the leases of the etcd space, for the leader alone.
// The log knows that a lease was granted and that it was revoked; how much time it
// has left is in the leader's memory, so that keeping a lease alive costs no write.
// A leader that is new gives every lease its full time; what the former one knew is
// lost. A lease that is over is revoked by a command that carries the leader's
// epoch, so a deposed leader's late decision changes nothing.
//
// A lease is never over early. Time is the sum of what passes between two looks at
// the clock, and of one such step at most maxStep counts: a clock that jumps, or a
// process that slept, takes nobody's lease away before its holder could be heard.
// The price is that a lease lives as much longer as the leader slept.
//
// What the package refuses to do: it decides nothing in a term that is not its
// own, it answers nobody before it has made sure that it still leads, and it
// forgets no revocation whose outcome it does not know.
package leases
