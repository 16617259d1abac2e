package etcdapi

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/pki"
	"github.com/balsa-run/balsa/store"
)

// trio is a Group of three, the last of them a learner.
type trio struct {
	*testGroup
	moved uint64
	fail  error
}

func (g *trio) Members() []Member {
	return []Member{
		{ID: 12, Name: "one", PeerURLs: []string{"https://10.0.0.1:7443"}, ClientURLs: []string{"https://10.0.0.1:2379"}},
		{ID: 13, Name: "two", PeerURLs: []string{"https://10.0.0.2:7443"}},
		{ID: 14, Name: "three", PeerURLs: []string{"https://10.0.0.3:7443"}, Learner: true},
	}
}

func (g *trio) MoveLeader(_ context.Context, id uint64) error {
	g.moved = id
	return g.fail
}

func trioRig(t *testing.T, adjust ...func(*Config)) (*rig, *trio) {
	g := &trio{}
	r := newRig(t, append([]func(*Config){func(c *Config) {
		g.testGroup = c.Group.(*testGroup)
		c.Group = g
	}}, adjust...)...)
	return r, g
}

func says(t *testing.T, what string, err, want error) {
	t.Helper()
	if err == nil || err.Error() != want.Error() {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func TestMembers(t *testing.T) {
	r, g := trioRig(t)
	ctx, c := soon(t), pb.NewClusterClient(r.conn)
	_, before := g.counts()
	list, err := c.MemberList(ctx, &pb.MemberListRequest{})
	if err != nil || len(list.GetMembers()) != 3 || !list.GetMembers()[2].GetIsLearner() || list.GetMembers()[0].GetClientURLs()[0] != "https://10.0.0.1:2379" {
		t.Errorf("members: %v, %v", list, err)
	}
	if _, after := g.counts(); after != before {
		t.Error("a list that need not be linearizable has asked the leader")
	}
	if list.GetHeader().GetRevision() != 0 || list.GetHeader().GetClusterId() != 11 || list.GetHeader().GetRaftTerm() != 7 {
		t.Errorf("header: %v", list.GetHeader())
	}
	if _, err := c.MemberList(ctx, &pb.MemberListRequest{Linearizable: true}); err != nil {
		t.Error(err)
	}
	if _, after := g.counts(); after != before+1 {
		t.Error("a linearizable list has not asked the leader")
	}
	g.set(func(g *testGroup) { g.fail = ErrNoLeader })
	says(t, "linearizable without a leader", second(c.MemberList(ctx, &pb.MemberListRequest{Linearizable: true})), rpctypes.ErrGRPCNoLeader)
	g.set(func(g *testGroup) { g.fail = nil })
}

func TestMembershipIsBalsas(t *testing.T) {
	r, _ := trioRig(t)
	ctx, c := soon(t), pb.NewClusterClient(r.conn)
	good := []string{"https://10.0.0.9:2380"}
	add := func(urls ...string) error {
		return second(c.MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: urls}))
	}
	says(t, "add", add(good...), errMemberAdd)
	says(t, "add a socket", add("unix://localhost:1", "unixs:///run/m2"), errMemberAdd)
	says(t, "add a known one", add("https://10.0.0.2:7443"), rpctypes.ErrGRPCPeerURLExist)
	for _, bad := range []string{"", "10.0.0.9:2380", "https://10.0.0.9", "https://10.0.0.9:1/path", "ftp://10.0.0.9:1", "https://10.0.0.9:1\n%"} {
		says(t, "add "+bad, add(bad), rpctypes.ErrGRPCMemberBadURLs)
	}
	says(t, "add nothing", add(), rpctypes.ErrGRPCMemberBadURLs)
	says(t, "remove", second(c.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: 13})), errMemberRemove)
	says(t, "remove nobody", second(c.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: 1})), rpctypes.ErrGRPCMemberNotFound)
	says(t, "update", second(c.MemberUpdate(ctx, &pb.MemberUpdateRequest{ID: 13, PeerURLs: good})), errMemberUpdate)
	says(t, "update to nothing", second(c.MemberUpdate(ctx, &pb.MemberUpdateRequest{ID: 13})), rpctypes.ErrGRPCMemberBadURLs)
	says(t, "update nobody", second(c.MemberUpdate(ctx, &pb.MemberUpdateRequest{ID: 1, PeerURLs: good})), rpctypes.ErrGRPCMemberNotFound)
	says(t, "promote a voter", second(c.MemberPromote(ctx, &pb.MemberPromoteRequest{ID: 13})), rpctypes.ErrGRPCMemberNotLearner)
	says(t, "promote a learner", second(c.MemberPromote(ctx, &pb.MemberPromoteRequest{ID: 14})), rpctypes.ErrGRPCLearnerNotReady)
	says(t, "promote nobody", second(c.MemberPromote(ctx, &pb.MemberPromoteRequest{ID: 1})), rpctypes.ErrGRPCMemberNotFound)
	for _, err := range []error{errMemberAdd, errMemberRemove} {
		if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "`balsa ") {
			t.Errorf("%v does not name the command", err)
		}
	}
}

