package etcdapi

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/balsa-run/balsa/store"
)

// header is the head of every response. The revision is of the etcd space: that
// of the write, or of the state that was read.
func (s *Server) header(rev store.Revision) *pb.ResponseHeader {
	st := s.group.Status()
	return &pb.ResponseHeader{ClusterId: st.ClusterID, MemberId: st.MemberID, Revision: int64(rev), RaftTerm: st.Term}
}

// headerNow is header at this member's newest revision.
func (s *Server) headerNow() *pb.ResponseHeader { return s.header(s.space.View().Revision()) }
