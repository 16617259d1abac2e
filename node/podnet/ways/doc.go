// Package ways holds the tests of podnet that send packets between nodes: on one
// link, over a router, mixed; while nodes change, agents restart and others flush
// what is ours. It has no code: what it tests is in podnet, and its tests are slow
// enough to be kept apart from that package's own.
package ways
