package storetest

import (
	"context"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
)

func neverDone() context.Context { return context.Background() }

// Txn is a command with a transaction.
func Txn(space string, txn *internalv1.Txn) *internalv1.Command {
	return &internalv1.Command{Space: space, Op: &internalv1.Command_Txn{Txn: txn}}
}

// Do is a command whose transaction runs ops whatever there is.
func Do(space string, ops ...*internalv1.Op) *internalv1.Command {
	return Txn(space, &internalv1.Txn{Success: ops})
}

// Put is an op that puts a key.
func Put(key, value string) *internalv1.Op {
	return PutOp(&internalv1.Put{Key: []byte(key), Value: []byte(value), PrevKv: true})
}

// PutOp wraps a put.
func PutOp(p *internalv1.Put) *internalv1.Op {
	return &internalv1.Op{Op: &internalv1.Op_Put{Put: p}}
}

// Delete is an op that deletes a range, by the convention of commands.
func Delete(key, rangeEnd string) *internalv1.Op {
	return &internalv1.Op{Op: &internalv1.Op_DeleteRange{DeleteRange: &internalv1.DeleteRange{Key: []byte(key), RangeEnd: []byte(rangeEnd), PrevKv: true}}}
}

// Get is an op that reads a range.
func Get(r *internalv1.Range) *internalv1.Op {
	return &internalv1.Op{Op: &internalv1.Op_Range{Range: r}}
}

// Nested is an op that is a transaction.
func Nested(txn *internalv1.Txn) *internalv1.Op {
	return &internalv1.Op{Op: &internalv1.Op_Txn{Txn: txn}}
}

// Compact is a command that forgets what came before rev.
func Compact(space string, rev int64) *internalv1.Command {
	return &internalv1.Command{Space: space, Op: &internalv1.Command_Compact{Compact: &internalv1.Compact{Revision: rev}}}
}

// Grant is a command that makes a lease.
func Grant(space string, id, ttl int64) *internalv1.Command {
	return &internalv1.Command{Space: space, Op: &internalv1.Command_LeaseGrant{LeaseGrant: &internalv1.LeaseGrant{Id: id, TtlSeconds: ttl}}}
}

// Revoke is a command that ends a lease.
func Revoke(space string, id int64) *internalv1.Command {
	return &internalv1.Command{Space: space, Op: &internalv1.Command_LeaseRevoke{LeaseRevoke: &internalv1.LeaseRevoke{Id: id}}}
}

// Number is a compare with a number.
func Number(key string, target internalv1.Compare_Target, result internalv1.Compare_Result, n int64) *internalv1.Compare {
	return &internalv1.Compare{Key: []byte(key), Target: target, Result: result, Number: n}
}
