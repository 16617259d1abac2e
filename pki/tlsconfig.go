package pki

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"slices"

	"github.com/balsa-run/balsa/internal/clock"
)

// The protocols of the one TLS port, told apart by ALPN.
const (
	ProtoHTTP2 = "h2"
	ProtoHTTP1 = "http/1.1"
	ProtoRaft  = "balsa-raft/1"
	ProtoJoin  = "balsa-join/1"
)

// TLSOptions is what a listener or a member's dials need.
type TLSOptions struct {
	Credentials *Credentials
	Guard       *Guard
	Clock       clock.Clock
	Log         *slog.Logger // told why a handshake was refused; the peer sees only an alert
}

// ServerTLS is the configuration of a server's port. The protocol decides who
// is let in:
//
//	h2, http/1.1, none   any identity of the cluster, by client certificate
//	balsa-raft/1         role server, by client certificate
//	balsa-join/1         anybody; only the join service may be behind it
//
// A client that offers several gets the first of these rows, so nobody can talk
// to the API over a connection that was let in for joining. There is no session
// resumption: a resumed session would carry an identity past the checks of its
// certificate's time and removal.
func ServerTLS(o TLSOptions) *tls.Config {
	c := o.base()
	c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		offers := func(p string) bool { return slices.Contains(hello.SupportedProtos, p) }
		switch {
		case offers(ProtoHTTP2) || offers(ProtoHTTP1):
		case offers(ProtoRaft):
			return o.mutual([]Role{RoleServer}, ProtoRaft), nil
		case offers(ProtoJoin):
			return o.join(), nil
		}
		// Who offers only unknown protocols is refused by this one's ALPN.
		return o.mutual(Roles(), ProtoHTTP2, ProtoHTTP1), nil
	}
	return c
}

// AgentTLS is the configuration of an agent's port. Servers come in; users, whom
// the agent gives its metrics and nothing else; and other agents, which get
// image blobs and nothing else.
func AgentTLS(o TLSOptions) *tls.Config {
	c := o.base()
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return o.mutual([]Role{RoleServer, RoleAdmin, RoleReader, RoleAgent}, ProtoHTTP2), nil
	}
	return c
}

func (o TLSOptions) base() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Time:                   o.Clock.Now,
		SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return o.Credentials.Current().tlsCertificate(), nil
		},
	}
}

// mutual is made anew for each handshake, so that it has the authorities of now.
func (o TLSOptions) mutual(roles []Role, protos ...string) *tls.Config {
	trust := o.Credentials.Current().trust
	c := o.base()
	c.NextProtos = protos
	c.ClientAuth = tls.RequireAndVerifyClientCert
	c.ClientCAs = trust.pool
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		id, err := admitPeer(cs, trust.clusterID, roles, o.Guard)
		if err != nil {
			o.Log.LogAttrs(context.Background(), slog.LevelInfo, "refused a connection",
				slog.String("identity", id.String()), slog.String("protocol", cs.NegotiatedProtocol), slog.Any("reason", err))
		}
		return err
	}
	return c
}

func admitPeer(cs tls.ConnectionState, clusterID string, roles []Role, guard *Guard) (Identity, error) {
	id, err := IdentityOf(cs, clusterID)
	if err != nil {
		return id, err
	}
	if !slices.Contains(roles, id.Role) {
		return id, refuse(ErrWrongRole, "%s may not connect here; it is for role %v only", id, roles)
	}
	return id, guard.Check(id)
}

// join shows the authority's certificate too, for the joiner to compare with
// its token.
func (o TLSOptions) join() *tls.Config {
	c := o.base()
	c.NextProtos = []string{ProtoJoin}
	c.ClientAuth = tls.NoClientCert
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		cred := o.Credentials.Current()
		var cas [][]byte
		for _, ca := range cred.trust.cas {
			cas = append(cas, ca.Raw)
		}
		return cred.tlsCertificate(cas...), nil
	}
	return c
}

