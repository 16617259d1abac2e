package apiserver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/pki"
	"github.com/balsa-run/balsa/store"
)

// What the cluster remembers of identities:
//
//	system/identities/<role>/<name>        the newest certificate, or removed
//	system/serials/<role>/<name>/<serial>  every certificate that was given out
//	system/removed/<serial>                one that is refused by its serial
//
// All hold an IdentityRecord. A name that was removed and is let in again is
// good again, but the certificates of before are not: that is why they are
// remembered. Expired ones are forgotten when the name gets a new one.
const (
	prefixIdentities = object.PrefixSystem + "identities/"
	prefixSerials    = object.PrefixSystem + "serials/"
	prefixRemoved    = object.PrefixSystem + "removed/"
)

// serialsMax bounds the certificates of one name that are remembered, and with
// them the ops of a transaction.
const serialsMax = 50

func identityKey(role, name string) string { return prefixIdentities + role + "/" + name }

func serialPrefix(role, name string) string { return prefixSerials + role + "/" + name + "/" }

func hashBytes(h pki.Hash) []byte { return h[:] }

// eachIdentity decodes the records under a prefix, in key order.
func eachIdentity(view store.View, prefix string, visit func(store.KV, *internalv1.IdentityRecord)) error {
	for kv := range view.Prefix(prefix) {
		r := &internalv1.IdentityRecord{}
		if err := proto.Unmarshal(kv.Value, r); err != nil {
			return fmt.Errorf("decode %q: %w", kv.Key, err)
		}
		visit(kv, r)
	}
	return nil
}

// planIssue records a certificate that is about to be handed out. Issuing to a
// removed name lets it in again; its old certificates stay out.
func planIssue(view store.View, record *internalv1.IdentityRecord, now time.Time) (*change, error) {
	c, had := &change{space: store.SpaceObjects, outcome: "issued"}, &internalv1.IdentityRecord{}
	key := identityKey(record.GetRole(), record.GetName())
	at, err := readRecord(view, key, had)
	if err != nil {
		return nil, err
	}
	c.expect(key, at)
	next := proto.CloneOf(record)
	next.Created = timestamppb.New(now)
	if at != 0 && !had.GetRemoved() {
		next.Created = had.GetCreated()
	}
	if err := c.keepSerials(view, had, now); err != nil {
		return nil, err
	}
	if err := c.putRecord(serialPrefix(next.GetRole(), next.GetName())+next.GetSerial(), next); err != nil {
		return nil, err
	}
	return c, c.putRecord(key, next)
}

// keepSerials forgets expired certificates of a name and, when it was removed,
// refuses the others one by one, since the name itself will be good again.
func (c *change) keepSerials(view store.View, had *internalv1.IdentityRecord, now time.Time) error {
	if had.GetName() == "" {
		return nil
	}
	kept := 0
	var failure error
	err := eachIdentity(view, serialPrefix(had.GetRole(), had.GetName()), func(kv store.KV, r *internalv1.IdentityRecord) {
		switch {
		case !now.Before(r.GetNotAfter().AsTime()):
			c.remove(kv.Key)
		case had.GetRemoved():
			r.Removed, r.RemovedAt = true, had.GetRemovedAt()
			c.remove(kv.Key)
			if err := c.putRecord(prefixRemoved+r.GetSerial(), r); err != nil {
				failure = err
			}
		default:
			kept++
		}
	})
	if err := errors.Join(err, failure); err != nil {
		return fmt.Errorf("certificates of %s/%s: %w", had.GetRole(), had.GetName(), err)
	}
	if kept >= serialsMax {
		return overLimit("serialsMax", serialsMax, "wait until some expire, or remove the identity and make it anew",
			"%s/%s has %d certificates", had.GetRole(), had.GetName(), kept)
	}
	return nil
}

