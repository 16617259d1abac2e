package etcdtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
)

// op is one request of a sequence. Its revisions are relative (see frame), its
// leases numbers of the sequence.
type op struct {
	kind string
	// stream is the watch stream it is for, where it is one.
	stream int
	msg    proto.Message
}

// watchKind is the kind of everything that is sent on a watch stream.
const watchKind = "watch"

// call is how a kind of operation is carried out.
type call struct {
	request func() proto.Message
	do      func(context.Context, *grpc.ClientConn, proto.Message) (proto.Message, error)
}

// calls are the kinds of operations that are answered at once.
func calls() map[string]call {
	return map[string]call{
		"range":       unary(pb.KV_Range_FullMethodName, &pb.RangeRequest{}, &pb.RangeResponse{}),
		"rangestream": {func() proto.Message { return &pb.RangeRequest{} }, rangeStream},
		"put":         unary(pb.KV_Put_FullMethodName, &pb.PutRequest{}, &pb.PutResponse{}),
		"delete":      unary(pb.KV_DeleteRange_FullMethodName, &pb.DeleteRangeRequest{}, &pb.DeleteRangeResponse{}),
		"txn":         unary(pb.KV_Txn_FullMethodName, &pb.TxnRequest{}, &pb.TxnResponse{}),
		"compact":     unary(pb.KV_Compact_FullMethodName, &pb.CompactionRequest{}, &pb.CompactionResponse{}),
		"grant":       unary(pb.Lease_LeaseGrant_FullMethodName, &pb.LeaseGrantRequest{}, &pb.LeaseGrantResponse{}),
		"revoke":      unary(pb.Lease_LeaseRevoke_FullMethodName, &pb.LeaseRevokeRequest{}, &pb.LeaseRevokeResponse{}),
		"timetolive":  unary(pb.Lease_LeaseTimeToLive_FullMethodName, &pb.LeaseTimeToLiveRequest{}, &pb.LeaseTimeToLiveResponse{}),
		"leases":      unary(pb.Lease_LeaseLeases_FullMethodName, &pb.LeaseLeasesRequest{}, &pb.LeaseLeasesResponse{}),
		"keepalive":   {func() proto.Message { return &pb.LeaseKeepAliveRequest{} }, keepAlive},
		"hashkv":      unary(pb.Maintenance_HashKV_FullMethodName, &pb.HashKVRequest{}, &pb.HashKVResponse{}),
		"alarm":       unary(pb.Maintenance_Alarm_FullMethodName, &pb.AlarmRequest{}, &pb.AlarmResponse{}),
	}
}

func unary(method string, request, response proto.Message) call {
	return call{
		func() proto.Message { return request.ProtoReflect().New().Interface() },
		func(ctx context.Context, conn *grpc.ClientConn, m proto.Message) (proto.Message, error) {
			r := response.ProtoReflect().New().Interface()
			return r, conn.Invoke(ctx, method, m, r)
		},
	}
}

// rangeStream merges the parts of the answer, as they are documented to be.
func rangeStream(ctx context.Context, conn *grpc.ClientConn, m proto.Message) (proto.Message, error) {
	all := &pb.RangeResponse{}
	stream, err := pb.NewKVClient(conn).RangeStream(ctx, m.(*pb.RangeRequest))
	for err == nil {
		var part *pb.RangeStreamResponse
		if part, err = stream.Recv(); err == nil {
			proto.Merge(all, part.GetRangeResponse())
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return all, err
}

func keepAlive(ctx context.Context, conn *grpc.ClientConn, m proto.Message) (proto.Message, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := pb.NewLeaseClient(conn).LeaseKeepAlive(ctx)
	if err != nil {
		return nil, err
	}
	if err := stream.Send(m.(*pb.LeaseKeepAliveRequest)); err != nil {
		return nil, err
	}
	return stream.Recv()
}

// String is the operation as parseOp reads it.
func (o op) String() string {
	text := prototext.MarshalOptions{EmitASCII: true}.Format(o.msg)
	text = strings.Join(strings.Fields(text), " ") // the package varies its spaces on purpose
	if o.kind == watchKind {
		return fmt.Sprintf("%s %d %s", o.kind, o.stream, text)
	}
	return strings.TrimSpace(o.kind + " " + text)
}

func parseOp(line string) (op, error) {
	kind, text, _ := strings.Cut(line, " ")
	o := op{kind: kind}
	if kind == watchKind {
		number, rest, _ := strings.Cut(text, " ")
		n, err := strconv.Atoi(number)
		if err != nil || n < 0 || n >= streams {
			return op{}, fmt.Errorf("operation %q: stream %q is none of 0 to %d", line, number, streams-1)
		}
		o.stream, o.msg, text = n, &pb.WatchRequest{}, rest
	} else {
		c, ok := calls()[kind]
		if !ok {
			return op{}, fmt.Errorf("operation %q: there is no kind %q; there are %q and %v", line, kind, watchKind, slices.Sorted(maps.Keys(calls())))
		}
		o.msg = c.request()
	}
	if err := prototext.Unmarshal([]byte(text), o.msg); err != nil {
		return op{}, fmt.Errorf("operation %q: %w", line, err)
	}
	return o, nil
}

// parseOps reads a sequence as a difference prints it.
func parseOps(text string) ([]op, error) {
	var ops []op
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		o, err := parseOp(line)
		if err != nil {
			return nil, err
		}
		ops = append(ops, o)
	}
	return ops, nil
}

func printOps(ops []op) string {
	var b strings.Builder
	for _, o := range ops {
		b.WriteString(o.String() + "\n")
	}
	return b.String()
}

// lineMost is where brief cuts a line.
const lineMost = 400

// brief is text for a person: a key or value of many thousand bytes is not.
func brief(text string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if len(line) > lineMost {
			lines[i] = fmt.Sprintf("%s … (%d bytes in all)", line[:lineMost], len(line))
		}
	}
	return strings.Join(lines, "\n")
}
