package core

import (
	"context"
	"net/http"

	"connectrpc.com/connect"
)

// askerHeader names the member that makes a call to PeerService. Its certificate
// names the server; a server whose disk was lost is another member.
const askerHeader = "Balsa-Member"

// asking names this member in each of its calls.
type asking struct {
	http.RoundTripper
	id string
}

func (a asking) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set(askerHeader, a.id)
	return a.RoundTripper.RoundTrip(r)
}

// askerOf is who makes the call; "" if it does not say, as an earlier version.
func askerOf(ctx context.Context) string {
	info, ok := connect.CallInfoForHandlerContext(ctx)
	if !ok {
		return ""
	}
	return info.RequestHeader().Get(askerHeader)
}
