package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestTimeIsRFC3339(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sec := rapid.Int64Range(0, 253402300799).Draw(t, "sec") // to the year 9999
		nsec := rapid.Int64Range(0, 999999999).Draw(t, "nsec")
		want := time.Unix(sec, nsec).UTC().Format("2006-01-02T15:04:05.000000000Z")
		if got := string(appendTime(nil, sec, nsec)); got != want {
			t.Fatalf("%d.%09d: %s, want %s", sec, nsec, got, want)
		}
	})
}

func TestNumbers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64Range(-1e17, 1e17).Draw(t, "n")
		text := string(appendInt(nil, n))
		if back, ok := parseInt(text); text != fmt.Sprint(n) || !ok || back != n {
			t.Fatalf("%d: %q, back %d", n, text, back)
		}
	})
	for _, bad := range []string{"", "-", "1x", " 1", "+1", "1234567890123456789", "0x1"} {
		if n, ok := parseInt(bad); ok {
			t.Errorf("%q reads as %d", bad, n)
		}
	}
}

func TestRequestsReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		value := rapid.String().Draw(t, "value")
		text := string(newLine("7").word("start").str("name", value).num("attempt", 3).end())
		r, ok := parseRequest(strings.TrimSuffix(text, "\n"))
		attempt, isNumber := r.number("attempt")
		if !ok || r.id != "7" || r.verb != "start" || r.get("name") != value || !isNumber || attempt != 3 {
			t.Fatalf("%q reads back as %+v", text, r)
		}
	})
}

func TestRequestsThatAreNone(t *testing.T) {
	for _, bad := range []string{"", "1", "1 ", "1 START", "1 start x", "1 start =x", "1 start a=%", "1 start a=%zz", "1 start a=b=c", "1 start a=\x01", strings.Repeat("a ", 40)} {
		if r, ok := parseRequest(bad); ok {
			t.Errorf("%q reads as %+v", bad, r)
		}
	}
	if r, ok := parseRequest("1 start later=1 name=x"); !ok || r.get("name") != "x" {
		t.Errorf("a key of a newer agent is in the way: %+v, %v", r, ok)
	}
}

func FuzzParseRequest(f *testing.F) {
	f.Add("1 start name=web attempt=0 dir=containers/web-0 log=logs/web-0.log logmax=1 logfiles=2")
	f.Add("* a b=%20")
	f.Fuzz(func(t *testing.T, text string) {
		r, ok := parseRequest(text)
		if !ok {
			return
		}
		l := newLine(r.id).word(r.verb)
		for _, kv := range r.keys {
			l.str(kv.key, kv.value)
		}
		again, ok := parseRequest(strings.TrimSuffix(string(l.end()), "\n"))
		if !ok || again.id != r.id || again.verb != r.verb || !slices.Equal(again.keys, r.keys) {
			t.Errorf("%q reads %+v, written and read again %+v", text, r, again)
		}
	})
}

func FuzzParseReport(f *testing.F) {
	f.Add("pid=12\nok\n")
	f.Add("error=no%20such%20file\n")
	f.Fuzz(func(t *testing.T, report string) {
		pid, failure := parseReport(report)
		if failure == "" && (pid <= 1 || !strings.Contains(report, "ok")) {
			t.Errorf("%q counts as a success of process %d", report, pid)
		}
	})
}

func TestReports(t *testing.T) {
	for report, want := range map[string]struct {
		pid     int
		failure string
	}{
		"pid=12\nok\n": {12, ""}, "pid=12\n": {12, "the helper ended without a report"}, "": {0, "the helper ended without a report"},
		"ok\n": {0, "the helper reported no process"}, "pid=12\nerror=a%20b\n": {12, "a b"}, "pid=1\nok\n": {0, "the helper reported no process"},
	} {
		if pid, failure := parseReport(report); pid != want.pid || failure != want.failure {
			t.Errorf("%q: %d, %q, want %+v", report, pid, failure, want)
		}
	}
}

