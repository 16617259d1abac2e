// Package object holds the rules of every kind: its names and keys, defaults,
// stamps, validation, three-way merging, phases and selectors. Everything is a
// pure function of its arguments; time, chance and identity are passed in.
//
// It refuses to read or write anything, to know a store, a network or a clock,
// and to change a message it was not explicitly given to change: only Default,
// Stamp, BumpGeneration and the functions whose name starts with Set do, and
// they change their first argument in place. Pass those a clone of what came
// from a store.
//
// See DESIGN.md for why merging works on paths.
package object
