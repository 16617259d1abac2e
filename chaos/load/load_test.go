package load

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/gen/balsa/v1/balsav1connect"

	"github.com/balsa-run/balsa/client"
	"github.com/balsa-run/balsa/object"
)

// How long the server takes.
const (
	writeTakes = 10 * time.Millisecond
	bindTakes  = 5 * time.Millisecond  // after the write
	startTakes = 40 * time.Millisecond // after the binding
	endTakes   = 30 * time.Millisecond // after the deletion
)

// server keeps what it is given, and starts pods, on virtual time.
type server struct {
	balsav1connect.UnimplementedObjectServiceHandler
	conns  chan net.Conn
	closed chan struct{}
	events chan *balsav1.WatchResponse
	// refuse says which names are not taken.
	refuse func(name string) bool
	ends   string // the phase in which pods end up; empty: Running

	mu    sync.Mutex
	names []string // guarded by mu; of what was made
	told  int      // guarded by mu; events, each with a version of its own
}

func (s *server) Accept() (net.Conn, error) {
	select {
	case conn := <-s.conns:
		return conn, nil
	case <-s.closed:
		return nil, net.ErrClosed
	}
}

func (s *server) Close() error   { return nil }
func (s *server) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

func (s *server) dial(ctx context.Context, _ string) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case s.conns <- far:
		return near, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *server) Create(ctx context.Context, request *balsav1.CreateRequest) (*balsav1.CreateResponse, error) {
	message, err := object.Unwrap(request.GetObject())
	if err != nil {
		return nil, err
	}
	name := message.GetMetadata().GetName()
	time.Sleep(writeTakes)
	if s.refuse != nil && s.refuse(name) {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("refused "+name))
	}
	s.mu.Lock()
	s.names = append(s.names, name)
	s.mu.Unlock()
	if pod, ok := message.(*balsav1.Pod); ok {
		go s.runPod(proto.CloneOf(pod))
	}
	return &balsav1.CreateResponse{Object: request.GetObject()}, nil
}

func (s *server) runPod(pod *balsav1.Pod) {
	time.Sleep(bindTakes)
	if pod.Spec.NodeName == "" {
		pod.Spec.NodeName = "anywhere"
	}
	s.tell("MODIFIED", pod)
	time.Sleep(startTakes)
	pod.Status = &balsav1.PodStatus{Phase: object.PodRunning}
	if s.ends != "" {
		pod.Status.Phase = s.ends
	}
	s.tell("MODIFIED", pod)
}

func (s *server) tell(how string, pod *balsav1.Pod) {
	s.mu.Lock()
	s.told++
	version := strconv.Itoa(1 + s.told) // the first is that of the beginning
	s.mu.Unlock()
	s.events <- &balsav1.WatchResponse{Type: how, Object: object.Wrap(proto.CloneOf(pod)), ResourceVersion: version}
}

func (s *server) Delete(_ context.Context, request *balsav1.DeleteRequest) (*balsav1.DeleteResponse, error) {
	pod := &balsav1.Pod{Metadata: &balsav1.ObjectMeta{Namespace: request.GetNamespace(), Name: request.GetName()}}
	time.AfterFunc(endTakes, func() { s.tell("DELETED", pod) })
	return &balsav1.DeleteResponse{}, nil
}

