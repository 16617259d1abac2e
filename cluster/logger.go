package cluster

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// NewRaftLogger lets the hashicorp libraries write to slog. What they call Info
// is Debug for us: an operator reads our own words about the same events.
func NewRaftLogger(to *slog.Logger) hclog.Logger { return &raftLogger{to: to} }

type raftLogger struct {
	to      *slog.Logger
	name    string
	implied []any
}

func (l *raftLogger) write(level slog.Level, message string, args []any) {
	if !l.to.Enabled(context.Background(), level) {
		return
	}
	l.to.Log(context.Background(), level, message, printable(args)...)
}

// printable resolves hclog's own value types, and shows structs as text.
func printable(args []any) []any {
	out := make([]any, 0, len(args))
	for i, arg := range args {
		if format, ok := arg.(hclog.Format); ok && len(format) > 0 {
			arg = fmt.Sprintf(fmt.Sprint(format[0]), format[1:]...)
		}
		if i%2 == 0 {
			arg = fmt.Sprint(arg)
		}
		out = append(out, arg)
	}
	return out
}

func slogLevel(level hclog.Level) slog.Level {
	switch level {
	case hclog.Error:
		return slog.LevelError
	case hclog.Warn:
		return slog.LevelWarn
	}
	return slog.LevelDebug
}

func (l *raftLogger) Log(level hclog.Level, msg string, args ...any) {
	l.write(slogLevel(level), msg, args)
}
func (l *raftLogger) Trace(msg string, args ...any) { l.write(slog.LevelDebug, msg, args) }
func (l *raftLogger) Debug(msg string, args ...any) { l.write(slog.LevelDebug, msg, args) }
func (l *raftLogger) Info(msg string, args ...any)  { l.write(slog.LevelDebug, msg, args) }
func (l *raftLogger) Warn(msg string, args ...any)  { l.write(slog.LevelWarn, msg, args) }

// Error is a warning: the libraries call every unanswered heartbeat an error.
func (l *raftLogger) Error(msg string, args ...any) { l.write(slog.LevelWarn, msg, args) }

func (l *raftLogger) IsTrace() bool { return false }
func (l *raftLogger) IsDebug() bool { return l.enabled(slog.LevelDebug) }
func (l *raftLogger) IsInfo() bool  { return l.enabled(slog.LevelDebug) }
func (l *raftLogger) IsWarn() bool  { return l.enabled(slog.LevelWarn) }
func (l *raftLogger) IsError() bool { return l.enabled(slog.LevelWarn) }
func (l *raftLogger) enabled(level slog.Level) bool {
	return l.to.Enabled(context.Background(), level)
}

func (l *raftLogger) ImpliedArgs() []any { return l.implied }
func (l *raftLogger) With(args ...any) hclog.Logger {
	return &raftLogger{to: l.to.With(printable(args)...), name: l.name, implied: append(l.implied[:len(l.implied):len(l.implied)], args...)}
}
func (l *raftLogger) Name() string { return l.name }
func (l *raftLogger) Named(name string) hclog.Logger {
	return &raftLogger{to: l.to, name: name, implied: l.implied}
}
func (l *raftLogger) ResetNamed(name string) hclog.Logger { return l.Named(name) }

// SetLevel is slog's business.
func (l *raftLogger) SetLevel(hclog.Level)  {}
func (l *raftLogger) GetLevel() hclog.Level { return hclog.Debug }
func (l *raftLogger) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return slog.NewLogLogger(l.to.Handler(), slog.LevelDebug)
}
func (l *raftLogger) StandardWriter(opts *hclog.StandardLoggerOptions) io.Writer {
	return l.StandardLogger(opts).Writer()
}
