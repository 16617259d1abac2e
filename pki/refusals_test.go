package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/balsa-run/balsa/internal/clock"
)

type refused struct {
	err  error
	kind error
}

func err2[T any](_ T, err error) error { return err }

// TestRefusals holds the exact words of every refusal in
// testdata/refusals.golden; what differs from run to run is replaced.
func TestRefusals(t *testing.T) {
	all := map[string]refused{}
	for _, group := range []map[string]refused{
		identityRefusals(), tokenTextRefusals(t), joinRefusals(t), signRefusals(t), renewRefusals(t),
		guardRefusals(t), sealRefusals(t), fileRefusals(t), configRefusals(t), tlsRefusals(t),
	} {
		maps.Copy(all, group)
	}
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(all)) {
		r := all[name]
		if !errors.Is(r.err, r.kind) {
			t.Errorf("%s: error is %v, want kind %v", name, r.err, r.kind)
			continue
		}
		fmt.Fprintf(&b, "%s [%v]\n\t%s\n", name, r.kind, strings.ReplaceAll(stable(r.err.Error()), "\n", "\n\t"))
	}
	golden(t, "refusals.golden", b.String())
}

func identityRefusals() map[string]refused {
	from := func(cn string, uris ...string) error { return err2(FromCertificate(certWith(cn, uris...), "c1")) }
	ca := certWith("x")
	ca.IsCA = true
	return map[string]refused{
		"identity: none":             {from("n1"), ErrNoIdentity},
		"identity: two":              {from("n1", "balsa://c1/agent/n1", "balsa://c1/admin/n1"), ErrNoIdentity},
		"identity: other URI":        {from("n1", "https://example.org/"), ErrNoIdentity},
		"identity: unknown role":     {from("n1", "balsa://c1/root/n1"), ErrBadRole},
		"identity: bad name":         {from("N1", "balsa://c1/agent/N1"), ErrBadName},
		"identity: other name in CN": {from("n2", "balsa://c1/agent/n1"), ErrNoIdentity},
		"identity: other cluster":    {from("n1", "balsa://c2/agent/n1"), ErrOtherCluster},
		"identity: a CA":             {err2(FromCertificate(ca, "c1")), ErrNoIdentity},
		"name: empty":                {ValidateName(RoleAgent, ""), ErrBadName},
		"name: member with @":        {ValidateName(RoleAgent, "a@b"), ErrBadName},
		"name: user in capitals":     {ValidateName(RoleAdmin, "Alice"), ErrBadName},
		"name: cluster id":           {ValidateClusterID("a.b"), ErrBadName},
		"role: unknown":              {err2(ParseRole("root")), ErrBadRole},
	}
}

func tokenTextRefusals(t *testing.T) map[string]refused {
	token, _, err := NewToken(TokenRequest{Role: RoleAgent}, Hash{1}, t0)
	if err != nil {
		t.Fatal(err)
	}
	text := token.Reveal()
	parse := func(s string) error { return err2(ParseToken(s)) }
	create := func(r TokenRequest) error { _, _, err := NewToken(r, Hash{}, t0); return err }
	last := map[bool]string{true: "b", false: "a"}[text[len(text)-1] == 'a']
	return map[string]refused{
		"token text: empty":          {parse(""), ErrTokenFormat},
		"token text: something else": {parse("K10abc::server:def"), ErrTokenFormat},
		"token text: cut in a part":  {parse(text[:len(text)-3]), ErrTokenFormat},
		"token text: cut at a dot":   {parse(text[:strings.LastIndex(text, ".")]), ErrTokenFormat},
		"token text: capital":        {parse(strings.Replace(text, token.secret, strings.ToUpper(token.secret), 1)), ErrTokenFormat},
		"token text: typo":           {parse(text[:len(text)-1] + last), ErrTokenFormat},
		"token text: too long":       {parse(strings.Repeat("x", 300)), ErrTokenFormat},
		"token create: role":         {create(TokenRequest{Role: "x"}), ErrBadRole},
		"token create: ttl":          {create(TokenRequest{Role: RoleAgent, TTL: 366 * day}), ErrBadRequest},
		"token create: uses":         {create(TokenRequest{Role: RoleAgent, MaxUses: TokenUsesMax + 1}), ErrBadRequest},
		"token create: description":  {create(TokenRequest{Role: RoleAgent, Description: strings.Repeat("x", 257)}), ErrBadRequest},
	}
}

