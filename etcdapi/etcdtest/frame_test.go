package etcdtest

import (
	"cmp"
	"slices"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// frame is how one side's numbers are those of a sequence: every sequence begins
// in an empty space at revision 1, with leases that count from leaseChosen where
// the server chose them.
type frame struct {
	// base is the side's revision that the sequence calls 1.
	base int64
	// chosen are the ids that the side chose itself, in order.
	chosen []int64
}

// leaseChosen is the sequence's number of the first lease whose id the server
// chose; the next is one more.
const leaseChosen = 1000

// absurd is where revisions are left as they are: they are meant to be too large.
const absurd = 1 << 40

func (f *frame) realRevision(r int64) int64 {
	if r <= 0 || r >= absurd {
		return r
	}
	return r + f.base - 1
}

func (f *frame) shownRevision(r int64) int64 {
	if r <= 0 || r >= absurd {
		return r
	}
	return r - f.base + 1
}

func (f *frame) realLease(id int64) int64 {
	if i := id - leaseChosen; i >= 0 && i < int64(len(f.chosen)) {
		return f.chosen[i]
	}
	return id
}

func (f *frame) shownLease(id int64) int64 {
	if i := slices.Index(f.chosen, id); i >= 0 {
		return leaseChosen + int64(i)
	}
	return id
}

// real is a request as the side gets it.
func (f *frame) real(m proto.Message) proto.Message {
	m = proto.Clone(m)
	numbers(m.ProtoReflect(), f.realRevision, f.realLease)
	return m
}

// shown is a response as the sequence sees it. What must differ between two
// clusters is left out: ids of the cluster and its members, terms, the time that
// a lease has left, and hashes, whose function is each program's own.
func (f *frame) shown(m proto.Message) proto.Message {
	m = proto.Clone(m)
	if grant, ok := m.(*pb.LeaseGrantResponse); ok && grant.GetID() > absurd {
		f.chosen = append(f.chosen, grant.GetID())
	}
	numbers(m.ProtoReflect(), f.shownRevision, f.shownLease)
	switch r := m.(type) {
	case *pb.LeaseTimeToLiveResponse:
		r.TTL = min(r.TTL, 1)
		slices.SortFunc(r.Keys, slices.Compare) // they come from a map
	case *pb.LeaseKeepAliveResponse:
		r.TTL = min(r.TTL, 1)
	case *pb.LeaseLeasesResponse: // by the time they have left
		slices.SortFunc(r.Leases, func(a, b *pb.LeaseStatus) int { return cmp.Compare(a.ID, b.ID) })
	case *pb.HashKVResponse:
		// etcd's are those that it noted when it compacted, of the compaction before.
		r.Hash, r.CompactRevision = 0, 0
	}
	return m
}

// numbers rewrites the revisions and leases of a message, and clears ids and terms
// in headers.
func numbers(m protoreflect.Message, revision, lease func(int64) int64) {
	leases := strings.HasPrefix(string(m.Descriptor().Name()), "Lease")
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		name := string(fd.Name())
		switch {
		case fd.IsList() && fd.Message() != nil:
			for i := range v.List().Len() {
				numbers(v.List().Get(i).Message(), revision, lease)
			}
		case fd.Message() != nil:
			numbers(v.Message(), revision, lease)
		case name == "cluster_id" || name == "member_id" || name == "raft_term":
			m.Clear(fd)
		case fd.Kind() != protoreflect.Int64Kind || fd.IsList():
		case strings.HasSuffix(name, "revision"):
			m.Set(fd, protoreflect.ValueOfInt64(revision(v.Int())))
		case name == "lease" || leases && name == "ID":
			m.Set(fd, protoreflect.ValueOfInt64(lease(v.Int())))
		}
		return true
	})
}