func TestOOMKills(t *testing.T) {
	for content, want := range map[string]int64{
		"oom_kill_disable 0\nunder_oom 0\noom_kill 3\n": 3, "low 0\nhigh 0\nmax 9\noom 2\noom_kill 2\noom_group_kill 0\n": 2,
		"": 0, "oom_kill": 0, "oom_kill x\n": 0, "xoom_kill 5\n": 0,
	} {
		if got := parseOOMKills(content); got != want {
			t.Errorf("%q: %d, want %d", content, got, want)
		}
	}
}

var entry = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z (stdout|stderr) ([FP]) (.*)$`)

// TestLogAgainstDumbTwin: however the bytes come, joining the entries gives
// back the lines.
func TestLogAgainstDumbTwin(t *testing.T) {
	dir := t.TempDir()
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		path := filepath.Join(dir, fmt.Sprint(n))
		log, err := openLog(path, 1<<30, 1)
		if err != nil {
			t.Fatal(err)
		}
		s := &stream{fd: -1, tag: " stdout "}
		var all []byte
		for range rapid.IntRange(0, 8).Draw(t, "chunks") {
			chunk := drawChunk(t)
			all = append(all, chunk...)
			log.add(s, chunk)
		}
		log.finish(s)
		log.close()
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := joinEntries(t, string(content)); got != strings.TrimSuffix(string(all), "\n") {
			t.Fatalf("wrote %d bytes, read back %d", len(all), len(got))
		}
	})
}

func drawChunk(t *rapid.T) []byte {
	var b []byte
	for range rapid.IntRange(1, 4).Draw(t, "pieces") {
		size := rapid.SampledFrom([]int{0, 1, 5, maxLogText - 1, maxLogText, maxLogText + 1, 2*maxLogText + 3}).Draw(t, "size")
		b = append(b, bytes.Repeat([]byte{'a' + byte(size%7)}, size)...)
		if rapid.Bool().Draw(t, "line feed") {
			b = append(b, '\n')
		}
	}
	return b
}

func joinEntries(t *rapid.T, content string) string {
	var b strings.Builder
	for line := range strings.Lines(content) {
		m := entry.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if m == nil || len(m[3]) > maxLogText {
			t.Fatalf("entry %.80q", line)
		}
		b.WriteString(m[3])
		if m[2] == "F" {
			b.WriteByte('\n')
		}
	}
	return strings.TrimSuffix(b.String(), "\n")
}

func TestLogRotates(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	log, err := openLog(path, 4096, 3)
	if err != nil {
		t.Fatal(err)
	}
	s := &stream{fd: -1, tag: " stderr "}
	for i := range 1000 {
		log.add(s, fmt.Appendf(nil, "line %d\n", i))
	}
	log.close()
	files, err := filepath.Glob(path + "*")
	if err != nil || len(files) != 3 {
		t.Fatalf("files %v, %v, want 3", files, err)
	}
	for _, f := range files {
		if info, err := os.Stat(f); err != nil || info.Size() > 4096 {
			t.Errorf("%s: %v, %v", f, info, err)
		}
	}
	content, err := os.ReadFile(path)
	if err != nil || !strings.HasSuffix(string(content), "line 999\n") {
		t.Errorf("the current file ends %q, %v", content[max(0, len(content)-20):], err)
	}
}

// TestLogSaysWhatItLost: a full disk is simulated by a file that takes no
// writes; the lines that follow say how much is missing.
func TestLogSaysWhatItLost(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	log, err := openLog(path, 1<<20, 1)
	if err != nil {
		t.Fatal(err)
	}
	s := &stream{fd: -1, tag: " stdout "}
	good := log.fd
	full, err := syscall.Open("/dev/full", syscall.O_WRONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	log.fd = full
	log.add(s, []byte("lost\n"))
	if err := syscall.Close(full); err != nil {
		t.Fatal(err)
	}
	log.fd = good
	log.add(s, []byte("kept\n"))
	log.close()
	content, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(content), "bytes of this log could not be written]\n") || !strings.HasSuffix(string(content), "kept\n") {
		t.Errorf("log reads %q, %v", content, err)
	}
}
