package etcdtest

import (
	"context"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/balsa-run/balsa/etcdapi"
)

// plant is a lie told to the fuzz on the way of an answer. It tells whether it has
// changed anything.
type plant struct {
	name  string
	reply func(m any) bool
	fail  func(st *status.Status) *status.Status
	watch func(r *pb.WatchResponse) bool
}

func plants() []plant {
	return append([]plant{
		{name: "a write's revision is one too high", reply: func(m any) bool {
			r, ok := m.(*pb.PutResponse)
			if ok {
				r.Header.Revision++
			}
			return ok
		}},
		{name: "the key before a put is left out", reply: func(m any) bool {
			r, ok := m.(*pb.PutResponse)
			if ok = ok && r.GetPrevKv() != nil; ok {
				r.PrevKv = nil
			}
			return ok
		}},
		{name: "a deletion counts one too few", reply: func(m any) bool {
			r, ok := m.(*pb.DeleteRangeResponse)
			if ok = ok && r.GetDeleted() > 1; ok {
				r.Deleted--
			}
			return ok
		}},
		{name: "the other branch is told of", reply: func(m any) bool {
			r, ok := m.(*pb.TxnResponse)
			if ok {
				r.Succeeded = !r.Succeeded
			}
			return ok
		}},
		{name: "a lease is granted a second less", reply: func(m any) bool {
			r, ok := m.(*pb.LeaseGrantResponse)
			if ok {
				r.TTL--
			}
			return ok
		}},
		{name: "an error is told in other words", fail: func(st *status.Status) *status.Status {
			return status.New(st.Code(), st.Message()+".")
		}},
		{name: "an error has another code", fail: func(st *status.Status) *status.Status {
			return status.New(codes.Internal, st.Message())
		}},
	}, append(rangePlants(), watchPlants()...)...)
}

func rangePlants() []plant {
	of := func(name string, change func(*pb.RangeResponse) bool) plant {
		return plant{name: name, reply: func(m any) bool {
			r, ok := m.(*pb.RangeResponse)
			return ok && change(r)
		}}
	}
	return []plant{
		of("a range counts one too many", func(r *pb.RangeResponse) bool { r.Count++; return true }),
		of("a range has more, or not", func(r *pb.RangeResponse) bool { r.More = !r.More; return true }),
		of("the last of three keys is left out", func(r *pb.RangeResponse) bool {
			if len(r.Kvs) < 3 {
				return false
			}
			r.Kvs = r.Kvs[:len(r.Kvs)-1]
			return true
		}),
		of("two keys change places", func(r *pb.RangeResponse) bool {
			if len(r.Kvs) < 2 {
				return false
			}
			r.Kvs[0], r.Kvs[1] = r.Kvs[1], r.Kvs[0]
			return true
		}),
		of("a key forgets its lease", func(r *pb.RangeResponse) bool {
			changed := false
			for _, kv := range r.Kvs {
				changed = changed || kv.Lease != 0
				kv.Lease = 0
			}
			return changed
		}),
		of("a key has one version too many", func(r *pb.RangeResponse) bool {
			for _, kv := range r.Kvs {
				kv.Version++
			}
			return len(r.Kvs) > 0
		}),
	}
}

func watchPlants() []plant {
	of := func(name string, change func(*pb.WatchResponse) bool) plant { return plant{name: name, watch: change} }
	event := func(name string, change func(*mvccpb.Event) bool) plant {
		return of(name, func(r *pb.WatchResponse) bool {
			changed := false
			for _, e := range r.Events {
				changed = change(e) || changed
			}
			return changed
		})
	}
	return []plant{
		of("the last event of a revision is lost", func(r *pb.WatchResponse) bool {
			if len(r.Events) < 2 {
				return false
			}
			r.Events = r.Events[:len(r.Events)-1]
			return true
		}),
		of("an event comes twice", func(r *pb.WatchResponse) bool {
			if len(r.Events) == 0 {
				return false
			}
			r.Events = append(r.Events, r.Events[len(r.Events)-1])
			return true
		}),
		of("two events change places", func(r *pb.WatchResponse) bool {
			if len(r.Events) < 2 {
				return false
			}
			r.Events[0], r.Events[1] = r.Events[1], r.Events[0]
			return true
		}),
		of("events get the id of another watch", func(r *pb.WatchResponse) bool {
			if len(r.Events) == 0 {
				return false
			}
			r.WatchId++
			return true
		}),
		of("a mark is told too early", func(r *pb.WatchResponse) bool {
			if !progress(r) {
				return false
			}
			r.Header.Revision += 5
			return true
		}),
		of("a compacted watch does not say where", func(r *pb.WatchResponse) bool {
			changed := r.CompactRevision != 0
			r.CompactRevision = 0
			return changed
		}),
		of("a refused watch gives no reason", func(r *pb.WatchResponse) bool {
			changed := r.CancelReason != ""
			r.CancelReason = ""
			return changed
		}),
		event("a deletion is told as a put", func(e *mvccpb.Event) bool {
			changed := e.Type == mvccpb.Event_DELETE
			e.Type = mvccpb.Event_PUT
			return changed
		}),
		event("the key before an event is left out", func(e *mvccpb.Event) bool {
			changed := e.PrevKv != nil
			e.PrevKv = nil
			return changed
		}),
	}
}

// TestTheFuzzFindsPlantedDifferences: two of ours are compared, one of which lies
// in one way. Without a lie they agree; each lie is found.
func TestTheFuzzFindsPlantedDifferences(t *testing.T) {
	t.Parallel()
	const sequences, lieWithin = 400, 300 * time.Millisecond
	honest := startSolo(t, etcdapi.Limits{})
	for seed := range uint64(60) {
		d := &duel{agreeWithin: patience, etcd: honest, balsa: startSolo(t, etcdapi.Limits{}), accepted: acceptedDifferences()}
		if diff := d.run(t, drawSequence(seed)); diff != nil {
			t.Fatalf("seed %d: two of the same differ: %v", seed, diff)
		}
		if seed > 0 && seed%20 == 0 && d.operations == 0 {
			t.Fatal("nothing was compared")
		}
	}
	for _, p := range plants() {
		t.Run(p.name, func(t *testing.T) {
			d := &duel{agreeWithin: lieWithin, etcd: honest, balsa: startSolo(t, etcdapi.Limits{}, p.options()...), accepted: acceptedDifferences()}
			for seed := range uint64(sequences) {
				if d.run(t, drawSequence(seed)) != nil {
					return
				}
			}
			t.Errorf("%d sequences of %d operations have not found it", sequences, d.operations)
		})
	}
}

// options put the lie on the way of a connection's answers.
func (p plant) options() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			err := invoke(ctx, method, req, reply, cc, opts...)
			if err != nil && p.fail != nil {
				return p.fail(status.Convert(err)).Err()
			}
			if err == nil && p.reply != nil {
				p.reply(reply)
			}
			return err
		}),
		grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			stream, err := open(ctx, desc, cc, method, opts...)
			return lyingStream{stream, p}, err
		}),
	}
}

type lyingStream struct {
	grpc.ClientStream
	plant plant
}

func (s lyingStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if r, ok := m.(*pb.WatchResponse); ok && err == nil && s.plant.watch != nil {
		s.plant.watch(r)
	}
	return err
}
