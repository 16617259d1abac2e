package pki

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// dirs are both kinds of folder: the fake passes what the real one does.
func dirs(t *testing.T) map[string]Dir {
	return map[string]Dir{"os": OSDir(filepath.Join(t.TempDir(), "pki")), "mem": NewMemDir()}
}

func TestServerFolder(t *testing.T) {
	for name, dir := range dirs(t) {
		t.Run(name, func(t *testing.T) {
			sans := must(ParseSANs("10.0.0.1"))(t)
			if _, err := OpenServer(dir, "s1", sans, t0); !errors.Is(err, ErrNoMaterial) {
				t.Fatalf("empty folder: %v", err)
			}
			made := must(InitServer(dir, "c1", "s1", sans, t0))(t)
			again := must(OpenServer(dir, "s1", sans, t0))(t)
			if again.Reissued != "" || again.Credential.Identity() != made.Credential.Identity() ||
				again.Bundle.CA.Hash() != made.Bundle.CA.Hash() || !again.Bundle.GossipKey.Equal(made.Bundle.GossipKey) {
				t.Errorf("opened another server than was made (%s)", again.Reissued)
			}
			sealed := must(made.Bundle.SealKeys.Seal("o", "f", []byte("v")))(t)
			must(again.Bundle.SealKeys.Open("o", "f", sealed))(t)
			for file, want := range map[string]fs.FileMode{
				"ca.crt": 0o644, "ca.key": 0o600, "server.crt": 0o644, "server.key": 0o600, "seal.key": 0o600, "gossip.key": 0o600,
			} {
				if _, mode, err := dir.Read(file); err != nil || mode != want {
					t.Errorf("%s has mode %v, want %v (%v)", file, mode, want, err)
				}
			}
		})
	}
}

// TestServerReissuesByItself: with no quorum and nobody to ask.
func TestServerReissuesByItself(t *testing.T) {
	addresses := must(ParseSANs("10.0.0.1", "s1.example"))(t)
	moved := must(ParseSANs("10.0.0.2", "s1.example"))(t)
	tests := map[string]struct {
		spoil func(*MemDir)
		after time.Duration
		sans  SANs
		want  string
	}{
		"fresh":            {nil, day, addresses, ""},
		"past two thirds":  {nil, 61 * day, addresses, "two thirds"},
		"off for 3 months": {nil, 93 * day, addresses, "expired"},
		"off for 5 years":  {nil, 5 * 365 * day, addresses, "expired"},
		"moved":            {nil, day, moved, "addresses"},
		"certificate lost": {func(d *MemDir) { d.Remove("server.crt") }, day, addresses, "no certificate"},
		"key lost":         {func(d *MemDir) { d.Remove("server.key") }, day, addresses, "no key"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir := NewMemDir()
			must(InitServer(dir, "c1", "s1", addresses, t0))(t)
			if tt.spoil != nil {
				tt.spoil(dir)
			}
			now := t0.Add(tt.after)
			got := must(OpenServer(dir, "s1", tt.sans, now))(t)
			if (tt.want == "") != (got.Reissued == "") || !strings.Contains(got.Reissued, tt.want) {
				t.Errorf("reissued because %q, want %q", got.Reissued, tt.want)
			}
			if err := got.Credential.Trust().verifyServer(got.Credential.leaf, now); err != nil {
				t.Error(err)
			}
			if !got.Credential.hasSANs(tt.sans) {
				t.Error("the certificate lacks an address")
			}
			if again := must(OpenServer(dir, "s1", tt.sans, now))(t); again.Reissued != "" {
				t.Errorf("reissued again: %s", again.Reissued)
			}
		})
	}
}