func (s *server) Watch(ctx context.Context, _ *balsav1.WatchRequest, stream *connect.ServerStream[balsav1.WatchResponse]) error {
	if err := stream.Send(&balsav1.WatchResponse{Type: "BOOKMARK", InitialEventsEnd: true, ResourceVersion: "1"}); err != nil {
		return err
	}
	for {
		select {
		case event := <-s.events:
			if err := stream.Send(event); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// with gives f a server and how to reach it, inside a bubble of virtual time.
func with(t *testing.T, f func(t *testing.T, s *server, connect func(int) (*client.Client, error))) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &server{conns: make(chan net.Conn), closed: make(chan struct{}), events: make(chan *balsav1.WatchResponse, 10)}
		mux := http.NewServeMux()
		mux.Handle(balsav1connect.NewObjectServiceHandler(s))
		protocols := new(http.Protocols)
		protocols.SetUnencryptedHTTP2(true)
		serving := &http.Server{Handler: mux, Protocols: protocols, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)}
		go func() { _ = serving.Serve(s) }()
		var clients []*client.Client
		f(t, s, func(int) (*client.Client, error) {
			c, err := client.New(client.Config{Servers: []string{"a:1"}, Dial: s.dial, Plain: true})
			clients = append(clients, c)
			return c, err
		})
		for _, c := range clients {
			c.Close()
		}
		close(s.closed)
		if err := serving.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestPutsCountsWhatIsAcknowledged(t *testing.T) {
	with(t, func(t *testing.T, s *server, connect func(int) (*client.Client, error)) {
		report, err := Puts(t.Context(), PutOptions{Connect: connect, Prefix: "p", Clients: 3, Bytes: 10, Rounds: 2, Round: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		if len(report.Rounds) != 2 {
			t.Fatalf("%d rounds: %+v", len(report.Rounds), report)
		}
		for _, round := range report.Rounds {
			if round.Acknowledged != 300 || round.Failed != 0 || round.Seconds != 1 || round.P50MS != 10 || round.P99MS != 10 {
				t.Errorf("three clients whose puts take 10 ms, for a second: %+v", round)
			}
		}
		seen := map[string]bool{}
		for _, name := range s.names {
			seen[name] = true
		}
		if len(s.names) != 900 || len(seen) != len(s.names) {
			t.Errorf("%d puts of %d names, with the round that does not count; want 900", len(s.names), len(seen))
		}
	})
}

func TestPutsTellsOfFailures(t *testing.T) {
	with(t, func(t *testing.T, s *server, connect func(int) (*client.Client, error)) {
		s.refuse = func(name string) bool { return strings.HasPrefix(name, "p-1-") }
		report, err := Puts(t.Context(), PutOptions{Connect: connect, Prefix: "p", Clients: 2, Rounds: 1, Round: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		round := report.Rounds[0]
		if round.Acknowledged != 100 || round.Failed != 100 || len(round.Errors) != 1 || !strings.Contains(round.Errors[0], "refused p-1-") {
			t.Errorf("one of two clients is refused: %+v", round)
		}
	})
}

func TestPutsEndsWithItsContext(t *testing.T) {
	with(t, func(t *testing.T, _ *server, connect func(int) (*client.Client, error)) {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		began := time.Now()
		_, err := Puts(ctx, PutOptions{Connect: connect, Prefix: "p", Clients: 1, Rounds: 5, Round: time.Hour})
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > time.Second {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
	})
	if _, err := Puts(t.Context(), PutOptions{Clients: maxPutClients + 1}); err == nil {
		t.Error("more clients than the limit are let in")
	}
}

func TestPodsTimesEachStep(t *testing.T) {
	with(t, func(t *testing.T, s *server, connect func(int) (*client.Client, error)) {
		c, err := connect(0)
		if err != nil {
			t.Fatal(err)
		}
		report, err := Pods(t.Context(), c, PodOptions{Namespace: "ns", Prefix: "p", Image: "i", Count: 2, Nodes: []string{"n1", "n2"}})
		if err != nil {
			t.Fatal(err)
		}
		want := PodStart{AcknowledgedMS: 10, BoundMS: 15, RunningMS: 55, Node: "anywhere"}
		if len(report.Pods) != 2 || report.Pods[0] != want || report.Pods[1] != want {
			t.Errorf("got %+v, want two of %+v", report.Pods, want)
		}
		if got := fmt.Sprint(s.names); got != "[p-first-0 p-first-1 p-0 p-1]" {
			t.Errorf("made %s", got)
		}
	})
}

func TestPodsTellsOfAPodThatFails(t *testing.T) {
	with(t, func(t *testing.T, s *server, connect func(int) (*client.Client, error)) {
		s.ends = object.PodFailed
		c, err := connect(0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Pods(t.Context(), c, PodOptions{Namespace: "ns", Prefix: "p", Image: "i", Count: 1}); err == nil || !strings.Contains(err.Error(), "it is Failed") {
			t.Errorf("a pod failed, and Pods says: %v", err)
		}
	})
}

func TestBatchesTimesThePodsOfABatchTogether(t *testing.T) {
	with(t, func(t *testing.T, s *server, connect func(int) (*client.Client, error)) {
		c, err := connect(0)
		if err != nil {
			t.Fatal(err)
		}
		report, err := Batches(t.Context(), c, BatchOptions{Size: 3, PodOptions: PodOptions{Namespace: "ns", Prefix: "b", Image: "i", Count: 2, Nodes: []string{"n1"}}})
		if err != nil {
			t.Fatal(err)
		}
		want := PodStart{AcknowledgedMS: 10, BoundMS: 15, RunningMS: 55, Node: "anywhere"}
		if len(report.Batches) != 2 {
			t.Fatalf("%d batches, want 2", len(report.Batches))
		}
		for _, batch := range report.Batches {
			if len(batch.Pods) != 3 || batch.Pods[0] != want || batch.Pods[2] != want || batch.AllMS != 55 {
				t.Errorf("three pods that take as long as one: %+v", batch)
			}
		}
		if len(s.names) != 7 {
			t.Errorf("made %v, want one pod first and two batches of three", s.names)
		}
	})
}

func TestBatchesTellsWhatWentWrong(t *testing.T) {
	options := BatchOptions{Size: 2, PodOptions: PodOptions{Namespace: "ns", Prefix: "b", Image: "i", Count: 1}}
	with(t, func(t *testing.T, s *server, connect func(int) (*client.Client, error)) {
		s.refuse = func(name string) bool { return true }
		c, err := connect(0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Batches(t.Context(), c, options); err == nil || !strings.Contains(err.Error(), "refused b-0-1") {
			t.Errorf("pods are refused, and Batches says: %v", err)
		}
	})
	with(t, func(t *testing.T, s *server, connect func(int) (*client.Client, error)) {
		s.ends = object.PodFailed
		c, err := connect(0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Batches(t.Context(), c, options); err == nil || !strings.Contains(err.Error(), "is Failed") {
			t.Errorf("pods failed, and Batches says: %v", err)
		}
	})
	options.Size = maxBatch + 1
	if _, err := Batches(t.Context(), nil, options); err == nil {
		t.Error("a batch above the limit is let in")
	}
}