func joinRefusals(t *testing.T) map[string]refused {
	ca := newTestCA(t)
	try := func(spoil func(*JoinCase), at time.Time) error {
		c := joinCase(t, ca, RoleAgent)
		id := c.Token.ID
		spoil(&c)
		_, err := ca.Admit(c, at)
		return errors.Join(sameIDError{err, id})
	}
	holder := &Holder{Role: RoleAgent, Name: "n1", KeyHash: Hash{1}}
	_, userErr := NewJoiner(Token{}, RoleAdmin, "alice", SANs{}, nil)
	return map[string]refused{
		"join: token unknown":      {try(func(c *JoinCase) { c.Record = nil }, t0), ErrTokenUnknown},
		"join: secret wrong":       {try(func(c *JoinCase) { c.Token.secret = strings.Repeat("a", 32) }, t0), ErrTokenUnknown},
		"join: wrong, and revoked": {try(func(c *JoinCase) { c.Record.Revoked, c.Record.SecretHash = true, make([]byte, 32) }, t0), ErrTokenUnknown},
		"join: token expired":      {try(func(*JoinCase) {}, t0.Add(24*time.Hour)), ErrTokenExpired},
		"join: token revoked":      {try(func(c *JoinCase) { c.Record.Revoked = true }, t0), ErrTokenRevoked},
		"join: token used":         {try(func(c *JoinCase) { c.Record.Uses = 1 }, t0), ErrTokenUsed},
		"join: wrong role":         {try(func(c *JoinCase) { c.Request.Role = RoleServer }, t0), ErrWrongRole},
		"join: name taken":         {try(func(c *JoinCase) { c.Holder = holder }, t0), ErrNameTaken},
		"join: removed since":      {try(func(c *JoinCase) { c.Removal = &Removal{At: t0} }, t0), ErrRemoved},
		"join: other name in CSR":  {try(func(c *JoinCase) { c.Request.Name = "n2" }, t0), ErrBadRequest},
		"join: agent addresses":    {try(func(c *JoinCase) { c.Request.SANs.DNS = []string{ServerName} }, t0), ErrBadRequest},
		"join: as a user":          {userErr, ErrBadRole},
	}
}

// sameIDError makes the random id of a token the same in every run.
type sameIDError struct {
	error
	id string
}

func (r sameIDError) Error() string { return strings.ReplaceAll(r.error.Error(), r.id, "<id>") }
func (r sameIDError) Unwrap() error { return r.error }