// TestAuthIsCertificates: every method there is, those to come as well.
func TestAuthIsCertificates(t *testing.T) {
	r, _ := trioRig(t)
	for _, method := range pb.Auth_ServiceDesc.Methods {
		err := r.conn.Invoke(soon(t), "/"+pb.Auth_ServiceDesc.ServiceName+"/"+method.MethodName, &pb.AuthStatusRequest{}, &pb.AuthStatusResponse{})
		says(t, method.MethodName, err, errAuth)
	}
	if len(pb.Auth_ServiceDesc.Methods) < 16 || !strings.Contains(errAuth.Error(), "balsa user create NAME --role") {
		t.Errorf("%d methods say %v", len(pb.Auth_ServiceDesc.Methods), errAuth)
	}
}

// TestAPasswordIsOfNoUse: a program that was given one is told at its start what counts
// instead.
func TestAPasswordIsOfNoUse(t *testing.T) {
	s := newSecured(t)
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{"https://" + s.address}, Logger: zap.NewNop(), Context: soon(t), Username: "root", Password: "secret", TLS: s.offering(t, pki.RoleAdmin, "h2"),
	})
	if err == nil {
		c.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "balsa user create NAME --role") || strings.Contains(err.Error(), "secret") {
		t.Errorf("it is told %v", err)
	}
}

// TestHealthService serves until the server stops, and tells who watches.
func TestHealthService(t *testing.T) {
	r, _ := trioRig(t)
	c := healthpb.NewHealthClient(r.conn)
	if res, err := c.Check(soon(t), &healthpb.HealthCheckRequest{}); err != nil || res.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("%v, %v", res, err)
	}
	if _, err := c.Check(soon(t), &healthpb.HealthCheckRequest{Service: "nobody"}); status.Code(err) != codes.NotFound {
		t.Errorf("of a service that is not there: %v", err)
	}
	w, err := c.Watch(soon(t), &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if res, err := w.Recv(); err != nil || res.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("%v, %v", res, err)
	}
	r.server.Stop(soon(t))
	for err = error(nil); err == nil; {
		_, err = w.Recv()
	}
	if status.Code(err) != codes.Unavailable {
		t.Errorf("the watch ends with %v", err)
	}
}

func TestStatus(t *testing.T) {
	r, g := trioRig(t)
	r.put(t, "a", "1")
	res, err := r.client.Status(soon(t), r.client.Endpoints()[0])
	if err != nil {
		t.Fatal(err)
	}
	stats := r.server.space.Stats()
	if res.Leader != 12 || res.RaftTerm != 7 || res.RaftIndex == 0 || res.RaftAppliedIndex != res.RaftIndex || res.IsLearner || len(res.Errors) != 0 ||
		res.DbSize != stats.Bytes || res.DbSize == 0 || res.DbSizeInUse != stats.Bytes || res.DbSizeQuota != stats.QuotaBytes || res.StorageVersion != StorageVersion {
		t.Errorf("status: %v", res)
	}
	if !strings.HasPrefix(res.Version, "3.7.") || !strings.HasSuffix(res.Version, "+balsa.test") {
		t.Errorf("version %q", res.Version)
	}
	g.set(func(g *testGroup) { g.leader, g.learner = 0, true })
	res, err = r.client.Status(soon(t), r.client.Endpoints()[0])
	if err != nil || !res.IsLearner || len(res.Errors) != 1 || res.Errors[0] != "etcdserver: no leader" {
		t.Errorf("a learner without a leader: %v, %v", res, err)
	}
	for balsa, want := range map[string]string{"": "3.7.3", "1.2.0-rc+g12": "3.7.3+balsa.1.2.0-rc-g12"} {
		if got := versionOf(balsa); got != want {
			t.Errorf("version of %q: %q, want %q", balsa, got, want)
		}
	}
}

