package runc

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/balsa-run/balsa/node/runtime"
)

// logPoll is how often a follower looks for further lines.
const logPoll = 100 * time.Millisecond

// maxLogEntryBytes bounds a line of the file: time, stream, mark, text.
const maxLogEntryBytes = runtime.MaxLogLineBytes + 128

// OpenLog implements runtime.Streams.
func (r *Runtime) OpenLog(ctx context.Context, uid runtime.PodUID, name string, attempt int, opt runtime.LogOptions) (runtime.LogReader, error) {
	state, err := r.Pod(ctx, uid)
	if err != nil {
		return nil, err
	}
	if _, ok := state.Attempt(name, attempt); !ok {
		return nil, fmt.Errorf("pod %s: container %s attempt %d: %w", uid, name, attempt, runtime.ErrContainerNotFound)
	}
	over := func() bool {
		state, err := r.Pod(ctx, uid)
		c, ok := state.Attempt(name, attempt)
		return err != nil || !ok || c.Status == runtime.ContainerExited
	}
	path := filepath.Join(r.podDir(uid), logsDir, containerID(name, attempt)+".log")
	l, err := openLog(ctx, path, opt, over)
	if err != nil {
		return nil, fmt.Errorf("log of pod %s, container %s: %w", uid, name, err)
	}
	return l, nil
}

// logReader reads the files of one log, oldest first. They are all open from
// the beginning, so that rotation takes none of them away.
type logReader struct {
	ctx    context.Context
	cancel context.CancelFunc
	path   string
	opt    runtime.LogOptions
	over   func() bool

	files []*os.File // those still to be read; the first is being read
	lines *bufio.Reader
	part  []byte // of a line whose rest is not written yet
	skip  int    // whole lines to leave out, for TailLines
}

func openLog(ctx context.Context, path string, opt runtime.LogOptions, over func() bool) (*logReader, error) {
	files, err := openFiles(path)
	if err != nil {
		return nil, err
	}
	l := &logReader{path: path, opt: opt, over: over, files: files}
	l.ctx, l.cancel = context.WithCancel(ctx)
	if opt.TailLines > 0 {
		if err := l.countTail(); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	return l, nil
}

// openFiles opens log.N to log.1, then log. It begins with the current file: a
// rotation meanwhile shows as the same file twice, never as a gap.
func openFiles(path string) ([]*os.File, error) {
	var files []*os.File
	for i := range runtime.MaxLogMaxFiles {
		f, err := os.Open(rotated(path, i))
		if errors.Is(err, fs.ErrNotExist) && i > 0 {
			break
		}
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			closeFiles(files)
			return nil, err
		}
		if len(files) > 0 && sameFile(files[len(files)-1], f) {
			_ = f.Close()
			continue
		}
		files = append(files, f)
	}
	slices.Reverse(files)
	return files, nil
}

func rotated(path string, i int) string {
	if i == 0 {
		return path
	}
	return path + "." + strconv.Itoa(i)
}

