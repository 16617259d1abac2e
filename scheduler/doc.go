// Package scheduler decides where pods run. It is one pure function: Plan takes
// a View of nodes and pods and returns Decisions, a binding or an explanation
// for every pod that waits.
//
// It refuses to know the store, a clock or chance: the same View gives the same
// Decisions, whatever the order of its slices. It never moves a pod that is
// bound, never evicts, and never fits a pod by less than it asks for.
package scheduler
