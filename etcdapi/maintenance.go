package etcdapi

import (
	"context"
	"errors"
	"hash/crc32"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/api/v3/version"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/balsa-run/balsa/store"
)

// StorageVersion is the version of etcd's database format that snapshots are in: the
// oldest that etcd 3.6 and 3.7 both start from.
const StorageVersion = "3.6.0"

// noteDefragment says why there is nothing to do; it is in the response's trailer,
// which is the only room that etcd's response has for it.
const (
	noteHeader     = "balsa-note"
	noteDefragment = "nothing to defragment: the space is held in memory, and the raft log on disk is cut by itself"
)

var (
	errDowngrade = status.Error(codes.FailedPrecondition,
		"etcdserver: there is no etcd to downgrade: Balsa's own versions are changed one server at a time, by starting another binary")
	errAlarmState = status.Error(codes.FailedPrecondition,
		"etcdserver: alarms follow the state of the space and cannot be set or cleared: NOSPACE ends by itself when keys are deleted or revisions are compacted")
	errNoArchiver = status.Error(codes.Unimplemented, "etcdserver: this server was built without snapshots in etcd's format")
)

// maintenanceServer is etcdserverpb.Maintenance.
type maintenanceServer struct {
	*Server
	pb.UnsafeMaintenanceServer
}

// Status says what this member knows. The size is what the space holds, live keys
// and history, as the quota counts it; all of it is in use, since nothing is ever
// left behind that a defragmentation could win back.
func (m *maintenanceServer) Status(context.Context, *pb.StatusRequest) (*pb.StatusResponse, error) {
	st, stats := m.group.Status(), m.space.Stats()
	res := &pb.StatusResponse{
		Header: m.headerNow(), Version: versionOf(st.Version), StorageVersion: StorageVersion,
		DbSize: stats.Bytes, DbSizeInUse: stats.Bytes, DbSizeQuota: stats.QuotaBytes,
		Leader: st.LeaderID, RaftIndex: st.CommittedIndex, RaftTerm: st.Term, RaftAppliedIndex: st.Applied,
		IsLearner: st.Learner, DowngradeInfo: &pb.DowngradeInfo{},
	}
	if st.LeaderID == 0 {
		res.Errors = append(res.Errors, "etcdserver: no leader")
	}
	for _, alarm := range m.alarms() {
		res.Errors = append(res.Errors, alarm.String())
	}
	res.Errors = append(res.Errors, st.Problems...)
	return res, nil
}

// versionOf is the version of etcd whose API this is, which clients look at to know
// what they may use, with Balsa's own as build metadata (semver.org, item 10).
func versionOf(balsa string) string {
	own := strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r == '.' {
			return r
		}
		return '-'
	}, balsa)
	if own == "" {
		return version.Version
	}
	return version.Version + "+balsa." + own
}

// alarms are raised on every member at once: all hold the same.
func (s *Server) alarms() []*pb.AlarmMember {
	if !full(s.space.Stats()) {
		return nil
	}
	var raised []*pb.AlarmMember
	for _, m := range s.group.Members() {
		raised = append(raised, &pb.AlarmMember{MemberID: m.ID, Alarm: pb.AlarmType_NOSPACE})
	}
	return raised
}

// full tells whether keys are being refused, or nearly. The store keeps an eighth of
// a space for what does not grow it; the alarm comes a little before, since a large
// value is refused where a small one still fits.
func full(stats store.Stats) bool {
	limit := stats.QuotaBytes - stats.QuotaBytes/8
	return stats.Bytes >= limit-limit/64
}

// Alarm lists the alarms. They are a function of the space and the same on all
// members, so nothing can raise or clear one but a change of the space.
func (m *maintenanceServer) Alarm(ctx context.Context, req *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	if err := m.backend.ReadBarrier(ctx); err != nil {
		return nil, m.statusOf(err)
	}
	res := &pb.AlarmResponse{Header: m.headerNow()}
	for _, a := range m.alarms() {
		if (req.GetMemberID() == 0 || req.GetMemberID() == a.GetMemberID()) && (req.GetAlarm() == pb.AlarmType_NONE || req.GetAlarm() == a.GetAlarm()) {
			res.Alarms = append(res.Alarms, a)
		}
	}
	if req.GetAction() == pb.AlarmRequest_GET || req.GetAction() == pb.AlarmRequest_DEACTIVATE && len(res.Alarms) == 0 {
		return res, nil
	}
	return nil, errAlarmState
}

func (m *maintenanceServer) Defragment(ctx context.Context, _ *pb.DefragmentRequest) (*pb.DefragmentResponse, error) {
	m.logger.Info("etcd client asked for a defragmentation: " + noteDefragment)
	// A client that has gone does not need the note.
	_ = grpc.SetTrailer(ctx, metadata.Pairs(noteHeader, noteDefragment))
	return &pb.DefragmentResponse{Header: m.headerNow()}, nil
}

// Hash is the hash of all that the space holds now, leases included.
func (m *maintenanceServer) Hash(ctx context.Context, _ *pb.HashRequest) (*pb.HashResponse, error) {
	view := m.space.View()
	sum, err := hashKeys(ctx, view)
	if err != nil {
		return nil, m.statusOf(err)
	}
	for lease := range view.Leases() {
		sum = hashMessage(sum, &pb.LeaseGrantRequest{ID: lease.ID, TTL: lease.TTLSeconds})
	}
	return &pb.HashResponse{Header: m.header(view.Revision()), Hash: sum}, nil
}

