package daemon

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/balsa-run/balsa/cluster"
	"github.com/balsa-run/balsa/pki"
)

func (s *server) adminPath() string { return filepath.Join(s.DataDir, adminFile) }

// pendingPath is where the first user's configuration waits until the cluster
// knows the user: whoever finds admin.yaml can use it.
func (s *server) pendingPath() string { return filepath.Join(s.dir, adminFile) }

// admin makes the first user of a new cluster, with a configuration on disk, or
// finds it again after a crash. It returns nil when the cluster is not new and
// the file is gone: whoever took it had a reason, and it is not made twice.
func (s *server) admin() (*pki.Credential, error) {
	for _, path := range []string{s.adminPath(), s.pendingPath()} {
		config, err := pki.ReadConfigFile(path)
		if err == nil {
			return s.knownAt(path, config)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	if s.core.Cluster().Phase() != cluster.PhaseUninitialised {
		return nil, nil
	}
	credential, err := s.signAdmin()
	if err != nil {
		return nil, fmt.Errorf("sign the first user's certificate: %w", err)
	}
	config, err := pki.NewConfig(credential, []string{s.Advertise})
	if err != nil {
		return nil, err
	}
	return credential, pki.WriteConfigFile(s.pendingPath(), config)
}

// knownAt keeps the first user's configuration leading to this server also when
// that was started with another address.
func (s *server) knownAt(path string, config *pki.Config) (*pki.Credential, error) {
	credential, err := config.Credential()
	if err != nil || slices.Contains(config.Servers, s.Advertise) {
		return credential, err
	}
	config.Servers = append([]string{s.Advertise}, config.Servers...)
	return credential, pki.WriteConfigFile(path, config)
}

// publishAdmin hands the first user's configuration out, once the cluster knows
// the user.
func (s *server) publishAdmin() error {
	if err := os.Rename(s.pendingPath(), s.adminPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("hand out the first user's configuration: %w", err)
	}
	return nil
}

func (s *server) signAdmin() (*pki.Credential, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	csr, err := pki.NewCSR(adminName, key)
	if err != nil {
		return nil, err
	}
	ca := s.identity.Bundle.CA
	leaf, err := ca.Sign(pki.SignRequest{CSR: csr, Role: pki.RoleAdmin, Name: adminName}, time.Now())
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pki.NewCredential(ca.CertPEM(),
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}
