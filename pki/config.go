package pki

import (
	"bytes"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Limits of a client configuration.
const (
	MaxConfigBytes   = 64 << 10
	MaxConfigServers = 16
)

// Config is the content of admin.yaml: all that a user needs to reach a
// cluster. It holds a private key, so its file is 0600.
type Config struct {
	ClusterID string   `yaml:"clusterID"`
	Servers   []string `yaml:"servers"` // host:port, tried in turn
	CA        string   `yaml:"ca"`      // PEM
	Cert      string   `yaml:"cert"`    // PEM
	Key       string   `yaml:"key"`     // PEM, PKCS #8
}

// NewConfig describes a credential and where its cluster is.
func NewConfig(c *Credential, servers []string) (*Config, error) {
	key, err := c.KeyPEM()
	if err != nil {
		return nil, err
	}
	config := &Config{
		ClusterID: c.ClusterID(),
		Servers:   servers,
		CA:        string(c.trust.PEM()),
		Cert:      string(c.CertPEM()),
		Key:       string(key),
	}
	_, err = config.Credential()
	return config, err
}

// Credential checks the whole configuration and returns the identity in it.
func (c *Config) Credential() (*Credential, error) {
	if len(c.Servers) == 0 || len(c.Servers) > MaxConfigServers {
		return nil, refuse(ErrConfig, "client configuration: servers has %d entries; 1 to %d are allowed", len(c.Servers), MaxConfigServers)
	}
	for i, s := range c.Servers {
		if err := checkServer(s); err != nil {
			return nil, refuse(ErrConfig, "client configuration: servers[%d]: %w", i, err)
		}
	}
	cred, err := NewCredential([]byte(c.CA), []byte(c.Cert), []byte(c.Key))
	if err != nil {
		return nil, refuse(ErrConfig, "client configuration: %w", err)
	}
	if cred.ClusterID() != c.ClusterID {
		return nil, refuse(ErrConfig, "client configuration: clusterID is %q, but ca is that of cluster %s", clip(c.ClusterID), cred.ClusterID())
	}
	return cred, nil
}

func checkServer(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return refuse(ErrConfig, "%q is not host:port", clip(address))
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return refuse(ErrConfig, "%q has port %q; 1 to 65535 are allowed", clip(address), clip(port))
	}
	if net.ParseIP(host) == nil && !validHost(host) {
		return refuse(ErrConfig, "%q has host %q, which is neither an IP address nor a host name", clip(address), clip(host))
	}
	return nil
}

// Marshal is the YAML text.
func (c *Config) Marshal() ([]byte, error) {
	if _, err := c.Credential(); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.WriteString("# Client configuration of a balsa cluster. It holds a private key: keep it to yourself.\n")
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := errors.Join(e.Encode(c), e.Close()); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// ParseConfig reads what Marshal has written, and checks it.
func ParseConfig(text []byte) (*Config, error) {
	if len(text) > MaxConfigBytes {
		return nil, refuse(ErrConfig, "client configuration has %d bytes; at most %d are allowed", len(text), MaxConfigBytes)
	}
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	var c Config
	if err := d.Decode(&c); err != nil {
		return nil, refuse(ErrConfig, "client configuration cannot be read: %s", yamlPlaces(err))
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, refuse(ErrConfig, "client configuration has more than one document")
	}
	if _, err := c.Credential(); err != nil {
		return nil, err
	}
	return &c, nil
}

// yamlPlaces keeps of YAML's errors where and what, without the text of the
// file: that may be a private key.
func yamlPlaces(err error) string {
	var typeErr *yaml.TypeError
	if !errors.As(err, &typeErr) {
		return "it is empty, or not YAML"
	}
	var places []string
	for _, e := range typeErr.Errors {
		line, _, _ := strings.Cut(e, ":")
		places = append(places, line)
	}
	return "a field is unknown, given twice, or of the wrong type at " + strings.Join(places, ", ") + "; allowed are clusterID, servers, ca, cert, key"
}

// ReadConfigFile loads a client configuration and refuses one that others than
// its owner can read.
func ReadConfigFile(path string) (*Config, error) {
	return ReadConfig(OSDir(filepath.Dir(path)), filepath.Base(path))
}

// ReadConfig is ReadConfigFile for a Dir.
func ReadConfig(dir Dir, name string) (*Config, error) {
	text, err := readFile(dir, name, true)
	if err != nil {
		return nil, err
	}
	return ParseConfig(text)
}

// WriteConfigFile saves a client configuration, 0600.
func WriteConfigFile(path string, c *Config) error {
	return WriteConfig(OSDir(filepath.Dir(path)), filepath.Base(path), c)
}

// WriteConfig is WriteConfigFile for a Dir.
func WriteConfig(dir Dir, name string, c *Config) error {
	text, err := c.Marshal()
	if err != nil {
		return err
	}
	return writeAll(dir, []idFile{{name, text, modePrivate}})
}
