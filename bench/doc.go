// Package bench measures Balsa as its users meet it: the real binary, as real
// processes on the hosts of a lab. `make bench` runs every measure and writes
// docs/benchmarks.md.
//
// A measure is one type with the question it answers. It reports every value it
// took; the document shows the median and the spread, the machine and how busy
// it was, and says in words which targets are met. No test asserts on time. Suites
// of their own measure pods and the network beside what a user would run instead:
// `make bench-pods` and `make bench-network`.
//
// The package refuses to guess: a measure that fails is reported as not
// measured, and values are neither smoothed nor left out.
package bench
