package etcdtest

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
)

// received is gRPC's own refusal of a request that is too large. The size that it
// names depends on the ids of leases in the request, which are each side's own.
var received = regexp.MustCompile(`(received message larger than max) \(\d+ vs\. (\d+)\)`)

// session is a sequence on one side.
type session struct {
	*side
	frame
	ctx     context.Context
	streams [streams]*watchStream
	// revision is the newest one that the side has told of.
	revision int64
}

// begin empties the space and opens a session on it.
func begin(ctx context.Context, s *side) (*session, error) {
	soon, cancel := context.WithTimeout(ctx, beginFor)
	defer cancel()
	base, err := reset(soon, s)
	if err != nil {
		return nil, fmt.Errorf("empty %s before a sequence: %w", s.name, err)
	}
	return &session{side: s, ctx: ctx, frame: frame{base: base}, revision: base}, nil
}

// reset leaves a space without keys, leases and history, and tells its revision.
func reset(ctx context.Context, s *side) (int64, error) {
	leases, err := s.client.Leases(ctx)
	if err != nil {
		return 0, err
	}
	for _, l := range leases.Leases {
		// A short one may be over meanwhile.
		if _, err := s.client.Revoke(ctx, l.ID); err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return 0, err
		}
	}
	kv := pb.NewKVClient(s.conn)
	if _, err := kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}); err != nil {
		return 0, err
	}
	// What can be watched of the revision that is left is then the same everywhere.
	if _, err := kv.Put(ctx, &pb.PutRequest{Key: []byte("reset")}); err != nil {
		return 0, err
	}
	gone, err := kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("reset")})
	if err != nil {
		return 0, err
	}
	rev := gone.GetHeader().GetRevision()
	_, err = kv.Compact(ctx, &pb.CompactionRequest{Revision: rev})
	return rev, err
}

func (s *session) end() {
	for _, w := range s.streams {
		if w != nil {
			w.cancel()
			<-w.done
		}
	}
}

// answer is what an operation came to, as the sequence sees it.
type answer struct {
	code    codes.Code
	message string
	// response is empty where there is an error.
	response string
}

func (a answer) String() string {
	if a.code != codes.OK {
		return fmt.Sprintf("%v: %s", a.code, a.message)
	}
	return a.response
}

// do carries out an operation that is answered at once.
func (s *session) do(o op) answer {
	response, err := calls()[o.kind].do(s.ctx, s.conn, s.real(o.msg))
	if err != nil {
		st := status.Convert(err)
		return answer{code: st.Code(), message: received.ReplaceAllString(st.Message(), "$1 (N vs. $2)")}
	}
	if h, ok := response.(interface{ GetHeader() *pb.ResponseHeader }); ok {
		s.revision = max(s.revision, h.GetHeader().GetRevision())
	}
	return answer{response: text(s.shown(response))}
}

func text(m proto.Message) string {
	return strings.Join(strings.Fields(prototext.MarshalOptions{EmitASCII: true}.Format(m)), " ")
}

// watchStream is an open stream of watches, and everything that it was sent.
type watchStream struct {
	stream pb.Watch_WatchClient
	cancel context.CancelFunc
	done   chan struct{}

	mu        sync.Mutex
	responses []*pb.WatchResponse // guarded by mu
	err       error               // guarded by mu; why it ended

	// behind says that a watch of the past may not have caught up.
	behind bool
}

func (s *session) stream(i int) (*watchStream, error) {
	if s.streams[i] != nil {
		return s.streams[i], nil
	}
	ctx, cancel := context.WithCancel(s.ctx)
	stream, err := pb.NewWatchClient(s.conn).Watch(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	w := &watchStream{stream: stream, cancel: cancel, done: make(chan struct{})}
	go w.read()
	s.streams[i] = w
	return w, nil
}

func (w *watchStream) read() {
	defer close(w.done)
	for {
		r, err := w.stream.Recv()
		w.mu.Lock()
		if err != nil {
			w.err = err
			w.mu.Unlock()
			return
		}
		w.responses = append(w.responses, r)
		w.mu.Unlock()
	}
}

func (w *watchStream) all() []*pb.WatchResponse {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.responses)
}

// count is how many responses there are of a kind.
func (w *watchStream) count(kind func(*pb.WatchResponse) bool) int {
	n := 0
	for _, r := range w.all() {
		if kind(r) {
			n++
		}
	}
	return n
}

func created(r *pb.WatchResponse) bool { return r.GetCreated() }

func progress(r *pb.WatchResponse) bool {
	return !r.GetCreated() && !r.GetCanceled() && len(r.GetEvents()) == 0
}

// barrier returns when the stream has answered everything that was asked of it:
// responses about watches keep their order, and a watch from a negative revision
// is refused at once.
func (s *session) barrier(w *watchStream) error {
	before := w.count(created)
	refused := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{StartRevision: -1}}}
	if err := w.stream.Send(refused); err != nil {
		return err
	}
	if !waitFor(patience, func() bool { return w.count(created) > before || w.ended() != nil }) {
		return fmt.Errorf("%s does not answer on a watch stream", s.name)
	}
	return w.ended()
}

func (w *watchStream) ended() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// watch sends a request on a watch stream and waits until it was dealt with.
func (s *session) watch(o op) error {
	w, err := s.stream(o.stream)
	if err != nil {
		return err
	}
	request := s.real(o.msg).(*pb.WatchRequest)
	from := request.GetCreateRequest().GetStartRevision()
	w.behind = w.behind || from > 0 && from <= s.revision
	if err := w.stream.Send(request); err != nil {
		return err
	}
	return s.barrier(w)
}

