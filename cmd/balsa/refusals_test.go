package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/pki"
)

// golden compares with testdata/refusals/NAME.golden.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", "refusals", name+".golden")
	got = normal(got)
	if *update {
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.WriteFile(path, []byte(got), 0o644))
		return
	}
	want, err := os.ReadFile(path)
	must(t, err)
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs (-want +got), go test -update rewrites it:\n%s", path, diff)
	}
}

// refused runs the command line, which must fail, and returns what it said.
func refused(t *testing.T, config string, args ...string) string {
	t.Helper()
	out, errOut, code := balsa(t, config, args...)
	if code != exitFailed || out != "" {
		t.Errorf("balsa %s: exit code %d, want %d; it printed %q", strings.Join(args, " "), code, exitFailed, out)
	}
	return errOut
}

// TestServerIsUnreachable asks where nothing listens.
func TestServerIsUnreachable(t *testing.T) {
	config := writeConfig(t, func(c *pki.Config) { c.Servers = []string{freeAddress(t), freeAddress(t)} })
	began := time.Now()
	once := refused(t, config, "get", "pods", "--retry-for", "0")
	if passed := time.Since(began); passed > 5*time.Second {
		t.Errorf("one try took %v", passed)
	}
	write := filepath.Join(t.TempDir(), "write.yaml")
	must(t, os.WriteFile(write, []byte("apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n"), 0o600))
	written := refused(t, config, "apply", "-f", write, "--retry-for", "400ms")
	golden(t, "unreachable", once+strings.ReplaceAll(written, filepath.Dir(write), "DIR"))
}

// TestWrongCluster asks a server with another cluster's identity, and with the
// right authority but another cluster's certificate.
func TestWrongCluster(t *testing.T) {
	ca, err := pki.NewCA(pki.NewClusterID(), time.Now())
	must(t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	csr, err := pki.NewCSR("admin", key)
	must(t, err)
	leaf, err := ca.Sign(pki.SignRequest{CSR: csr, Role: pki.RoleAdmin, Name: "admin"}, time.Now())
	must(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	config := writeConfig(t, func(c *pki.Config) {
		c.ClusterID, c.CA = ca.ClusterID(), string(ca.CertPEM())
		c.Cert = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw}))
		c.Key = string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	})
	began := time.Now()
	golden(t, "wrong-ca", refused(t, config, "get", "pods"))
	if passed := time.Since(began); passed > 5*time.Second {
		t.Errorf("what cannot succeed was tried for %v", passed)
	}
}

// join starts a server that must not be let in, and returns why.
func join(t *testing.T, token string) string {
	t.Helper()
	s := startServer(t, t.TempDir(), "s9", "--join", sharedServer(t).listen, "--token", token, "--log-level", "error")
	defer s.stop()
	select {
	case code := <-s.ended:
		s.ended <- code
		if code != exitFailed {
			t.Errorf("exit code %d, want %d", code, exitFailed)
		}
	case <-time.After(waitMax):
		t.Fatalf("the server was not refused within %v: %s", waitMax, s.log)
	}
	return s.log.String()
}

// TestTokensThatAreRefused joins with tokens that are good for nothing any more,
// or for something else.
func TestTokensThatAreRefused(t *testing.T) {
	config := sharedServer(t).config
	create := func(args ...string) string {
		return strings.TrimSpace(done(t, config, append([]string{"token", "create"}, args...)...))
	}
	id := func(token string) string { return strings.Split(token, ".")[1] }
	var text strings.Builder
	tell := func(about, said string) { fmt.Fprintf(&text, "# %s\n%s", about, said) }

	expired := create("--role", "server", "--ttl", "1s")
	eventually(t, func() error {
		for line := range strings.Lines(done(t, config, "token", "list")) {
			if strings.HasPrefix(line, id(expired)) && strings.Contains(line, "expired") {
				return nil
			}
		}
		return fmt.Errorf("token %s does not expire", id(expired))
	})
	tell("expired", strings.ReplaceAll(join(t, expired), id(expired), "ID"))

	revoked := create("--role", "server")
	done(t, config, "token", "revoke", id(revoked))
	tell("revoked", strings.ReplaceAll(join(t, revoked), id(revoked), "ID"))

	agents := create("--role", "agent")
	tell("of another role", strings.ReplaceAll(join(t, agents), id(agents), "ID"))

	parts := strings.Split(agents, ".")
	parts[2] = parts[2][1:] + parts[2][:1]
	tell("mistyped", join(t, strings.Join(parts, ".")))
	golden(t, "tokens", text.String())
}