// IdentityOf is who is at the other end of a completed handshake. It is an
// ErrNoIdentity where the other end was not asked for a certificate.
func IdentityOf(cs tls.ConnectionState, clusterID string) (Identity, error) {
	if len(cs.VerifiedChains) == 0 || len(cs.PeerCertificates) == 0 {
		return Identity{}, refuse(ErrNoIdentity, "the connection has no verified certificate at its other end")
	}
	return FromCertificate(cs.PeerCertificates[0], clusterID)
}

// ClientTLS is for clients of the API.
func ClientTLS(creds *Credentials, clk clock.Clock) *tls.Config {
	return dialConfig(creds, clk, ServerName, func(id Identity) error {
		if id.Role != RoleServer {
			return refuse(ErrWrongPeer, "the other end is %s, not a server", id)
		}
		return nil
	}, ProtoHTTP2, ProtoHTTP1)
}

// RaftClientTLS is for raft streams to one server by name. An empty name means
// any server.
func RaftClientTLS(o TLSOptions, server string) *tls.Config {
	return dialConfig(o.Credentials, o.Clock, ServerName, o.expect(RoleServer, server), ProtoRaft)
}

// PeerClientTLS is for calls from server to server over the API's protocol. An
// empty name means any server.
func PeerClientTLS(o TLSOptions, server string) *tls.Config {
	return dialConfig(o.Credentials, o.Clock, ServerName, o.expect(RoleServer, server), ProtoHTTP2)
}

// AgentClientTLS is for calls from a server to the agent of one node.
func AgentClientTLS(o TLSOptions, node string) *tls.Config {
	return dialConfig(o.Credentials, o.Clock, AgentName, o.expect(RoleAgent, node), ProtoHTTP2)
}

func (o TLSOptions) expect(role Role, name string) func(Identity) error {
	return func(id Identity) error {
		if id.Role != role || name != "" && id.Name != name {
			return refuse(ErrWrongPeer, "the other end is %s, expected %s/%s; has the address changed hands?", id, role, name)
		}
		return o.Guard.Check(id)
	}
}

// dialConfig verifies the other end in full by the cluster's authorities and
// the fixed name, then asks check who it is. The authorities are those of the
// time it is made.
func dialConfig(creds *Credentials, clk clock.Clock, serverName string, check func(Identity) error, protos ...string) *tls.Config {
	trust := creds.Current().trust
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		Time:       clk.Now,
		NextProtos: protos,
		ServerName: serverName,
		RootCAs:    trust.pool,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return creds.Current().tlsCertificate(), nil
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			id, err := IdentityOf(cs, trust.clusterID)
			if err != nil {
				return err
			}
			return check(id)
		},
	}
}

// JoinClientTLS trusts the one server certificate chain whose authority has the
// hash in the token, and nothing else.
func JoinClientTLS(token Token, clk clock.Clock) *tls.Config {
	return joinConfig(clk, func(served []*x509.Certificate) error {
		return verifyPinned(token.CAHash, served, clk.Now())
	})
}

// RenewClientTLS is for an agent's renewal over the join protocol, where it
// shows no certificate. The server's must be in order as ever, and not removed as
// far as the guard knows.
func RenewClientTLS(trust *Trust, guard *Guard, clk clock.Clock) *tls.Config {
	return joinConfig(clk, func(served []*x509.Certificate) error {
		if len(served) == 0 {
			return refuse(ErrWrongPeer, "the server showed no certificate")
		}
		if err := trust.verifyServer(served[0], clk.Now()); err != nil {
			return err
		}
		id, err := FromCertificate(served[0], trust.clusterID)
		if err != nil {
			return err
		}
		return guard.Check(id)
	})
}

// joinConfig replaces crypto/tls's verification by verify as a whole, which
// checks chain, time, usage, name and role itself.
func joinConfig(clk clock.Clock, verify func([]*x509.Certificate) error) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		Time:               clk.Now,
		NextProtos:         []string{ProtoJoin},
		ServerName:         ServerName,
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection below does all of it; a pinned hash is not a root that crypto/tls could be given
		VerifyConnection: func(cs tls.ConnectionState) error {
			if cs.NegotiatedProtocol != ProtoJoin {
				return refuse(ErrWrongPeer, "the other end does not speak %s; is it a balsa server?", ProtoJoin)
			}
			return verify(cs.PeerCertificates)
		},
	}
}
