package apiserver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/store"
)

// change is one planned write: what must still hold, what is written, and what
// the caller is shown of it. Without ops there is nothing to write.
type change struct {
	space    string
	compares []*internalv1.Compare
	ops      []*internalv1.Op
	// result is owned by the change; its resourceVersion is set once written.
	result  object.Message
	outcome string
}

// Outcomes, for answers and the audit.
const (
	outcomeCreated    = "created"
	outcomeConfigured = "configured"
	outcomeUnchanged  = "unchanged"
	outcomeDeleted    = "deleted"
	outcomeMarked     = "marked for deletion"
)

// expect makes the write depend on a key being at a revision; 0: absent.
func (c *change) expect(key string, at store.Revision) {
	c.compares = append(c.compares, &internalv1.Compare{
		Key: []byte(key), Target: internalv1.Compare_TARGET_MOD, Result: internalv1.Compare_RESULT_EQUAL, Number: int64(at),
	})
}

func (c *change) put(key string, value []byte) {
	c.ops = append(c.ops, &internalv1.Op{Op: &internalv1.Op_Put{Put: &internalv1.Put{Key: []byte(key), Value: value}}})
}

func (c *change) remove(key string) {
	c.ops = append(c.ops, &internalv1.Op{Op: &internalv1.Op_DeleteRange{DeleteRange: &internalv1.DeleteRange{Key: []byte(key)}}})
}

// putObject seals and encodes.
func (s *Server) putObject(c *change, m object.Message) error {
	sealed, err := s.sealed(m)
	if err != nil {
		return err
	}
	value, err := object.Encode(sealed)
	if err != nil {
		return err
	}
	c.put(object.KeyOf(m), value)
	return nil
}

// planner plans a write from a view. It is called anew after a conflict.
type planner func(view store.View, now time.Time) (*change, error)

// write plans and proposes until the plan's preconditions hold. The first plan
// is made from what this server has, without asking the leader, since the
// preconditions guard it; but a refusal, a finding that nothing is to be done,
// and a dry run are answers about the present and are planned after a barrier.
func (s *Server) write(ctx context.Context, space string, dryRun bool, plan planner) (*change, error) {
	fresh := false
	for range s.limits.WriteAttempts {
		if dryRun && !fresh {
			if err := s.barrier(ctx); err != nil {
				return nil, err
			}
			fresh = true
		}
		c, err := plan(s.store.Space(space).View(), s.clock.Now())
		if !fresh && (err != nil || len(c.ops) == 0) {
			if err := s.barrier(ctx); err != nil {
				return nil, err
			}
			c, err = plan(s.store.Space(space).View(), s.clock.Now())
		}
		if err != nil || dryRun || len(c.ops) == 0 {
			return c, err
		}
		done, err := s.commit(ctx, c)
		if done || err != nil {
			return c, err
		}
		s.conflicted(ctx)
		if err := s.barrier(ctx); err != nil {
			return nil, err
		}
		fresh = true
	}
	return nil, &problem{
		code: connect.CodeAborted, reason: "Contention", applied: notApplied,
		hint: "try again: others keep changing the same objects",
		err:  fmt.Errorf("the write met a conflict %d times (limit WriteAttempts)", s.limits.WriteAttempts),
	}
}

func (s *Server) conflicted(ctx context.Context) {
	s.metrics.Conflicts.WithLabelValues(rpcName(callOf(ctx).procedure)).Inc()
}

// commit proposes a change; done is false after a conflict.
func (s *Server) commit(ctx context.Context, c *change) (done bool, err error) {
	result, err := s.propose(ctx, c.space, &internalv1.Txn{Compares: c.compares, Success: c.ops})
	if err != nil || !result.GetTxn().GetSucceeded() {
		return false, err
	}
	if c.result != nil {
		object.EnsureMetadata(c.result).ResourceVersion = revisionString(store.Revision(result.GetRevision()))
	}
	return true, nil
}

// propose is the only way from this package into the log.
func (s *Server) propose(ctx context.Context, space string, txn *internalv1.Txn) (*internalv1.CommandResult, error) {
	result, err := s.backend.Propose(ctx, &internalv1.Command{
		Space:  space,
		TimeNs: s.clock.Now().UnixNano(),
		Op:     &internalv1.Command_Txn{Txn: txn},
	})
	if err != nil {
		return nil, toProposalProblem(err)
	}
	if err := outcomeError(result); err != nil {
		return nil, err
	}
	return result, nil
}

