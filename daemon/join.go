package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"connectrpc.com/connect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/gen/balsa/v1/balsav1connect"

	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/internal/version"
	"github.com/balsa-run/balsa/pki"
)

const joinRetry = 500 * time.Millisecond

// joinClient calls JoinService on one server over one connection of ALPN
// balsa-join/1: a renewal's two calls must reach the same process. It dials when
// first used. Close it.
func joinClient(address string, config *tls.Config) (balsav1connect.JoinServiceClient, func()) {
	transport := &http.Transport{Protocols: new(http.Protocols)}
	// The TLS below is dialled by us, so to the HTTP client this is HTTP/2 on a
	// connection without any.
	transport.Protocols.SetUnencryptedHTTP2(true)
	transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return pki.Dial(ctx, &net.Dialer{Timeout: dialTimeout}, address, config)
	}
	client := balsav1connect.NewJoinServiceClient(&http.Client{Transport: transport}, "http://"+address, connect.WithGRPC())
	return client, transport.CloseIdleConnections
}

// joiner asks servers to be let in.
type joiner struct {
	role    pki.Role
	name    string
	token   string
	servers []string
	dir     pki.Dir
	// Servers only.
	sans      pki.SANs
	addresses []string
	advertise string
	memberID  string
}

// joined is what a join brings.
type joined struct {
	credential *pki.Credential
	bundle     *pki.Bundle // servers only
	response   *balsav1.JoinResponse
}

// join trades the token for an identity. It tries every server, again and again
// while none can be reached or leads; a refusal is final.
func (j *joiner) join(ctx context.Context) (*joined, error) {
	if len(j.servers) == 0 || j.token == "" {
		return nil, fmt.Errorf("this %s is part of no cluster yet: give --join ADDRESS and --token TOKEN (balsa token create --role %s), or --init for a new cluster", j.role, j.role)
	}
	token, err := pki.ParseToken(j.token)
	if err != nil {
		return nil, fmt.Errorf("--token: %w", err)
	}
	key, err := pki.JoinKey(j.dir, j.role)
	if err != nil {
		return nil, err
	}
	side, err := pki.NewJoiner(token, j.role, j.name, j.sans, key)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		var failed []error
		for _, server := range j.servers {
			result, err := j.ask(ctx, server, token, side)
			if err == nil || final(err) {
				return result, err
			}
			failed = append(failed, err)
		}
		if err := sleep(ctx, joinRetry); err != nil {
			return nil, fmt.Errorf("join the cluster: no server let this %s in within %v: %w", j.role, startTimeout, errors.Join(failed...))
		}
	}
}

func (j *joiner) ask(ctx context.Context, server string, token pki.Token, side *pki.Joiner) (*joined, error) {
	request, err := side.Request()
	if err != nil {
		return nil, err
	}
	client, done := joinClient(server, pki.JoinClientTLS(token, clock.Real{}))
	defer done()
	response, err := client.Join(ctx, &balsav1.JoinRequest{
		Token: token.Reveal(), Role: string(request.Role), Name: request.Name, Csr: request.CSR,
		Addresses: j.addresses, AdvertiseAddress: j.advertise, MemberId: j.memberID, Version: version.Version(),
	})
	if err != nil {
		return nil, fmt.Errorf("join by way of %s: %w", server, err)
	}
	credential, bundle, err := side.Accept(pki.JoinReply{
		CertPEM: response.GetCertificate(), CAPEM: response.GetCa(), Bundle: response.GetServerBundle(),
	})
	if err != nil {
		return nil, fmt.Errorf("join by way of %s: %w", server, err)
	}
	return &joined{credential: credential, bundle: bundle, response: response}, nil
}

// final tells whether asking again cannot help: the cluster said no, or is not
// the one that the token is for.
func final(err error) bool {
	switch connect.CodeOf(err) {
	case connect.CodeUnavailable, connect.CodeDeadlineExceeded, connect.CodeResourceExhausted:
		return errors.Is(err, pki.ErrWrongCA)
	}
	return true
}

// renewer is pki.RenewClient over the join protocol, at any server that answers
// and was not removed.
type renewer struct {
	trust   *pki.Trust
	guard   *pki.Guard
	servers func() []string

	client balsav1connect.JoinServiceClient // since Nonce, for Renew
	done   func()
}

func (r *renewer) Nonce(ctx context.Context) ([]byte, error) {
	var failed []error
	for _, server := range r.servers() {
		client, done := joinClient(server, pki.RenewClientTLS(r.trust, r.guard, clock.Real{}))
		response, err := client.RenewNonce(ctx, &balsav1.RenewNonceRequest{})
		if err != nil {
			done()
			failed = append(failed, fmt.Errorf("by way of %s: %w", server, err))
			continue
		}
		r.client, r.done = client, done
		return response.GetNonce(), nil
	}
	return nil, fmt.Errorf("renew the certificate: %w", errors.Join(failed...))
}

func (r *renewer) Renew(ctx context.Context, request pki.RenewRequest) ([]byte, error) {
	defer r.done()
	response, err := r.client.Renew(ctx, &balsav1.RenewRequest{
		Certificate: request.Cert, Csr: request.CSR, Nonce: request.Nonce, Signature: request.Signature,
	})
	if err != nil {
		return nil, fmt.Errorf("renew the certificate: %w", err)
	}
	return response.GetCertificate(), nil
}

// sleep waits, or returns why ctx ended first.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
