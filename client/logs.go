package client

import (
	"context"
	"errors"
	"io"
	"iter"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// Logs tells the lines of a container's log. When they are followed it goes on
// across broken connections, changes of server and restarts of the node's agent,
// each line once; it ends with the container, with ctx, with an error that repeating
// cannot mend, or when no server served it for outage (0: it waits for ever; until
// the first line came: Config.RetryFor). Of a container that ended and started again
// while nobody answered it goes on with the new run.
func Logs(ctx context.Context, c *Client, request *balsav1.LogsRequest, bound time.Duration) iter.Seq2[*balsav1.LogLine, error] {
	return func(yield func(*balsav1.LogLine, error) bool) {
		l := &logFollower{client: c, yield: yield, request: proto.CloneOf(request)}
		l.run(ctx, bound)
	}
}

// logFollower is one reading of a log.
type logFollower struct {
	client  *Client
	yield   func(*balsav1.LogLine, error) bool
	request *balsav1.LogsRequest
	// told are the last lines, of the time where the next stream begins: they come
	// again, and perhaps others of that time before them, which were not asked for.
	told []*balsav1.LogLine
}

// maxTold bounds how many lines of one time are compared.
const maxTold = 64

func (l *logFollower) run(ctx context.Context, bound time.Duration) {
	patience, wait := outage{client: l.client, bound: bound}, backoffFirst
	patience.begin()
	for {
		progressed, err := l.stream(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		if patience.over(progressed) || !l.request.GetFollow() || !resumable(err) {
			l.yield(nil, err)
			return
		}
		if progressed {
			wait = backoffFirst
		}
		if !l.client.pause(ctx, wait) {
			return
		}
		wait = min(2*wait, backoffMax)
		patience.streamBegins()
	}
}

// stream reads one stream to its end. A nil error means that the log has ended, or
// that whoever listens has had enough.
func (l *logFollower) stream(ctx context.Context) (progressed bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := l.client.Pods.Logs(ctx, l.request)
	if err != nil {
		return false, err
	}
	defer stream.Close()
	again := &repetition{of: l.told}
	for stream.Receive() {
		progressed = true
		for _, line := range stream.Msg().GetLines() {
			for _, line := range again.without(line) {
				l.resumeAt(line)
				if !l.yield(line, nil) {
					return progressed, nil
				}
			}
		}
	}
	if err := stream.Err(); err != nil && !errors.Is(err, io.EOF) {
		return progressed, err
	}
	for _, line := range again.held { // nothing more can come
		if !l.yield(line, nil) {
			break
		}
	}
	return progressed, nil
}

// resumeAt moves the place where the next stream begins. How many lines from the end
// were asked for means something for the first stream alone.
func (l *logFollower) resumeAt(line *balsav1.LogLine) {
	if len(l.told) > 0 && !sameTime(l.told[0], line) {
		l.told = nil
	}
	l.told = append(l.told, line)
	l.told = l.told[max(0, len(l.told)-maxTold):]
	l.request.SinceTime, l.request.TailLines = line.GetTime(), nil
}

func sameTime(a, b *balsav1.LogLine) bool { return a.GetTime().AsTime().Equal(b.GetTime().AsTime()) }

// repetition is what comes again at the beginning of a stream.
type repetition struct {
	of   []*balsav1.LogLine // empty: it is over
	held []*balsav1.LogLine // may belong to it
}

// without returns what a line brings that was not told. What was told ends with the
// last line of the repetition; if that does not come, its lines are gone from the
// log, and those that came instead are new.
func (r *repetition) without(line *balsav1.LogLine) []*balsav1.LogLine {
	if len(r.of) == 0 {
		return []*balsav1.LogLine{line}
	}
	if !sameTime(r.of[0], line) {
		lines := append(r.held, line)
		r.of, r.held = nil, nil
		return lines
	}
	r.held = append(r.held, line)
	if n := len(r.held) - len(r.of); n >= 0 && slices.EqualFunc(r.held[n:], r.of, sameLine) {
		r.of, r.held = nil, nil
	}
	return nil
}

func sameLine(a, b *balsav1.LogLine) bool { return proto.Equal(a, b) }
