package etcdapi

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/balsa-run/balsa/pki"
)

// lines is a log without times that can be read while it is written.
type lines struct {
	mu  sync.Mutex
	out bytes.Buffer // guarded by mu
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out.String()
}

func (l *lines) logger(level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: level, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
}

// TestAudit: who did what to which key, in the form of the API server's lines, and never
// a value.
func TestAudit(t *testing.T) {
	log := &lines{}
	s := newSecured(t, func(c *Config) { c.Audit = log.logger(slog.LevelDebug) })
	ctx := soon(t)
	admin, reader := s.client(t, pki.RoleAdmin, "ann"), s.client(t, pki.RoleReader, "rea")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err := admin.Put(ctx, "a b", "a-value")
	must(err)
	_, err = admin.Put(ctx, "\xff"+strings.Repeat("k", 200), "a-value")
	must(err)
	_, err = admin.Txn(ctx).If(clientv3.Compare(clientv3.Value("a b"), "=", "a-value")).
		Then(clientv3.OpPut("x", "a-value"), clientv3.OpGet("y")).Else(clientv3.OpDelete("d", clientv3.WithPrefix())).Commit()
	must(err)
	_, err = admin.Txn(ctx).Then(clientv3.OpGet("y")).Commit()
	must(err)
	_, err = admin.Delete(ctx, "x", clientv3.WithFromKey())
	must(err)
	_, err = admin.Get(ctx, "a b")
	must(err)
	_, err = admin.Compact(ctx, 2)
	must(err)
	_, err = admin.Compact(ctx, 2)
	if err == nil {
		t.Error("compacted twice")
	}
	lease, err := admin.Grant(ctx, 60)
	must(err)
	_, err = admin.Revoke(ctx, lease.ID)
	must(err)
	_, err = pb.NewMaintenanceClient(admin.ActiveConnection()).Defragment(ctx, &pb.DefragmentRequest{})
	must(err)
	_, err = admin.MoveLeader(ctx, 0xab)
	if err == nil {
		t.Error("a member that is not there leads")
	}
	_, err = admin.AlarmList(ctx)
	must(err)
	if _, err = admin.AlarmDisarm(ctx, &clientv3.AlarmMember{MemberID: 12, Alarm: pb.AlarmType_NOSPACE}); err != nil {
		t.Error(err)
	}
	stream, err := admin.Snapshot(ctx)
	if err == nil {
		_, err = stream.Read(make([]byte, 1))
	}
	if err == nil {
		t.Error("a snapshot without an archiver")
	}
	_, err = reader.Put(ctx, "theirs", "a-value")
	if err == nil {
		t.Error("a reader writes")
	}
	_, err = reader.Txn(ctx).Then(clientv3.OpPut("theirs", "a-value")).Commit()
	if err == nil {
		t.Error("a reader writes in a transaction")
	}
	session, err := concurrency.NewSession(admin, concurrency.WithTTL(60))
	must(err)
	must(session.Close())
	must(admin.Close()) // ends the stream of its keep-alives
	long := `Key \"\\xff` + strings.Repeat("k", auditKeyBytes-1) + `\"… (201 bytes)"`
	for _, want := range []string{
		`level=INFO msg=audit who=admin/ann what=etcdserverpb.KV/Put code=ok object="Key \"a b\"" outcome="revision 2"`,
		`level=INFO msg=audit who=admin/ann what=etcdserverpb.KV/Put code=ok object="` + long + ` outcome="revision 3"`,
		`level=INFO msg=audit who=admin/ann what=etcdserverpb.KV/Txn code=ok object="put \"x\", delete \"d\" to \"e\"" outcome="succeeded, revision 4"`,
		`level=DEBUG msg=audit who=admin/ann what=etcdserverpb.KV/Txn code=ok outcome="succeeded, revision 4"`,
		`level=INFO msg=audit who=admin/ann what=etcdserverpb.KV/DeleteRange code=ok object="Keys \"x\" and all behind it" outcome="2 deleted, revision 5"`,
		`level=DEBUG msg=audit who=admin/ann what=etcdserverpb.KV/Range code=ok object="Key \"a b\""`,
		`level=INFO msg=audit who=admin/ann what=etcdserverpb.KV/Compact code=ok object="Revision 2"`,
		`level=INFO msg=audit who=admin/ann what=etcdserverpb.KV/Compact code=out_of_range object="Revision 2" reason="etcdserver: mvcc: required revision has been compacted"`,
		`level=INFO msg=audit who=admin/ann what=etcdserverpb.Lease/LeaseGrant code=ok object="` + auditLease(int64(lease.ID)) + `" outcome="granted for 60 s"`,
		`level=INFO msg=audit who=admin/ann what=etcdserverpb.Lease/LeaseRevoke code=ok object="` + auditLease(int64(lease.ID)) + `"`,
		`level=INFO msg=audit who=admin/ann what=etcdserverpb.Maintenance/Defragment code=ok`,
		`level=INFO msg=audit who=admin/ann what=etcdserverpb.Maintenance/MoveLeader code=failed_precondition object="Member ab" reason="etcdserver: bad leader transferee"`,
		`level=DEBUG msg=audit who=admin/ann what=etcdserverpb.Maintenance/Alarm code=ok object="Alarm NONE"`,
		`level=INFO msg=audit who=admin/ann what=etcdserverpb.Maintenance/Alarm code=ok object="Alarm NOSPACE"`,
		`level=INFO msg=audit who=admin/ann what=etcdserverpb.Maintenance/Snapshot code=unimplemented reason=`,
		`level=WARN msg=audit who=reader/rea what=etcdserverpb.KV/Put code=permission_denied object="Key \"theirs\"" reason="etcdserver: permission denied"`,
		`level=WARN msg=audit who=reader/rea what=etcdserverpb.KV/Txn code=permission_denied object="put \"theirs\"" reason="etcdserver: permission denied"`,
		`level=DEBUG msg=audit who=admin/ann what=etcdserverpb.Lease/LeaseKeepAlive code=`,
	} {
		eventually(t, "there is a line "+want, func() bool { return strings.Contains(log.String(), want) })
	}
	if strings.Contains(log.String(), "a-value") {
		t.Error("a value is in the log")
	}
}