// post calls the API as a program without our SDK would.
func post(t *testing.T, path, contentType string, body []byte) string {
	t.Helper()
	config, err := pki.ReadConfigFile(sharedServer(t).config)
	must(t, err)
	credential, err := config.Credential()
	must(t, err)
	doer := &http.Client{Transport: &http.Transport{TLSClientConfig: pki.ClientTLS(pki.NewCredentials(credential), clock.Real{}), ForceAttemptHTTP2: true}}
	defer doer.CloseIdleConnections()
	response, err := doer.Post("https://"+config.Servers[0]+path, contentType, bytes.NewReader(body))
	must(t, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	must(t, err)
	// The detail is for programs; its bytes hold the same as the message.
	message, _, _ := strings.Cut(string(text), `,"details"`)
	// Go's protobuf puts one space or another into its errors, by build.
	return fmt.Sprintf("%s %s\n", response.Status, strings.ReplaceAll(message, "\u00a0", " "))
}

// TestRequestsThatAreRefused sends what no manifest can hold.
func TestRequestsThatAreRefused(t *testing.T) {
	const apply, list = "/balsa.v1.ObjectService/Apply", "/balsa.v1.ObjectService/List"
	request, err := proto.Marshal(&balsav1.ApplyRequest{Manager: "test", Object: object.Wrap(&balsav1.ConfigMap{
		ApiVersion: "v1", Kind: "ConfigMap", Metadata: &balsav1.ObjectMeta{Name: "a"},
	})})
	must(t, err)
	unknown := protowire.AppendTag(bytes.Clone(request), 777, protowire.BytesType)
	unknown = protowire.AppendString(unknown, "what a newer client says")
	var text strings.Builder
	for _, c := range []struct {
		about, path, contentType string
		body                     []byte
	}{
		{"unknown field, JSON", list, "application/json", []byte(`{"kind": "Pod", "namspace": "default"}`)},
		{"unknown field deeper, JSON", apply, "application/json", []byte(`{"manager": "t", "object": {"pod": {"metadata": {"name": "a"}, "spec": {"contaners": []}}}}`)},
		{"unknown field, binary", apply, "application/proto", unknown},
		{"wrong type, JSON", list, "application/json", []byte(`{"kind": "Pod", "limit": "many"}`)},
		{"no JSON", list, "application/json", []byte(`{"kind"`)},
		{"no protobuf", list, "application/proto", []byte{0xff, 0xff}},
		{"unknown kind", list, "application/json", []byte(`{"kind": "Shoe"}`)},
		{"too large", apply, "application/proto", make([]byte, 5<<20)},
		{"unknown encoding", list, "application/xml", []byte(`<list/>`)},
		{"unknown method", "/balsa.v1.ObjectService/Lost", "application/json", []byte(`{}`)},
	} {
		fmt.Fprintf(&text, "# %s\n%s", c.about, post(t, c.path, c.contentType, c.body))
	}
	golden(t, "requests", text.String())
}

// TestTooLargeManifest applies what no server takes.
func TestTooLargeManifest(t *testing.T) {
	dir := t.TempDir()
	manifest := func(bytes int) string {
		path := filepath.Join(dir, "large.yaml")
		must(t, os.WriteFile(path, fmt.Appendf(nil, "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: large\ndata:\n  a: %q\n", strings.Repeat("x", bytes)), 0o600))
		return path
	}
	var text strings.Builder
	for _, bytes := range []int{2 << 20, 5 << 20, 33 << 20} {
		said := refused(t, sharedServer(t).config, "apply", "-f", manifest(bytes))
		fmt.Fprintf(&text, "# %d bytes\n%s", bytes, strings.ReplaceAll(said, dir, "DIR"))
	}
	// The times in the object's metadata take more bytes or fewer.
	golden(t, "too-large", regexp.MustCompile(`(object is too large; found )\d+`).ReplaceAllString(text.String(), "${1}NUMBER"))
}

// serverToken makes a join token. On a machine that is busy leadership may be
// lost meanwhile: that token is of unknown fate then, and another does as well.
func serverToken(t *testing.T, config string) (token string) {
	t.Helper()
	eventually(t, func() error {
		out, errOut, code := balsa(t, config, "token", "create", "--role", "server")
		if token = strings.TrimSpace(out); code != exitOK {
			return fmt.Errorf("exit code %d: %s", code, errOut)
		}
		return nil
	})
	return token
}

// TestNoLeader ends two of three servers, processes of their own so that nothing
// of them is left: the third says that it has no leader, and that a write did not
// take place.
func TestNoLeader(t *testing.T) {
	first := startServer(t, t.TempDir(), "s1", "--init", "--log-level", "error")
	defer first.stop()
	waitUntilServing(t, first)
	var others []*exec.Cmd
	for _, name := range []string{"s2", "s3"} {
		log := &lockedBuffer{}
		command := process(t, itself(t), "server", "--name", name, "--data-dir", t.TempDir(), "--log-level", "error",
			"--listen", freeAddress(t), "--gossip-listen", freeAddress(t), "--join", first.listen, "--token", serverToken(t, first.config))
		command.Stdout, command.Stderr = log, log
		must(t, command.Start())
		others = append(others, command)
		eventually(t, func() error {
			status, errOut, code := balsa(t, first.config, "cluster", "status", "-o", "json")
			if code != exitOK {
				return fmt.Errorf("exit code %d: %s", code, errOut)
			}
			if voters := strings.Count(status, `"voter": true`); voters != 1+len(others) {
				return fmt.Errorf("%d of %d vote: %s; %s says:\n%s", voters, 1+len(others), status, name, log)
			}
			return nil
		})
	}
	for _, command := range others {
		must(t, command.Process.Kill())
		_ = command.Wait() // it says that it was killed
	}
	config, err := pki.ReadConfigFile(first.config)
	must(t, err)
	config.Servers = []string{first.listen}
	write := filepath.Join(t.TempDir(), "write.yaml")
	must(t, os.WriteFile(write, []byte("apiVersion: v1\nkind: Namespace\nmetadata: {name: lost}\n"), 0o600))
	said := ""
	for _, args := range [][]string{{"apply", "-f", write}, {"get", "pods"}} {
		var last string
		eventually(t, func() error { // until the server has noticed that it is alone
			// Every answer tells of the others, of which one would be tried next.
			must(t, pki.WriteConfigFile(first.config, config))
			if last = refused(t, first.config, append(args, "--retry-for", "0")...); !strings.Contains(last, "no leader is known") {
				return fmt.Errorf("it says: %s", last)
			}
			return nil
		})
		said += last
	}
	golden(t, "no-leader", strings.ReplaceAll(said, filepath.Dir(write), "DIR"))
}

// TestDiskGetsFull leaves less room than a server wants: it ends in order before
// a write can fail half way, and says how much it waits for.
func TestDiskGetsFull(t *testing.T) {
	s, ballast := smallDisk(t)
	leave(t, ballast, 100<<20)
	last := ends(t, s)
	golden(t, "full-disk", digits(last))
}

// TestFullDisk writes until nothing fits: the server acknowledges nothing that
// it has not kept, says what is wrong, and goes on where it was once there is
// room.
func TestFullDisk(t *testing.T) {
	s, ballast := smallDisk(t)
	leave(t, ballast, 2<<20)
	acknowledged := writeUntilRefused(t, s)
	// Whether the disk's watch or the write itself notices first is chance.
	if last := ends(t, s); !strings.Contains(last, "no space left on the log's disk") {
		t.Errorf("the server ends with %q", last)
	}
	must(t, ballast.Truncate(0))
	again := startServerAt(t, s.dir, "s1", s.listen, "--log-level", "error")
	defer again.stop()
	waitUntilServing(t, again)
	have := done(t, again.config, "get", "configmaps", "-o", "name")
	for _, name := range acknowledged {
		if !strings.Contains(have, "configmap/"+name+"\n") {
			t.Errorf("configmap %s was acknowledged and is lost", name)
		}
	}
}

// smallDisk runs a server on a file system of its own, and opens a file to fill
// that with.
func smallDisk(t *testing.T) (*server, *os.File) {
	t.Helper()
	disk := t.TempDir()
	must(t, unix.Mount("none", disk, "tmpfs", 0, fmt.Sprintf("size=%d", 400<<20)))
	t.Cleanup(func() { must(t, unix.Unmount(disk, unix.MNT_DETACH)) })
	s := startServer(t, disk, "s1", "--init", "--log-level", "error")
	t.Cleanup(func() { s.stop() })
	waitUntilServing(t, s)
	ballast, err := os.Create(filepath.Join(disk, "ballast"))
	must(t, err)
	t.Cleanup(func() { must(t, ballast.Close()) })
	return s, ballast
}

// leave fills the disk but for some bytes.
func leave(t *testing.T, ballast *os.File, bytes int64) {
	t.Helper()
	var room unix.Statfs_t
	must(t, unix.Fstatfs(int(ballast.Fd()), &room))
	must(t, unix.Fallocate(int(ballast.Fd()), 0, 0, int64(room.Bfree)*room.Bsize-bytes))
}

// ends waits for the server's own end, and returns its last words.
func ends(t *testing.T, s *server) string {
	t.Helper()
	select {
	case code := <-s.ended:
		s.ended <- code
		if code != exitFailed {
			t.Errorf("the server ended with exit code %d", code)
		}
	case <-time.After(waitMax):
		t.Fatalf("the server runs on a full disk: %s", s.log)
	}
	text := s.log.String()
	return text[strings.LastIndex(text, "error: "):]
}

// writeUntilRefused writes objects until one is not acknowledged, and returns
// the names of those that were.
func writeUntilRefused(t *testing.T, s *server) (acknowledged []string) {
	t.Helper()
	deadline := time.Now().Add(waitMax)
	for i := 0; time.Now().Before(deadline); i++ {
		name := fmt.Sprintf("c%d", i)
		manifest := fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: %s}\ndata: {a: %q}\n", name, strings.Repeat("x", 100<<10))
		_, errOut, code := balsaWith(t, s.config, manifest, "apply", "--retry-for", "0", "-f", "-")
		if code == exitOK {
			acknowledged = append(acknowledged, name)
			continue
		}
		t.Logf("%d writes, then: %s", i, errOut)
		return acknowledged
	}
	t.Fatalf("%d writes went to a full disk", len(acknowledged))
	return nil
}
