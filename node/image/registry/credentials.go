package registry

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
)

// Limits of pull secrets.
const (
	maxSecrets        = 64
	maxSecretBytes    = 1 << 20
	maxSecretEntries  = 1000
	maxCredentialUses = 8 // credentials that are tried for one repository
)

// Credentials are what pull secrets hold, the most exact entries first.
type Credentials []credential

type credential struct {
	pattern string // host[:port][/path], the host's parts may have globs
	auth    authn.AuthConfig
}

// ParseCredentials reads the values of pull secrets: .dockerconfigjson, or the
// older .dockercfg, which is its "auths" alone. One that cannot be read does not
// keep the others from being used: the error comes with what could be read.
func ParseCredentials(secrets [][]byte) (Credentials, error) {
	if len(secrets) > maxSecrets {
		return nil, fmt.Errorf("pull secrets: found %d, at most %d are allowed", len(secrets), maxSecrets)
	}
	var all Credentials
	var failed error
	for i, secret := range secrets {
		entries, err := parseSecret(secret)
		if err != nil && failed == nil {
			// The text may quote the secret: only its place is told.
			failed = fmt.Errorf("pull secret %d of %d is not a valid .dockerconfigjson: want {\"auths\": {HOST: {\"auth\": BASE64}}}", i+1, len(secrets))
		}
		all = append(all, entries...)
	}
	if len(all) > maxSecretEntries {
		return nil, fmt.Errorf("pull secrets: found %d registries, at most %d are allowed", len(all), maxSecretEntries)
	}
	slices.SortStableFunc(all, func(a, b credential) int { return len(b.pattern) - len(a.pattern) })
	return all, failed
}

func parseSecret(secret []byte) (Credentials, error) {
	if len(secret) > maxSecretBytes {
		return nil, fmt.Errorf("more than %d bytes", maxSecretBytes)
	}
	var file struct {
		Auths map[string]authn.AuthConfig `json:"auths"`
	}
	if err := json.Unmarshal(secret, &file); err != nil {
		return nil, err
	}
	if file.Auths == nil {
		if err := json.Unmarshal(secret, &file.Auths); err != nil {
			return nil, err
		}
	}
	var entries Credentials
	for key, auth := range file.Auths {
		entries = append(entries, credential{pattern: normalPattern(key), auth: auth})
	}
	// Of equal length the names decide: the order must not change between pulls.
	slices.SortFunc(entries, func(a, b credential) int { return strings.Compare(a.pattern, b.pattern) })
	return entries, nil
}

// normalPattern makes "https://index.docker.io/v1/" docker.io.
func normalPattern(key string) string {
	key = strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	key = strings.TrimSuffix(key, "/")
	for _, version := range []string{"/v1", "/v2"} {
		key = strings.TrimSuffix(key, version)
	}
	host, rest, found := strings.Cut(key, "/")
	host = hostKey(host)
	if found {
		return host + "/" + rest
	}
	return host
}

// match are the credentials for a repository of a host, the most exact first.
func (c Credentials) match(host, repository string) []authn.AuthConfig {
	var out []authn.AuthConfig
	for _, entry := range c {
		if len(out) < maxCredentialUses && entry.fits(hostKey(host), repository) && !slices.Contains(out, entry.auth) {
			out = append(out, entry.auth)
		}
	}
	return out
}

// fits compares as the kubelet does: the host part by part, with globs, the port
// exactly, the path by its beginning.
func (c credential) fits(host, repository string) bool {
	pattern, prefix, _ := strings.Cut(c.pattern, "/")
	if prefix != "" && repository != prefix && !strings.HasPrefix(repository, prefix+"/") {
		return false
	}
	wantName, wantPort, _ := strings.Cut(pattern, ":")
	name, port, _ := strings.Cut(host, ":")
	if port != wantPort {
		return false
	}
	want, have := strings.Split(wantName, "."), strings.Split(name, ".")
	if len(want) != len(have) {
		return false
	}
	for i := range want {
		if ok, err := path.Match(want[i], have[i]); err != nil || !ok {
			return false
		}
	}
	return true
}

// Material stands for a credential of a pull secret without telling it.
type Material [sha256.Size]byte

func materialOf(auth authn.AuthConfig) Material {
	h := sha256.New()
	for _, part := range []string{auth.Username, auth.Password, auth.Auth, auth.IdentityToken, auth.RegistryToken} {
		_, _ = fmt.Fprintf(h, "%d:%s\n", len(part), part)
	}
	return Material(h.Sum(nil))
}

// Secrets are the credentials of pull secrets that the session may use.
func (s *Session) Secrets() []Material {
	var all []Material
	for _, e := range s.endpoints {
		all = append(all, e.secrets...)
	}
	return all
}

// Used is, after Resolve, the pull secret's credential with which the image was
// found. everyone: it was none, but the node's own user, or nobody.
func (s *Session) Used() (used Material, everyone bool) {
	s.mu.Lock()
	e := s.endpoints[s.first]
	s.mu.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.auth >= len(e.secrets) {
		return Material{}, true
	}
	return e.secrets[e.auth], false
}