// planRemove marks a name as removed. A name that was never recorded can be
// removed as well: its certificate may come from before the record, such as the
// first admin's.
func planRemove(view store.View, role pki.Role, name string, now time.Time) (*change, error) {
	c, r := &change{space: store.SpaceObjects, outcome: "removed"}, &internalv1.IdentityRecord{}
	key := identityKey(string(role), name)
	at, err := readRecord(view, key, r)
	if err != nil {
		return nil, err
	}
	if r.GetRemoved() {
		return c, nil
	}
	c.expect(key, at)
	r.Name, r.Role = name, string(role)
	r.Removed, r.RemovedAt = true, timestamppb.New(now)
	return c, c.putRecord(key, r)
}

// Removals reads who is refused, for pki.NewRemoved. Serials whose certificate
// has expired at now are left out.
func Removals(view store.View, now time.Time) ([]pki.Removal, error) {
	var out []pki.Removal
	err := eachIdentity(view, prefixIdentities, func(_ store.KV, r *internalv1.IdentityRecord) {
		if r.GetRemoved() {
			out = append(out, pki.Removal{Role: pki.Role(r.GetRole()), Name: r.GetName(), At: r.GetRemovedAt().AsTime()})
		}
	})
	if err != nil {
		return nil, err
	}
	err = eachIdentity(view, prefixRemoved, func(_ store.KV, r *internalv1.IdentityRecord) {
		if now.Before(r.GetNotAfter().AsTime()) {
			out = append(out, pki.Removal{Serial: r.GetSerial(), At: r.GetRemovedAt().AsTime()})
		}
	})
	return out, err
}

// FeedGuard keeps the guard's set as the store has it, until ctx ends: at once
// and after each change. A set that cannot be read leaves the old one in force.
func (s *Server) FeedGuard(ctx context.Context) {
	space := s.store.Space(store.SpaceObjects)
	for ctx.Err() == nil {
		identities, removed := space.Changed(prefixIdentities), space.Changed(prefixRemoved)
		if err := s.feedOnce(space.View()); err != nil {
			s.log.Error("the removed identities cannot be read", "err", err.Error())
		}
		select {
		case <-ctx.Done():
		case <-identities:
		case <-removed:
		}
	}
}

func (s *Server) feedOnce(view store.View) error {
	removals, err := Removals(view, s.clock.Now())
	if err != nil {
		return err
	}
	set, err := pki.NewRemoved(removals)
	if err != nil {
		return err
	}
	told, err := toldRemovals(view, s.clock.Now())
	if err != nil {
		return err
	}
	s.told.Store(told)
	s.guard.Update(set)
	return nil
}

// toldRemovals is what agents are told: see pki.ToldRemovals. A name that was let
// in again is there with the moment it had been removed.
func toldRemovals(view store.View, now time.Time) (*balsav1.RemovedIdentities, error) {
	var all []pki.Removal
	for _, prefix := range []string{prefixIdentities, prefixRemoved} {
		err := eachIdentity(view, prefix, func(_ store.KV, r *internalv1.IdentityRecord) {
			if r.GetRemoved() {
				all = append(all, pki.Removal{Role: pki.Role(r.GetRole()), Name: r.GetName(), At: r.GetRemovedAt().AsTime()})
			}
		})
		if err != nil {
			return nil, err
		}
	}
	out := &balsav1.RemovedIdentities{}
	for _, r := range pki.ToldRemovals(all, now) {
		out.Identities = append(out.Identities, &balsav1.RemovedIdentity{Role: string(r.Role), Name: r.Name, AtNs: r.At.UnixNano()})
	}
	return out, nil
}

// ServerNames are the servers whose certificates are good, as this server has it.
func (s *Server) ServerNames() ([]string, error) {
	var names []string
	err := eachIdentity(s.store.Space(store.SpaceObjects).View(), identityKey(string(pki.RoleServer), ""), func(_ store.KV, r *internalv1.IdentityRecord) {
		if !r.GetRemoved() {
			names = append(names, r.GetName())
		}
	})
	return names, err
}

// RemoveServer refuses a server's certificates: it is no member any more, and
// nobody has called RemoveMember.
func (s *Server) RemoveServer(ctx context.Context, name string) error {
	_, err := s.write(ctx, store.SpaceObjects, false, func(view store.View, now time.Time) (*change, error) {
		return planRemove(view, pki.RoleServer, name, now)
	})
	return err
}