func signRefusals(t *testing.T) map[string]refused {
	ca := newTestCA(t)
	csr := must(NewCSR("n1", must(newKey())(t)))(t)
	forged := slices.Clone(csr)
	forged[len(forged)-1] ^= 1
	sign := func(r SignRequest, at time.Time) error { return err2(ca.Sign(r, at)) }
	many := make([]string, MaxSANs)
	for i := range many {
		many[i] = fmt.Sprintf("10.0.0.%d", i+1)
	}
	tooMany := must(ParseSANs(many...))(t)
	return map[string]refused{
		"sign: role":           {sign(SignRequest{CSR: csr, Role: "x", Name: "n1"}, t0), ErrBadRole},
		"sign: name":           {sign(SignRequest{CSR: csr, Role: RoleAgent, Name: "N1"}, t0), ErrBadName},
		"sign: not a CSR":      {sign(SignRequest{CSR: []byte("x"), Role: RoleAgent, Name: "n1"}, t0), ErrBadRequest},
		"sign: huge CSR":       {sign(SignRequest{CSR: make([]byte, MaxCSRBytes+1), Role: RoleAgent, Name: "n1"}, t0), ErrBadRequest},
		"sign: forged CSR":     {sign(SignRequest{CSR: forged, Role: RoleAgent, Name: "n1"}, t0), ErrBadRequest},
		"sign: CSR with SANs":  {sign(SignRequest{CSR: csrWithName(t, "n1", ServerName), Role: RoleAgent, Name: "n1"}, t0), ErrBadRequest},
		"sign: member ttl":     {sign(SignRequest{CSR: csr, Role: RoleAgent, Name: "n1", TTL: time.Hour}, t0), ErrBadRequest},
		"sign: user ttl":       {sign(SignRequest{CSR: csr, Role: RoleAdmin, Name: "n1", TTL: time.Second}, t0), ErrBadRequest},
		"sign: CA expired":     {sign(SignRequest{CSR: csr, Role: RoleAgent, Name: "n1"}, ca.NotAfter()), ErrExpired},
		"sign: agent's name":   {sign(SignRequest{CSR: csr, Role: RoleServer, Name: "n1", SANs: SANs{DNS: []string{AgentName}}}, t0), ErrBadRequest},
		"sign: bad address":    {sign(SignRequest{CSR: csr, Role: RoleServer, Name: "n1", SANs: SANs{IPs: []netip.Addr{netip.IPv4Unspecified()}}}, t0), ErrBadRequest},
		"sign: many addresses": {sign(SignRequest{CSR: csr, Role: RoleServer, Name: "n1", SANs: tooMany}, t0), ErrTooMany},
		"sign: not an address": {err2(ParseSANs("a b:70")), ErrBadRequest},
	}
}

func renewRefusals(t *testing.T) map[string]refused {
	try := func(spoil func(*renewal) *RenewRequest) error {
		r := newRenewal(t)
		req := spoil(r)
		if req == nil {
			fresh := r.request(t)
			req = &fresh
		}
		return err2(r.decide(*req))
	}
	used := func(r *renewal) *RenewRequest {
		req := r.request(t)
		must(r.decide(req))(t)
		return &req
	}
	return map[string]refused{
		"renew: malformed":   {try(func(*renewal) *RenewRequest { return &RenewRequest{} }), ErrProof},
		"renew: unreadable":  {try(func(*renewal) *RenewRequest { return &RenewRequest{Nonce: make([]byte, nonceBytes)} }), ErrProof},
		"renew: signature":   {try(func(r *renewal) *RenewRequest { q := r.request(t); q.Signature = nil; return &q }), ErrProof},
		"renew: replay":      {try(used), ErrProof},
		"renew: old nonce":   {try(func(r *renewal) *RenewRequest { q := r.request(t); r.clk.Advance(5 * time.Minute); return &q }), ErrProof},
		"renew: other nonce": {try(func(r *renewal) *RenewRequest { q := r.request(t); r.nonces = NewNonces(r.clk); return &q }), ErrProof},
		"renew: no member":   {try(func(r *renewal) *RenewRequest { r.holder = nil; return nil }), ErrNotMember},
		"renew: new key":     {try(func(r *renewal) *RenewRequest { r.holder.KeyHash = Hash{}; return nil }), ErrProof},
		"renew: a user":      {try(func(r *renewal) *RenewRequest { r.agent = issue(t, r.ca, RoleAdmin, "alice", t0); return nil }), ErrWrongRole},
	}
}

func guardRefusals(t *testing.T) map[string]refused {
	g := NewGuard(clock.NewFake(t0), must(NewRemoved([]Removal{{Role: RoleAgent, Name: "n1", At: t0}, {Serial: "ab", At: t0}}))(t))
	return map[string]refused{
		"guard: removed":        {g.Check(Identity{Name: "n1", Role: RoleAgent}), ErrRemoved},
		"guard: serial":         {g.Check(Identity{Name: "n2", Role: RoleAgent, Serial: "ab"}), ErrRemoved},
		"guard: expired":        {g.Check(Identity{Name: "n2", Role: RoleAgent, Expires: t0.Add(-1)}), ErrExpired},
		"guard: half a removal": {err2(NewRemoved([]Removal{{Name: "n1"}})), ErrBadRequest},
		"guard: no identity":    {err2(IdentityOf(tls.ConnectionState{}, "c1")), ErrNoIdentity},
	}
}

