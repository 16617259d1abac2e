package pki

import (
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"
)

// The files of a member's identity folder. Private ones must be readable by
// their owner alone, or they are refused.
//
//	ca.crt      0644  servers, agents   the authorities of the cluster
//	ca.key      0600  servers           key of the authority
//	seal.key    0600  servers           keys that seal secret values
//	gossip.key  0600  servers, agents   key of the gossip
//	server.crt  0644  server.key  0600  servers
//	agent.crt   0644  agent.key   0600  agents
//
// A machine may be both. The private key of a member is written before it joins
// and stays; a renewal replaces only the certificate, in one atomic write, so
// no crash can leave a key and a certificate that do not match.
const (
	FileCACert    = "ca.crt"
	FileCAKey     = "ca.key"
	FileSealKeys  = "seal.key"
	FileGossipKey = "gossip.key"
)

const (
	modePublic  fs.FileMode = 0o644
	modePrivate fs.FileMode = 0o600
)

func certFile(role Role) string { return string(role) + ".crt" }
func keyFile(role Role) string  { return string(role) + ".key" }

// ServerFiles is the identity of a server.
type ServerFiles struct {
	Bundle     *Bundle
	Credential *Credential

	// Reissued says why OpenServer signed a new certificate; empty if it did not.
	Reissued string
}

// InitServer creates a cluster with its first server. It refuses a folder that
// has any file of an identity in it: those keys may be the only ones that open
// what a cluster has sealed.
func InitServer(dir Dir, clusterID, name string, sans SANs, now time.Time) (*ServerFiles, error) {
	if err := refuseExisting(dir); err != nil {
		return nil, err
	}
	if err := ValidateName(RoleServer, name); err != nil {
		return nil, err
	}
	ca, err := NewCA(clusterID, now)
	if err != nil {
		return nil, err
	}
	bundle := NewBundle(ca, NewKeyring(NewSealKey(now)), NewGossipKey())
	if err := SaveBundle(dir, bundle); err != nil {
		return nil, err
	}
	return OpenServer(dir, name, sans, now)
}

func refuseExisting(dir Dir) error {
	names := []string{FileCACert, FileCAKey, FileSealKeys, FileGossipKey, certFile(RoleServer), keyFile(RoleServer)}
	var found []string
	for _, name := range names {
		_, _, err := dir.Read(name)
		if err == nil {
			found = append(found, dir.Path(name))
		} else if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("look for an existing identity: %w", err)
		}
	}
	if len(found) > 0 {
		return refuse(ErrExists, "a cluster was initialised here before: found %s; start without --init, or remove them if that cluster is not needed any more", strings.Join(found, ", "))
	}
	return nil
}

// SaveBundle writes what a server has got from the cluster, ca.crt last: where
// that is, the rest is.
func SaveBundle(dir Dir, b *Bundle) error {
	seal, err := b.SealKeys.Marshal()
	if err != nil {
		return err
	}
	caKey, err := b.CA.KeyPEM()
	if err != nil {
		return err
	}
	return writeAll(dir, []idFile{
		{FileSealKeys, seal, modePrivate},
		{FileGossipKey, b.GossipKey.Marshal(), modePrivate},
		{FileCAKey, caKey, modePrivate},
		{FileCACert, b.Trust.PEM(), modePublic},
	})
}

// SaveSealKeys replaces the seal keys, for a rotation.
func SaveSealKeys(dir Dir, k *Keyring) error {
	text, err := k.Marshal()
	if err != nil {
		return err
	}
	return writeAll(dir, []idFile{{FileSealKeys, text, modePrivate}})
}

type idFile struct {
	name string
	data []byte
	mode fs.FileMode
}

func writeAll(dir Dir, files []idFile) error {
	for _, f := range files {
		if err := dir.Write(f.name, f.data, f.mode); err != nil {
			return fmt.Errorf("save %s: %w", dir.Path(f.name), err)
		}
	}
	return nil
}

