package load

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// echoes is a service whose every failAt-th answer fails, and whose datagrams are
// lost once in loseAt.
func echoes(t *testing.T, failAt, loseAt int64) FlowOptions {
	t.Helper()
	var requests, datagrams atomic.Int64
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set(PodHeader, "p1")
		if n := requests.Add(1); failAt > 0 && n%failAt == 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(web.Close)
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		buffer := make([]byte, maxDatagram)
		for {
			n, from, err := conn.ReadFrom(buffer)
			if err != nil {
				return
			}
			if k := datagrams.Add(1); loseAt > 0 && k%loseAt == 0 {
				continue
			}
			_, _ = conn.WriteTo([]byte(string(buffer[:n])+" p1"), from) // a lost answer is what it is about
		}
	}()
	return FlowOptions{URL: web.URL, Fresh: 2, Kept: 2, UDP: conn.LocalAddr().String(), UDPClients: 2, Interval: time.Millisecond}
}

func flowsFor(t *testing.T, o FlowOptions, enough func(r *FlowReport) bool) FlowReport {
	t.Helper()
	for patience := 200 * time.Millisecond; patience < 20*time.Second; patience *= 2 {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		r := Flows(ctx, o)
		cancel()
		if enough(&r) {
			return r
		}
	}
	t.Fatal("too little came of it")
	return FlowReport{}
}

func TestFlows(t *testing.T) {
	r := flowsFor(t, echoes(t, 0, 0), func(r *FlowReport) bool { return min(r.Fresh.Requests, r.Kept.Requests, r.UDP.Requests) > 20 })
	for kind, k := range map[string]FlowKind{"fresh": r.Fresh, "kept": r.Kept, "udp": r.UDP} {
		if k.Failed != 0 || k.Answered["p1"] != k.Requests {
			t.Errorf("%s: %+v", kind, k)
		}
	}
	if r.Fresh.Connections != r.Fresh.Requests || r.Kept.Connections != 2 || r.UDP.Connections != 2 {
		t.Errorf("connections: fresh %d of %d, kept %d, udp %d", r.Fresh.Connections, r.Fresh.Requests, r.Kept.Connections, r.UDP.Connections)
	}
}

// TestFlowsTellFailures: the report must be able to say that something failed.
func TestFlowsTellFailures(t *testing.T) {
	r := flowsFor(t, echoes(t, 5, 3), func(r *FlowReport) bool { return r.Fresh.Failed > 0 && r.Kept.Failed > 0 && r.UDP.Resent > 0 })
	if len(r.Fresh.Errors) == 0 || !strings.Contains(r.Fresh.Errors[0], "503") {
		t.Errorf("errors %q", r.Fresh.Errors)
	}
	if r.UDP.Failed != 0 {
		t.Errorf("a datagram lost now and then is sent again: %+v", r.UDP)
	}
	all := echoes(t, 0, 1)
	all.Fresh, all.Kept, all.UDPClients = 0, 0, 1
	if r := flowsFor(t, all, func(r *FlowReport) bool { return r.UDP.Requests > 0 }); r.UDP.Failed != r.UDP.Requests || r.UDP.Resent != r.UDP.Requests*(udpTries-1) {
		t.Errorf("every datagram was lost: %+v", r.UDP)
	}
}
