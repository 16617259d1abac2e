package client

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/pki"
)

// adminConfig is the configuration of an admin of a new cluster.
func adminConfig(t *testing.T, servers ...string) *pki.Config {
	t.Helper()
	ca, err := pki.NewCA(pki.NewClusterID(), time.Now())
	must(t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	csr, err := pki.NewCSR("ann", key)
	must(t, err)
	leaf, err := ca.Sign(pki.SignRequest{CSR: csr, Role: pki.RoleAdmin, Name: "ann"}, time.Now())
	must(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	credential, err := pki.NewCredential(ca.CertPEM(), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	must(t, err)
	config, err := pki.NewConfig(credential, servers)
	must(t, err)
	return config
}

// TestSaveServers keeps what was learned for the next program, and nothing else.
func TestSaveServers(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		path := filepath.Join(t.TempDir(), "admin.yaml")
		before := adminConfig(t, "a:1")
		must(t, pki.WriteConfigFile(path, before))
		connect := func() *Client {
			c, err := FromFile(path, func(cfg *Config) { cfg.Dial, cfg.Plain = w.dial, true })
			must(t, err)
			w.client.Close()
			w.client = c
			return c
		}
		same := func(want ...string) {
			t.Helper()
			after, err := pki.ReadConfigFile(path)
			must(t, err)
			expected := *before
			expected.Servers = want
			if diff := cmp.Diff(&expected, after); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		}
		c := connect()
		must(t, c.SaveServers())
		same("a:1") // nobody told anything
		w.tell("b:1", w.names...)
		w.read(t)
		must(t, c.SaveServers())
		same("a:1", "b:1", "c:1")
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the file has mode %v (%v)", info.Mode(), err)
		}

		w.servers["a:1"].fail(down)
		c = connect()
		w.read(t)
		must(t, c.SaveServers())
		same("b:1", "c:1", "a:1") // the next program begins with one that works
		written, err := os.Stat(path)
		must(t, err)
		must(t, c.SaveServers())
		if again, err := os.Stat(path); err != nil || !os.SameFile(written, again) {
			t.Errorf("the file was replaced although nothing is new (%v)", err)
		}

		// One try each, as with --retry-for 0: each program meets a dead server and the
		// next begins with another, also when no server tells anything.
		before.Servers = []string{"a:1", "b:1", "c:1"}
		must(t, pki.WriteConfigFile(path, before))
		w.tell("")
		w.servers["b:1"].fail(down)
		for _, want := range [][]string{{"b:1", "c:1", "a:1"}, {"c:1", "a:1", "b:1"}} {
			c, err := FromFile(path, func(cfg *Config) { cfg.Dial, cfg.Plain, cfg.RetryFor = w.dial, true, -1 })
			must(t, err)
			if _, err := List[*balsav1.ConfigMap](t.Context(), c, "default", ListOptions{}); err == nil {
				t.Fatal("a server that is down served")
			}
			must(t, c.SaveServers())
			c.Close()
			same(want...)
		}
		w.tell("b:1", w.names...)
		c = connect()
		w.read(t)
		must(t, c.SaveServers())
		same("c:1", "a:1", "b:1")

		must(t, pki.WriteConfigFile(path, adminConfig(t, "other:1")))
		if err := c.SaveServers(); err == nil || !strings.Contains(err.Error(), "has become the configuration of cluster") {
			t.Errorf("the file of another cluster was changed: %v", err)
		}
	})
}