// OpenServer loads a server's identity, and signs its certificate anew, without
// asking anybody, if it is missing, due for renewal, or lacks one of the
// addresses. So a cluster that was switched off for months starts. It returns
// ErrNoMaterial where no server was set up.
func OpenServer(dir Dir, name string, sans SANs, now time.Time) (*ServerFiles, error) {
	bundle, err := loadBundle(dir)
	if err != nil {
		return nil, err
	}
	key, created, err := joinKey(dir, RoleServer)
	if err != nil {
		return nil, err
	}
	var cred *Credential
	if !created { // with a lost key the certificate is worth nothing
		cred, err = loadCredential(dir, RoleServer, bundle.Trust, key)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if cred != nil && cred.identity.Name != name {
		return nil, refuse(ErrExists, "%s is the certificate of server %q, but this server is to be %q; use the old name, or another folder", dir.Path(certFile(RoleServer)), cred.identity.Name, name)
	}
	why := whyReissue(cred, sans, now)
	if why == "" {
		return &ServerFiles{Bundle: bundle, Credential: cred}, nil
	}
	cred, err = bundle.issueServer(key, name, sans, now)
	if err != nil {
		return nil, err
	}
	if err := SaveCredential(dir, cred); err != nil {
		return nil, err
	}
	return &ServerFiles{Bundle: bundle, Credential: cred, Reissued: why}, nil
}

func whyReissue(cred *Credential, sans SANs, now time.Time) string {
	switch {
	case cred == nil:
		return "there was no certificate, or no key to it"
	case now.After(cred.Expires()):
		return "the certificate expired at " + stamp(cred.Expires())
	case !now.Before(cred.RenewAt(0)):
		return "the certificate was past two thirds of its life"
	case !cred.hasSANs(sans):
		return "the certificate was not good for all addresses of this server"
	}
	return ""
}

func (b *Bundle) issueServer(key crypto.Signer, name string, sans SANs, now time.Time) (*Credential, error) {
	csr, err := NewCSR(name, key)
	if err != nil {
		return nil, err
	}
	leaf, err := b.CA.Sign(SignRequest{CSR: csr, Role: RoleServer, Name: name, SANs: sans}, now)
	if err != nil {
		return nil, err
	}
	return newCredential(b.Trust, leaf, key)
}

func loadBundle(dir Dir) (*Bundle, error) {
	private := []string{FileCAKey, FileSealKeys, FileGossipKey}
	text, err := readSet(dir, FileCACert, private...)
	if err != nil {
		return nil, err
	}
	ca, err := ParseCA(text[FileCACert], text[FileCAKey])
	if err != nil {
		return nil, fmt.Errorf("%s, %s: %w", dir.Path(FileCACert), dir.Path(FileCAKey), err)
	}
	trust, err := ParseTrust(text[FileCACert])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir.Path(FileCACert), err)
	}
	seal, err := ParseKeyring(text[FileSealKeys])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir.Path(FileSealKeys), err)
	}
	gossip, err := ParseGossipKey(text[FileGossipKey])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir.Path(FileGossipKey), err)
	}
	return &Bundle{CA: ca, Trust: trust, SealKeys: seal, GossipKey: gossip}, nil
}

// readSet reads files that belong together: all, ErrNoMaterial for none, or
// ErrIncomplete with the names of the missing.
func readSet(dir Dir, public string, private ...string) (map[string][]byte, error) {
	text := map[string][]byte{}
	var missing []string
	for _, name := range append([]string{public}, private...) {
		data, err := readFile(dir, name, slices.Contains(private, name))
		if errors.Is(err, fs.ErrNotExist) {
			missing = append(missing, dir.Path(name))
			continue
		}
		if err != nil {
			return nil, err
		}
		text[name] = data
	}
	switch {
	case len(text) == 0:
		return nil, refuse(ErrNoMaterial, "there is no cluster identity here (%s not found); create a cluster with --init, or join one with a token", dir.Path(public))
	case len(missing) > 0:
		return nil, refuse(ErrIncomplete, "identity files are missing: %s; restore them from another server or a backup, or, if this machine never was part of a cluster, remove the others and start over", strings.Join(missing, ", "))
	}
	return text, nil
}

