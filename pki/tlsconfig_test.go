package pki

import (
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/balsa-run/balsa/internal/clock"
)

// world is a cluster's server with callers of every kind.
type world struct {
	ca      *CA
	clk     *clock.Fake
	server  TLSOptions
	callers map[string]*Credential
}

func newWorld(t testing.TB) *world {
	t.Helper()
	ca, clk := newTestCA(t), clock.NewFake(t0.Add(100*day))
	now := clk.Now()
	removed := must(NewRemoved([]Removal{{Role: RoleServer, Name: "gone", At: now}}))(t)
	return &world{
		ca: ca, clk: clk,
		server: tlsOptions(issue(t, ca, RoleServer, "s1", now), NewGuard(clk, removed), clk),
		callers: map[string]*Credential{
			"server":         issue(t, ca, RoleServer, "s2", now),
			"agent":          issue(t, ca, RoleAgent, "n1", now),
			"admin":          issue(t, ca, RoleAdmin, "alice", now),
			"reader":         issue(t, ca, RoleReader, "bob", now),
			"removed server": issue(t, ca, RoleServer, "gone", now),
			"expired server": issue(t, ca, RoleServer, "s3", t0),
			"future server":  issue(t, ca, RoleServer, "s4", now.Add(time.Hour)),
			"other cluster":  issue(t, newTestCA(t), RoleServer, "s2", now),
			"nobody":         nil,
		},
	}
}

// caller offers the protocols and shows the credential, trusting this cluster.
func (w *world) caller(cred *Credential, protos []string) *tls.Config {
	c := &tls.Config{MinVersion: tls.VersionTLS12, Time: w.clk.Now, NextProtos: protos, ServerName: ServerName, RootCAs: w.ca.Trust().pool}
	if cred != nil {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cred.tlsCertificate(), nil }
	}
	return c
}

// TestWhoGetsIn is the whole table of callers and protocols: the protocol that
// was agreed on, or "-" for a refusal.
func TestWhoGetsIn(t *testing.T) {
	offers := []string{ProtoHTTP2, ProtoHTTP1, "", ProtoRaft, ProtoJoin, "spdy/3", ProtoJoin + " " + ProtoHTTP2, ProtoJoin + " " + ProtoRaft}
	want := map[string]string{
		"server":         "h2|http/1.1|none|balsa-raft/1|balsa-join/1|-|h2|balsa-raft/1",
		"agent":          "h2|http/1.1|none|-|balsa-join/1|-|h2|-",
		"admin":          "h2|http/1.1|none|-|balsa-join/1|-|h2|-",
		"reader":         "h2|http/1.1|none|-|balsa-join/1|-|h2|-",
		"removed server": "-|-|-|-|balsa-join/1|-|-|-",
		"expired server": "-|-|-|-|balsa-join/1|-|-|-",
		"future server":  "-|-|-|-|balsa-join/1|-|-|-",
		"other cluster":  "-|-|-|-|balsa-join/1|-|-|-",
		"nobody":         "-|-|-|-|balsa-join/1|-|-|-",
	}
	w := newWorld(t)
	for name, cred := range w.callers {
		var got []string
		for _, offer := range offers {
			o := handshake(t, ServerTLS(w.server), w.caller(cred, strings.Fields(offer)))
			got = append(got, agreed(o))
			if _, err := IdentityOf(o.state, "c1"); o.server == nil && (err == nil) != (o.state.NegotiatedProtocol != ProtoJoin) {
				t.Errorf("%s on %q: identity: %v", name, offer, err)
			}
		}
		if line := strings.Join(got, "|"); line != want[name] {
			t.Errorf("%s: got  %s\n\twant %s", name, line, want[name])
		}
	}
}

func agreed(o outcome) string {
	switch {
	case o.server != nil || o.client != nil:
		return "-"
	case o.state.NegotiatedProtocol == "":
		return "none"
	}
	return o.state.NegotiatedProtocol
}

