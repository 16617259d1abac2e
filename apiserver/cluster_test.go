package apiserver

import (
	"context"
	"encoding/pem"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/gen/balsainternal/v1/internalv1connect"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/pki"
	"github.com/balsa-run/balsa/store"
)

func TestVersionAndStatus(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		v, err := w.agent("n1").cluster.GetVersion(t.Context(), &balsav1.GetVersionRequest{})
		must(t, err)
		if v.GetVersion() == "" || v.GetGoVersion() == "" {
			t.Fatalf("version: %v", v)
		}
		s, err := w.reader().cluster.GetStatus(t.Context(), &balsav1.GetStatusRequest{})
		must(t, err)
		if s.GetLeaderId() != "m1" || !s.GetCaNotAfter().AsTime().Equal(w.bundle.CA.NotAfter()) {
			t.Fatalf("status: %v", s)
		}
		_, err = w.admin().cluster.TransferLeadership(t.Context(), &balsav1.TransferLeadershipRequest{MemberId: "nobody"})
		if d := refused(t, err, connect.CodeUnavailable, "Unavailable"); d.GetApplied() != notApplied {
			t.Fatalf("detail: %v", d)
		}
		_, err = w.admin().cluster.RemoveMember(t.Context(), &balsav1.RemoveMemberRequest{})
		refused(t, err, connect.CodeInvalidArgument, "Invalid")
	})
}

func (w *world) token(role string, uses uint32) string {
	w.t.Helper()
	res, err := w.admin().cluster.CreateToken(w.t.Context(), &balsav1.CreateTokenRequest{Role: role, MaxUses: uses})
	must(w.t, err)
	return res.GetToken()
}

func TestTokens(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.admin().cluster
		made, err := c.CreateToken(t.Context(), &balsav1.CreateTokenRequest{Role: "agent", Description: "rack 7"})
		must(t, err)
		info := made.GetInfo()
		if got := time.Until(info.GetExpires().AsTime()); got != time.Hour || info.GetMaxUses() != 1 {
			t.Fatalf("info: %v", info)
		}
		_, err = c.RevokeToken(t.Context(), &balsav1.RevokeTokenRequest{Id: info.GetId()})
		must(t, err)
		list, err := c.ListTokens(t.Context(), &balsav1.ListTokensRequest{})
		must(t, err)
		if len(list.GetTokens()) != 1 || !list.GetTokens()[0].GetRevoked() || list.GetTokens()[0].GetDescription() != "rack 7" {
			t.Fatalf("list: %v", list)
		}
		secret := strings.Split(made.GetToken(), ".")[2]
		kv, _ := w.objects().Get("system/tokens/" + info.GetId())
		synctest.Wait()
		if strings.Contains(string(kv.Value), secret) || strings.Contains(w.logs.String(), secret) {
			t.Error("the token's secret is kept")
		}
		_, err = c.RevokeToken(t.Context(), &balsav1.RevokeTokenRequest{Id: "absent"})
		refused(t, err, connect.CodeNotFound, "NotFound")
		_, err = c.CreateToken(t.Context(), &balsav1.CreateTokenRequest{Role: "admin"})
		refused(t, err, connect.CodeInvalidArgument, "Invalid")
		_, err = c.CreateToken(t.Context(), &balsav1.CreateTokenRequest{Role: "agent", TtlSeconds: 31 * 24 * 3600})
		refused(t, err, connect.CodeResourceExhausted, "LimitReached")
	})
}

// joiner is somebody without a certificate.
func (w *world) joiner() balsav1connectJoin {
	return w.dial(w.joinListener, pki.Identity{}, true).joining
}

type balsav1connectJoin = interface {
	Join(context.Context, *balsav1.JoinRequest) (*balsav1.JoinResponse, error)
	RenewNonce(context.Context, *balsav1.RenewNonceRequest) (*balsav1.RenewNonceResponse, error)
	Renew(context.Context, *balsav1.RenewRequest) (*balsav1.RenewResponse, error)
}

type joining struct {
	joiner *pki.Joiner
	req    *balsav1.JoinRequest
}

