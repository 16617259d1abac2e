package registry

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Limits of the configuration file.
const (
	maxConfigBytes   = 1 << 20
	maxPasswordBytes = 64 << 10
	maxCABytes       = 1 << 20
	maxMirrors       = 16
)

// anyHost is the entry for hosts that have none of their own.
const anyHost = "*"

// dockerHub is what people call the registry whose API is at dockerHubAPI.
const (
	dockerHub    = "docker.io"
	dockerHubAPI = "index.docker.io"
)

// Config says how a node talks to registries. The zero value talks to each by
// HTTPS, with the machine's certificate authorities and no credentials:
//
//	registries:
//	  docker.io:
//	    mirrors: [mirror.example:5000, cache.example/hub]   # asked in order, before docker.io itself
//	  mirror.example:5000:
//	    http: true                                          # plain HTTP
//	  registry.example:
//	    caFile: /etc/balsa/registry-ca.pem                  # besides the machine's authorities
//	    username: node
//	    passwordFile: /etc/balsa/registry-password
//	  "*":
//	    blocked: true                                       # hosts that are not listed
type Config struct {
	hosts map[string]Host
}

// Host is what the configuration says of one registry, by host and port.
type Host struct {
	// Mirrors are hosts, each with a path prefix if need be, that are asked first.
	Mirrors []string `yaml:"mirrors"`
	// HTTP talks without TLS.
	HTTP bool `yaml:"http"`
	// CAFile has certificate authorities, PEM, to trust besides the machine's.
	CAFile string `yaml:"caFile"`
	// Username and PasswordFile are used where no pull secret fits.
	Username     string `yaml:"username"`
	PasswordFile string `yaml:"passwordFile"`
	// Blocked refuses the registry; its mirrors may still serve.
	Blocked bool `yaml:"blocked"`
}

// LoadConfig reads a configuration file. An empty path is the zero Config.
func LoadConfig(path string) (Config, error) {
	if path == "" {
		return Config{}, nil
	}
	content, err := readSmall(path, maxConfigBytes)
	if err != nil {
		return Config{}, fmt.Errorf("registry configuration: %w", err)
	}
	config, err := ParseConfig(content)
	if err != nil {
		return Config{}, fmt.Errorf("registry configuration %s: %w", path, err)
	}
	return config, nil
}

// ParseConfig reads a configuration and the files that it names, so that what is
// wrong shows when the agent starts and not at the first pull.
func ParseConfig(content []byte) (Config, error) {
	var file struct {
		Registries map[string]Host `yaml:"registries"`
	}
	decoder := yaml.NewDecoder(bytes.NewReader(content))
	decoder.KnownFields(true)
	if err := decoder.Decode(&file); err != nil && !errors.Is(err, io.EOF) {
		return Config{}, err
	}
	config := Config{hosts: map[string]Host{}}
	for name, host := range file.Registries {
		if err := host.check(name); err != nil {
			return Config{}, fmt.Errorf("registries[%q]: %w", name, err)
		}
		config.hosts[hostKey(name)] = host
	}
	return config, nil
}

func (h Host) check(name string) error {
	if name != anyHost && !isHost(name) {
		return errors.New("want a host, with a port if it is not the usual one, or \"*\"")
	}
	if len(h.Mirrors) > maxMirrors {
		return fmt.Errorf("mirrors: found %d, at most %d are allowed", len(h.Mirrors), maxMirrors)
	}
	for i, mirror := range h.Mirrors {
		host, _, _ := strings.Cut(mirror, "/")
		if !isHost(host) {
			return fmt.Errorf("mirrors[%d]: found %q, want a host or host/prefix, without a scheme", i, mirror)
		}
	}
	if (h.Username == "") != (h.PasswordFile == "") {
		return errors.New("username and passwordFile come together")
	}
	if _, err := h.authorities(); err != nil {
		return err
	}
	_, err := h.password()
	return err
}

// isHost is about what can be a host at all; names are not looked up.
func isHost(s string) bool {
	if host, port, err := net.SplitHostPort(s); err == nil {
		return host != "" && port != "" && !strings.ContainsAny(s, "/@? ")
	}
	return s != "" && !strings.ContainsAny(s, "/@?: ")
}

// of is what the file says of a host, and whether it names it.
func (c Config) of(host string) (Host, bool) {
	if h, ok := c.hosts[hostKey(host)]; ok {
		return h, true
	}
	return c.hosts[anyHost], false
}

// hostKey gives Docker's registry the one name that people use.
func hostKey(host string) string {
	switch host {
	case dockerHubAPI, "registry-1.docker.io", "registry.hub.docker.com":
		return dockerHub
	}
	return strings.ToLower(host)
}

// authorities are the machine's and the file's; nil stands for the machine's.
func (h Host) authorities() (*x509.CertPool, error) {
	if h.CAFile == "" {
		return nil, nil
	}
	content, err := readSmall(h.CAFile, maxCABytes)
	if err != nil {
		return nil, fmt.Errorf("caFile: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(content) {
		return nil, fmt.Errorf("caFile: %s has no certificate in PEM", h.CAFile)
	}
	return pool, nil
}

// password is read each time: whoever changes the file need not restart the agent.
func (h Host) password() (string, error) {
	if h.PasswordFile == "" {
		return "", nil
	}
	content, err := readSmall(h.PasswordFile, maxPasswordBytes)
	if err != nil {
		return "", fmt.Errorf("passwordFile: %w", err)
	}
	return strings.TrimRight(string(content), "\r\n"), nil
}

func readSmall(path string, limit int64) ([]byte, error) {
	file, err := os.Open(filepath.Clean(path))
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	content, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(content)) > limit {
		return nil, fmt.Errorf("%s has more than %d bytes", path, limit)
	}
	return content, nil
}