// TestAgentPort: servers, users and agents come in, and only for h2.
func TestAgentPort(t *testing.T) {
	w := newWorld(t)
	agent := tlsOptions(w.callers["agent"], w.server.Guard, w.clk)
	for name, cred := range w.callers {
		o := tlsOptions(cred, w.server.Guard, w.clk)
		if cred == nil {
			continue
		}
		got := handshake(t, AgentTLS(agent), AgentClientTLS(o, "n1"))
		if in := got.server == nil && got.client == nil; in != slices.Contains([]string{"server", "admin", "reader", "agent"}, name) {
			t.Errorf("%s: server %v, client %v", name, got.server, got.client)
		}
	}
	right := tlsOptions(w.callers["server"], w.server.Guard, w.clk)
	if o := handshake(t, AgentTLS(agent), AgentClientTLS(right, "n2")); !errors.Is(o.client, ErrWrongPeer) {
		t.Errorf("another node at the address: %v", o.client)
	}
}

// TestClientsCheckTheServer: each dial refuses whoever should not be there.
func TestClientsCheckTheServer(t *testing.T) {
	w := newWorld(t)
	me := tlsOptions(w.callers["server"], w.server.Guard, w.clk)
	dials := map[string]*tls.Config{
		"api":   ClientTLS(me.Credentials, w.clk),
		"raft":  RaftClientTLS(me, "s1"),
		"peer":  PeerClientTLS(me, "s1"),
		"any":   PeerClientTLS(me, ""),
		"renew": RenewClientTLS(w.ca.Trust(), NewGuard(w.clk, nil), w.clk),
	}
	for name, dial := range dials {
		if o := handshake(t, ServerTLS(w.server), dial); o.client != nil || o.server != nil {
			t.Errorf("%s to the server: %v, %v", name, o.client, o.server)
		}
		for _, poser := range []string{"agent", "admin", "expired server", "other cluster"} {
			o := handshake(t, ServerTLS(tlsOptions(w.callers[poser], w.server.Guard, w.clk)), dial)
			if o.client == nil {
				t.Errorf("%s took %s for the server", name, poser)
			}
		}
	}
	for _, name := range []string{"raft", "peer"} {
		other := tlsOptions(w.callers["server"], w.server.Guard, w.clk)
		if o := handshake(t, ServerTLS(other), dials[name]); !errors.Is(o.client, ErrWrongPeer) {
			t.Errorf("%s to s2 instead of s1: %v", name, o.client)
		}
	}
	gone := tlsOptions(w.callers["removed server"], NewGuard(w.clk, nil), w.clk)
	if o := handshake(t, ServerTLS(gone), dials["any"]); !errors.Is(o.client, ErrRemoved) {
		t.Errorf("dial to a removed server: %v", o.client)
	}
}

// TestAnAgentCannotPoseAsServer even to a client that checks only the name.
func TestAnAgentCannotPoseAsServer(t *testing.T) {
	w := newWorld(t)
	agent := tlsOptions(w.callers["agent"], w.server.Guard, w.clk)
	if o := handshake(t, ServerTLS(agent), w.caller(w.callers["admin"], []string{ProtoHTTP2})); o.client == nil {
		t.Error("the name balsa-server was taken from an agent")
	}
}

