// Package load is what the demo, the fault tests and the benchmarks do to a
// cluster while it suffers: HTTP requests to a service and writes to the API,
// each with a record that says afterwards what was lost and for how long nothing
// worked. It runs inside a host of the lab, as a process of its own, and prints
// its report as one line of JSON.
package load
