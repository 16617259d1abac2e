package runc

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/balsa-run/balsa/internal/runcwire"
	"github.com/balsa-run/balsa/node/runtime"
)

func TestLinesReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		value := rapid.String().Draw(t, "value")
		text := formatRequest("3", "start", [][2]string{{"name", value}, {"empty", ""}})
		line, err := parseShimLine(text)
		if err != nil || line.id != "3" || line.kind != "start" || line.keys["name"] != value || line.keys["empty"] != "" {
			t.Fatalf("%q reads back as %+v, %v", text, line, err)
		}
	})
}

func FuzzParseShimLine(f *testing.F) {
	f.Add("* container name=c attempt=0 state=exited pid=0 started=5 finished=9 code=3 signal=0 oom=0 msg=a%20b")
	f.Add("0 error why=not-found msg=")
	f.Fuzz(func(t *testing.T, text string) {
		line, err := parseShimLine(text)
		if err != nil {
			return
		}
		if state, err := parseContainer(line.keys); err == nil && state.Status == "" {
			t.Errorf("%q gives a container without a status: %+v", text, state)
		}
	})
}

func FuzzParseLogLine(f *testing.F) {
	f.Add([]byte("2026-01-02T03:04:05.000000006Z stdout F text\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		line, err := parseLogLine(text)
		if err == nil && (line.Stream != runtime.Stdout && line.Stream != runtime.Stderr || len(line.Text) > len(text)) {
			t.Errorf("%q reads %+v", text, line)
		}
	})
}

func TestLostRecordReadsBack(t *testing.T) {
	want := runtime.ContainerState{
		Name: "c", Attempt: 4, Status: runtime.ContainerExited, StartedAt: time.Unix(5, 6).UTC(), FinishedAt: time.Unix(7, 8).UTC(),
		Exit: runtime.ExitStatus{Code: 137, Signal: 9}, Reason: runtime.ReasonShimLost, Message: "it died = 100%\nnow",
	}
	got, err := parseRecord(formatLost(want))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("record reads back differently (-want +got):\n%s", diff)
	}
}

// rawShim talks to a real shim line by line, as agents of other versions do.
type rawShim struct {
	t     *testing.T
	conn  net.Conn
	lines *bufio.Reader
}

