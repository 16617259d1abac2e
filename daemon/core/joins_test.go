package core

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// pipes is a listener of connections inside the process.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case conn := <-p.conns:
		return conn, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { close(p.closed); return nil }
func (p *pipes) Addr() net.Addr { return address("pipe") }

// strangers are who want to join.
type strangers struct {
	t       *testing.T
	pipes   *pipes
	joins   *joins
	refused atomic.Int32
	hold    chan struct{} // ends the calls to /held
}

// besieged serves strangers on virtual time.
func besieged(t *testing.T, f func(t *testing.T, s *strangers)) {
	synctest.Test(t, func(t *testing.T) {
		s := &strangers{t: t, pipes: &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}, hold: make(chan struct{})}
		s.joins = newJoins(slog.New(slog.DiscardHandler), func() { s.refused.Add(1) })
		server := s.joins.server(t.Context(), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/held" {
				<-s.hold
			}
			_, _ = io.WriteString(w, "welcome")
		}))
		served := make(chan struct{})
		go func() {
			defer close(served)
			_ = server.Serve(s.joins.listener(s.pipes))
		}()
		f(t, s)
		close(s.hold)
		_ = server.Close()
		<-served
	})
}

// stranger is one, with a connection of his own.
type stranger struct {
	*strangers
	http  *http.Client
	dials atomic.Int32
}

func (s *strangers) stranger() *stranger {
	one := &stranger{strangers: s}
	transport := &http.Transport{Protocols: new(http.Protocols), DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		one.dials.Add(1)
		near, far := net.Pipe()
		select {
		case s.pipes.conns <- far:
			return near, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}}
	transport.Protocols.SetUnencryptedHTTP2(true)
	s.t.Cleanup(transport.CloseIdleConnections)
	one.http = &http.Client{Transport: transport}
	return one
}

func (s *stranger) call(path string) (status int, body string, err error) {
	request, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, "http://server"+path, strings.NewReader("{}"))
	if err != nil {
		return 0, "", err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := s.http.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return response.StatusCode, string(text), err
}

func (s *strangers) places() (served, refusing int) {
	synctest.Wait()
	s.joins.mu.Lock()
	defer s.joins.mu.Unlock()
	return len(s.joins.served), len(s.joins.refusing)
}

// TestIdleStrangersMakeRoom: who holds a connection and does nothing keeps nobody
// out, and there are never more than may be.
func TestIdleStrangersMakeRoom(t *testing.T) {
	besieged(t, func(t *testing.T, s *strangers) {
		var all []*stranger
		for range 2 * maxJoinConns {
			one := s.stranger()
			all = append(all, one)
			if status, body, err := one.call("/"); err != nil || status != http.StatusOK || body != "welcome" {
				t.Fatalf("stranger %d: %d %q %v", len(all), status, body, err)
			}
			synctest.Wait() // until the server knows that the connection is idle
		}
		if served, refusing := s.places(); served != maxJoinConns || refusing != 0 || s.refused.Load() != 0 {
			t.Errorf("%d are served, %d are being refused, %d were", served, refusing, s.refused.Load())
		}
		// The youngest kept their connections, the oldest made room.
		for i, want := range map[int]int32{len(all) - 1: 1, maxJoinConns + 1: 1, 0: 2} {
			if _, _, err := all[i].call("/"); err != nil || all[i].dials.Load() != want {
				t.Errorf("stranger %d has dialed %d times, want %d (%v)", i, all[i].dials.Load(), want, err)
			}
		}
	})
}

// TestBusyStrangers: when every place is in use, newcomers are told so, and
// beyond a number hung up on; when the others are done there is room again.
func TestBusyStrangers(t *testing.T) {
	besieged(t, func(t *testing.T, s *strangers) {
		held := make(chan error)
		for range maxJoinConns {
			one := s.stranger()
			go func() {
				_, _, err := one.call("/held")
				held <- err
			}()
		}
		if served, _ := s.places(); served != maxJoinConns {
			t.Fatalf("%d are served", served)
		}
		late := s.stranger()
		status, body, err := late.call("/")
		if err != nil || status != http.StatusTooManyRequests || !strings.Contains(body, "64 others who want to join are being served") || !strings.Contains(body, "balsa.v1.ErrorDetail") {
			t.Errorf("the one too many: %d %q %v", status, body, err)
		}
		if served, refusing := s.places(); served != maxJoinConns || refusing != 0 || s.refused.Load() != 1 {
			t.Errorf("%d are served, %d are being refused, %d were", served, refusing, s.refused.Load())
		}
		// Those who do not even listen are hung up on.
		for range maxJoinRefusals {
			_, far := net.Pipe()
			s.pipes.conns <- far
		}
		near, far := net.Pipe()
		s.pipes.conns <- far
		if _, err := near.Read(make([]byte, 1)); err == nil {
			t.Error("a connection beyond both limits was taken")
		}
		for range maxJoinConns {
			s.hold <- struct{}{}
		}
		for range maxJoinConns {
			if err := <-held; err != nil {
				t.Error(err)
			}
		}
		if status, _, err := late.call("/"); err != nil || status != http.StatusOK {
			t.Errorf("afterwards: %d, %v", status, err)
		}
	})
}