// toProposalProblem classifies an error of the Backend. What it does not say
// anything about may have been applied.
func toProposalProblem(err error) *problem {
	p := toProblem(err)
	var said proposalError
	switch {
	case p.applied != balsav1.ErrorDetail_APPLIED_UNSPECIFIED:
	case errors.As(err, &said):
		if p.code == connect.CodeInternal {
			p.code, p.reason, p.err, p.cause = connect.CodeUnavailable, "Unavailable", err, nil
			p.hint = ""
		}
		p.applied = unknown
		if said.NotApplied() {
			p.applied = notApplied
		}
	default:
		p.applied = unknown
	}
	if p.applied == unknown && p.hint == "" {
		p.hint = "read the object to see whether it was written before you try again"
	}
	return p
}

// outcomeError is the refusal that a command's outcome stands for, nil for OK.
// A command that was refused in Apply was not applied, on any member.
func outcomeError(result *internalv1.CommandResult) error {
	p := &problem{applied: notApplied, err: fmt.Errorf("the store refused the write: %s", result.GetMessage())}
	switch result.GetOutcome() {
	case internalv1.CommandResult_OUTCOME_OK:
		return nil
	case internalv1.CommandResult_OUTCOME_NO_SPACE:
		p.code, p.reason = connect.CodeResourceExhausted, "NoSpace"
		p.hint = "delete what is not needed: deletes still go through"
	case internalv1.CommandResult_OUTCOME_LIMIT:
		p.code, p.reason = connect.CodeResourceExhausted, "LimitReached"
		p.hint = "write less at once"
	case internalv1.CommandResult_OUTCOME_STALE_EPOCH:
		p.code, p.reason = connect.CodeAborted, "StaleEpoch"
		p.hint = "try again"
	default:
		p.code, p.reason = connect.CodeInternal, "Internal"
		p.hint = "the server's log says more"
		p.err = fmt.Errorf("the store refused the write with %s: %s", result.GetOutcome(), result.GetMessage())
	}
	return p
}

// inNamespace makes a write depend on its namespace, which must be there and not
// on its way out. Events live in another space and only check.
func inNamespace(c *change, objects store.View, kind object.Kind, namespace string) error {
	if !kind.Namespaced {
		return nil
	}
	ns, _ := object.KindByName("Namespace")
	m, kv, err := lookup(objects, ns, "", namespace)
	if err != nil {
		return &problem{
			code: connect.CodeNotFound, reason: "NamespaceNotFound", applied: notApplied, object: keyOf(ns, "", namespace),
			hint: "create the namespace first",
			err:  err,
		}
	}
	if object.IsTerminating(m) {
		return &problem{
			code: connect.CodeFailedPrecondition, reason: "NamespaceTerminating", applied: notApplied, object: keyOf(ns, "", namespace),
			hint: "wait until the namespace is gone and create it again, or use another one",
			err:  fmt.Errorf("namespace %q is being deleted: nothing new goes into it", namespace),
		}
	}
	if c.space == store.SpaceObjects {
		c.expect(kv.Key, kv.ModRevision)
	}
	return nil
}

// precondition refuses an object that is not the one, or not in the state, that
// the caller has named.
func precondition(live object.Message, uid, version string) error {
	meta := live.GetMetadata()
	conflict := func(reason, hint, format string, args ...any) error {
		return &problem{
			code: connect.CodeAborted, reason: reason, applied: notApplied, object: keyOfMessage(live),
			current: meta.GetResourceVersion(), hint: hint,
			err: fmt.Errorf("%s %s", object.Describe(live), fmt.Sprintf(format, args...)),
		}
	}
	if uid != "" && uid != meta.GetUid() {
		return conflict("OtherObject", "the object was deleted and made anew: read it again",
			"has uid %s, not %s", meta.GetUid(), clip(uid))
	}
	if version != "" && version != meta.GetResourceVersion() {
		return conflict("Conflict", "read it again, make your change to what you then have, and update",
			"is at resource version %s, not %s", meta.GetResourceVersion(), clip(version))
	}
	return nil
}

// finishWrite shows the result of a write and notes it for the audit.
func (s *Server) finishWrite(ctx context.Context, c *change, dryRun bool) *balsav1.Object {
	call := callOf(ctx)
	call.outcome = c.outcome
	if dryRun {
		call.outcome += " (dry run)"
	}
	about(ctx, keyOfMessage(c.result))
	return object.Wrap(c.result)
}
