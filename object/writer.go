package object

// Writer says on whose behalf an object is written, which decides what may
// change: law 2 of the architecture, each field has one writer.
type Writer int

const (
	// User is any certificate of role admin: writes spec, labels, annotations.
	User Writer = iota
	// System is a reconciler, the binding of a pod to its node, or a node's
	// agent through the server.
	System
)
