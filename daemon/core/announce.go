package core

import (
	"context"
	"errors"
	"time"

	"google.golang.org/protobuf/proto"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"

	"github.com/balsa-run/balsa/store"
)

const (
	// The first attempts are early: a server that has just begun is no member yet.
	announceFirst = 50 * time.Millisecond
	announceRetry = 2 * time.Second
	// announceTimeout bounds one attempt.
	announceTimeout = 5 * time.Second
)

// announce writes down where etcd's clients reach this server, so that the others
// can tell also while it is down. It is done when the record says so.
func (s *Server) announce(ctx context.Context) {
	want := &internalv1.ServerRecord{Id: s.cfg.ID, Name: s.cfg.Name, EtcdAddress: s.cfg.EtcdAddress}
	for pause := announceFirst; ; pause = min(2*pause, announceRetry) {
		err := s.announceOnce(ctx, want)
		if err == nil || ctx.Err() != nil {
			return
		}
		s.logger.Debug("the others do not know yet where etcd's clients reach this server", "error", err)
		timer := s.cfg.Clock.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C():
		}
	}
}

func (s *Server) announceOnce(ctx context.Context, want *internalv1.ServerRecord) error {
	ctx, cancel := context.WithTimeout(ctx, announceTimeout)
	defer cancel()
	if _, err := s.cluster.ReadIndex(ctx); err != nil {
		return err
	}
	key, revision := prefixServers+want.GetId(), store.Revision(0)
	view := s.store.Space(store.SpaceObjects).View()
	if kv, there := view.Get(key); there {
		revision = kv.ModRevision
	}
	// A server without etcd's API writes only what contradicts an earlier record, and
	// one that was never there says the same as an empty one.
	known := serverRecord(view, want.GetId())
	if known.GetEtcdAddress() == want.GetEtcdAddress() && (revision == 0 || known.GetName() == want.GetName()) {
		return nil
	}
	value, err := proto.Marshal(want)
	if err != nil {
		return err
	}
	return s.write(ctx, 0, []*internalv1.Compare{{
		Key: []byte(key), Target: internalv1.Compare_TARGET_MOD, Result: internalv1.Compare_RESULT_EQUAL, Number: int64(revision),
	}}, &internalv1.Op{Op: &internalv1.Op_Put{Put: &internalv1.Put{Key: []byte(key), Value: value}}})
}

// forgetServers deletes the records of servers that are no members any more. Only a
// leader does: it has admitted whoever has written a record, and ids never come back.
func (s *Server) forgetServers(ctx context.Context, epoch uint64) error {
	members := map[string]bool{}
	for _, m := range s.cluster.Members() {
		members[prefixServers+m.ID] = true
	}
	var ops []*internalv1.Op
	for kv := range s.store.Space(store.SpaceObjects).View().Prefix(prefixServers) {
		if !members[kv.Key] && len(ops) < maxForgotten {
			ops = append(ops, &internalv1.Op{Op: &internalv1.Op_DeleteRange{DeleteRange: &internalv1.DeleteRange{Key: []byte(kv.Key)}}})
		}
	}
	if len(ops) == 0 {
		return nil
	}
	return s.write(ctx, epoch, nil, ops...)
}

// maxForgotten is how many records go in one transaction; the next term takes more.
const maxForgotten = 100

func (s *Server) write(ctx context.Context, epoch uint64, compares []*internalv1.Compare, ops ...*internalv1.Op) error {
	result, err := s.cluster.Propose(ctx, &internalv1.Command{
		Space: store.SpaceObjects, Epoch: epoch,
		Op: &internalv1.Command_Txn{Txn: &internalv1.Txn{Compares: compares, Success: ops}},
	})
	switch {
	case err != nil:
		return err
	case result.GetOutcome() != internalv1.CommandResult_OUTCOME_OK:
		return errors.New(result.GetMessage())
	case !result.GetTxn().GetSucceeded():
		return errors.New("somebody else has written it")
	}
	return nil
}
