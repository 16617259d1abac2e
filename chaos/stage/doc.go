// Package stage puts a whole cluster on the hosts of a lab: servers and agents
// as processes of the real binary, and an operator who talks to them by the
// command line as people do. The demo, the fault tests and the benchmarks play
// on it.
package stage