func TestJoinPinsTheCA(t *testing.T) {
	w := newWorld(t)
	token := func(h Hash) Token {
		token, _, err := NewToken(TokenRequest{Role: RoleAgent}, h, t0)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	dial := func(server *Credential, pin Hash) error {
		o := handshake(t, ServerTLS(tlsOptions(server, w.server.Guard, w.clk)), JoinClientTLS(token(pin), w.clk))
		return o.client
	}
	good := w.server.Credentials.Current()
	if err := dial(good, w.ca.Hash()); err != nil {
		t.Errorf("the right server: %v", err)
	}
	if err := dial(w.callers["other cluster"], w.ca.Hash()); !errors.Is(err, ErrWrongCA) || !strings.Contains(err.Error(), w.ca.Hash().String()) {
		t.Errorf("another cluster: %v", err)
	}
	if err := dial(w.callers["agent"], w.ca.Hash()); err == nil {
		t.Error("an agent was taken for a server")
	}
	if err := dial(w.callers["expired server"], w.ca.Hash()); !errors.Is(err, ErrExpired) {
		t.Errorf("an expired server: %v", err)
	}
	// The leaf's own hash is no authority, though it is in the chain.
	if err := dial(good, CAHash(good.leaf)); err == nil {
		t.Error("a leaf was taken for the pinned authority")
	}
}

// TestStolenCAInChain: somebody shows the real CA certificate, which is public,
// after a leaf of their own.
func TestStolenCAInChain(t *testing.T) {
	w := newWorld(t)
	thief := w.callers["other cluster"]
	config := &tls.Config{Certificates: []tls.Certificate{*thief.tlsCertificate(w.ca.cert.Raw)}, NextProtos: []string{ProtoJoin}, Time: w.clk.Now}
	token, _, err := NewToken(TokenRequest{Role: RoleAgent}, w.ca.Hash(), t0)
	if err != nil {
		t.Fatal(err)
	}
	if o := handshake(t, config, JoinClientTLS(token, w.clk)); !errors.Is(o.client, ErrOtherCluster) {
		t.Errorf("error is %v", o.client)
	}
	plain := &tls.Config{Certificates: config.Certificates, Time: w.clk.Now}
	if o := handshake(t, plain, JoinClientTLS(token, w.clk)); !errors.Is(o.client, ErrWrongPeer) {
		t.Errorf("some other TLS server: %v", o.client)
	}
}

func TestOnlyTLS13(t *testing.T) {
	w := newWorld(t)
	c := w.caller(w.callers["admin"], []string{ProtoHTTP2})
	c.MaxVersion = tls.VersionTLS12
	if o := handshake(t, ServerTLS(w.server), c); o.server == nil {
		t.Error("TLS 1.2 was let in")
	}
}

// TestRenewalNeedsNoRestart: the same configurations, on both sides, use the
// new certificates from the next handshake on.
func TestRenewalNeedsNoRestart(t *testing.T) {
	w := newWorld(t)
	agent := NewCredentials(w.callers["agent"])
	server, client := ServerTLS(w.server), ClientTLS(agent, w.clk)
	w.clk.Advance(91 * day)
	if o := handshake(t, server, client); o.client == nil {
		t.Fatal("expired certificates were accepted")
	}
	renew := func(c *Credentials) {
		text := must(w.ca.resign(c.Current(), SANs{}, w.clk.Now()))(t)
		if err := c.Replace(must(c.Current().Renewed(text))(t)); err != nil {
			t.Fatal(err)
		}
	}
	renew(w.server.Credentials)
	if o := handshake(t, server, client); o.server == nil {
		t.Fatal("the agent's expired certificate was accepted")
	}
	renew(agent)
	o := handshake(t, server, client)
	if o.client != nil || o.server != nil {
		t.Fatalf("after both renewed: %v, %v", o.client, o.server)
	}
	id := must(IdentityOf(o.state, "c1"))(t)
	if fmt.Sprint(id) != "agent/n1" || id.Serial != agent.Current().Identity().Serial {
		t.Errorf("identity is %+v", id)
	}
	if err := agent.Replace(w.callers["admin"]); !errors.Is(err, ErrBadMaterial) {
		t.Errorf("replaced by somebody else: %v", err)
	}
}

// TestNoResumption: a second connection of the same client is judged anew.
func TestNoResumption(t *testing.T) {
	w := newWorld(t)
	server := ServerTLS(w.server)
	client := w.caller(w.callers["admin"], []string{ProtoHTTP2})
	client.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	for range 2 {
		if o := handshake(t, server, client); o.server != nil || o.state.DidResume {
			t.Fatalf("server %v, resumed %v", o.server, o.state.DidResume)
		}
	}
	w.server.Guard.Update(must(NewRemoved([]Removal{{Role: RoleAdmin, Name: "alice", At: t0}}))(t))
	if o := handshake(t, server, client); !errors.Is(o.server, ErrRemoved) {
		t.Errorf("after the removal: %v", o.server)
	}
}