// HashKV is the hash of the keys as they were at a revision. It is the same on every
// member that holds the same keys there, whatever each has compacted; a real etcd's
// is another, since it has the older versions of each key in it as well.
func (m *maintenanceServer) HashKV(ctx context.Context, req *pb.HashKVRequest) (*pb.HashKVResponse, error) {
	now := m.space.View()
	view, err := viewAt(now, req.GetRevision())
	if err != nil {
		return nil, m.statusOf(err)
	}
	sum, err := hashKeys(ctx, view)
	if err != nil {
		return nil, m.statusOf(err)
	}
	return &pb.HashKVResponse{
		Header: m.header(now.Revision()), Hash: sum, HashRevision: int64(view.Revision()), CompactRevision: compactedAt(now),
	}, nil
}

// compactedAt is the revision of the last compaction; -1 when there was none.
func compactedAt(view store.View) int64 {
	if c := view.CompactRevision(); c > 1 {
		return int64(c)
	}
	return -1
}

// hashEvery is how many keys are hashed between two looks whether somebody waits.
const hashEvery = 4096

// hashBegin is what every hash goes on from: as in etcd that of nothing is not 0, which
// programs take for no hash.
var hashBegin = crc32.Checksum([]byte("key"), crc32.MakeTable(crc32.Castagnoli))

func hashKeys(ctx context.Context, view store.View) (sum uint32, err error) {
	sum = hashBegin
	n := 0
	for kv := range view.Range("", "", 0) {
		if n++; n%hashEvery == 0 && ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		sum = hashMessage(sum, viewKV(kv))
	}
	return sum, nil
}

// hashMessage goes on with a CRC-32C, as etcd's hashes are. The messages have no
// maps, and the same fields are set on every member, so their encoding is the same.
func hashMessage(sum uint32, message proto.Message) uint32 {
	text, err := proto.MarshalOptions{Deterministic: true}.Marshal(message)
	if err != nil {
		panic("etcdapi: a message that was made here cannot be encoded: " + err.Error())
	}
	return crc32.Update(sum, crc32.MakeTable(crc32.Castagnoli), text)
}

// MoveLeader is for the leader alone, as in etcd.
func (m *maintenanceServer) MoveLeader(ctx context.Context, req *pb.MoveLeaderRequest) (*pb.MoveLeaderResponse, error) {
	st := m.group.Status()
	if st.LeaderID == 0 || st.LeaderID != st.MemberID {
		return nil, rpctypes.ErrGRPCNotLeader
	}
	target, known := m.member(req.GetTargetID())
	if !known || target.Learner {
		return nil, rpctypes.ErrGRPCBadLeaderTransferee
	}
	if target.ID == st.LeaderID {
		return &pb.MoveLeaderResponse{Header: m.headerNow()}, nil
	}
	if err := m.group.MoveLeader(ctx, target.ID); err != nil {
		if errors.Is(err, ErrNoLeader) {
			return nil, rpctypes.ErrGRPCNotLeader
		}
		return nil, m.statusOf(err)
	}
	return &pb.MoveLeaderResponse{Header: m.headerNow()}, nil
}

// Downgrade is refused; what is malformed, or no downgrade that is under way, with
// etcd's own words.
func (m *maintenanceServer) Downgrade(_ context.Context, req *pb.DowngradeRequest) (*pb.DowngradeResponse, error) {
	if req.GetAction() == pb.DowngradeRequest_CANCEL {
		return nil, rpctypes.ErrGRPCNoInflightDowngrade
	}
	if parts := strings.Split(req.GetVersion(), "."); len(parts) < 2 || !numbers(parts) {
		return nil, rpctypes.ErrGRPCWrongDowngradeVersionFormat
	}
	return nil, errDowngrade
}

func numbers(parts []string) bool {
	for _, part := range parts {
		if part == "" || strings.Trim(part, "0123456789") != "" {
			return false
		}
	}
	return true
}

// snapshotChunk is how much of a snapshot a message carries; etcd's figure.
const snapshotChunk = 32 << 10

// Snapshot streams the space as a database that etcd starts from, then its digest.
func (m *maintenanceServer) Snapshot(_ *pb.SnapshotRequest, stream grpc.ServerStreamingServer[pb.SnapshotResponse]) error {
	if m.archiver == nil {
		return errNoArchiver
	}
	ctx := stream.Context()
	if err := m.backend.ReadBarrier(ctx); err != nil {
		return m.statusOf(err)
	}
	to := &snapshotWriter{stream: stream}
	if err := m.archiver.Archive(ctx, m.space.View(), m.group.Members(), to); err != nil {
		return m.statusOf(err)
	}
	return m.statusOf(to.flush())
}

// Sized is a writer that is told beforehand how much will be written.
type Sized interface{ Size(total int64) }

// snapshotWriter cuts what is written into messages.
type snapshotWriter struct {
	stream grpc.ServerStreamingServer[pb.SnapshotResponse]
	left   int64
	chunk  []byte
}

// Size is told how long the whole is.
func (w *snapshotWriter) Size(total int64) { w.left = total }

func (w *snapshotWriter) Write(data []byte) (int, error) {
	written := len(data)
	for len(data) > 0 {
		if w.chunk == nil { // a message that was sent may still be read by gRPC
			w.chunk = make([]byte, 0, snapshotChunk)
		}
		n := min(len(data), snapshotChunk-len(w.chunk))
		w.chunk, data = append(w.chunk, data[:n]...), data[n:]
		if len(w.chunk) == snapshotChunk {
			if err := w.flush(); err != nil {
				return 0, err
			}
		}
	}
	return written, nil
}

func (w *snapshotWriter) flush() error {
	if len(w.chunk) == 0 {
		return nil
	}
	w.left = max(w.left-int64(len(w.chunk)), 0)
	chunk := w.chunk
	w.chunk = nil
	return w.stream.Send(&pb.SnapshotResponse{RemainingBytes: uint64(w.left), Blob: chunk, Version: StorageVersion})
}
