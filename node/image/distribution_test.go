package image

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/crypto/bcrypt"

	"github.com/balsa-run/balsa/node/image/registry"
)

// distribution is the distribution project's registry, built from tools/registry
// and run with TLS and a password.
type distribution struct {
	host, ca  string
	transport http.RoundTripper
}

const registryConfig = `
version: 0.1
log: {level: error}
storage: {filesystem: {rootdirectory: %q}}
http: {addr: %q, tls: {certificate: %q, key: %q}}
auth: {htpasswd: {realm: test, path: %q}}
`

func startDistribution(t *testing.T) *distribution {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "registry")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", program, ".")
	build.Dir = filepath.Join("..", "..", "tools", "registry")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the registry: %v\n%s", err, text)
	}
	host := freeAddress(t)
	certificate, key := certify(t, dir)
	hash, err := bcrypt.GenerateFromPassword([]byte("right"), bcrypt.MinCost)
	check(t, err)
	users := filepath.Join(dir, "users")
	check(t, os.WriteFile(users, fmt.Appendf(nil, "ana:%s\n", hash), 0o600))
	config := filepath.Join(dir, "config.yml")
	check(t, os.WriteFile(config, fmt.Appendf(nil, registryConfig, filepath.Join(dir, "data"), host, certificate, key, users), 0o600))

	run := exec.Command(program, config)
	run.Stdout, run.Stderr = t.Output(), t.Output()
	run.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	check(t, run.Start())
	t.Cleanup(func() {
		_ = run.Process.Kill()
		_ = run.Wait()
	})
	content, err := os.ReadFile(certificate)
	check(t, err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(content)
	d := &distribution{host: host, ca: certificate, transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	d.await(t)
	return d
}

// await polls until the registry answers.
func (d *distribution) await(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+d.host+"/v2/", nil)
		check(t, err)
		res, err := (&http.Client{Transport: d.transport}).Do(req)
		if err == nil {
			_ = res.Body.Close()
			return
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			t.Fatalf("the registry does not answer: %v", err)
		}
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer l.Close()
	return l.Addr().String()
}

func certify(t *testing.T, dir string) (certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	check(t, err)
	privateDER, err := x509.MarshalECPrivateKey(private)
	check(t, err)
	certificate, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	check(t, os.WriteFile(certificate, pemOf(der), 0o600))
	check(t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: privateDER}), 0o600))
	return certificate, key
}

// TestARealRegistry pulls over TLS with a password, by a pull secret and by the
// node's configuration, and goes on with a transfer that an agent left.
func TestARealRegistry(t *testing.T) {
	d := startDistribution(t)
	image := imageOf(t, tarOf(t, reg("large", largeContent(600_000))), tarOf(t, reg("small", "x")))
	ref, err := name.ParseReference(d.host + "/team/app:v1")
	check(t, err)
	check(t, remote.Write(ref, image, remote.WithTransport(d.transport), remote.WithAuth(&authn.Basic{Username: "ana", Password: "right"})))
	digest, err := image.Digest()
	check(t, err)

	pull := func(config string, secrets ...[]byte) (Pulled, error) {
		return registryPuller(t, config).Pull(t.Context(), Request{Name: ref.Name(), Credentials: secrets}, nil)
	}
	trusting := fmt.Sprintf("registries: {%q: {caFile: %q}}", d.host, d.ca)
	got, err := pull(trusting, dockerConfig(d.host, "ana", "right"))
	if err != nil || got.Image.Digest != digest.String() || len(got.Image.Layers) != 2 {
		t.Fatalf("with a pull secret: %+v, %v", got, err)
	}
	password := filepath.Join(t.TempDir(), "password")
	check(t, os.WriteFile(password, []byte("right\n"), 0o600))
	_, err = pull(fmt.Sprintf("registries: {%q: {caFile: %q, username: ana, passwordFile: %q}}", d.host, d.ca, password))
	check(t, err)
	if _, err := pull(trusting, dockerConfig(d.host, "ana", "wrong")); !errors.Is(err, registry.ErrUnauthorized) {
		t.Errorf("with a wrong password: %v", err)
	}
	var unknown x509.UnknownAuthorityError
	if _, err := pull("", dockerConfig(d.host, "ana", "right")); !errors.As(err, &unknown) {
		t.Errorf("without its authority: %v", err)
	}

	layers, err := image.Layers()
	check(t, err)
	blob, err := layers[0].Compressed()
	check(t, err)
	content := readAll(t, blob)
	p := registryPuller(t, trusting)
	check(t, p.Store.writeSmall(p.Store.path(partialDir, sha(content)), content[:len(content)/2]))
	resumed, err := p.Pull(t.Context(), Request{Name: ref.Name(), Credentials: [][]byte{dockerConfig(d.host, "ana", "right")}}, nil)
	if err != nil || resumed.Image.Digest != digest.String() {
		t.Errorf("going on: %+v, %v", resumed, err)
	}
}
