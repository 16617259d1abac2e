// Package host is the harness's real world: hosts on this one machine, each a
// network namespace joined by a veth to a switch in a namespace of its own, on
// which the real binary runs as real processes. The demo, the fault tests and
// the benchmarks stand on it.
//
//	    s1          s2          n1         one namespace a host: eth0 10.77.0.x/24
//	     │           │           │
//	┌────┴───────────┴───────────┴────┐
//	│ br0        set cut: A . B drop  │    the switch's namespace
//	└─────────────────────────────────┘
//
// Everything it makes carries the lab's prefix in its name or lies below the
// lab's folder, so Close finds and removes it, also what a killed process left:
// processes by their namespace or cgroup, mounts by path, cgroups and namespaces
// by name. Leaks tells what is still there. It never touches the machine's own
// network and ends no process that is not the lab's.
package host
