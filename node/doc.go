// Package node is the agent: it takes what its node shall do from a server and
// makes it so, and tells the server what became of it.
//
//	Assignments -> set (also on disk) -> a worker a pod: pod.Step -> runtime, network
//	                               \--> proxy, resolver, routes: one revision at a time
//	runtime, probes -> pod.Step -> reports, coalesced and repeated -> ReportStatus
//
// It needs no server to go on: the set is on disk, the truth about containers is
// in the runtime, and nothing is stopped because nobody can be asked. It may be
// killed at any moment; what it finds at its next start is all it needs.
//
// What it refuses to do: it decides nothing about other nodes, it starts no pod
// that it was not given, it removes nothing before it knows a whole set that is
// newer than what it would remove, and it makes no system call: runtime, network,
// proxy, disk and clock come by interface, so that it builds for wasip1.
package node
