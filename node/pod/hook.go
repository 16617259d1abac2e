package pod

import (
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// HookKind is when a hook runs.
type HookKind string

// The kinds of hooks.
const (
	PostStart HookKind = "PostStart"
	PreStop   HookKind = "PreStop"
)

// HookKey names a hook of a pod.
type HookKey struct {
	Container string
	Kind      HookKind
}

// Hook is what has to be done once beside an attempt. It goes on for as long as
// plans have it, and is broken off when they do not.
type Hook struct {
	UID       string
	Container string
	Attempt   int
	Kind      HookKind
	Question
	// Sleep is how long to wait, for a hook that does nothing else.
	Sleep time.Duration
}

// Key names the hook within its pod.
func (h Hook) Key() HookKey { return HookKey{h.Container, h.Kind} }

// HookState is how far a hook is.
type HookState struct {
	Attempt int
	Done    bool
	// Message says why it failed; empty: it has not.
	Message string
}

// hook resolves a hook of a container.
func (s *step) hook(c *container, kind HookKind) (Hook, error) {
	var handler *balsav1.LifecycleHandler
	if kind == PostStart {
		handler = c.spec.GetLifecycle().GetPostStart()
	} else {
		handler = c.spec.GetLifecycle().GetPreStop()
	}
	q, err := question(c.spec, handler.GetExec(), handler.GetHttpGet(), s.address())
	return Hook{UID: s.uid(), Container: c.name(), Attempt: c.state.Attempt, Kind: kind, Question: q,
		Sleep: time.Duration(handler.GetSleep().GetSeconds()) * time.Second}, err
}
