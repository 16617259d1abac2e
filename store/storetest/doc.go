// Package storetest holds the promises of a store as tests: a conformance suite
// for any Machine, a naive model that keeps every state there ever was, and a
// generator of random commands with which the two are compared. It is for tests
// only and knows no clever data structure on purpose.
package storetest