// TestAuditOfTransactions: nested ones are looked into, and a bound holds.
func TestAuditOfTransactions(t *testing.T) {
	var ops []*pb.RequestOp
	for range auditOps + 3 {
		ops = append(ops, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: b("k"), Value: b("v")}}})
	}
	inner := &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Failure: ops}}}
	got := auditTxn(&pb.TxnRequest{Success: []*pb.RequestOp{inner}})
	if want := strings.Repeat(`put "k", `, auditOps) + "3 more"; got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	if !loud(pb.KV_Txn_FullMethodName, &pb.TxnRequest{Success: []*pb.RequestOp{inner}}) {
		t.Error("a nested write is a read")
	}
	if got := auditKey(b(strings.Repeat("\xfe", 4096))); len(got) > 5*auditKeyBytes {
		t.Errorf("%d bytes of a long key are shown", len(got))
	}
}

// TestEveryMethodIsRatedForTheAudit: what is not known to be a read is loud.
func TestEveryMethodIsRatedForTheAudit(t *testing.T) {
	r := newRig(t)
	var quiet []string
	for service, info := range r.server.grpc.GetServiceInfo() {
		for _, m := range info.Methods {
			if name := "/" + service + "/" + m.Name; !loud(name, nil) && !readerMethods[name] {
				quiet = append(quiet, name)
			}
		}
	}
	if len(quiet) != 1 || quiet[0] != pb.Lease_LeaseKeepAlive_FullMethodName {
		t.Errorf("quiet beside the reads are %v", quiet)
	}
}

// BenchmarkAudit is what the line of a write costs, without the disk.
func BenchmarkAudit(b *testing.B) {
	s := &Server{auditLog: slog.New(slog.NewTextHandler(discard{}, nil))}
	c := &call{identity: pki.Identity{Role: pki.RoleAdmin, Name: "ann"}}
	request, response := &pb.PutRequest{Key: []byte("some/key/of/an/application")}, &pb.PutResponse{Header: &pb.ResponseHeader{Revision: 1}}
	for range b.N {
		s.audit(c, pb.KV_Put_FullMethodName, request, response, nil)
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