func prepareJoin(t *testing.T, token string, role pki.Role, name string) *joining {
	t.Helper()
	parsed, err := pki.ParseToken(token)
	must(t, err)
	sans, err := pki.ParseSANs()
	must(t, err)
	j, err := pki.NewJoiner(parsed, role, name, sans, newKey(t))
	must(t, err)
	want, err := j.Request()
	must(t, err)
	req := &balsav1.JoinRequest{Token: token, Role: string(role), Name: name, Csr: want.CSR}
	if role == pki.RoleServer {
		req.MemberId, req.AdvertiseAddress = "m2", "10.0.0.2:7443"
	}
	return &joining{j, req}
}

func (j *joining) accept(t *testing.T, res *balsav1.JoinResponse) (*pki.Credential, *pki.Bundle) {
	t.Helper()
	cred, bundle, err := j.joiner.Accept(pki.JoinReply{CertPEM: res.GetCertificate(), CAPEM: res.GetCa(), Bundle: res.GetServerBundle()})
	must(t, err)
	return cred, bundle
}

func TestJoinAgent(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		token := w.token("agent", 1)
		j := prepareJoin(t, token, pki.RoleAgent, "n1")
		res, err := w.joiner().Join(t.Context(), j.req)
		must(t, err)
		cred, _ := j.accept(t, res)
		if cred.Identity().Name != "n1" || len(res.GetServerBundle()) != 0 || len(res.GetGossipKey()) == 0 || len(w.members.added) != 0 {
			t.Fatalf("joined as %s: %d bytes of bundle", cred.Identity(), len(res.GetServerBundle()))
		}
		// The answer was lost: the same key joins again and costs no further use.
		_, err = w.joiner().Join(t.Context(), j.req)
		must(t, err)
		_, err = w.joiner().Join(t.Context(), prepareJoin(t, token, pki.RoleAgent, "n2").req)
		refused(t, err, connect.CodeUnauthenticated, "TokenUsed")
		// Another key under the same name.
		_, err = w.joiner().Join(t.Context(), prepareJoin(t, w.token("agent", 1), pki.RoleAgent, "n1").req)
		refused(t, err, connect.CodeAlreadyExists, "NameTaken")
		_, err = w.joiner().Join(t.Context(), prepareJoin(t, w.token("agent", 1), pki.RoleServer, "s2").req)
		refused(t, err, connect.CodePermissionDenied, "WrongRole")
		ids, err := w.admin().cluster.ListIdentities(t.Context(), &balsav1.ListIdentitiesRequest{})
		must(t, err)
		if len(ids.GetIdentities()) != 1 || ids.GetIdentities()[0].GetName() != "n1" {
			t.Fatalf("identities: %v", ids)
		}
	})
}

// Two servers decide about a token's last use at once: one joiner gets in.
func TestJoinRace(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		token := w.token("agent", 1)
		first, second := prepareJoin(t, token, pki.RoleAgent, "n1"), prepareJoin(t, token, pki.RoleAgent, "n2")
		w.backend.before = func(*internalv1.Command) error {
			w.backend.before = nil
			_, err := w.joiner().Join(t.Context(), second.req)
			return err
		}
		_, err := w.joiner().Join(t.Context(), first.req)
		refused(t, err, connect.CodeUnauthenticated, "TokenUsed")
	})
}

func TestJoinServer(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		j := prepareJoin(t, w.token("server", 1), pki.RoleServer, "s2")
		res, err := w.joiner().Join(t.Context(), j.req)
		must(t, err)
		_, bundle := j.accept(t, res)
		if bundle == nil || bundle.CA.Hash() != w.bundle.CA.Hash() || !bundle.GossipKey.Equal(w.bundle.GossipKey) {
			t.Fatal("the bundle is not the cluster's")
		}
		if len(w.members.added) != 1 || w.members.added[0].ID != "m2" || w.members.added[0].Address != "10.0.0.2:7443" {
			t.Fatalf("added: %v", w.members.added)
		}
		j.req.MemberId = ""
		_, err = w.joiner().Join(t.Context(), j.req)
		refused(t, err, connect.CodeInvalidArgument, "Invalid")
	})
}

