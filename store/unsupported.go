package store

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
)

// unsupported is why this version cannot apply cmd as a later one would; empty
// when it can. A field, an operation or a value that it does not know would be
// skipped here and carried out there, so the member has to stop.
func (s *Store) unsupported(cmd *internalv1.Command) string {
	if level := cmd.GetFeatureLevel(); level > s.opts.FeatureLevel {
		return fmt.Sprintf("it needs feature level %d, this version has %d", level, s.opts.FeatureLevel)
	}
	if foreign(cmd) {
		return "it has an operation or a field that this version does not know"
	}
	switch op := cmd.GetOp().(type) {
	case *internalv1.Command_SetFeatureLevel:
		if level := op.SetFeatureLevel.GetLevel(); level > s.opts.FeatureLevel {
			return fmt.Sprintf("the cluster goes to feature level %d, this version has %d", level, s.opts.FeatureLevel)
		}
		return foreignIn(op.SetFeatureLevel)
	case *internalv1.Command_Txn:
		return unsupportedTxn(op.Txn)
	case *internalv1.Command_Compact:
		return foreignIn(op.Compact)
	case *internalv1.Command_LeaseGrant:
		return foreignIn(op.LeaseGrant)
	case *internalv1.Command_LeaseRevoke:
		return foreignIn(op.LeaseRevoke)
	}
	return ""
}

func unsupportedTxn(txn *internalv1.Txn) string {
	if reason := foreignIn(txn); reason != "" {
		return reason
	}
	for _, c := range txn.GetCompares() {
		if reason := unsupportedCompare(c); reason != "" {
			return reason
		}
	}
	for _, ops := range [][]*internalv1.Op{txn.GetSuccess(), txn.GetFailure()} {
		for _, op := range ops {
			if reason := unsupportedOp(op); reason != "" {
				return reason
			}
		}
	}
	return ""
}

func unsupportedCompare(c *internalv1.Compare) string {
	if t := c.GetTarget(); internalv1.Compare_Target_name[int32(t)] == "" {
		return fmt.Sprintf("it compares with a target %d that this version does not know", t)
	}
	if r := c.GetResult(); internalv1.Compare_Result_name[int32(r)] == "" {
		return fmt.Sprintf("it compares for a result %d that this version does not know", r)
	}
	return foreignIn(c)
}

func unsupportedRange(r *internalv1.Range) string {
	if o := r.GetSortOrder(); internalv1.Range_SortOrder_name[int32(o)] == "" {
		return fmt.Sprintf("it sorts in an order %d that this version does not know", o)
	}
	if t := r.GetSortTarget(); internalv1.Range_SortTarget_name[int32(t)] == "" {
		return fmt.Sprintf("it sorts by a target %d that this version does not know", t)
	}
	return foreignIn(r)
}

func unsupportedOp(op *internalv1.Op) string {
	if reason := foreignIn(op); reason != "" {
		return reason
	}
	switch op := op.GetOp().(type) {
	case *internalv1.Op_Put:
		return foreignIn(op.Put)
	case *internalv1.Op_DeleteRange:
		return foreignIn(op.DeleteRange)
	case *internalv1.Op_Range:
		return unsupportedRange(op.Range)
	case *internalv1.Op_Txn:
		return unsupportedTxn(op.Txn)
	}
	return ""
}

// foreign says whether a message came with fields that this version lacks.
func foreign(m proto.Message) bool { return len(m.ProtoReflect().GetUnknown()) > 0 }

func foreignIn(m proto.Message) string {
	if !foreign(m) {
		return ""
	}
	return fmt.Sprintf("its %s has a field that this version does not know", m.ProtoReflect().Descriptor().Name())
}