func TestAlarms(t *testing.T) {
	small := []store.SpaceOptions{{Name: store.SpaceEtcd, Bytes: 64 << 10}}
	r, _ := trioRig(t, func(c *Config) {
		g := c.Group.(*trio).testGroup
		g.store = store.New(store.Options{Spaces: small})
		c.Space = g.store.Space(store.SpaceEtcd)
	})
	ctx := soon(t)
	if res, err := r.client.AlarmList(ctx); err != nil || len(res.Alarms) != 0 {
		t.Fatalf("alarms of an empty space: %v, %v", res, err)
	}
	value := strings.Repeat("x", 1000)
	for {
		if _, err := r.client.Put(ctx, "k", value); err != nil {
			if !errors.Is(err, rpctypes.ErrNoSpace) {
				t.Fatal(err)
			}
			break
		}
	}
	// It is the history that fills it: what grows nothing still fits a while.
	res, err := r.client.AlarmList(ctx)
	if err != nil || len(res.Alarms) != 3 || res.Alarms[0].GetAlarm() != pb.AlarmType_NOSPACE || res.Alarms[0].GetMemberID() != 12 {
		t.Fatalf("alarms of a full space: %v, %v", res, err)
	}
	if st, err := r.client.Status(ctx, r.client.Endpoints()[0]); err != nil || len(st.Errors) != 3 {
		t.Errorf("status of a full space: %v, %v", st, err)
	}
	m := pb.NewMaintenanceClient(r.conn)
	says(t, "disarm", second(m.Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, MemberID: 12, Alarm: pb.AlarmType_NOSPACE})), errAlarmState)
	says(t, "raise", second(m.Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, MemberID: 12, Alarm: pb.AlarmType_CORRUPT})), errAlarmState)
	if res, err := m.Alarm(ctx, &pb.AlarmRequest{Alarm: pb.AlarmType_CORRUPT}); err != nil || len(res.GetAlarms()) != 0 {
		t.Errorf("corrupt: %v, %v", res, err)
	}
	r.maintain(t)
	r.compact(t, int64(r.server.space.View().Revision()))
	if res, err := r.client.AlarmDisarm(ctx, &clientv3.AlarmMember{}); err != nil || len(res.Alarms) != 0 {
		t.Errorf("after a compaction: %v, %v", res, err)
	}
}

func TestHashes(t *testing.T) {
	one, _ := trioRig(t)
	two, _ := trioRig(t)
	for _, r := range []*rig{one, two} {
		r.grant(t, 5, 60)
		r.put(t, "a", "1")
		r.put(t, "b", "2")
		r.delete(t, "a")
		r.put(t, "c", "3")
	}
	two.put(t, "d", "4")
	two.compact(t, 4)
	hash := func(r *rig, revision int64) *pb.HashKVResponse {
		t.Helper()
		res, err := pb.NewMaintenanceClient(r.conn).HashKV(soon(t), &pb.HashKVRequest{Revision: revision})
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	empty, _ := trioRig(t)
	if res := hash(empty, 0); res.GetHash() == 0 {
		t.Error("the hash of nothing is 0, which is no hash to programs")
	}
	seen := map[uint32]int64{}
	for revision := int64(4); revision <= 5; revision++ {
		a, b := hash(one, revision), hash(two, revision)
		if a.GetHash() != b.GetHash() || a.GetHashRevision() != revision {
			t.Errorf("at %d: %v and %v", revision, a, b)
		}
		if other, twice := seen[a.GetHash()]; twice {
			t.Errorf("revisions %d and %d have the same hash", other, revision)
		}
		seen[a.GetHash()] = revision
	}
	if a, b := hash(one, 0), hash(two, 0); a.GetHash() == b.GetHash() || a.GetCompactRevision() != -1 || b.GetCompactRevision() != 4 || b.GetHeader().GetRevision() != 6 {
		t.Errorf("newest: %v and %v", a, b)
	}
	m := pb.NewMaintenanceClient(two.conn)
	says(t, "compacted", second(m.HashKV(soon(t), &pb.HashKVRequest{Revision: 3})), rpctypes.ErrGRPCCompacted)
	says(t, "to come", second(m.HashKV(soon(t), &pb.HashKVRequest{Revision: 7})), rpctypes.ErrGRPCFutureRev)
	before, err := m.Hash(soon(t), &pb.HashRequest{})
	if err != nil {
		t.Fatal(err)
	}
	two.grant(t, 6, 60)
	if after, err := m.Hash(soon(t), &pb.HashRequest{}); err != nil || after.GetHash() == before.GetHash() {
		t.Errorf("a lease changes nothing: %v, %v", after, err)
	}
}

func TestMoveLeader(t *testing.T) {
	r, g := trioRig(t)
	ctx, m := soon(t), pb.NewMaintenanceClient(r.conn)
	move := func(id uint64) error {
		return second(m.MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: id}))
	}
	if err := move(13); err != nil || g.moved != 13 {
		t.Errorf("moved to %d, %v", g.moved, err)
	}
	if err := move(12); err != nil || g.moved != 13 {
		t.Errorf("to the leader itself: %d, %v", g.moved, err)
	}
	says(t, "to a learner", move(14), rpctypes.ErrGRPCBadLeaderTransferee)
	says(t, "to nobody", move(99), rpctypes.ErrGRPCBadLeaderTransferee)
	g.fail = ErrNoLeader
	says(t, "just deposed", move(13), rpctypes.ErrGRPCNotLeader)
	g.set(func(g *testGroup) { g.leader = 13 })
	says(t, "a follower", move(13), rpctypes.ErrGRPCNotLeader)
}

