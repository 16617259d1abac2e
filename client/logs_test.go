package client

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/gen/balsa/v1/balsav1connect"
)

// fakePods has one container, whose log every server shows.
type fakePods struct {
	balsav1connect.UnimplementedPodServiceHandler
	*fakeServer
}

// print adds lines, those of one call at one time; a container that has ended
// prints no more.
func (s *state) print(at int, lines ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, line := range lines {
		s.printed = append(s.printed, &balsav1.LogLine{Time: timestamppb.New(time.Unix(int64(at), 0)), Line: []byte(line)})
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *state) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *state) log() (lines []*balsav1.LogLine, ended bool, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.printed), s.ended, s.changed
}

func (p *fakePods) Logs(ctx context.Context, request *balsav1.LogsRequest, stream *connect.ServerStream[balsav1.LogsResponse]) error {
	if err := p.before(); err != nil {
		return err
	}
	p.mu.Lock()
	left, bounded := p.messages, p.how == breaking
	p.mu.Unlock()
	at := 0
	lines, ended, changed := p.state.log()
	for at < len(lines) && request.SinceTime != nil && lines[at].GetTime().AsTime().Before(request.GetSinceTime().AsTime()) {
		at++
	}
	if request.TailLines != nil {
		at = max(at, len(lines)-int(request.GetTailLines()))
	}
	for {
		for ; at < len(lines); at++ {
			if bounded && left == 0 {
				panic(http.ErrAbortHandler)
			}
			left--
			if err := stream.Send(&balsav1.LogsResponse{Lines: lines[at : at+1]}); err != nil {
				return err
			}
		}
		if ended || !request.GetFollow() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
		lines, ended, changed = p.state.log()
	}
}

// reading collects the lines of a log.
type reading struct {
	lines []string
	err   error
	ended chan struct{}
}

func (w *world) logs(request *balsav1.LogsRequest, outage time.Duration) *reading {
	r := &reading{ended: make(chan struct{})}
	go func() {
		defer close(r.ended)
		for line, err := range Logs(w.t.Context(), w.client, request, outage) {
			if err != nil {
				r.err = err
				continue
			}
			r.lines = append(r.lines, string(line.GetLine()))
		}
	}()
	return r
}

// die ends a server as SIGKILL does: connections break, and there are no new ones.
func (s *fakeServer) die() {
	s.fail(down)
	s.http.Close()
}

// TestWhatIsFollowedOutlivesItsServer: a watch and a log go on at another server when
// theirs dies, quiet or not, and end with an error when all have gone for longer than
// the bound, and not before.
func TestWhatIsFollowedOutlivesItsServer(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		const bound = 20 * time.Second
		w.state.write("+a")
		w.state.print(1, "one")
		r, l := w.watch(WatchOptions{Outage: bound}), w.logs(&balsav1.LogsRequest{Follow: true}, bound)
		time.Sleep(time.Hour) // virtual: quiet for long
		w.servers["a:1"].die()
		synctest.Wait()
		w.state.write("~a")
		w.state.print(2, "two")
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if diff := cmp.Diff([]string{"ADDED a@1", "SYNCED @", "MODIFIED a@2"}, r.events); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff([]string{"one", "two"}, l.lines); diff != "" {
			t.Error(diff)
		}
		time.Sleep(time.Hour) // nothing to tell for long, through streams that are served
		w.servers["b:1"].die()
		time.Sleep(time.Hour)
		w.servers["c:1"].fail(leadless)
		w.servers["c:1"].http.Close()
		synctest.Wait()
		select {
		case <-r.ended:
			t.Fatalf("the watch ended at once: %v", r.err)
		case <-l.ended:
			t.Fatalf("the log ended at once: %v", l.err)
		default:
		}
		if passed := took(func() { <-r.ended; <-l.ended }); !IsUnavailable(r.err) || !IsUnavailable(l.err) || passed < bound || passed > 2*bound {
			t.Errorf("after %v: %v, %v", passed, r.err, l.err)
		}
	})
}

// TestLogsBreak breaks streams at random, whatever is printed at whatever times:
// every line is told once and in order.
func TestLogsBreak(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		in(t, func(t *testing.T, w *world) {
			var want []string
			at := 1
			printSome := func() {
				for range rapid.IntRange(1, 4).Draw(r, "lines") {
					at += rapid.IntRange(0, 1).Draw(r, "later")
					line := fmt.Sprint("line ", len(want), " at ", at)
					want = append(want, line)
					w.state.print(at, line)
				}
			}
			printSome()
			request := &balsav1.LogsRequest{Follow: true}
			if rapid.Bool().Draw(r, "tail") {
				want = want[len(want)-1:]
				request.TailLines = new(int64(1))
			}
			l := w.logs(request, 0)
			synctest.Wait() // the first lines are told: which are the last is clear
			for range rapid.IntRange(1, 8).Draw(r, "steps") {
				w.servers[rapid.SampledFrom(w.names).Draw(r, "server")].breakAfter(rapid.IntRange(0, 3).Draw(r, "messages"))
				time.Sleep(time.Duration(rapid.IntRange(0, 900).Draw(r, "pause")) * time.Millisecond)
				printSome()
			}
			for _, s := range w.servers {
				s.fail(well)
			}
			time.Sleep(time.Minute)
			w.state.end()
			<-l.ended
			if diff := cmp.Diff(want, l.lines); diff != "" || l.err != nil {
				r.Fatalf("%v\n%s", l.err, diff)
			}
		})
	})
}

// TestLogsThatAreNotFollowed end with what went wrong: a second answer might be
// another one's.
func TestLogsThatAreNotFollowed(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.state.print(1, "one", "two")
		w.servers["a:1"].breakAfter(1)
		l := w.logs(&balsav1.LogsRequest{}, time.Hour)
		<-l.ended
		if len(l.lines) != 1 || l.err == nil {
			t.Errorf("%v, %v", l.lines, l.err)
		}
		w.servers["b:1"].fail(refusing)
		l = w.logs(&balsav1.LogsRequest{Follow: true}, time.Hour)
		if passed := took(func() { <-l.ended }); connect.CodeOf(l.err) != connect.CodeInvalidArgument || passed > time.Second {
			t.Errorf("a refusal: after %v %v", passed, l.err)
		}
	})
}
