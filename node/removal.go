package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/balsa-run/balsa/object"
)

// ErrNodeRemoved ends Run: the node was removed from its cluster, and its pods
// were ended. Nothing is to be expected from another Run with the same identity.
var ErrNodeRemoved = errors.New("this node was removed from the cluster")

// removal is what servers have said lately of this node's own removal.
type removal struct {
	// since is when a server first said that the node was removed, with no
	// heartbeat taken and no server saying otherwise since.
	since time.Time
}

// removed tells whether this node was removed, after a heartbeat. That pods are
// ended for it is the one thing that an agent does against its assignments, so a
// server has to say it twice, removedPatience apart. Servers that cannot be
// reached, that refuse for another reason or that do not know the node say
// nothing of the kind.
func (a *Agent) removed(ctx context.Context, r *removal, beat error) bool {
	if beat == nil || connect.CodeOf(beat) != connect.CodeUnauthenticated || a.cfg.AskRemoved == nil {
		if beat == nil {
			*r = removal{}
		}
		return false
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	gone, err := a.cfg.AskRemoved(call)
	now := a.cfg.Clock.Now()
	switch {
	case err != nil:
		a.log.Warn("no server takes this node's certificate, and none says why", "error", err)
		return false
	case !gone:
		*r = removal{}
		return false
	case r.since.IsZero() || now.Before(r.since):
		*r = removal{since: now}
		a.log.Warn("a server says that this node was removed from the cluster; its pods are ended if that is said again", "in", removedPatience)
		return false
	}
	return now.Sub(r.since) >= removedPatience
}

// leave ends the pods of a node that was removed, waits for their end within
// bounds, and says what became of them. Their contents in persistent volumes
// stay.
func (a *Agent) leave(ctx context.Context) error {
	a.leaving.Store(true)
	pods := a.set.allPods()
	a.log.Error("this node was removed from the cluster: ending its pods", "pods", len(pods), "within", leavePatience)
	e, err := a.commit(a.set.withoutPods())
	if err != nil {
		return err
	}
	for _, uid := range e.uids {
		a.look(uid)
	}
	a.toSync.raise()
	left, err := a.awaitEmpty(ctx)
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return fmt.Errorf("%w: %d of its pods have not ended within %v: %s", ErrNodeRemoved, len(left), leavePatience, strings.Join(left, ", "))
	}
	a.log.Info("the pods of this node have ended", "pods", len(pods))
	return ErrNodeRemoved
}

// withoutPods is a step to a set without pods and what only they use. Everything
// else stays: rules hold until the last pod has ended, and what is in persistent
// volumes is not lost.
func (s *set) withoutPods() *step {
	s.mu.RLock()
	defer s.mu.RUnlock()
	next := &step{full: true, revision: s.revision, changes: map[string]object.Message{}}
	for key, m := range s.objects {
		switch kind, _, _, _ := object.ParseKey(key); kind.Name {
		case "Pod", "Secret", "ConfigMap":
		default:
			next.changes[key] = m
		}
	}
	return next
}

// awaitEmpty waits until the runtime has no pod, and returns those that stay.
func (a *Agent) awaitEmpty(ctx context.Context) (left []string, err error) {
	deadline := a.cfg.Clock.Now().Add(leavePatience)
	for {
		left = left[:0]
		pods, err := a.cfg.Runtime.Pods(ctx)
		if err != nil {
			return nil, fmt.Errorf("node %s: list what runs: %w", a.cfg.Name, err)
		}
		for _, p := range pods {
			left = append(left, string(p.UID))
		}
		if len(left) == 0 || !a.cfg.Clock.Now().Before(deadline) {
			return left, nil
		}
		if err := sleep(ctx, a.cfg.Clock, turnPause); err != nil {
			return nil, err
		}
	}
}