// A removed agent is refused; let in again under its name, its old certificate
// stays out, also by serial.
func TestRemoveAndReadmit(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			w.server.FeedGuard(ctx)
		}()
		defer func() { cancel(); <-done }()
		j := prepareJoin(t, w.token("agent", 1), pki.RoleAgent, "n1")
		res, err := w.joiner().Join(t.Context(), j.req)
		must(t, err)
		old, _ := j.accept(t, res)
		before := w.token("agent", 1)
		timer := time.NewTimer(time.Minute)
		<-timer.C
		_, err = w.admin().cluster.RemoveIdentity(t.Context(), &balsav1.RemoveIdentityRequest{Role: "agent", Name: "n1"})
		must(t, err)
		synctest.Wait()
		if err := w.guard.Check(old.Identity()); !errors.Is(err, pki.ErrRemoved) {
			t.Fatalf("guard: %v", err)
		}
		w.register("n2")
		told := func() map[string]int64 {
			t.Helper()
			res, err := w.agent("n2").nodes.Heartbeat(t.Context(), &balsav1.HeartbeatRequest{NodeName: "n2"})
			must(t, err)
			found := map[string]int64{}
			for _, r := range res.GetRemoved().GetIdentities() {
				found[r.GetRole()+"/"+r.GetName()] = r.GetAtNs()
			}
			return found
		}
		removedAt := told()["agent/n1"]
		if removedAt == 0 || time.Since(time.Unix(0, removedAt)) > time.Second {
			t.Fatalf("agents are told %v", told())
		}
		_, err = w.joiner().Join(t.Context(), prepareJoin(t, before, pki.RoleAgent, "n1").req)
		refused(t, err, connect.CodeUnauthenticated, "IdentityRemoved")
		timer.Reset(time.Minute)
		<-timer.C
		again := prepareJoin(t, w.token("agent", 1), pki.RoleAgent, "n1")
		res, err = w.joiner().Join(t.Context(), again.req)
		must(t, err)
		next, _ := again.accept(t, res)
		synctest.Wait()
		must(t, w.guard.Check(next.Identity()))
		if err := w.guard.Check(old.Identity()); !errors.Is(err, pki.ErrRemoved) {
			t.Fatalf("the old certificate is good again: %v", err)
		}
		if told()["agent/n1"] != removedAt {
			t.Errorf("agents are not told any more that the old one is refused: %v", told())
		}
		if issued := next.Identity().Issued; !issued.After(time.Unix(0, removedAt)) {
			t.Errorf("the new certificate of %v looks older than the removal at %v", issued, time.Unix(0, removedAt))
		}
		_, err = w.admin().cluster.RemoveIdentity(t.Context(), &balsav1.RemoveIdentityRequest{Role: "admin", Name: "ana"})
		refused(t, err, connect.CodeFailedPrecondition, "Self")
	})
}

func TestRenew(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		j := prepareJoin(t, w.token("agent", 1), pki.RoleAgent, "n1")
		res, err := w.joiner().Join(t.Context(), j.req)
		must(t, err)
		cred, _ := j.accept(t, res)
		timer := time.NewTimer(120 * 24 * time.Hour) // the cluster was switched off
		<-timer.C
		renew := func() (*balsav1.RenewRequest, error) {
			nonce, err := w.joiner().RenewNonce(t.Context(), &balsav1.RenewNonceRequest{})
			must(t, err)
			want, err := pki.NewRenewRequest(cred, nonce.GetNonce())
			must(t, err)
			req := &balsav1.RenewRequest{Certificate: want.Cert, Csr: want.CSR, Nonce: want.Nonce, Signature: want.Signature}
			res, err := w.joiner().Renew(t.Context(), req)
			if err == nil {
				cred, err = cred.Renewed(res.GetCertificate())
			}
			return req, err
		}
		old := cred.Identity().Serial
		used, err := renew()
		must(t, err)
		if cred.Identity().Serial == old || !cred.Expires().After(time.Now()) {
			t.Fatalf("renewed: %s until %v", cred.Identity(), cred.Expires())
		}
		_, err = w.joiner().Renew(t.Context(), used)
		refused(t, err, connect.CodeUnauthenticated, "BadProof")
		// The expired serial was forgotten, the new one is kept.
		var serials []string
		for kv := range w.objects().Prefix("system/serials/agent/n1/") {
			serials = append(serials, strings.TrimPrefix(kv.Key, "system/serials/agent/n1/"))
		}
		if len(serials) != 1 || serials[0] != cred.Identity().Serial {
			t.Fatalf("serials: %v", serials)
		}
		_, err = w.admin().cluster.RemoveIdentity(t.Context(), &balsav1.RemoveIdentityRequest{Role: "agent", Name: "n1"})
		must(t, err)
		_, err = renew()
		refused(t, err, connect.CodeUnauthenticated, "IdentityRemoved")
	})
}