func (m *machine) rawShim(t *testing.T) *rawShim {
	t.Helper()
	conn, err := dialIn(t.Context(), m.podDir("a"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	r := &rawShim{t: t, conn: conn, lines: bufio.NewReader(conn)}
	if line := r.line(); !strings.HasPrefix(line, "balsa-shim proto=1 min=1 pid=") || !strings.HasSuffix(line, " uid=a attach=1") {
		t.Errorf("greeting %q", line)
	}
	return r
}

func (r *rawShim) line() string {
	r.t.Helper()
	line, err := r.lines.ReadString('\n')
	if err != nil {
		r.t.Fatal(err)
	}
	return strings.TrimSuffix(line, "\n")
}

func (r *rawShim) say(line, want string) {
	r.t.Helper()
	if _, err := io.WriteString(r.conn, line+"\n"); err != nil {
		r.t.Fatal(err)
	}
	if got := r.line(); got != want {
		r.t.Errorf("%s\n got %q\nwant %q", line, got, want)
	}
}

func TestShimTalksToOtherAgents(t *testing.T) {
	m := newMachine(t)
	if _, err := m.open().RunPod(t.Context(), runtime.PodConfig{UID: "a"}); err != nil {
		t.Fatal(err)
	}
	r := m.rawShim(t)
	r.say("1 hello proto=2 newer=yes", "1 ok proto=1")
	r.say("2 hello proto=0", "2 error why=version msg=this%20shim%20speaks%20versions%201%20to%201")
	r.say("3 teleport to=mars", "3 error why=unknown-verb msg=teleport")
	r.say("4 list unknown=key", "4 ok")
	r.say("5 signal name=c attempt=0 sig=9", "5 error why=not-found msg=c")
	r.say("6 start name=c", "6 error why=bad-request msg=start%20needs%20name,%20attempt,%20dir,%20log,%20logmax%20and%20logfiles")
	// A line that is none ends this connection and no other.
	if _, err := io.WriteString(r.conn, "\x00\x01\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.lines.ReadString('\n'); !errors.Is(err, io.EOF) {
		t.Errorf("after garbage: %v, want the end of the connection", err)
	}
	long := m.rawShim(t)
	_, _ = io.WriteString(long.conn, "1 list x="+strings.Repeat("a", 64<<10))
	if _, err := long.lines.ReadString('\n'); err == nil {
		t.Error("an endless line was answered")
	}
	m.rawShim(t).say("1 list", "1 ok")
}

// TestClientTalksToNewerShim: a shim of the next version sends keys, kinds and
// a version that this agent does not know.
func TestClientTalksToNewerShim(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, socketName))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go serveNewer(l)
	client, lines, err := dialShim(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	states, err := client.watch(lines)
	if err != nil || len(states) != 1 || states[0].Name != "c" || states[0].Status != runtime.ContainerRunning {
		t.Fatalf("watch: %+v, %v", states, err)
	}
	seen, closed := make(chan runtime.ContainerState, 1), make(chan struct{})
	go client.serve(lines, shimHandlers{
		onContainer: func(s runtime.ContainerState) { seen <- s },
		onClosed:    func(*shimClient) { close(closed) },
	})
	if s := <-seen; s.Status != runtime.ContainerExited || s.Exit.Code != 3 {
		t.Errorf("event %+v", s)
	}
	<-closed
	if _, err := client.call(t.Context(), "list", nil); !errors.Is(err, errShimGone) {
		t.Errorf("call after the end: %v", err)
	}
}

func serveNewer(l net.Listener) {
	conn, err := l.Accept()
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	requests := bufio.NewReader(conn)
	_, _ = io.WriteString(conn, "balsa-shim proto=2 min=1 pid=5 uid=a mood=good\n")
	_, _ = requests.ReadString('\n')
	_, _ = io.WriteString(conn, "* weather sun=yes\n0 ok proto=1 extra=1\n")
	_, _ = requests.ReadString('\n')
	_, _ = io.WriteString(conn, "0 item name=c attempt=0 state=running pid=7 started=1 numa=2\n0 ok\n"+
		"* weather rain=1\n* container name=c attempt=0 state=exited started=1 finished=2 code=3 signal=0 oom=0 msg= new=1\n")
}

func TestClientRefusesShimThatIsTooNew(t *testing.T) {
	if _, err := (greeting{proto: 9, min: 8, uid: "a"}).agree(); err == nil {
		t.Error("agreed with a shim that speaks versions 8 to 9")
	}
}

func TestRunWireReportsReadBack(t *testing.T) {
	code, signal, err := runcwire.ParseExecReport(runcwire.ExitReport(137, 9))
	if code != 137 || signal != 9 || err != nil {
		t.Errorf("exit report: %d, %d, %v", code, signal, err)
	}
	_, _, err = runcwire.ParseExecReport(runcwire.ErrorReport(os.ErrNotExist))
	if err == nil || !strings.Contains(err.Error(), os.ErrNotExist.Error()) {
		t.Errorf("error report: %v", err)
	}
	if _, _, err = runcwire.ParseExecReport(""); !errors.Is(err, runcwire.ErrNoReport) {
		t.Errorf("no report: %v", err)
	}
	started := runcwire.StartedReport(4711, 99)
	if pid, ticks, ok := runcwire.ParseStartedReport(started); pid != 4711 || ticks != 99 || !ok {
		t.Errorf("started report: %d, %d, %v", pid, ticks, ok)
	}
	if code, _, err = runcwire.ParseExecReport(started + runcwire.ExitReport(3, 0)); code != 3 || err != nil {
		t.Errorf("both reports: %d, %v", code, err)
	}
	for _, bad := range []string{"", "started pid=1 ticks=5\n", "started pid=-3 ticks=5\n", "exit code=1 signal=0\n"} {
		if _, _, ok := runcwire.ParseStartedReport(bad); ok {
			t.Errorf("%q reads as started", bad)
		}
	}
	stat := "4711 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20"
	if ticks, err := runcwire.ParseStartTicks(stat); ticks != 4242 || err != nil {
		t.Errorf("ticks %d, %v", ticks, err)
	}
	for _, bad := range []string{"", "1 (x", "1 (x) S 1 2", strings.ReplaceAll(stat, "4242", "x")} {
		if _, err := runcwire.ParseStartTicks(bad); err == nil {
			t.Errorf("%q reads as a stat", bad)
		}
	}
}

// Lines are read whole whatever the buffer is, up to their limit; the next one
// is not touched.
func TestReadLineOfAnyLength(t *testing.T) {
	for _, length := range []int{1, shimLineBuffer - 1, shimLineBuffer, shimLineBuffer + 1, maxShimLineBytes} {
		want := strings.Repeat("x", length-1) + "\n"
		lines := bufio.NewReaderSize(strings.NewReader(want+"next\n"), shimLineBuffer)
		got, err := readLine(lines)
		next, nextErr := readLine(lines)
		if got != want || err != nil || next != "next\n" || nextErr != nil {
			t.Errorf("a line of %d bytes reads as %d bytes, %v; then %q, %v", length, len(got), err, next, nextErr)
		}
	}
	endless := bufio.NewReaderSize(strings.NewReader(strings.Repeat("x", 2*maxShimLineBytes)), shimLineBuffer)
	if _, err := readLine(endless); !errors.Is(err, errLongLine) {
		t.Errorf("a line without end: %v", err)
	}
}
