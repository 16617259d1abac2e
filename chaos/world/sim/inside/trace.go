package inside

import (
	"context"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"sync"
	"time"
)

// Trace tells what happens, in order: a line an event, with the time since the
// world began.
//
//	12.034517 s2   cut off from s1 and s3 for 1.2s
//
// What is only noted, which is all that the servers log, goes into a sum that
// each Mark prints: two runs that print the same did the same, and where they
// part the marks tell when.
type Trace struct {
	out   io.Writer
	start time.Time
	level slog.Level // what is printed; lower is noted

	mu    sync.Mutex
	noted int            // guarded by mu
	sum   uint64         // guarded by mu; FNV-1a over every line, in order
	seen  map[string]int // guarded by mu; how often the servers logged a message
}

// NewTrace begins the world's time. Log lines of at least level are printed.
func NewTrace(out io.Writer, level slog.Level) *Trace {
	return &Trace{out: out, start: time.Now(), level: level, seen: map[string]int{}}
}

// Now is the time since the world began.
func (t *Trace) Now() time.Duration { return time.Since(t.start) }

// Sayf prints a line.
func (t *Trace) Sayf(who, format string, args ...any) {
	t.line(true, who, fmt.Sprintf(format, args...))
}

// Notef adds a line to the sum.
func (t *Trace) Notef(who, format string, args ...any) {
	t.line(false, who, fmt.Sprintf(format, args...))
}

func (t *Trace) line(printed bool, who, text string) {
	line := fmt.Sprintf("%12.6f %-4s %s\n", t.Now().Seconds(), who, text)
	t.mu.Lock()
	defer t.mu.Unlock()
	h := fnv.New64a()
	_, _ = fmt.Fprintf(h, "%016x%s", t.sum, line)
	t.sum = h.Sum64()
	t.noted++
	if printed {
		_, _ = io.WriteString(t.out, line)
	}
}

// Mark prints the sum of everything so far.
func (t *Trace) Mark() {
	t.mu.Lock()
	noted, sum := t.noted, t.sum
	t.mu.Unlock()
	t.Sayf("", "mark %d %016x", noted, sum)
}

// Seen is how often servers have logged a message, at whatever level: a way to
// tell whether a run came to the place in the code that logs it.
func (t *Trace) Seen(message string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.seen[message]
}

// Logger notes what a machine logs.
func (t *Trace) Logger(who string) *slog.Logger { return slog.New(&handler{trace: t, who: who}) }

// handler is a slog.Handler that leaves the time out: the trace has it.
type handler struct {
	trace *Trace
	who   string
	attrs string
	group string
}

// Enabled: what is below slog.LevelInfo is counted, and not noted: the servers
// say much there.
func (h *handler) Enabled(context.Context, slog.Level) bool { return true }

func (h *handler) Handle(_ context.Context, r slog.Record) error {
	h.trace.mu.Lock()
	h.trace.seen[r.Message]++
	h.trace.mu.Unlock()
	if r.Level < min(slog.LevelInfo, h.trace.level) {
		return nil
	}
	text := r.Level.String() + " " + r.Message + h.attrs
	r.Attrs(func(a slog.Attr) bool {
		text += attr(h.group, a)
		return true
	})
	h.trace.line(r.Level >= h.trace.level, h.who, text)
	return nil
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	next := *h
	for _, a := range attrs {
		next.attrs += attr(h.group, a)
	}
	return &next
}

func (h *handler) WithGroup(name string) slog.Handler {
	next := *h
	next.group += name + "."
	return &next
}

func attr(group string, a slog.Attr) string {
	return fmt.Sprintf(" %s%s=%v", group, a.Key, a.Value.Resolve())
}
