package client

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/gen/balsa/v1/balsav1connect"
	"github.com/balsa-run/balsa/internal/announce"
	"github.com/balsa-run/balsa/object"
)

// world is a few servers with one state, on virtual time, reached through HTTP/2
// over in-memory pipes. Every server can be made to fail in the ways that real
// ones do.
type world struct {
	t       *testing.T
	state   *state
	servers map[string]*fakeServer
	names   []string
	client  *Client

	mu     sync.Mutex
	told   announce.Announcement // guarded by mu; by every server
	dialed []string              // guarded by mu; addresses, in order
}

// tell has every server announce a leader and servers from now on.
func (w *world) tell(leader string, servers ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.told = announce.Announcement{Leader: leader, Servers: servers}
}

func (w *world) telling(next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		w.told.Put(rw.Header())
		w.mu.Unlock()
		next.ServeHTTP(rw, r)
	})
}

// dials tells whether an address was ever dialed.
func (w *world) dials(address string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Contains(w.dialed, address)
}

// in gives f a world of servers a:1, b:1, c:1 inside a bubble of virtual time.
func in(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, state: &state{changed: make(chan struct{})}, servers: map[string]*fakeServer{}}
		for _, name := range []string{"a:1", "b:1", "c:1"} {
			w.names = append(w.names, name)
			w.servers[name] = w.serve()
		}
		c, err := New(Config{Servers: w.names, Dial: w.dial, Plain: true})
		must(t, err)
		w.client = c
		f(t, w)
		c.Close()
		for _, name := range w.names {
			w.servers[name].http.Close()
		}
	})
}

func (w *world) dial(ctx context.Context, address string) (net.Conn, error) {
	w.mu.Lock()
	w.dialed = append(w.dialed, address)
	w.mu.Unlock()
	s, known := w.servers[address]
	if !known {
		return nil, &net.OpError{Op: "dial", Err: fmt.Errorf("no such host")}
	}
	switch s.mode() {
	case down:
		return nil, &net.OpError{Op: "dial", Err: fmt.Errorf("connection refused")}
	case silent:
		<-ctx.Done()
		return nil, &net.OpError{Op: "dial", Err: ctx.Err()}
	}
	near, far := net.Pipe()
	select {
	case s.conns <- far:
		return near, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (w *world) serve() *fakeServer {
	s := &fakeServer{state: w.state, conns: make(chan net.Conn), closed: make(chan struct{})}
	mux := http.NewServeMux()
	mux.Handle(balsav1connect.NewObjectServiceHandler(s))
	mux.Handle(balsav1connect.NewPodServiceHandler(&fakePods{fakeServer: s}))
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	s.http = &http.Server{Handler: w.telling(mux), Protocols: protocols, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)}
	go func() { _ = s.http.Serve(s) }()
	return s
}

// How a server fails.
type mode int

const (
	well     mode = iota
	down          // refuses connections
	silent        // answers no connection
	leadless      // says that it has no leader
	vague         // says that it does not know what became of the request
	mute          // does what it is asked and breaks the connection
	refusing      // says that the object is invalid
	breaking      // ends a watch after some messages: see fakeServer.messages
)

// fakeServer serves the state, or fails.
type fakeServer struct {
	balsav1connect.UnimplementedObjectServiceHandler
	state  *state
	http   *http.Server
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once

	mu       sync.Mutex
	how      mode // guarded by mu
	messages int  // guarded by mu; of a watch, before it breaks
	calls    int  // guarded by mu; that arrived
}

func (s *fakeServer) Accept() (net.Conn, error) {
	select {
	case conn := <-s.conns:
		return conn, nil
	case <-s.closed:
		return nil, net.ErrClosed
	}
}

func (s *fakeServer) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

func (s *fakeServer) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

func (s *fakeServer) mode() mode {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.how
}

func (s *fakeServer) fail(how mode) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.how = how
}

