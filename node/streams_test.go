package node_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/gen/balsainternal/v1/internalv1connect"
	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/node"
	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/node/runtime/fake"
	"github.com/balsa-run/balsa/pki"
)

// streamLab serves one pod of a fake machine over HTTP/2.
type streamLab struct {
	*testing.T
	client  internalv1connect.AgentServiceClient
	rt      *fake.Runtime
	machine *fake.Machine
	server  *httptest.Server
}

func newStreamLab(t *testing.T, role pki.Role) *streamLab {
	m := fake.NewMachine(fake.Options{Clock: clock.Real{}})
	t.Cleanup(m.Reboot)
	rt := m.Open()
	agent, err := node.New(node.Config{
		Name: "n1", NodeIP: netip.MustParseAddr("10.0.0.11"), Disk: newDisk(""), RunDisk: newDisk(""), Clock: clock.Real{}, Rand: rand.New(rand.NewPCG(1, 2)),
		Logger: slog.New(slog.DiscardHandler), API: newServer(), Machine: machine{}, Runtime: rt, Images: &imageStore{}, MaxLogStreams: 1,
		Open: func(context.Context, node.ClusterFacts) (node.Plant, error) { return node.Plant{}, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	handler := agent.Handler()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handler.ServeHTTP(w, r.WithContext(pki.WithIdentity(r.Context(), pki.Identity{Name: "s1", Role: role})))
	}))
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	if _, err := rt.RunPod(t.Context(), runtime.PodConfig{UID: "u", Namespace: "d", Name: "p", Hostname: "p"}); err != nil {
		t.Fatal(err)
	}
	return &streamLab{T: t, client: internalv1connect.NewAgentServiceClient(s.Client(), s.URL, connect.WithGRPC()), rt: rt, machine: m, server: s}
}

func (l *streamLab) run(c runtime.ContainerConfig, steps ...string) {
	l.Helper()
	c.Name, c.Image, c.Command = "c", imageOf("app:1"), append([]string{"/bin/sim"}, steps...)
	if err := l.rt.RunContainer(l.Context(), "u", c); err != nil {
		l.Fatal(err)
	}
}

func (l *streamLab) must(err error) {
	l.Helper()
	if err != nil {
		l.Fatal(err)
	}
}

type execStream = connect.BidiStreamForClientSimple[internalv1.ExecRequest, internalv1.ExecResponse]

func (l *streamLab) exec(ctx context.Context, start *internalv1.ExecStart) *execStream {
	l.Helper()
	stream, err := l.client.Exec(ctx)
	l.must(err)
	start.PodUid, start.Container = "u", "c"
	err = stream.Send(&internalv1.ExecRequest{Message: &internalv1.ExecRequest_Start{Start: start}})
	if err != nil && !errors.Is(err, io.EOF) { // that is a refusal, which Receive tells
		l.Fatal(err)
	}
	return stream
}

func stdin(text string) *internalv1.ExecRequest {
	return &internalv1.ExecRequest{Message: &internalv1.ExecRequest_Input{Input: &balsav1.StreamInput{Input: &balsav1.StreamInput_Stdin{Stdin: []byte(text)}}}}
}

// outcome reads a stream to its end.
func outcome(receive func() (*balsav1.StreamOutput, error)) (out, errOut string, exit *balsav1.ProcessExit, err error) {
	for {
		m, err := receive()
		if errors.Is(err, io.EOF) {
			return out, errOut, exit, nil
		}
		if err != nil {
			return out, errOut, exit, err
		}
		out += string(m.GetStdout())
		errOut += string(m.GetStderr())
		if m.GetExit() != nil {
			exit = m.GetExit()
		}
	}
}

func execOutcome(s *execStream) (string, string, *balsav1.ProcessExit, error) {
	return outcome(func() (*balsav1.StreamOutput, error) {
		m, err := s.Receive()
		return m.GetOutput(), err
	})
}

func TestExecStream(t *testing.T) {
	l := newStreamLab(t, pki.RoleServer)
	l.run(runtime.ContainerConfig{}, "forever")
	s := l.exec(t.Context(), &internalv1.ExecStart{Command: []string{"/bin/sim", "echo", "err=bad", "exit=7"}, Stdin: true})
	l.must(s.Send(stdin("one\n")))
	l.must(s.Send(stdin("two\n")))
	l.must(s.CloseRequest()) // the end of the stream is the end of input
	out, errOut, exit, err := execOutcome(s)
	if err != nil || out != "one\ntwo\n" || errOut != "bad\n" || exit.GetCode() != 7 {
		t.Errorf("printed %q and %q, %v, %v", out, errOut, exit, err)
	}
	s = l.exec(t.Context(), &internalv1.ExecStart{Command: []string{"/bin/sim", "winsize"}, Tty: true, Size: &balsav1.TerminalSize{Width: 90, Height: 20}})
	if out, _, exit, err := execOutcome(s); err != nil || out != "90x20\n" || exit.GetCode() != 0 {
		t.Errorf("a terminal prints %q, %v, %v", out, exit, err)
	}
	l.must(s.CloseRequest())
}

