// Package pod is one pod's life as a pure step: Step looks at everything that is
// known of a pod, and says what to do next and what to report. It is the same
// whatever came before: what must be remembered is in Memory, and what matters
// of that is on disk, or can be seen in the runtime again.
//
// The agent carries the actions out, notes how that went with Done, and asks
// for the next step. A step on a view in which nothing has changed has no
// actions.
//
// What the package refuses to do: no I/O, no goroutine, no clock, no chance. It
// never starts an attempt while an older one may run, and it never starts
// anything of a pod whose end was asked for.
//
// DESIGN.md draws the states.
package pod