func (s *fakeServer) breakAfter(messages int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.how, s.messages = breaking, messages
}

func (s *fakeServer) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls
}

// before counts a call and fails it where it shall fail before it is done.
func (s *fakeServer) before() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	switch s.how {
	case leadless:
		return serverSays(connect.CodeUnavailable, "NoLeader", balsav1.ErrorDetail_APPLIED_NOT_APPLIED)
	case vague:
		return serverSays(connect.CodeUnavailable, "LeadershipLost", balsav1.ErrorDetail_APPLIED_UNKNOWN)
	case refusing:
		return serverSays(connect.CodeInvalidArgument, "Invalid", balsav1.ErrorDetail_APPLIED_NOT_APPLIED)
	}
	return nil
}

// after breaks the connection where the answer shall be lost.
func (s *fakeServer) after() {
	if s.mode() == mute {
		panic(http.ErrAbortHandler)
	}
}

func serverSays(code connect.Code, reason string, applied balsav1.ErrorDetail_Applied) error {
	err := connect.NewError(code, fmt.Errorf("the server says %s", reason))
	detail, detailErr := connect.NewErrorDetail(&balsav1.ErrorDetail{Reason: reason, Applied: applied})
	if detailErr != nil {
		return detailErr
	}
	err.AddDetail(detail)
	return err
}

// state is ConfigMaps with their history: revisions, each of some changes.
type state struct {
	mu      sync.Mutex
	live    []*balsav1.ConfigMap // guarded by mu; sorted by name
	history [][]past             // guarded by mu; revision r is history[r-1]
	oldest  int                  // guarded by mu; revisions up to it are forgotten
	changed chan struct{}        // guarded by mu; closed by the next revision
	writes  int                  // guarded by mu
	printed []*balsav1.LogLine   // guarded by mu
	ended   bool                 // guarded by mu; the container
}

type past struct {
	kind   string
	object *balsav1.ConfigMap
}

// write makes one revision: "+name" adds, "~name" modifies, "-name" deletes.
func (s *state) write(changes ...string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes++
	revision := len(s.history) + 1
	var batch []past
	for _, change := range changes {
		name := change[1:]
		at := slices.IndexFunc(s.live, func(c *balsav1.ConfigMap) bool { return c.GetMetadata().GetName() == name })
		next := &balsav1.ConfigMap{Metadata: &balsav1.ObjectMeta{Namespace: "default", Name: name, ResourceVersion: strconv.Itoa(revision)}}
		switch change[0] {
		case '+':
			s.live = append(s.live, next)
			batch = append(batch, past{"ADDED", next})
		case '~':
			s.live[at] = next
			batch = append(batch, past{"MODIFIED", next})
		case '-':
			batch = append(batch, past{"DELETED", s.live[at]})
			s.live = slices.Delete(s.live, at, at+1)
		}
	}
	s.history = append(s.history, batch)
	close(s.changed)
	s.changed = make(chan struct{})
	return revision
}

func (s *state) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.writes
}

func (s *state) forget(upTo int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.oldest = upTo
}

func (s *state) now() (live []*balsav1.ConfigMap, revision int, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.live), len(s.history), s.changed
}

func (s *state) batch(revision int) []past {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.history[revision-1]
}

func (s *fakeServer) Get(_ context.Context, request *balsav1.GetRequest) (*balsav1.GetResponse, error) {
	if err := s.before(); err != nil {
		return nil, err
	}
	s.after()
	live, _, _ := s.state.now()
	for _, c := range live {
		if c.GetMetadata().GetName() == request.GetName() {
			return &balsav1.GetResponse{Object: object.Wrap(c)}, nil
		}
	}
	return nil, serverSays(connect.CodeNotFound, "NotFound", 0)
}