func TestExecEndsWithItsClient(t *testing.T) {
	l := newStreamLab(t, pki.RoleServer)
	l.run(runtime.ContainerConfig{}, "forever")
	ctx, cancel := context.WithCancel(t.Context())
	s := l.exec(ctx, &internalv1.ExecStart{Command: []string{"/bin/sim", "out=up", "forever"}})
	if m, err := s.Receive(); err != nil || string(m.GetOutput().GetStdout()) != "up\n" {
		t.Fatal(m, err)
	}
	cancel()
	if _, _, _, err := execOutcome(s); connect.CodeOf(err) != connect.CodeCanceled {
		t.Errorf("the stream of a client that is gone ends with %v", err)
	}
	_ = s.CloseRequest()
	_ = s.CloseResponse()
	// The place is free again once the program is gone.
	for range 64 {
		s := l.exec(t.Context(), &internalv1.ExecStart{Command: []string{"/bin/sim", "out=up"}})
		l.must(s.CloseRequest())
		if _, _, exit, err := execOutcome(s); err != nil || exit == nil {
			t.Fatal(exit, err)
		}
	}
}

func TestExecRefusals(t *testing.T) {
	l := newStreamLab(t, pki.RoleServer)
	for name, want := range map[string]connect.Code{"no container": connect.CodeNotFound, "no program": connect.CodeFailedPrecondition, "no command": connect.CodeInvalidArgument} {
		start := &internalv1.ExecStart{Command: []string{"/no-such"}}
		if name == "no command" {
			start.Command = nil
		}
		if name != "no container" {
			l.run(runtime.ContainerConfig{}, "forever")
		}
		if name == "no container" {
			l.must(l.rt.RemovePod(t.Context(), "u"))
			_, err := l.rt.RunPod(t.Context(), runtime.PodConfig{UID: "u", Namespace: "d", Name: "p", Hostname: "p"})
			l.must(err)
		}
		s := l.exec(t.Context(), start)
		if _, _, _, err := execOutcome(s); connect.CodeOf(err) != want {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
		l.must(s.CloseRequest())
	}
	stream, err := l.client.Exec(t.Context())
	l.must(err)
	l.must(stream.Send(stdin("x")))
	if _, _, _, err := execOutcome(stream); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("a stream without a start: %v", err)
	}
}

func TestAttachStream(t *testing.T) {
	l := newStreamLab(t, pki.RoleServer)
	l.run(runtime.ContainerConfig{Stdin: true, StdinOnce: true}, "echo", "exit=4")
	s, err := l.client.Attach(t.Context())
	l.must(err)
	start := &internalv1.AttachStart{PodUid: "u", Container: "c", Stdin: true}
	l.must(s.Send(&internalv1.AttachRequest{Message: &internalv1.AttachRequest_Start{Start: start}}))
	input := func(in *balsav1.StreamInput) {
		l.must(s.Send(&internalv1.AttachRequest{Message: &internalv1.AttachRequest_Input{Input: in}}))
	}
	input(&balsav1.StreamInput{Input: &balsav1.StreamInput_Stdin{Stdin: []byte("hello\n")}})
	input(&balsav1.StreamInput{Input: &balsav1.StreamInput_CloseStdin{CloseStdin: true}})
	out, _, exit, err := outcome(func() (*balsav1.StreamOutput, error) {
		m, err := s.Receive()
		return m.GetOutput(), err
	})
	if err != nil || out != "hello\n" || exit.GetCode() != 4 {
		t.Errorf("printed %q, %v, %v", out, exit, err)
	}
	l.must(s.CloseRequest())
}

func TestPortForwardStream(t *testing.T) {
	l := newStreamLab(t, pki.RoleServer)
	l.run(runtime.ContainerConfig{}, "listen=80", "ready", "forever")
	open := func(port int32) *connect.BidiStreamForClientSimple[internalv1.PortForwardRequest, internalv1.PortForwardResponse] {
		s, err := l.client.PortForward(t.Context())
		l.must(err)
		start := &internalv1.PortForwardStart{PodUid: "u", Port: port}
		l.must(s.Send(&internalv1.PortForwardRequest{Message: &internalv1.PortForwardRequest_Start{Start: start}}))
		return s
	}
	for deadline := time.Now().Add(10 * time.Second); !l.machine.Ready("u", "c") && time.Now().Before(deadline); {
		<-time.NewTimer(time.Millisecond).C
	}
	s := open(80)
	l.must(s.Send(&internalv1.PortForwardRequest{Message: &internalv1.PortForwardRequest_Data{Data: []byte("ping")}}))
	l.must(s.Send(&internalv1.PortForwardRequest{Message: &internalv1.PortForwardRequest_Close{Close: true}}))
	l.must(s.CloseRequest())
	var got []string
	for {
		m, err := s.Receive()
		if errors.Is(err, io.EOF) {
			break
		}
		l.must(err)
		switch {
		case m.GetConnected():
			got = append(got, "connected")
		case m.GetClose():
			got = append(got, "close")
		default:
			got = append(got, string(m.GetData()))
		}
	}
	if strings.Join(got, " ") != "connected ping close" {
		t.Errorf("the stream said %q", got)
	}
	s = open(81)
	if _, err := s.Receive(); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("a port where nobody listens: %v", err)
	}
	l.must(s.CloseRequest())
}

