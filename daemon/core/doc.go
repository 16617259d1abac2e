// Package core is a server of the control plane without the machine under it:
// it wires store, cluster, reconcilers and API together and takes the log, the
// gossip, the network, the clock and chance as interfaces. The daemon gives it a
// disk and TLS; the simulation gives it neither and runs it on virtual time, so
// it builds for wasip1 and touches no system.
//
// It refuses to decide anything: what it plugs together decides.
package core
