// Package pki is who is who in a cluster: the cluster's certificate authority,
// the identities in certificates, join tokens, renewal, removal, and the
// sealing of secret values.
//
// Everything that decides is a function of its arguments and of a time that is
// passed in; the few parts that wait (Renewer, Guard) take a clock. Randomness
// is crypto/rand alone: a source that a caller could swap would be a hole, and
// the simulator seeds crypto/rand through its WASI host instead.
//
// What it refuses to do: decide which role may do what (that is apiserver's),
// store anything in the cluster (the owner of the records does, in one
// transaction with its own preconditions), open network connections, follow an
// external authority, or accept an expired certificate anywhere but in a
// renewal by proof of the key.
//
// Errors that callers branch on are the sentinels in errors.go; every message
// is fit to be shown to a user and none contains a secret.
package pki