func TestCopyStreams(t *testing.T) {
	l := newStreamLab(t, pki.RoleServer)
	l.run(runtime.ContainerConfig{}, "forever")
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	content := strings.Repeat("0123456789", 50_000)
	l.must(w.WriteHeader(&tar.Header{Name: "big", Typeflag: tar.TypeReg, Mode: 0o600, Size: int64(len(content))}))
	_, err := io.WriteString(w, content)
	l.must(errors.Join(err, w.Close()))
	in, err := l.client.CopyIn(t.Context())
	l.must(err)
	l.must(in.Send(&internalv1.CopyInRequest{Message: &internalv1.CopyInRequest_Start{Start: &internalv1.CopyInStart{PodUid: "u", Container: "c", Path: "/data"}}}))
	for part := range slices.Chunk(archive.Bytes(), 64<<10) {
		l.must(in.Send(&internalv1.CopyInRequest{Message: &internalv1.CopyInRequest_Tar{Tar: part}}))
	}
	res, err := in.CloseAndReceive()
	if err != nil || res.GetEntries() != 1 || res.GetBytes() != int64(len(content)) {
		t.Fatalf("copied %v, %v", res, err)
	}
	out, err := l.client.CopyOut(t.Context(), &internalv1.CopyOutRequest{PodUid: "u", Container: "c", Path: "/data/big"})
	l.must(err)
	var back bytes.Buffer
	for out.Receive() {
		back.Write(out.Msg().GetTar())
	}
	l.must(errors.Join(out.Err(), out.Close()))
	r := tar.NewReader(&back)
	h, err := r.Next()
	l.must(err)
	if got, err := io.ReadAll(r); err != nil || h.Name != "big" || string(got) != content {
		t.Errorf("%s comes back with %d bytes, %v", h.Name, len(got), err)
	}
	missing, err := l.client.CopyOut(t.Context(), &internalv1.CopyOutRequest{PodUid: "u", Container: "c", Path: "/no"})
	l.must(err)
	if missing.Receive() || connect.CodeOf(missing.Err()) != connect.CodeNotFound {
		t.Errorf("what is not there: %v", missing.Err())
	}
	l.must(missing.Close())
}

func TestStatsOfPods(t *testing.T) {
	l := newStreamLab(t, pki.RoleServer)
	l.run(runtime.ContainerConfig{}, "out=up", "forever")
	res, err := l.client.Stats(t.Context(), &internalv1.StatsRequest{})
	l.must(err)
	pods := res.GetNode().GetPods()
	if res.GetNode().GetNode() != "n1" || len(pods) != 1 || pods[0].GetName() != "p" || pods[0].GetNamespace() != "d" || len(pods[0].GetContainers()) != 1 {
		t.Fatalf("stats %v", res)
	}
	// A simulated program keeps one core busy.
	if c := pods[0].GetContainers()[0]; c.GetCpuNanoCores() < 9e8 || c.GetCpuNanoCores() > 11e8 || c.GetMemoryWorkingSetBytes() == 0 || c.GetLogBytes() == 0 {
		t.Errorf("the container reads %v", c)
	}
	if res, err = l.client.Stats(t.Context(), &internalv1.StatsRequest{PodUids: []string{"other"}}); err != nil || len(res.GetNode().GetPods()) != 0 {
		t.Errorf("of another pod: %v, %v", res, err)
	}
	if res, err = l.client.Stats(t.Context(), &internalv1.StatsRequest{NodeOnly: true}); err != nil || len(res.GetNode().GetPods()) != 0 {
		t.Errorf("of the node alone: %v, %v", res, err)
	}
}

func TestStreamsAreForServers(t *testing.T) {
	for _, role := range []pki.Role{pki.RoleAgent, pki.RoleAdmin, pki.RoleReader} {
		l := newStreamLab(t, role)
		l.run(runtime.ContainerConfig{}, "forever")
		calls := map[string]func() error{
			"exec": func() error {
				_, _, _, err := execOutcome(l.exec(t.Context(), &internalv1.ExecStart{Command: []string{"/bin/sim"}}))
				return err
			},
			"stats": func() error { _, err := l.client.Stats(t.Context(), &internalv1.StatsRequest{}); return err },
			"copy": func() error {
				s, err := l.client.CopyOut(t.Context(), &internalv1.CopyOutRequest{PodUid: "u", Container: "c", Path: "/data"})
				if err != nil {
					return err
				}
				s.Receive()
				return s.Err()
			},
		}
		for name, call := range calls {
			if err := call(); connect.CodeOf(err) != connect.CodePermissionDenied {
				t.Errorf("role %s, %s: %v", role, name, err)
			}
		}
	}
}
