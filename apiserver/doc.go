// Package apiserver is the edge of the control plane: the Connect handlers of
// every service of balsa.v1 and of PeerService, one file a service, behind one
// gate that authenticates, authorises, limits, audits and counts each call.
//
// It turns a request into a command with preconditions and hands it to a
// Backend; it reads what it answers from the store's immutable views. Every
// failed write says in a balsav1.ErrorDetail whether it was applied.
//
// What it refuses to do: listen or speak TLS (the daemon does, and puts the
// caller's identity into the context), know raft (the daemon plugs a Backend
// in), reconcile anything (a write changes the object it names and its claims,
// never another object's intent), and print, log or return a Secret's value to
// anybody but an admin, a server, or the node that runs its pod.
package apiserver