func sameFile(a, b *os.File) bool {
	ai, err1 := a.Stat()
	bi, err2 := b.Stat()
	return err1 == nil && err2 == nil && os.SameFile(ai, bi)
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// countTail reads everything once and finds how many lines to leave out.
func (l *logReader) countTail() error {
	whole := 0
	for _, f := range l.files {
		n, err := countLines(f, l.opt.Since)
		if err != nil {
			return err
		}
		whole += n
	}
	l.skip = max(0, whole-l.opt.TailLines)
	return nil
}

func countLines(f *os.File, since time.Time) (int, error) {
	whole := 0
	lines := bufio.NewReaderSize(f, maxLogEntryBytes)
	for {
		text, err := lines.ReadSlice('\n')
		if err != nil {
			if !errors.Is(err, io.EOF) {
				return 0, err
			}
			_, err = f.Seek(0, io.SeekStart)
			return whole, err
		}
		line, err := parseLogLine(text)
		if err == nil && !line.Partial && !line.Time.Before(since) {
			whole++
		}
	}
}

// Next implements runtime.LogReader.
func (l *logReader) Next() (runtime.LogLine, error) {
	for {
		text, err := l.nextText()
		if err != nil {
			return runtime.LogLine{}, err
		}
		line, err := parseLogLine(text)
		if err != nil || line.Time.Before(l.opt.Since) {
			continue // a line cut by a full disk, or too old
		}
		if l.skip > 0 {
			if !line.Partial {
				l.skip--
			}
			continue
		}
		return line, nil
	}
}

// nextText returns the next complete line of the files.
func (l *logReader) nextText() ([]byte, error) {
	for {
		// Ask before reading: what was written before the end is then found.
		over := !l.opt.Follow || l.over()
		text, ok, err := l.readText()
		if ok || err != nil {
			return text, err
		}
		moved, err := l.advance()
		if err != nil {
			return nil, err
		}
		if moved {
			continue
		}
		if over {
			return nil, io.EOF
		}
		if err := l.pause(); err != nil {
			return nil, err
		}
	}
}

// readText reads a line from the current file; false at its end.
func (l *logReader) readText() ([]byte, bool, error) {
	if len(l.files) == 0 {
		return nil, false, nil
	}
	if l.lines == nil {
		l.lines = bufio.NewReaderSize(l.files[0], maxLogEntryBytes)
	}
	text, err := l.lines.ReadSlice('\n')
	l.part = append(l.part, text...)
	switch {
	case errors.Is(err, io.EOF):
		return nil, false, nil
	case err != nil && !errors.Is(err, bufio.ErrBufferFull):
		return nil, false, err
	}
	text, l.part = l.part, nil
	return text, true, nil
}

// advance goes on to the next file once the current one is at its end and no
// longer the one that is written.
func (l *logReader) advance() (bool, error) {
	if len(l.files) > 1 {
		l.dropFirst()
		return true, nil
	}
	if !l.opt.Follow {
		return false, nil
	}
	files, err := openFiles(l.path)
	if err != nil || len(files) == 0 {
		return false, err
	}
	if len(l.files) == 0 {
		l.files = files
		return true, nil
	}
	newer := files
	for i, f := range files {
		if sameFile(f, l.files[0]) {
			newer = files[i+1:]
			closeFiles(files[:i+1])
			break
		}
	}
	if len(newer) == 0 {
		return false, nil
	}
	// The file may have grown between its end and its rotation: once more.
	l.files = append(l.files, newer...)
	return true, nil
}

func (l *logReader) dropFirst() {
	_ = l.files[0].Close()
	l.files, l.lines, l.part = l.files[1:], nil, nil
}

func (l *logReader) pause() error {
	timer := time.NewTimer(logPoll)
	defer timer.Stop()
	select {
	case <-l.ctx.Done():
		return context.Cause(l.ctx)
	case <-timer.C:
		return nil
	}
}

// Close implements runtime.LogReader.
func (l *logReader) Close() error {
	l.cancel()
	closeFiles(l.files)
	l.files = nil
	return nil
}

// parseLogLine reads "TIME STREAM F|P TEXT\n".
func parseLogLine(text []byte) (runtime.LogLine, error) {
	fields := bytes.SplitN(bytes.TrimSuffix(text, []byte("\n")), []byte(" "), 4)
	if len(fields) != 4 || len(fields[2]) != 1 || fields[2][0] != 'F' && fields[2][0] != 'P' {
		return runtime.LogLine{}, fmt.Errorf("log line %q: want TIME STREAM F|P TEXT", text)
	}
	at, err := time.Parse(time.RFC3339Nano, string(fields[0]))
	if err != nil {
		return runtime.LogLine{}, fmt.Errorf("log line: %w", err)
	}
	stream := runtime.LogStream(fields[1])
	if stream != runtime.Stdout && stream != runtime.Stderr {
		return runtime.LogLine{}, fmt.Errorf("log line: stream %q", fields[1])
	}
	return runtime.LogLine{Time: at, Stream: stream, Partial: fields[2][0] == 'P', Text: bytes.Clone(fields[3])}, nil
}
