package client

import (
	"io"
	"net/http"
)

// Transport carries whole HTTP requests to the API with the client's identity, for
// programs that hand on what others ask (balsa proxy). Host and scheme of a request
// do not matter. It goes to the next server as long as the request was sent to none;
// nothing else is repeated.
func (c *Client) Transport() http.RoundTripper { return &carrier{c} }

type carrier struct{ *Client }

// RoundTrip implements http.RoundTripper.
func (c *carrier) RoundTrip(request *http.Request) (*http.Response, error) {
	body := request.Body
	if body != nil {
		defer func() {
			_ = body.Close()
		}()
	}
	for tried := 1; ; tried++ {
		ctx, made := withAttempt(request.Context(), false)
		next := request.Clone(ctx)
		next.URL.Scheme, next.URL.Host = "http", anyServer
		if body != nil {
			next.Body = io.NopCloser(body) // an attempt that was never sent closes it all the same
		}
		response, err := (&balancer{servers: c.servers, next: c.transport}).RoundTrip(next)
		if err == nil {
			c.servers.served(made.address)
			return response, nil
		}
		if !neverSent(err) || tried >= c.servers.size() || request.Context().Err() != nil {
			return nil, err
		}
	}
}
