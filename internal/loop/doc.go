// Package loop is the helper on which every reconciling loop of Balsa stands:
//
//	wait (changed, timer, settle) -> view -> plan -> apply
//
// A Queue collects keys: which object to look at again, never what happened to
// it. Run takes them in batches and calls a step, which reads the truth, plans
// and applies; what failed comes back after a back-off of its own. Gate runs a
// function for as long as this member leads, and Group runs several loops that
// end together.
//
// It refuses to run two steps of one loop at once, to grow without bound (a
// queue that is full forgets its keys and looks at everything instead), and to
// swallow a panic: a programmer's mistake stops the process.
package loop