func (s *fakeServer) List(_ context.Context, request *balsav1.ListRequest) (*balsav1.ListResponse, error) {
	if err := s.before(); err != nil {
		return nil, err
	}
	live, revision, _ := s.state.now()
	from, _ := strconv.Atoi(request.GetContinue())
	to := min(from+int(request.GetLimit()), len(live))
	response := &balsav1.ListResponse{Metadata: &balsav1.ListMeta{ResourceVersion: strconv.Itoa(revision)}}
	for _, c := range live[from:to] {
		response.Items = append(response.Items, object.Wrap(c))
	}
	if to < len(live) {
		response.Metadata.Continue = strconv.Itoa(to)
	}
	return response, nil
}

func (s *fakeServer) Create(_ context.Context, request *balsav1.CreateRequest) (*balsav1.CreateResponse, error) {
	if err := s.before(); err != nil {
		return nil, err
	}
	s.state.write("+" + request.GetObject().GetConfigMap().GetMetadata().GetName())
	s.after()
	return &balsav1.CreateResponse{Object: request.GetObject()}, nil
}

func (s *fakeServer) Apply(_ context.Context, request *balsav1.ApplyRequest) (*balsav1.ApplyResponse, error) {
	if err := s.before(); err != nil {
		return nil, err
	}
	s.state.write("+" + request.GetObject().GetConfigMap().GetMetadata().GetName())
	s.after()
	return &balsav1.ApplyResponse{Object: request.GetObject(), Result: "created"}, nil
}

func (s *fakeServer) Delete(_ context.Context, request *balsav1.DeleteRequest) (*balsav1.DeleteResponse, error) {
	if err := s.before(); err != nil {
		return nil, err
	}
	s.after()
	return &balsav1.DeleteResponse{Deleted: true}, nil
}

// Watch keeps the promises of the proto: every change once and in order, with
// the revision at its last event.
func (s *fakeServer) Watch(ctx context.Context, request *balsav1.WatchRequest, stream *connect.ServerStream[balsav1.WatchResponse]) error {
	if err := s.before(); err != nil {
		return err
	}
	s.mu.Lock()
	left, bounded := s.messages, s.how == breaking
	s.mu.Unlock()
	send := func(response *balsav1.WatchResponse) error {
		if bounded && left == 0 {
			panic(http.ErrAbortHandler)
		}
		left--
		return stream.Send(response)
	}
	at, err := s.state.begin(request.GetResourceVersion(), send)
	if err != nil {
		return err
	}
	for {
		_, newest, changed := s.state.now()
		for ; at < newest; at++ {
			if err := sendBatch(s.state.batch(at+1), at, send); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *state) begin(from string, send func(*balsav1.WatchResponse) error) (at int, err error) {
	if from != "" {
		at, err = strconv.Atoi(from)
		if err == nil && at < s.oldest {
			err = serverSays(connect.CodeOutOfRange, "Compacted", 0)
		}
		return at, err
	}
	live, at, _ := s.now()
	for _, c := range live {
		if err := send(&balsav1.WatchResponse{Type: "ADDED", Object: object.Wrap(c)}); err != nil {
			return 0, err
		}
	}
	return at, send(&balsav1.WatchResponse{Type: "BOOKMARK", ResourceVersion: strconv.Itoa(at), InitialEventsEnd: true})
}

func sendBatch(batch []past, before int, send func(*balsav1.WatchResponse) error) error {
	for i, event := range batch {
		version := before
		if i == len(batch)-1 {
			version++
		}
		err := send(&balsav1.WatchResponse{Type: event.kind, Object: object.Wrap(event.object), ResourceVersion: strconv.Itoa(version)})
		if err != nil {
			return err
		}
	}
	return nil
}

func configMap(name string) *balsav1.ConfigMap {
	return &balsav1.ConfigMap{ApiVersion: "v1", Kind: "ConfigMap", Metadata: &balsav1.ObjectMeta{Namespace: "default", Name: name}}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// took is the virtual time that f needs.
func took(f func()) time.Duration {
	began := time.Now()
	f()
	return time.Since(began)
}