func readFile(dir Dir, name string, private bool) ([]byte, error) {
	data, mode, err := dir.Read(name)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", dir.Path(name), err)
	}
	if private && mode&0o077 != 0 {
		return nil, refuse(ErrPermissions, "%s has mode %04o: others than its owner can use it, at most 0600 is allowed; find out who could read it, then: chmod 600 %s", dir.Path(name), mode, dir.Path(name))
	}
	return data, nil
}

// JoinKey loads the private key of a member, or makes and saves one. It must be
// on disk before a join begins, see Joiner.
func JoinKey(dir Dir, role Role) (crypto.Signer, error) {
	if !role.Member() {
		return nil, refuse(ErrBadRole, "role %q has no identity folder", role)
	}
	key, _, err := joinKey(dir, role)
	return key, err
}

func joinKey(dir Dir, role Role) (key crypto.Signer, created bool, err error) {
	text, err := readFile(dir, keyFile(role), true)
	if errors.Is(err, fs.ErrNotExist) {
		key, err := createKey(dir, role)
		return key, true, err
	}
	if err != nil {
		return nil, false, err
	}
	key, err = parseKey(text)
	if err != nil {
		return nil, false, fmt.Errorf("%s: %w", dir.Path(keyFile(role)), err)
	}
	return key, false, nil
}

func createKey(dir Dir, role Role) (crypto.Signer, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	text, err := keyPEM(key)
	if err != nil {
		return nil, err
	}
	return key, writeAll(dir, []idFile{{keyFile(role), text, modePrivate}})
}

// SaveCredential writes a member's certificate; its key is there already.
func SaveCredential(dir Dir, c *Credential) error {
	return writeAll(dir, []idFile{{certFile(c.identity.Role), c.CertPEM(), modePublic}})
}

func loadCredential(dir Dir, role Role, trust *Trust, key crypto.Signer) (*Credential, error) {
	text, err := readFile(dir, certFile(role), false)
	if err != nil {
		return nil, err
	}
	leaf, err := parseLeaf(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir.Path(certFile(role)), err)
	}
	cred, err := newCredential(trust, leaf, key)
	if err != nil {
		return nil, fmt.Errorf("%s, %s: %w", dir.Path(certFile(role)), dir.Path(keyFile(role)), err)
	}
	if cred.identity.Role != role {
		return nil, refuse(ErrWrongRole, "%s is a certificate of %s; one of role %s belongs here", dir.Path(certFile(role)), cred.identity, role)
	}
	return cred, nil
}

// AgentFiles is the identity of an agent.
type AgentFiles struct {
	Credential *Credential
	GossipKey  GossipKey
}

// SaveAgent writes what an agent has got from the cluster, its certificate
// last. Its key is there already, see JoinKey.
func SaveAgent(dir Dir, a *AgentFiles) error {
	return writeAll(dir, []idFile{
		{FileGossipKey, a.GossipKey.Marshal(), modePrivate},
		{FileCACert, a.Credential.trust.PEM(), modePublic},
		{certFile(RoleAgent), a.Credential.CertPEM(), modePublic},
	})
}

// OpenAgent loads an agent's identity. The certificate may have expired: then
// the Renewer's first act is to renew it. It returns ErrNoMaterial where no
// agent has joined, also if a join was begun and not finished.
func OpenAgent(dir Dir) (*AgentFiles, error) {
	if _, err := readFile(dir, certFile(RoleAgent), false); errors.Is(err, fs.ErrNotExist) {
		return nil, refuse(ErrNoMaterial, "there is no agent identity here (%s not found); join a cluster with a token", dir.Path(certFile(RoleAgent)))
	}
	text, err := readSet(dir, FileCACert, keyFile(RoleAgent), FileGossipKey)
	if err != nil {
		return nil, err
	}
	trust, err := ParseTrust(text[FileCACert])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir.Path(FileCACert), err)
	}
	gossip, err := ParseGossipKey(text[FileGossipKey])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir.Path(FileGossipKey), err)
	}
	key, err := parseKey(text[keyFile(RoleAgent)])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir.Path(keyFile(RoleAgent)), err)
	}
	cred, err := loadCredential(dir, RoleAgent, trust, key)
	if err != nil {
		return nil, err
	}
	return &AgentFiles{Credential: cred, GossipKey: gossip}, nil
}