// A renewal that was decided before a removal is not handed out after it.
func TestRenewRace(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		j := prepareJoin(t, w.token("agent", 1), pki.RoleAgent, "n1")
		res, err := w.joiner().Join(t.Context(), j.req)
		must(t, err)
		cred, _ := j.accept(t, res)
		nonce, err := w.joiner().RenewNonce(t.Context(), &balsav1.RenewNonceRequest{})
		must(t, err)
		want, err := pki.NewRenewRequest(cred, nonce.GetNonce())
		must(t, err)
		w.backend.before = func(*internalv1.Command) error {
			w.backend.before = nil
			_, err := w.admin().cluster.RemoveIdentity(t.Context(), &balsav1.RemoveIdentityRequest{Role: "agent", Name: "n1"})
			return err
		}
		_, err = w.joiner().Renew(t.Context(), &balsav1.RenewRequest{Certificate: want.Cert, Csr: want.CSR, Nonce: want.Nonce, Signature: want.Signature})
		refused(t, err, connect.CodeUnauthenticated, "IdentityRemoved")
	})
}

func TestCreateIdentity(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		key := newKey(t)
		der, err := pki.NewCSR("bo", key)
		must(t, err)
		csr := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
		req := &balsav1.CreateIdentityRequest{Name: "bo", Role: "reader", Csr: csr, TtlSeconds: 48 * 3600}
		res, err := w.admin().cluster.CreateIdentity(t.Context(), req)
		must(t, err)
		if res.GetClusterId() != "c1" || len(res.GetServers()) != 1 || !strings.Contains(string(res.GetCertificate()), "BEGIN CERTIFICATE") {
			t.Fatalf("got %v", res)
		}
		record := &internalv1.IdentityRecord{}
		kv, _ := w.objects().Get("system/identities/reader/bo")
		must(t, proto.Unmarshal(kv.Value, record))
		if record.GetSerial() == "" || !record.GetNotAfter().AsTime().Equal(time.Now().Add(48*time.Hour)) {
			t.Fatalf("record: %v", record)
		}
		for want, bad := range map[string]*balsav1.CreateIdentityRequest{
			"role": {Name: "bo", Role: "server", Csr: csr},
			"csr":  {Name: "bo", Role: "admin", Csr: der},
			"ttl":  {Name: "bo", Role: "admin", Csr: csr, TtlSeconds: -1},
			"name": {Name: "BO", Role: "admin", Csr: csr},
			"cn":   {Name: "other", Role: "admin", Csr: csr},
		} {
			_, err := w.admin().cluster.CreateIdentity(t.Context(), bad)
			if connect.CodeOf(err) != connect.CodeInvalidArgument {
				t.Errorf("%s: %v", want, err)
			}
		}
	})
}

// The edge and the authority agree on how long a user's certificate may live.
func TestLongestIdentity(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		der, err := pki.NewCSR("bo", newKey(t))
		must(t, err)
		csr := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
		longest := int64(pki.UserLeafMax / time.Second)
		_, err = w.admin().cluster.CreateIdentity(t.Context(), &balsav1.CreateIdentityRequest{Name: "bo", Role: "reader", Csr: csr, TtlSeconds: longest})
		must(t, err)
		_, err = w.admin().cluster.CreateIdentity(t.Context(), &balsav1.CreateIdentityRequest{Name: "bo", Role: "reader", Csr: csr, TtlSeconds: longest + 1})
		refused(t, err, connect.CodeResourceExhausted, "LimitReached")
		if !strings.Contains(err.Error(), "limit IdentityTTL") {
			t.Errorf("got %v", err)
		}
	})
}

func TestSerialsAreBounded(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		record := &internalv1.IdentityRecord{Name: "bo", Role: "reader", NotAfter: timestamppb.New(time.Now().Add(time.Hour))}
		issue := func(serial string) error {
			record.Serial = serial
			_, err := w.server.write(t.Context(), store.SpaceObjects, false, func(view store.View, now time.Time) (*change, error) {
				return planIssue(view, record, now)
			})
			return err
		}
		for i := range serialsMax {
			must(t, issue("a"+strings.Repeat("0", i)))
		}
		if err := issue("last"); err == nil || !strings.Contains(err.Error(), "serialsMax") {
			t.Fatalf("got %v", err)
		}
	})
}