func sealRefusals(t *testing.T) map[string]refused {
	k := NewKeyring(NewSealKey(t0))
	sealed := must(k.Seal("secrets/default/db", "data.a", []byte("v")))(t)
	open := func(k *Keyring, field string, b []byte) error { return err2(k.Open("secrets/default/db", field, b)) }
	newer := slices.Clone(sealed)
	newer[3] = 2
	parse := func(s string) error { return err2(ParseKeyring([]byte(s))) }
	text := string(must(k.Marshal())(t))
	return map[string]refused{
		"seal: not sealed":     {open(k, "data.a", []byte("plain")), ErrSealed},
		"seal: newer format":   {open(k, "data.a", newer), ErrSealed},
		"seal: cut":            {open(k, "data.a", sealed[:50]), ErrSealed},
		"seal: moved":          {open(k, "data.b", sealed), ErrSealed},
		"seal: key unknown":    {open(NewKeyring(NewSealKey(t0)), "data.a", sealed), ErrUnknownSealer},
		"seal: too long":       {err2(k.Seal("secrets/default/db", "data.a", make([]byte, MaxSealBytes+1))), ErrTooMany},
		"seal: drop primary":   {err2(k.Drop(k.Primary().ID)), ErrSealKey},
		"seal: promote none":   {err2(k.Promote(SealKeyID{})), ErrUnknownSealer},
		"seal keys: not JSON":  {parse("x"), ErrSealKey},
		"seal keys: field":     {parse(`{"version":1,"extra":1}`), ErrSealKey},
		"seal keys: type":      {parse(`{"version":"1"}`), ErrSealKey},
		"seal keys: version":   {parse(`{"version":2}`), ErrSealKey},
		"seal keys: none":      {parse(`{"version":1}`), ErrSealKey},
		"seal keys: two texts": {parse(text + text), ErrSealKey},
		"seal keys: primary":   {parse(strings.Replace(text, `"primary": "`, `"primary": "x`, 1)), ErrSealKey},
		"seal keys: damaged":   {parse(strings.Replace(text, `"id": "`, `"id": "x`, 1)), ErrSealKey},
	}
}

func fileRefusals(t *testing.T) map[string]refused {
	open := func(spoil func(*MemDir)) error {
		dir := NewMemDir()
		must(InitServer(dir, "c1", "s1", SANs{}, t0))(t)
		spoil(dir)
		return err2(OpenServer(dir, "s1", SANs{}, t0))
	}
	put := func(file, text string, mode fs.FileMode) func(*MemDir) {
		return func(d *MemDir) { _ = d.Write(file, []byte(text), mode) }
	}
	ca := newTestCA(t)
	made := NewMemDir()
	must(InitServer(made, "c1", "s1", SANs{}, t0))(t)
	return map[string]refused{
		"files: none":           {err2(OpenServer(NewMemDir(), "s1", SANs{}, t0)), ErrNoMaterial},
		"files: no agent":       {err2(OpenAgent(NewMemDir())), ErrNoMaterial},
		"files: incomplete":     {open(func(d *MemDir) { d.Remove(FileSealKeys) }), ErrIncomplete},
		"files: init twice":     {err2(InitServer(made, "c1", "s1", SANs{}, t0)), ErrExists},
		"files: other name":     {err2(OpenServer(made, "s2", SANs{}, t0)), ErrExists},
		"files: mode":           {open(put(FileCAKey, "x", 0o644)), ErrPermissions},
		"files: other CA key":   {open(put(FileCAKey, string(must(ca.KeyPEM())(t)), 0o600)), ErrKeyMismatch},
		"files: other leaf":     {open(put("server.crt", string(issue(t, ca, RoleServer, "s1", t0).CertPEM()), 0o644)), ErrOtherCluster},
		"files: other leaf key": {open(put("server.key", string(must(ca.KeyPEM())(t)), 0o600)), ErrKeyMismatch},
		"files: rubbish":        {open(put("server.crt", "rubbish", 0o644)), ErrBadMaterial},
		"files: gossip key":     {open(put(FileGossipKey, "AAAA", 0o600)), ErrBadMaterial},
		"bundle: not JSON":      {err2(ParseBundle([]byte("x"))), ErrBundle},
		"bundle: newer format":  {err2(ParseBundle([]byte(`{"version":2}`))), ErrBundle},
		"bundle: empty":         {err2(ParseBundle([]byte(`{"version":1}`))), ErrBundle},
	}
}

