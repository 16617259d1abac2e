package etcdapi

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// sendFragments sends a response in pieces of FragmentBytes, or one event, each:
// for clients that cannot take larger messages. All but the last say that there
// is more.
func (s *watchStream) sendFragments(r *pb.WatchResponse) error {
	for _, piece := range fragments(r, s.limits.FragmentBytes) {
		if err := s.send(piece); err != nil {
			return err
		}
	}
	return nil
}

// fragments cuts a response. The pieces of one share its header.
func fragments(r *pb.WatchResponse, limit int) []*pb.WatchResponse {
	if len(r.GetEvents()) < 2 || proto.Size(r) < limit {
		return []*pb.WatchResponse{r}
	}
	var pieces []*pb.WatchResponse
	frame := proto.Size(&pb.WatchResponse{Header: r.GetHeader(), WatchId: r.GetWatchId(), Fragment: true})
	size := 0
	for i, e := range r.GetEvents() {
		bytes := eventBytes(proto.Size(e))
		if i == 0 || size+bytes >= limit {
			pieces = append(pieces, &pb.WatchResponse{Header: r.GetHeader(), WatchId: r.GetWatchId(), Fragment: true})
			size = frame
		}
		last := pieces[len(pieces)-1]
		last.Events = append(last.Events, e)
		size += bytes
	}
	pieces[len(pieces)-1].Fragment = false
	return pieces
}

// eventsField is the number of WatchResponse.events, which decides how long the
// tag in front of an event is.
const eventsField = 11

func eventBytes(n int) int { return protowire.SizeTag(eventsField) + protowire.SizeBytes(n) }
