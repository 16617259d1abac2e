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
func FromFile(path string) (*Client, error) {
	config, err := pki.ReadConfigFile(path)
	if err != nil {
		return nil, err
	}
	credential, err := config.Credential()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return FromCredentials(pki.NewCredentials(credential), config.Servers, nil)
}

// FromCredentials makes a Client for an identity whose certificate may be
// renewed while the Client is in use. A nil logger logs nothing.
func FromCredentials(credentials *pki.Credentials, servers []string, logger *slog.Logger) (*Client, error) {
	dialer := &net.Dialer{Timeout: dialTimeout}
	return New(Config{Servers: servers, Logger: logger, Dial: func(ctx context.Context, address string) (net.Conn, error) {
		return pki.Dial(ctx, dialer, address, pki.ClientTLS(credentials, clock.Real{}))
	}})
}
