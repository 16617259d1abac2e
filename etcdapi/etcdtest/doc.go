// Package etcdtest holds etcdapi against a real etcd: the same requests go to
// both, and every response, error and event is compared. See DESIGN.md.
//
// It is tests only, run by `make test-etcd`, which builds etcd first. It skips
// nothing: without an etcd to compare with it fails. It talks to nobody but the
// processes that it starts, on loopback, and leaves nothing behind.
package etcdtest
