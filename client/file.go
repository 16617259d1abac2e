package client

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"

	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/pki"
)

// FromFile makes a Client from the file that `balsa server --init`, `balsa dev`
// and `balsa user create` write: servers, authority, certificate and key.
//
// options change what the file does not say, for example Config.RetryFor.
func FromFile(path string, options ...func(*Config)) (*Client, error) {
	config, err := pki.ReadConfigFile(path)
	if err != nil {
		return nil, err
	}
	credential, err := config.Credential()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	cfg := Config{Servers: config.Servers, Dial: dialerOf(pki.NewCredentials(credential))}
	for _, option := range options {
		option(&cfg)
	}
	c, err := New(cfg)
	if err != nil {
		return nil, err
	}
	c.file, c.fileCluster = path, config.ClusterID
	return c, nil
}

// SaveServers puts the servers that were told of into the file that FromFile has
// read, the one in use first, so that the next program finds a server when the
// first is down. Nothing else in the file changes, and the file as a whole does
// not where it knows them already; it is replaced in one step. A Client that is
// not from a file, is Pinned, or was told nothing and met no failure has nothing to
// save. Servers that failed, and have served nothing since, come last.
func (c *Client) SaveServers() error {
	servers := c.servers.lasting()
	if c.file == "" || len(servers) == 0 {
		return nil
	}
	config, err := pki.ReadConfigFile(c.file) // anew: somebody may have put another identity there
	if err != nil {
		return err
	}
	if config.ClusterID != c.fileCluster {
		return fmt.Errorf("%s has become the configuration of cluster %s: the addresses of cluster %s are not kept", c.file, config.ClusterID, c.fileCluster)
	}
	servers = servers[:min(len(servers), pki.MaxConfigServers)]
	if config.Servers[0] == servers[0] && !slices.ContainsFunc(servers, func(s string) bool { return !slices.Contains(config.Servers, s) }) {
		return nil
	}
	config.Servers = servers
	if err := pki.WriteConfigFile(c.file, config); err != nil {
		return fmt.Errorf("keep the servers' addresses: %w", err)
	}
	return nil
}

// FromCredentials makes a Client for an identity whose certificate may be
// renewed while the Client is in use. A nil logger logs nothing.
func FromCredentials(credentials *pki.Credentials, servers []string, logger *slog.Logger) (*Client, error) {
	return New(Config{Servers: servers, Logger: logger, Dial: dialerOf(credentials)})
}

func dialerOf(credentials *pki.Credentials) Dialer {
	dialer := &net.Dialer{Timeout: dialTimeout}
	return func(ctx context.Context, address string) (net.Conn, error) {
		return pki.Dial(ctx, dialer, address, pki.ClientTLS(credentials, clock.Real{}))
	}
}
