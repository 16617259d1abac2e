package client

import (
	"context"
	"fmt"
	"log/slog"
	"net"

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
	return New(cfg)
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