// How long catchUp waits for a server to say that its watches have caught up. etcd
// does not say it while one begins in the future or was compacted away; watches of
// the past catch up every tenth of a second, others at once.
const (
	behindWithin = 350 * time.Millisecond
	liveWithin   = 30 * time.Millisecond
	askEvery     = 5 * time.Millisecond
)

// catchUp waits until the server has delivered what it has, as far as can be told.
func (s *session) catchUp() {
	for _, w := range s.streams {
		if w == nil || w.ended() != nil || !w.watching() {
			continue
		}
		limit := liveWithin
		if w.behind {
			limit = behindWithin
		}
		w.behind = false
		// Two new ones: the answer to an earlier question may still be on its way.
		wanted := w.count(progress) + 2
		asked := time.Time{}
		waitFor(limit, func() bool {
			if time.Since(asked) > askEvery {
				asked = time.Now()
				ask := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}
				if w.stream.Send(ask) != nil {
					return true
				}
			}
			return w.count(progress) >= wanted
		})
	}
}

// watching tells whether any watch is open on the stream.
func (w *watchStream) watching() bool {
	open := map[int64]bool{}
	for _, r := range w.all() {
		if r.GetCreated() || r.GetCanceled() {
			open[r.GetWatchId()] = !r.GetCanceled()
		}
	}
	for _, is := range open {
		if is {
			return true
		}
	}
	return false
}

// watching tells whether a watch was ever asked for.
func (s *session) watching() bool {
	return slices.ContainsFunc(s.streams[:], func(w *watchStream) bool { return w != nil })
}

// transcript is what the sequence saw of its watches: for each stream what was
// said about watches, in order, and the events of each watch. How events are put
// into responses is the server's business, within the rules that broken checks.
func (s *session) transcript() string {
	var b strings.Builder
	for i, w := range s.streams {
		if w == nil {
			continue
		}
		fmt.Fprintf(&b, "stream %d:\n", i)
		watches := map[int64][]string{}
		for _, r := range w.all() {
			events := r.GetEvents()
			shown := s.shown(r).(*pb.WatchResponse)
			shown.Events = nil
			switch {
			case r.GetCreated() || r.GetCanceled() && r.GetCompactRevision() == 0:
				fmt.Fprintf(&b, "  %s\n", text(shown))
			case r.GetCanceled(): // it was found out at some moment
				shown.Header = nil
				watches[r.GetWatchId()] = append(watches[r.GetWatchId()], text(shown))
			}
			for _, e := range events {
				watches[r.GetWatchId()] = append(watches[r.GetWatchId()], text(s.shown(e)))
			}
		}
		for _, id := range sortedKeys(watches) {
			fmt.Fprintf(&b, "  watch %d:\n    %s\n", id, strings.Join(watches[id], "\n    "))
		}
		if err := w.ended(); err != nil {
			fmt.Fprintf(&b, "  ended: %v\n", err)
		}
	}
	return b.String()
}

func sortedKeys[V any](m map[int64]V) []int64 {
	keys := make([]int64, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// events is how many events the sequence was sent.
func (s *session) events() int {
	n := 0
	for _, w := range s.streams {
		if w != nil {
			for _, r := range w.all() {
				n += len(r.GetEvents())
			}
		}
	}
	return n
}

// broken is the first rule of watches that a side breaks by itself: a response is
// of a revision at least that of its events, no revision is cut in two where that
// was not asked for, revisions never go back within a watch, and what a progress
// mark covers does not come after it.
func (s *session) broken() error {
	for i, w := range s.streams {
		if w == nil {
			continue
		}
		last, open := map[int64]int64{}, map[int64]bool{}
		var covered int64
		for _, r := range w.all() {
			id, rev := r.GetWatchId(), r.GetHeader().GetRevision()
			if r.GetCreated() {
				delete(last, id)
				delete(open, id)
			}
			if progress(r) {
				if id == -1 {
					covered = max(covered, rev)
				} else {
					last[id] = max(last[id], rev)
				}
			}
			for n, e := range r.GetEvents() {
				at := e.GetKv().GetModRevision()
				switch {
				case at > rev:
					return fmt.Errorf("stream %d: a response of revision %d has an event of %d", i, rev, at)
				case at <= covered && !laterWatch(w, r, id):
					return fmt.Errorf("stream %d, watch %d: an event of revision %d after a mark of %d", i, id, at, covered)
				case at < last[id] || n == 0 && at == last[id] && !open[id]:
					return fmt.Errorf("stream %d, watch %d: an event of revision %d after revision %d", i, id, at, last[id])
				}
				last[id] = at
			}
			open[id] = r.GetFragment()
		}
		if err := w.ended(); err != nil && !errors.Is(err, context.Canceled) && status.Code(err) != codes.Canceled {
			return fmt.Errorf("stream %d: %w", i, err)
		}
	}
	return nil
}

// laterWatch tells whether a response's watch was made after the last mark before
// it, which then says nothing about it.
func laterWatch(w *watchStream, of *pb.WatchResponse, id int64) bool {
	later := false
	for _, r := range w.all() {
		if r == of {
			return later
		}
		if progress(r) && r.GetWatchId() == -1 {
			later = false
		}
		if r.GetCreated() && r.GetWatchId() == id {
			later = true
		}
	}
	return later
}