func TestInitOnce(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		at := w.revision()
		w.init(time.Now())
		if w.revision() != at {
			t.Fatal("a second initialisation changed something")
		}
		if ns := get[*balsav1.Namespace](t, w.admin(), "", "default"); ns.GetStatus().GetPhase() != object.NamespaceActive || ns.GetMetadata().GetUid() == "" {
			t.Fatalf("default namespace: %v", ns)
		}
	})
	good := &internalv1.ClusterRecord{ClusterId: "c", PodCidr: "10.244.0.0/16", ServiceCidr: "10.96.0.0/12", NodePrefix: 24}
	if _, err := InitCommand(good, nil, time.Now()); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*internalv1.ClusterRecord){
		"overlap":  func(r *internalv1.ClusterRecord) { r.ServiceCidr = "10.244.4.0/24" },
		"IPv6":     func(r *internalv1.ClusterRecord) { r.PodCidr = "fd00::/56" },
		"host":     func(r *internalv1.ClusterRecord) { r.PodCidr = "10.244.0.1/16" },
		"nonsense": func(r *internalv1.ClusterRecord) { r.ServiceCidr = "x" },
		"small":    func(r *internalv1.ClusterRecord) { r.ServiceCidr = "10.96.0.0/31" },
		"prefix":   func(r *internalv1.ClusterRecord) { r.NodePrefix = 8 },
		"id":       func(r *internalv1.ClusterRecord) { r.ClusterId = "" },
	} {
		bad := proto.CloneOf(good)
		change(bad)
		if _, err := InitCommand(bad, nil, time.Now()); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

func TestLogs(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.register("n1")
		pod := create(t, w.admin(), newPod("p", nil))
		w.nodes.lines = []*internalv1.LogLine{
			{TimeNs: 1_500_000_000, Stream: "stdout", Line: []byte("one")},
			{TimeNs: 2_000_000_000, Stream: "stderr", Line: []byte("two"), Partial: true},
		}
		logs := func(req *balsav1.LogsRequest) ([]*balsav1.LogLine, error) {
			stream, err := w.reader().pods.Logs(t.Context(), req)
			must(t, err)
			var out []*balsav1.LogLine
			for stream.Receive() {
				out = append(out, stream.Msg().GetLines()...)
			}
			return out, errors.Join(stream.Err(), stream.Close())
		}
		_, err := logs(&balsav1.LogsRequest{Name: "p"})
		refused(t, err, connect.CodeFailedPrecondition, "NotScheduled")
		w.bind(pod, "n1")
		got, err := logs(&balsav1.LogsRequest{Name: "p", TailLines: proto.Int64(2), Previous: true, SinceTime: &timestamppb.Timestamp{Seconds: 1}})
		must(t, err)
		if len(got) != 2 || string(got[0].GetLine()) != "one" || got[0].GetTime().GetNanos() != 500_000_000 || !got[1].GetPartial() || got[1].GetStream() != "stderr" {
			t.Fatalf("lines: %v", got)
		}
		asked := w.nodes.asked
		if asked.GetPodUid() != pod.GetMetadata().GetUid() || asked.GetContainer() != "main" || asked.GetTailLines() != 2 || !asked.GetPrevious() || asked.GetSinceNs() != 1e9 {
			t.Fatalf("asked: %v", asked)
		}
		_, err = logs(&balsav1.LogsRequest{Name: "p", Container: "other"})
		refused(t, err, connect.CodeInvalidArgument, "Invalid")
		_, err = logs(&balsav1.LogsRequest{Name: "absent"})
		refused(t, err, connect.CodeNotFound, "NotFound")
		w.nodes.down = errors.New("no route")
		_, err = logs(&balsav1.LogsRequest{Name: "p"})
		refused(t, err, connect.CodeUnavailable, "NodeUnreachable")
		if !strings.Contains(w.logs.String(), `level=INFO msg=audit who=reader/rui what=balsa.v1.PodService/Logs code=ok object="Pod default/p"`) {
			t.Error("reading logs is not audited")
		}
	})
}

