package etcdapi

import (
	"context"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/balsa-run/balsa/pki"
	"github.com/balsa-run/balsa/store"
)

// FuzzRequests sends whatever parses as a request. It must not end the member
// (the store stops at commands that it does not know) nor be a mistake of ours.
func FuzzRequests(f *testing.F) {
	add := func(m proto.Message) {
		raw, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	add(rangeOf(func(r *pb.RangeRequest) { r.Revision, r.Limit, r.SortOrder = 2, 1, 2 }))
	add(&pb.PutRequest{Key: b("a"), Value: b("1"), PrevKv: true})
	add(&pb.DeleteRangeRequest{Key: b("a"), RangeEnd: []byte{0}})
	add(&pb.CompactionRequest{Revision: 2})
	add(&pb.TxnRequest{
		Compare: []*pb.Compare{{Key: b("a"), Target: 9, Result: 9, TargetUnion: &pb.Compare_Lease{Lease: 3}}},
		Success: []*pb.RequestOp{opPutOf("a", "1"), opTxn(nested(2)), opDelete(&pb.DeleteRangeRequest{Key: b("b"), RangeEnd: b("a")})},
		Failure: []*pb.RequestOp{{}, opRange(rangeOf())},
	})
	g := &testGroup{store: store.New(store.Options{}), leader: 12}
	s, err := New(Config{
		Space: g.store.Space(store.SpaceEtcd), Backend: g, Leases: g, Group: g,
		Identify: func(context.Context) (pki.Identity, error) { return pki.Identity{}, nil },
	})
	if err != nil {
		f.Fatal(err)
	}
	k := &kvServer{Server: s}
	f.Fuzz(func(t *testing.T, raw []byte) {
		ctx := pki.WithIdentity(t.Context(), pki.Identity{Name: "ann", Role: pki.RoleAdmin})
		before := s.space.View().Revision()
		for _, call := range []func() (*pb.ResponseHeader, error){
			called(ctx, raw, &pb.RangeRequest{}, k.Range), called(ctx, raw, &pb.PutRequest{}, k.Put),
			called(ctx, raw, &pb.DeleteRangeRequest{}, k.DeleteRange), called(ctx, raw, &pb.TxnRequest{}, k.Txn),
			called(ctx, raw, &pb.CompactionRequest{}, k.Compact),
		} {
			h, err := call()
			if code := status.Code(err); code == codes.Internal || code == codes.Unknown {
				t.Fatalf("a mistake of ours: %v", err)
			}
			now := s.space.View().Revision()
			if now > before+1 || err == nil && h.GetRevision() != int64(now) || err != nil && now != before {
				t.Fatalf("revision %d after %d, header %v, error %v", now, before, h, err)
			}
			before = now
		}
	})
}

type answer interface{ GetHeader() *pb.ResponseHeader }

// called parses a request and makes the call; what does not parse is no request.
func called[Q proto.Message, A answer](ctx context.Context, raw []byte, request Q, call func(context.Context, Q) (A, error)) func() (*pb.ResponseHeader, error) {
	return func() (*pb.ResponseHeader, error) {
		if proto.Unmarshal(raw, request) != nil {
			return nil, status.Error(codes.InvalidArgument, "not a request")
		}
		if c, ok := any(request).(*pb.CompactionRequest); ok {
			c.Physical = false // nobody maintains this store
		}
		a, err := call(ctx, request)
		if err != nil {
			return nil, err
		}
		return a.GetHeader(), nil
	}
}
