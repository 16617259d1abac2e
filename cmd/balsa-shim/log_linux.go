package main

import "syscall"

// A container's log: lines as the container runtime interface writes them,
//
//	2026-01-02T03:04:05.000000006Z stdout F text
//
// in files of bounded size. P instead of F marks the beginning of a line that
// goes on in the next entry. The container is never blocked by its log: what
// the disk refuses is counted, and the count is written once there is room.

// maxLogText is the text of one entry (runtime.MaxLogLineBytes).
const maxLogText = 16 << 10

type logFile struct {
	path     string
	fd       int // -1 while it cannot be opened
	size     int64
	maxBytes int64
	maxFiles int
	lost     int64  // bytes that could not be written
	out      []byte // entries of the current batch
}

// stream is one of a container's two pipes and the unfinished line of it.
type stream struct {
	fd      int
	tag     string // " stdout " or " stderr "
	pending []byte
}

func openLog(path string, maxBytes int64, maxFiles int) (*logFile, error) {
	l := &logFile{path: path, fd: -1, maxBytes: maxBytes, maxFiles: maxFiles}
	return l, l.open()
}

func (l *logFile) open() error {
	const flags = syscall.O_CREAT | syscall.O_WRONLY | syscall.O_APPEND | syscall.O_CLOEXEC
	fd, err := syscall.Open(l.path, flags, 0o640)
	if err != nil {
		return err
	}
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil {
		syscall.Close(fd)
		return err
	}
	l.fd, l.size = fd, st.Size
	return nil
}

func (l *logFile) close() {
	if l.fd >= 0 {
		syscall.Close(l.fd)
	}
	l.fd = -1
}

// add splits data into entries and writes them in one go.
func (l *logFile) add(s *stream, data []byte) {
	for len(data) > 0 {
		end := 0
		for end < len(data) && data[end] != '\n' {
			end++
		}
		whole := end < len(data)
		data = l.addPart(s, data[:end], whole, data[end:])
	}
	l.flush()
}

// addPart takes the text up to a line feed, or up to the end of what was read.
func (l *logFile) addPart(s *stream, text []byte, whole bool, rest []byte) []byte {
	for len(s.pending)+len(text) > maxLogText {
		take := maxLogText - len(s.pending)
		s.pending = append(s.pending, text[:take]...)
		text = text[take:]
		l.entry(s, 'P')
	}
	s.pending = append(s.pending, text...)
	if !whole {
		return nil
	}
	l.entry(s, 'F')
	return rest[1:]
}

// finish writes what the stream holds without a line feed.
func (l *logFile) finish(s *stream) {
	if len(s.pending) > 0 {
		l.entry(s, 'F')
		l.flush()
	}
	s.pending = nil
}

func (l *logFile) entry(s *stream, mark byte) {
	sec, nsec := now()
	l.out = appendTime(l.out, sec, nsec)
	l.out = append(append(l.out, s.tag...), mark, ' ')
	l.out = append(append(l.out, s.pending...), '\n')
	s.pending = s.pending[:0]
	if int64(len(l.out)) >= l.maxBytes/2 {
		l.flush()
	}
}

// flush writes the batch, rotating first when the file would grow too big.
func (l *logFile) flush() {
	batch := l.out
	l.out = l.out[:0]
	if len(batch) == 0 {
		return
	}
	if l.size > 0 && l.size+int64(len(batch)) > l.maxBytes {
		l.rotate()
	}
	if l.lost > 0 && l.put(l.lostEntry()) {
		l.lost = 0
	}
	if !l.put(batch) {
		l.lost += int64(len(batch))
	}
}

// put writes whole entries or, at the file's end, nothing.
func (l *logFile) put(b []byte) bool {
	if l.fd < 0 && l.open() != nil {
		return false
	}
	n, err := write(l.fd, b)
	if err == nil && n == len(b) {
		l.size += int64(n)
		return true
	}
	if n > 0 {
		syscall.Ftruncate(l.fd, l.size)
	}
	return false
}

func (l *logFile) lostEntry() []byte {
	sec, nsec := now()
	b := appendTime(nil, sec, nsec)
	b = append(b, " stderr F [balsa: "...)
	b = appendInt(b, l.lost)
	return append(b, " bytes of this log could not be written]\n"...)
}

// rotate renames log to log.1, log.1 to log.2 and so on; the oldest goes.
func (l *logFile) rotate() {
	l.close()
	for i := l.maxFiles - 1; i >= 1; i-- {
		syscall.Rename(l.name(i-1), l.name(i))
	}
	if l.maxFiles == 1 {
		syscall.Unlink(l.path)
	}
	l.size = 0
	if l.open() != nil {
		l.fd = -1
	}
}

func (l *logFile) name(i int) string {
	if i == 0 {
		return l.path
	}
	return string(appendInt(append([]byte(l.path), '.'), int64(i)))
}