// importImage sends an archive in small parts.
func importImage(t *testing.T, c *clients, name, archive string) (*balsav1.ImportResponse, error) {
	t.Helper()
	stream, err := c.images.Import(t.Context())
	must(t, err)
	for i := 0; i < len(archive); i += 4 {
		req := &balsav1.ImportRequest{Data: []byte(archive[i:min(i+4, len(archive))])}
		if i == 0 {
			req.Name = name
		}
		if err := stream.Send(req); err != nil {
			break // CloseAndReceive says why
		}
	}
	return stream.CloseAndReceive()
}

func TestImages(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		other, down := newWorld(t), errors.New("down")
		peer := other.as(pki.RoleServer, "s1").peer
		w.peers.others = map[string]internalv1connect.PeerServiceClient{"m2": peer, "m3": brokenPeer{peer, down}}
		content := strings.Repeat("layer ", 1000)
		res, err := importImage(t, w.admin(), "", "app:1\n"+content)
		must(t, err)
		if len(res.GetImages()) != 1 || res.GetImages()[0].GetName() != "app:1" || res.GetImages()[0].GetDigest() != digestOf(content) {
			t.Fatalf("imported: %v", res)
		}
		if _, ok, _ := other.blobs.Stat(digestOf(content)); !ok {
			t.Fatal("the other server does not keep the blob")
		}
		list, err := w.reader().images.ListImages(t.Context(), &balsav1.ListImagesRequest{})
		must(t, err)
		if len(list.GetImages()) != 1 || !list.GetImages()[0].GetImported().AsTime().Equal(time.Now()) {
			t.Fatalf("list: %v", list)
		}
		// Another server that has the record but not the blob fetches it.
		must(t, w.blobs.Remove(digestOf(content)))
		image, err := w.agent("n1").nodes.GetImage(t.Context(), &balsav1.GetImageRequest{Name: "app:1"})
		must(t, err)
		if got := readBlob(t, w.agent("n1"), image.GetBlobs()[0].GetDigest(), 6); got != content[6:] {
			t.Fatalf("read %d bytes", len(got))
		}
		if _, ok, _ := w.blobs.Stat(digestOf(content)); !ok {
			t.Fatal("it was not kept")
		}
		_, err = w.agent("n1").nodes.GetImage(t.Context(), &balsav1.GetImageRequest{Name: "absent"})
		refused(t, err, connect.CodeNotFound, "ImageNotFound")
		// Without a majority nothing is recorded.
		w.peers.others["m2"] = brokenPeer{peer, down}
		_, err = importImage(t, w.admin(), "app:2", "x\nother content")
		if d := refused(t, err, connect.CodeUnavailable, "NoMajority"); d.GetApplied() != notApplied || !strings.Contains(err.Error(), "1 of 3") {
			t.Fatalf("%v: %v", err, d)
		}
		if list, err = w.reader().images.ListImages(t.Context(), &balsav1.ListImagesRequest{}); err != nil || len(list.GetImages()) != 1 {
			t.Fatalf("list: %v, %v", list, err)
		}
	})
}

func TestImportRefusals(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		_, err := importImage(t, w.admin(), "", "no line")
		refused(t, err, connect.CodeInvalidArgument, "BadArchive")
		_, err = importImage(t, w.admin(), "", "app:1\n"+strings.Repeat("x", 2000))
		if refused(t, err, connect.CodeResourceExhausted, "LimitReached"); !strings.Contains(err.Error(), "ArchiveBytes") {
			t.Fatalf("the error does not name the limit: %v", err)
		}
		stream, err := w.admin().images.Import(t.Context())
		must(t, err)
		_, err = stream.CloseAndReceive()
		refused(t, err, connect.CodeInvalidArgument, "Invalid")
	}, func(c *Config) { c.Limits.ArchiveBytes = 1000 })
}

func readBlob(t *testing.T, c *clients, digest string, offset int64) string {
	t.Helper()
	stream, err := c.nodes.GetBlob(t.Context(), &balsav1.GetBlobRequest{Digest: digest, Offset: offset})
	must(t, err)
	var b strings.Builder
	for stream.Receive() {
		b.Write(stream.Msg().GetData())
	}
	must(t, stream.Err())
	must(t, stream.Close())
	return b.String()
}

// brokenPeer is a server that does not answer.
type brokenPeer struct {
	internalv1connect.PeerServiceClient
	err error
}

