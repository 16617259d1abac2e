// Package store is the database of a Balsa cluster: a deterministic machine
// that turns the commands of the replicated log into numbered revisions of
// several key spaces, and serves reads, watches and snapshots of them.
//
// A space has etcd's semantics: revision 1 is the empty space, each
// transaction that changes something is the next revision, and every revision
// that was not compacted away can be read and watched from. Spaces share
// nothing but the log: revision, history, quota, leases and hash are their own.
//
// What the package refuses to do: it knows no raft, no network, no disk and no
// clock; nothing below Apply is random, depends on the order of a map, or
// marshals a message. What a reader gets is shared and frozen: clone a
// KV.Object or a KV.Value before changing it.
package store
