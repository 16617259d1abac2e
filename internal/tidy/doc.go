// Package tidy holds the house rules as a test: who may import whom, and what
// no file may contain. It has no code of its own; `go test ./internal/tidy`
// reads the source of the whole module.
package tidy