func (b brokenPeer) HasBlob(context.Context, *internalv1.HasBlobRequest) (*internalv1.HasBlobResponse, error) {
	return nil, b.err
}

func TestPeerService(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		peer := w.as(pki.RoleServer, "s2").peer
		index, err := peer.ReadIndex(t.Context(), &internalv1.ReadIndexRequest{})
		must(t, err)
		if index.GetIndex() != w.backend.index {
			t.Fatalf("index %d", index.GetIndex())
		}
		confirm, err := peer.Confirm(t.Context(), &internalv1.ConfirmRequest{Nonce: 42})
		must(t, err)
		if confirm.GetNonce() != 42 {
			t.Fatalf("nonce %d", confirm.GetNonce())
		}
		state, err := peer.State(t.Context(), &internalv1.StateRequest{})
		must(t, err)
		if state.GetMemberId() != "m1" {
			t.Fatalf("state: %v", state)
		}
		_, err = peer.Heartbeat(t.Context(), &internalv1.HeartbeatRequest{Heartbeat: &balsav1.HeartbeatRequest{NodeName: "n7"}})
		must(t, err)
		if w.beats.beats[0].GetNodeName() != "n7" {
			t.Fatalf("beats: %v", w.beats.beats)
		}
		put := &internalv1.Command{Space: store.SpaceObjects, Op: &internalv1.Command_Txn{Txn: &internalv1.Txn{
			Success: []*internalv1.Op{{Op: &internalv1.Op_Put{Put: &internalv1.Put{Key: []byte("system/x"), Value: []byte("y")}}}},
		}}}
		res, err := peer.Propose(t.Context(), &internalv1.ProposeRequest{Command: put})
		must(t, err)
		if !res.GetResult().GetTxn().GetSucceeded() {
			t.Fatalf("proposed: %v", res)
		}
		many, err := peer.ProposeMany(t.Context(), &internalv1.ProposeManyRequest{Commands: []*internalv1.Command{put, put}})
		must(t, err)
		if len(many.GetProposals()) != 2 || many.GetProposals()[1].GetCommitted().GetIndex() != w.backend.index {
			t.Fatalf("proposed two: %v", many)
		}
		// A server of a later version recognises by this that a method is not known here.
		later := connect.NewClient[internalv1.ProposeRequest, internalv1.ProposeResponse](w.as(pki.RoleServer, "s2").http,
			base+"/"+internalv1connect.PeerServiceName+"/OfALaterVersion", connect.WithGRPC())
		_, err = later.CallUnary(t.Context(), connect.NewRequest(&internalv1.ProposeRequest{}))
		refused(t, err, connect.CodeUnimplemented, "Unimplemented")
		// What the leader says about its refusal arrives as it was said.
		wire := connect.NewError(connect.CodeUnavailable, errors.New("not the leader"))
		detail, err := connect.NewErrorDetail(&balsav1.ErrorDetail{Reason: "NotLeader", Applied: notApplied, Hint: "m2 leads at 10.0.0.2:7443"})
		must(t, err)
		wire.AddDetail(detail)
		w.backend.before = func(*internalv1.Command) error { return wire }
		_, err = peer.Propose(t.Context(), &internalv1.ProposeRequest{Command: put})
		if d := refused(t, err, connect.CodeUnavailable, "NotLeader"); d.GetApplied() != notApplied || d.GetHint() != "m2 leads at 10.0.0.2:7443" {
			t.Fatalf("detail: %v", d)
		}
		// Blobs: what does not have its digest is not kept, nothing is fetched on.
		stream, err := peer.PutBlob(t.Context())
		must(t, err)
		must(t, stream.Send(&internalv1.PutBlobRequest{Digest: digestOf("a"), Data: []byte("b")}))
		_, err = stream.CloseAndReceive()
		refused(t, err, connect.CodeInvalidArgument, "BadDigest")
		has, err := peer.HasBlob(t.Context(), &internalv1.HasBlobRequest{Digest: digestOf("a")})
		must(t, err)
		if has.GetFound() {
			t.Fatal("it is there")
		}
		read, err := peer.GetBlob(t.Context(), &internalv1.GetBlobRequest{Digest: digestOf("a")})
		must(t, err)
		if read.Receive() {
			t.Fatal("it is read")
		}
		refused(t, read.Err(), connect.CodeNotFound, "BlobNotFound")
		_ = read.Close()
	})
}