func TestDefragmentAndDowngrade(t *testing.T) {
	r, _ := trioRig(t)
	ctx, m := soon(t), pb.NewMaintenanceClient(r.conn)
	var trailer metadata.MD
	if _, err := m.Defragment(ctx, &pb.DefragmentRequest{}, grpc.Trailer(&trailer)); err != nil || len(trailer.Get(noteHeader)) != 1 {
		t.Errorf("defragment: %v, %v", trailer, err)
	}
	says(t, "downgrade", second(m.Downgrade(ctx, &pb.DowngradeRequest{Action: pb.DowngradeRequest_ENABLE, Version: "3.6.0"})), errDowngrade)
	says(t, "validate", second(m.Downgrade(ctx, &pb.DowngradeRequest{Version: "3.6"})), errDowngrade)
	says(t, "malformed", second(m.Downgrade(ctx, &pb.DowngradeRequest{Version: "three"})), rpctypes.ErrGRPCWrongDowngradeVersionFormat)
	says(t, "cancel", second(m.Downgrade(ctx, &pb.DowngradeRequest{Action: pb.DowngradeRequest_CANCEL})), rpctypes.ErrGRPCNoInflightDowngrade)
}

// pretend is an Archiver of so many bytes that fails at the end.
type pretend struct {
	bytes int
	fail  error
}

func (p pretend) Archive(_ context.Context, _ store.View, members []Member, to io.Writer) error {
	if sized, ok := to.(Sized); ok {
		sized.Size(int64(p.bytes + sha256.Size))
	}
	body := bytes.Repeat([]byte{7}, p.bytes)
	for _, piece := range [][]byte{body[:p.bytes/3], body[p.bytes/3:]} {
		if _, err := to.Write(piece); err != nil {
			return err
		}
	}
	if p.fail != nil || len(members) != 3 {
		return p.fail
	}
	sum := sha256.Sum256(body)
	_, err := to.Write(sum[:])
	return err
}

func TestSnapshotIsStreamed(t *testing.T) {
	for _, size := range []int{snapshotChunk - sha256.Size, 100_000, 3 * snapshotChunk} {
		r, _ := trioRig(t, func(c *Config) { c.Archiver = pretend{bytes: size} })
		stream, err := pb.NewMaintenanceClient(r.conn).Snapshot(soon(t), &pb.SnapshotRequest{})
		if err != nil {
			t.Fatal(err)
		}
		var got []byte
		for left := uint64(size + sha256.Size); ; {
			res, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				if left != 0 {
					t.Errorf("%d bytes: the last message says that %d are left", size, left)
				}
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, res.GetBlob()...)
			if left -= uint64(len(res.GetBlob())); left != res.GetRemainingBytes() || res.GetVersion() != StorageVersion {
				t.Fatalf("%d bytes: %d remain, said are %d", size, left, res.GetRemainingBytes())
			}
		}
		sum := sha256.Sum256(got[:size])
		if len(got) != size+sha256.Size || !bytes.Equal(got[size:], sum[:]) {
			t.Errorf("%d bytes: got %d, and not the digest at the end", size, len(got))
		}
	}
}

func TestSnapshotFails(t *testing.T) {
	for name, c := range map[string]struct {
		archiver Archiver
		want     error
	}{
		"no archiver": {nil, errNoArchiver},
		"half-way":    {pretend{bytes: 100_000, fail: ErrStopped}, rpctypes.ErrGRPCStopped},
	} {
		r, _ := trioRig(t, func(cfg *Config) { cfg.Archiver = c.archiver })
		stream, err := pb.NewMaintenanceClient(r.conn).Snapshot(soon(t), &pb.SnapshotRequest{})
		for err == nil {
			_, err = stream.Recv()
		}
		says(t, name, err, c.want)
	}
}

// TestRestNeedsALeader: what must not be answered from a state that may be old.
func TestRestNeedsALeader(t *testing.T) {
	r, g := trioRig(t)
	g.set(func(g *testGroup) { g.fail = ErrTimeout })
	ctx := soon(t)
	for name, err := range map[string]error{
		"leases":  second(pb.NewLeaseClient(r.conn).LeaseLeases(ctx, &pb.LeaseLeasesRequest{})),
		"grant":   second(pb.NewLeaseClient(r.conn).LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 9})),
		"alarms":  second(pb.NewMaintenanceClient(r.conn).Alarm(ctx, &pb.AlarmRequest{})),
		"timeout": second(r.group.Propose(ctx, &internalv1.Command{})),
	} {
		if err == nil {
			t.Errorf("%s: answered without a leader", name)
		}
	}
}