func TestInitRefusesAnyRemains(t *testing.T) {
	for _, file := range []string{"ca.crt", "ca.key", "seal.key", "gossip.key", "server.crt", "server.key"} {
		dir := NewMemDir()
		if err := dir.Write(file, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := InitServer(dir, "c1", "s1", SANs{}, t0); !errors.Is(err, ErrExists) || !strings.Contains(err.Error(), "mem:"+file) {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// TestJoinThroughFiles is a server and an agent from token to opened folder,
// with a crash of the agent after each file it writes.
func TestJoinThroughFiles(t *testing.T) {
	first := must(InitServer(NewMemDir(), "c1", "s1", SANs{}, t0))(t)
	ca := first.Bundle.CA
	join := func(dir Dir, role Role, name string) (*Credential, *Bundle) {
		c := joinCase(t, ca, role)
		joiner := must(NewJoiner(c.Token, role, name, SANs{}, must(JoinKey(dir, role))(t)))(t)
		c.Request = must(joiner.Request())(t)
		reply := JoinReply{CertPEM: must(ca.Admit(c, t0))(t).CertPEM, CAPEM: first.Bundle.Trust.PEM(), Bundle: must(first.Bundle.Marshal())(t)}
		cred, bundle, err := joiner.Accept(reply)
		if err != nil {
			t.Fatal(err)
		}
		return cred, bundle
	}

	dir := NewMemDir()
	cred, bundle := join(dir, RoleServer, "s2")
	if err := errors.Join(SaveBundle(dir, bundle), SaveCredential(dir, cred)); err != nil {
		t.Fatal(err)
	}
	second := must(OpenServer(dir, "s2", SANs{}, t0))(t)
	if second.Reissued != "" || second.Bundle.CA.Hash() != ca.Hash() {
		t.Errorf("second server: %q", second.Reissued)
	}

	for crashAfter := range 4 {
		dir := &crashing{MemDir: NewMemDir(), left: crashAfter}
		if _, err := JoinKey(dir, RoleAgent); err == nil {
			cred, _ := join(dir, RoleAgent, "n1")
			if err := SaveAgent(dir, &AgentFiles{cred, first.Bundle.GossipKey}); err == nil {
				t.Fatalf("did not crash after %d writes", crashAfter)
			}
		}
		if _, err := OpenAgent(dir); !errors.Is(err, ErrNoMaterial) {
			t.Errorf("after %d writes: %v", crashAfter, err)
		}
		dir.left = 100
		cred, _ := join(dir, RoleAgent, "n1")
		if err := SaveAgent(dir, &AgentFiles{cred, first.Bundle.GossipKey}); err != nil {
			t.Fatal(err)
		}
		if got := must(OpenAgent(dir))(t); got.Credential.Identity() != cred.Identity() {
			t.Errorf("after %d writes and another try: %s", crashAfter, got.Credential.Identity())
		}
	}
}

// crashing fails all writes after some.
type crashing struct {
	*MemDir
	left int
}

func (c *crashing) Write(name string, data []byte, mode fs.FileMode) error {
	if c.left == 0 {
		return errNoServer
	}
	c.left--
	return c.MemDir.Write(name, data, mode)
}

// TestRenewalTouchesOnlyTheCertificate, so no crash can tear key and
// certificate apart.
func TestRenewalTouchesOnlyTheCertificate(t *testing.T) {
	dir := NewMemDir()
	made := must(InitServer(dir, "c1", "s1", SANs{}, t0))(t)
	before, _, err := dir.Read("server.key")
	if err != nil {
		t.Fatal(err)
	}
	next := must(made.Credential.Renewed(must(made.Bundle.CA.resign(made.Credential, SANs{}, t0.Add(61*day)))(t)))(t)
	one := &crashing{MemDir: dir, left: 1}
	if err := SaveCredential(one, next); err != nil {
		t.Fatal(err)
	}
	after, _, err := dir.Read("server.key")
	if err != nil || string(before) != string(after) {
		t.Errorf("the key changed (%v)", err)
	}
	if got := must(OpenServer(dir, "s1", SANs{}, t0.Add(61*day)))(t); got.Credential.Identity() != next.Identity() {
		t.Error("opened another certificate")
	}
}

func TestPermissions(t *testing.T) {
	dir := OSDir(t.TempDir())
	must(InitServer(dir, "c1", "s1", SANs{}, t0))(t)
	for _, file := range []string{"ca.key", "seal.key", "gossip.key", "server.key"} {
		for _, mode := range []fs.FileMode{0o640, 0o604, 0o620, 0o644} {
			if err := os.Chmod(dir.Path(file), mode); err != nil {
				t.Fatal(err)
			}
			if _, err := OpenServer(dir, "s1", SANs{}, t0); !errors.Is(err, ErrPermissions) || !strings.Contains(err.Error(), fmt.Sprintf("%04o", mode)) {
				t.Errorf("%s with %04o: %v", file, mode, err)
			}
		}
		if err := os.Chmod(dir.Path(file), 0o400); err != nil {
			t.Fatal(err)
		}
	}
	must(OpenServer(dir, "s1", SANs{}, t0))(t)
}

func TestDamagedFiles(t *testing.T) {
	other := NewMemDir()
	must(InitServer(other, "c1", "s1", SANs{}, t0))(t)
	c2 := NewMemDir()
	must(InitServer(c2, "c2", "s1", SANs{}, t0))(t)
	take := func(from *MemDir, file string) string {
		data, _, err := from.Read(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	tests := map[string]struct {
		file, text string
		want       error
	}{
		"CA key of another CA":    {"ca.key", take(other, "ca.key"), ErrKeyMismatch},
		"CA of another cluster":   {"ca.crt", take(c2, "ca.crt"), ErrKeyMismatch},
		"leaf of another CA":      {"server.crt", take(other, "server.crt"), ErrOtherCluster},
		"leaf of another cluster": {"server.crt", take(c2, "server.crt"), ErrOtherCluster},
		"key of another":          {"server.key", take(other, "server.key"), ErrKeyMismatch},
		"CA as leaf":              {"server.crt", take(other, "ca.crt"), ErrOtherCluster},
		"leaf as CA":              {"ca.crt", take(other, "server.crt"), ErrBadMaterial},
		"empty CA":                {"ca.crt", "", ErrBadMaterial},
		"empty key":               {"server.key", "", ErrBadMaterial},
		"empty seal keys":         {"seal.key", "", ErrSealKey},
		"cut seal keys":           {"seal.key", take(other, "seal.key")[:40], ErrSealKey},
		"empty gossip key":        {"gossip.key", "", ErrBadMaterial},
		"short gossip key":        {"gossip.key", "AAAA\n", ErrBadMaterial},
		"cut leaf":                {"server.crt", take(other, "server.crt")[:200], ErrBadMaterial},
		"leaf after damaged leaf": {"server.crt", take(other, "server.crt")[:100] + "\n" + take(other, "server.crt"), ErrBadMaterial},
		"key in the certificate":  {"server.crt", take(other, "server.key"), ErrBadMaterial},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir := NewMemDir()
			must(InitServer(dir, "c1", "s1", SANs{}, t0))(t)
			if err := dir.Write(tt.file, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := OpenServer(dir, "s1", SANs{}, t0)
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), "mem:"+tt.file) {
				t.Errorf("error is %v", err)
			}
		})
	}
	for _, file := range []string{"ca.key", "seal.key", "gossip.key", "ca.crt"} {
		dir := NewMemDir()
		must(InitServer(dir, "c1", "s1", SANs{}, t0))(t)
		dir.Remove(file)
		if _, err := OpenServer(dir, "s1", SANs{}, t0); !errors.Is(err, ErrIncomplete) || !strings.Contains(err.Error(), "mem:"+file) {
			t.Errorf("without %s: %v", file, err)
		}
	}
}

func TestConfigFile(t *testing.T) {
	ca := newTestCA(t)
	config := must(NewConfig(issue(t, ca, RoleAdmin, "alice", t0), []string{"s1.example:7070", "10.0.0.1:7070", "[fd00::1]:7070"}))(t)
	path := filepath.Join(t.TempDir(), "admin.yaml")
	if err := WriteConfigFile(path, config); err != nil {
		t.Fatal(err)
	}
	got := must(ReadConfigFile(path))(t)
	cred := must(got.Credential())(t)
	if cred.Identity().String() != "admin/alice" || got.ClusterID != "c1" || len(got.Servers) != 3 {
		t.Errorf("read %+v", got)
	}
	if info := must(os.Stat(path))(t); info.Mode().Perm() != 0o600 {
		t.Errorf("mode is %v", info.Mode())
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadConfigFile(path); !errors.Is(err, ErrPermissions) {
		t.Errorf("readable by all: %v", err)
	}
}

// TestConfigErrorsKeepTheKey: a damaged file is told by line, not by content.
func TestConfigErrorsKeepTheKey(t *testing.T) {
	text := string(must(must(NewConfig(issue(t, newTestCA(t), RoleAdmin, "alice", t0), []string{"s1:1"}))(t).Marshal())(t))
	_, key, _ := strings.Cut(text, "BEGIN PRIVATE KEY-----\n")
	secret := strings.TrimSpace(key)[:20]
	for i := 0; i < len(text); i += 7 {
		for _, damaged := range []string{text[:i], text[:i] + ":" + text[i:], text[:i] + "\n" + text[i:], text[:i] + "{" + text[i:]} {
			if _, err := ParseConfig([]byte(damaged)); err != nil && strings.Contains(err.Error(), secret) {
				t.Fatalf("error tells the key: %v", err)
			}
		}
	}
}

func TestSealKeysAreReplaced(t *testing.T) {
	dir := NewMemDir()
	id := NewClusterID()
	made := must(InitServer(dir, id, "s1", SANs{}, t0))(t)
	if made.Credential.Trust().ClusterID() != id || !made.Credential.Trust().NotAfter().Equal(t0.Add(CALife)) {
		t.Errorf("cluster is %s", made.Credential.Trust().ClusterID())
	}
	next := NewSealKey(t0.Add(day))
	ring := must(must(made.Bundle.SealKeys.Add(next))(t).Promote(next.ID))(t)
	if err := SaveSealKeys(dir, ring); err != nil {
		t.Fatal(err)
	}
	if got := must(OpenServer(dir, "s1", SANs{}, t0))(t); got.Bundle.SealKeys.Primary().ID != next.ID {
		t.Errorf("primary is %s", got.Bundle.SealKeys.Primary())
	}
}