func configRefusals(t *testing.T) map[string]refused {
	cred := issue(t, newTestCA(t), RoleAdmin, "alice", t0)
	try := func(spoil func(*Config)) error {
		c := *must(NewConfig(cred, []string{"s1:7070"}))(t)
		spoil(&c)
		return err2(c.Marshal())
	}
	parse := func(s string) error { return err2(ParseConfig([]byte(s))) }
	return map[string]refused{
		"config: empty":         {parse(""), ErrConfig},
		"config: not YAML":      {parse("a: b: c"), ErrConfig},
		"config: unknown field": {parse("clusterID: c1\nserver: x\n"), ErrConfig},
		"config: two documents": {parse("clusterID: c1\n---\nclusterID: c1\n"), ErrConfig},
		"config: no servers":    {try(func(c *Config) { c.Servers = nil }), ErrConfig},
		"config: no port":       {try(func(c *Config) { c.Servers = []string{"s1"} }), ErrConfig},
		"config: bad port":      {try(func(c *Config) { c.Servers = []string{"s1:70700"} }), ErrConfig},
		"config: bad host":      {try(func(c *Config) { c.Servers = []string{"a/b:1"} }), ErrConfig},
		"config: other cluster": {try(func(c *Config) { c.ClusterID = "c2" }), ErrConfig},
		"config: other key":     {try(func(c *Config) { c.Key = string(must(newTestCA(t).KeyPEM())(t)) }), ErrKeyMismatch},
		"config: too long":      {parse(strings.Repeat("#", MaxConfigBytes+1)), ErrConfig},
	}
}

func tlsRefusals(t *testing.T) map[string]refused {
	ca, other := newTestCA(t), newTestCA(t)
	trust := ca.Trust()
	server := issue(t, ca, RoleServer, "s1", t0)
	agent := issue(t, ca, RoleAgent, "n1", t0)
	o := tlsOptions(server, NewGuard(clock.NewFake(t0), nil), clock.NewFake(t0))
	verify := func(c *Credential, at time.Time) error {
		return err2(trust.verify(c.leaf, x509.ExtKeyUsageClientAuth, at))
	}
	_, wrongRole := admitPeer(tls.ConnectionState{PeerCertificates: []*x509.Certificate{agent.leaf}, VerifiedChains: [][]*x509.Certificate{{agent.leaf, ca.cert}}}, "c1", []Role{RoleServer}, o.Guard)
	return map[string]refused{
		"tls: expired":      {verify(agent, t0.Add(91*day)), ErrExpired},
		"tls: other CA":     {verify(issue(t, other, RoleAgent, "n1", t0), t0), ErrOtherCluster},
		"tls: wrong role":   {wrongRole, ErrWrongRole},
		"tls: wrong peer":   {o.expect(RoleServer, "s2")(server.identity), ErrWrongPeer},
		"tls: not a server": {trust.verifyServer(agent.leaf, t0), ErrWrongPeer},
		"pin: other CA":     {checkPin(ca.Hash(), []*x509.Certificate{server.leaf, other.cert}), ErrWrongCA},
		"pin: no CA":        {checkPin(ca.Hash(), []*x509.Certificate{server.leaf}), ErrWrongCA},
		"pin: nothing":      {verifyPinned(ca.Hash(), nil, t0), ErrWrongCA},
	}
}
