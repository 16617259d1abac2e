package store

import (
	"fmt"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/internal/mutate"
)

// entry is one log entry while it is applied.
type entry struct {
	store       *Store
	index, term uint64
	writers     []*writer // by position of the space, nil where untouched
}

// refusal is why a command changes nothing: an outcome, not an error.
type refusal struct {
	outcome internalv1.CommandResult_Outcome
	message string
}

func refuse(outcome internalv1.CommandResult_Outcome, format string, args ...any) *refusal {
	return &refusal{outcome: outcome, message: fmt.Sprintf(format, args...)}
}

func invalid(format string, args ...any) *refusal {
	return refuse(internalv1.CommandResult_OUTCOME_INVALID, format, args...)
}

// apply carries out the command at position i of the entry.
func (e *entry) apply(i int, cmd *internalv1.Command) *internalv1.CommandResult {
	s := e.store
	s.timeNS = max(s.timeNS, cmd.GetTimeNs())
	if mutate.On(mutate.RandomApply) {
		s.timeNS = max(s.timeNS, mutate.Noise())
	}
	result := &internalv1.CommandResult{CommitTimeNs: s.timeNS}
	no := e.admit(cmd)
	if no == nil {
		no = e.dispatch(i, cmd, result)
	}
	result.Outcome = internalv1.CommandResult_OUTCOME_OK
	if no != nil {
		result.Outcome, result.Message = no.outcome, no.message
	}
	if w := e.writer(cmd.GetSpace()); w != nil {
		result.Revision = int64(w.st.rev)
	}
	return result
}

// admit checks what concerns every command.
func (e *entry) admit(cmd *internalv1.Command) *refusal {
	if epoch := cmd.GetEpoch(); epoch != 0 && epoch != e.term && !mutate.On(mutate.EpochNotChecked) {
		return refuse(internalv1.CommandResult_OUTCOME_STALE_EPOCH,
			"planned by the leader of term %d, the log is in term %d: plan again", epoch, e.term)
	}
	if level := e.store.level.Load(); cmd.GetFeatureLevel() > level {
		return invalid("needs feature level %d, the cluster has %d: raise it when every member can", cmd.GetFeatureLevel(), level)
	}
	return nil
}

func (e *entry) dispatch(i int, cmd *internalv1.Command, result *internalv1.CommandResult) *refusal {
	if op, ok := cmd.GetOp().(*internalv1.Command_SetFeatureLevel); ok {
		return e.setFeatureLevel(cmd.GetSpace(), op.SetFeatureLevel.GetLevel())
	}
	w := e.writer(cmd.GetSpace())
	if w == nil {
		return refuse(internalv1.CommandResult_OUTCOME_NO_SUCH_SPACE, "there is no space %q", cmd.GetSpace())
	}
	var no *refusal
	switch op := cmd.GetOp().(type) {
	case *internalv1.Command_Txn:
		result.Txn, no = w.applyTxn(op.Txn, result.GetCommitTimeNs())
	case *internalv1.Command_Compact:
		no = w.applyCompact(Revision(op.Compact.GetRevision()))
	case *internalv1.Command_LeaseGrant:
		result.LeaseId, no = w.applyGrant(op.LeaseGrant, e.index, i)
	case *internalv1.Command_LeaseRevoke:
		no = w.applyRevoke(op.LeaseRevoke.GetId(), result.GetCommitTimeNs())
	default:
		no = invalid("the command has no operation")
	}
	return no
}

// writer is the writer of a space, made when it is first needed; nil when there
// is no such space.
func (e *entry) writer(space string) *writer {
	for i, sp := range e.store.spaces {
		if sp.name != space {
			continue
		}
		if e.writers[i] == nil {
			e.writers[i] = newWriter(sp)
		}
		return e.writers[i]
	}
	return nil
}

func (e *entry) setFeatureLevel(space string, level uint32) *refusal {
	if space != "" {
		return invalid("the feature level is the whole store's, not that of space %q: leave the space empty", space)
	}
	if now := e.store.level.Load(); level < now {
		return invalid("the feature level is %d and never goes down to %d", now, level)
	}
	e.store.level.Store(level)
	return nil
}

func (w *writer) applyCompact(rev Revision) *refusal {
	if rev <= w.st.compacted {
		return refuse(internalv1.CommandResult_OUTCOME_COMPACTED, "revision %d is compacted already, up to %d", rev, w.st.compacted)
	}
	if rev > w.st.rev {
		return refuse(internalv1.CommandResult_OUTCOME_FUTURE_REVISION, "revision %d does not exist yet, the newest is %d", rev, w.st.rev)
	}
	w.compact(rev)
	return nil
}

// MaxLeaseTTLSeconds is the longest time to live, as in etcd.
const MaxLeaseTTLSeconds = 9_000_000_000

func (w *writer) applyGrant(g *internalv1.LeaseGrant, index uint64, position int) (int64, *refusal) {
	if ttl := g.GetTtlSeconds(); ttl > MaxLeaseTTLSeconds {
		return 0, refuse(internalv1.CommandResult_OUTCOME_LIMIT, "a time to live of %d s is more than %d s", ttl, int64(MaxLeaseTTLSeconds))
	}
	if n := w.st.leases.len(); n >= w.space.limits.Leases {
		return 0, refuse(internalv1.CommandResult_OUTCOME_LIMIT, "space %q has %d leases, the most it may: revoke some", w.space.name, n)
	}
	id := g.GetId()
	if id == 0 {
		id = w.freeLeaseID(index, position)
	} else if _, taken := w.st.leases.get(leaseKey(id)); taken {
		return 0, refuse(internalv1.CommandResult_OUTCOME_LEASE_EXISTS, "lease %d exists already", id)
	}
	w.st.leases.set(w.edit, leaseKey(id), leaseState{ttlSeconds: g.GetTtlSeconds()})
	w.st.pending = fold(w.st.pending, foldGrant, uint64(id), uint64(g.GetTtlSeconds()))
	w.changed, w.leasesChanged = true, true
	return id, nil
}

// freeLeaseID chooses an id from the place in the log: the same everywhere, and
// not guessable from other ids by accident, since it is positive and spread.
func (w *writer) freeLeaseID(index uint64, position int) int64 {
	for try := uint64(0); ; try++ {
		id := int64(fold(index, uint64(position), try) >> 1)
		if _, taken := w.st.leases.get(leaseKey(id)); id != 0 && !taken {
			return id
		}
	}
}

func (w *writer) applyRevoke(id int64, timeNS int64) *refusal {
	l, ok := w.st.leases.get(leaseKey(id))
	if !ok {
		return refuse(internalv1.CommandResult_OUTCOME_LEASE_NOT_FOUND, "there is no lease %d", id)
	}
	t := w.begin(timeNS)
	// l is the tree as it was: deleting a key detaches it from a newer one.
	w.edit = &edit{}
	l.keys.each(span{}, func(key string, _ struct{}) bool {
		t.delete(key)
		return true
	})
	w.st.leases.delete(w.edit, leaseKey(id))
	w.st.pending = fold(w.st.pending, foldRevoke, uint64(id))
	t.commit()
	w.changed, w.leasesChanged = true, true
	return nil
}
