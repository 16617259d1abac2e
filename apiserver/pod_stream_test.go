package apiserver

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/gen/balsainternal/v1/internalv1connect"
	"github.com/balsa-run/balsa/pki"
)

// agentFake is a node over real HTTP/2: its programs give back what they read,
// and its ports too.
type agentFake struct {
	internalv1connect.UnimplementedAgentServiceHandler
	listener *pipeListener
	silent   string       // the node that does not answer
	ended    chan error   // how each stream ended
	start    chan string  // what each stream was for
	archive  bytes.Buffer // of CopyIn
}

func (a *agentFake) Agent(_ context.Context, node *balsav1.Node) (internalv1connect.AgentServiceClient, error) {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{
		Protocols: protocols, DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			if node.GetMetadata().GetName() == a.silent {
				select {
				case <-ctx.Done():
				case <-time.After(time.Minute):
				}
				return nil, errors.New("no route")
			}
			return a.listener.dial(pki.Identity{Role: pki.RoleServer})
		},
	}
	return internalv1connect.NewAgentServiceClient(&http.Client{Transport: transport}, base, connect.WithGRPC()), nil
}

func (a *agentFake) Exec(ctx context.Context, stream *connect.BidiStream[internalv1.ExecRequest, internalv1.ExecResponse]) (err error) {
	defer func() { a.ended <- err }()
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	a.start <- first.GetStart().GetPodUid() + " " + first.GetStart().GetContainer() + " " + strings.Join(first.GetStart().GetCommand(), " ")
	for {
		m, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			exit := &balsav1.StreamOutput{Output: &balsav1.StreamOutput_Exit{Exit: &balsav1.ProcessExit{Code: 3}}}
			return stream.Send(&internalv1.ExecResponse{Output: exit})
		}
		if err != nil {
			return err
		}
		out := &balsav1.StreamOutput{Output: &balsav1.StreamOutput_Stdout{Stdout: m.GetInput().GetStdin()}}
		if err := stream.Send(&internalv1.ExecResponse{Output: out}); err != nil {
			return err
		}
	}
}

func (a *agentFake) PortForward(_ context.Context, stream *connect.BidiStream[internalv1.PortForwardRequest, internalv1.PortForwardResponse]) error {
	if _, err := stream.Receive(); err != nil {
		return err
	}
	if err := stream.Send(&internalv1.PortForwardResponse{Message: &internalv1.PortForwardResponse_Connected{Connected: true}}); err != nil {
		return err
	}
	for {
		m, err := stream.Receive()
		if err != nil || m.GetClose() {
			return stream.Send(&internalv1.PortForwardResponse{Message: &internalv1.PortForwardResponse_Close{Close: true}})
		}
		if err := stream.Send(&internalv1.PortForwardResponse{Message: &internalv1.PortForwardResponse_Data{Data: m.GetData()}}); err != nil {
			return err
		}
	}
}

func (a *agentFake) CopyIn(_ context.Context, stream *connect.ClientStream[internalv1.CopyInRequest]) (*internalv1.CopyInResponse, error) {
	for stream.Receive() {
		a.archive.Write(stream.Msg().GetTar())
	}
	return &internalv1.CopyInResponse{Entries: 1, Bytes: int64(a.archive.Len())}, stream.Err()
}

func (a *agentFake) CopyOut(_ context.Context, req *internalv1.CopyOutRequest, stream *connect.ServerStream[internalv1.CopyOutResponse]) error {
	return stream.Send(&internalv1.CopyOutResponse{Tar: []byte("tar of " + req.GetPath())})
}

func (a *agentFake) Stats(_ context.Context, req *internalv1.StatsRequest) (*internalv1.StatsResponse, error) {
	out := &balsav1.NodeStats{Node: "n1", CpuNanoCores: 7}
	for _, uid := range req.GetPodUids() {
		out.Pods = append(out.Pods, &balsav1.PodStats{Uid: uid})
	}
	return &internalv1.StatsResponse{Node: out}, nil
}

// withAgent gives f a world with a pod that runs on a node which answers.
func withAgent(t *testing.T, f func(t *testing.T, w *world, a *agentFake, pod *balsav1.Pod)) {
	t.Helper()
	a := &agentFake{ended: make(chan error, 8), start: make(chan string, 8)}
	run(t, func(t *testing.T, w *world) {
		a.listener = newPipeListener()
		mux := http.NewServeMux()
		mux.Handle(internalv1connect.NewAgentServiceHandler(a))
		w.serve(a.listener, mux)
		w.register("n1")
		pod := create(t, w.admin(), newPod("p", nil))
		w.bind(pod, "n1")
		f(t, w, a, pod)
	}, func(c *Config) { c.Nodes = a })
}

func openExec(ctx context.Context, t *testing.T, c *clients, start *balsav1.ExecStart) *connect.BidiStreamForClientSimple[balsav1.ExecRequest, balsav1.ExecResponse] {
	t.Helper()
	stream, err := c.pods.Exec(ctx)
	must(t, err)
	if err := stream.Send(&balsav1.ExecRequest{Message: &balsav1.ExecRequest_Start{Start: start}}); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return stream
}

func typed(text string) *balsav1.ExecRequest {
	return &balsav1.ExecRequest{Message: &balsav1.ExecRequest_Input{Input: &balsav1.StreamInput{Input: &balsav1.StreamInput_Stdin{Stdin: []byte(text)}}}}
}

func TestExecIsRelayedAndAudited(t *testing.T) {
	withAgent(t, func(t *testing.T, w *world, a *agentFake, pod *balsav1.Pod) {
		s := openExec(t.Context(), t, w.admin(), &balsav1.ExecStart{Name: "p", Command: []string{"/bin/login", "--password=hunter2"}, Stdin: true})
		if got, want := <-a.start, pod.GetMetadata().GetUid()+" main /bin/login --password=hunter2"; got != want {
			t.Errorf("the node was asked for %q, want %q", got, want)
		}
		must(t, s.Send(typed("hello")))
		m, err := s.Receive()
		must(t, err)
		if string(m.GetOutput().GetStdout()) != "hello" {
			t.Errorf("got %v", m)
		}
		must(t, s.CloseRequest())
		m, err = s.Receive()
		must(t, err)
		if m.GetOutput().GetExit().GetCode() != 3 {
			t.Errorf("got %v, want the exit code", m)
		}
		if _, err := s.Receive(); !errors.Is(err, io.EOF) {
			t.Errorf("the stream ends with %v", err)
		}
		synctest.Wait()
		logs := w.logs.String()
		for _, want := range []string{
			`msg=audit who=admin/ana what=balsa.v1.PodService/Exec code=begun object="Pod default/p container main" outcome="program \"login\" with 1 arguments"`,
			`what=balsa.v1.PodService/Exec code=ok object="Pod default/p container main" outcome="program \"login\" with 1 arguments, exit code 3 after`,
		} {
			if !strings.Contains(logs, want) {
				t.Errorf("the audit does not have %s in\n%s", want, logs)
			}
		}
		if strings.Contains(logs, "hunter2") || strings.Contains(logs, "hello") {
			t.Error("the audit has an argument or the input")
		}
	})
}

func TestExecEndsWithTheUser(t *testing.T) {
	withAgent(t, func(t *testing.T, w *world, a *agentFake, _ *balsav1.Pod) {
		ctx, cancel := context.WithCancel(t.Context())
		s := openExec(ctx, t, w.admin(), &balsav1.ExecStart{Name: "p", Command: []string{"sh"}, Stdin: true})
		<-a.start
		must(t, s.Send(typed("hello")))
		_, err := s.Receive()
		must(t, err)
		_ = s.CloseResponse()
		cancel()
		if err := <-a.ended; err == nil {
			t.Error("the node did not hear of the user's end")
		}
		_ = s.CloseRequest()
		_ = s.CloseResponse()
	})
}

// A user who is removed loses what he has open, within five seconds.
func TestExecEndsWithTheIdentity(t *testing.T) {
	withAgent(t, func(t *testing.T, w *world, a *agentFake, _ *balsav1.Pod) {
		s := openExec(t.Context(), t, w.admin(), &balsav1.ExecStart{Name: "p", Command: []string{"sh"}, Stdin: true})
		<-a.start
		must(t, s.Send(typed("hello")))
		if _, err := s.Receive(); err != nil { // from here on the stream has begun both ways
			t.Fatal(err)
		}
		before := time.Now()
		w.remove(pki.RoleAdmin, "ana")
		_, err := s.Receive()
		refused(t, err, connect.CodeUnauthenticated, "IdentityRemoved")
		if err := <-a.ended; err == nil {
			t.Error("the node did not hear of it")
		}
		if took := time.Since(before); took > 5*time.Second {
			t.Errorf("it took %v", took)
		}
		_ = s.CloseRequest()
		_ = s.CloseResponse()
	})
}

func TestPodStreamsAreRefused(t *testing.T) {
	withAgent(t, func(t *testing.T, w *world, _ *agentFake, _ *balsav1.Pod) {
		for _, c := range []struct {
			as     *clients
			start  *balsav1.ExecStart
			code   connect.Code
			reason string
		}{
			{w.reader(), &balsav1.ExecStart{Name: "p", Command: []string{"sh"}}, connect.CodePermissionDenied, "Forbidden"},
			{w.admin(), &balsav1.ExecStart{Name: "p"}, connect.CodeInvalidArgument, "Invalid"},
			{w.admin(), &balsav1.ExecStart{Name: "absent", Command: []string{"sh"}}, connect.CodeNotFound, "NotFound"},
			{w.admin(), &balsav1.ExecStart{Name: "p", Container: "other", Command: []string{"sh"}}, connect.CodeInvalidArgument, "Invalid"},
			{w.admin(), &balsav1.ExecStart{Name: "p", Command: []string{strings.Repeat("x", maxCommand+1)}}, connect.CodeResourceExhausted, "LimitReached"},
			{w.admin(), nil, connect.CodeInvalidArgument, "Invalid"},
		} {
			s := openExec(t.Context(), t, c.as, c.start)
			_, err := s.Receive()
			refused(t, err, c.code, c.reason)
			_ = s.CloseRequest()
			_ = s.CloseResponse()
		}
	})
}

func TestForwardIsRelayed(t *testing.T) {
	withAgent(t, func(t *testing.T, w *world, _ *agentFake, _ *balsav1.Pod) {
		s, err := w.admin().pods.PortForward(t.Context())
		must(t, err)
		must(t, s.Send(&balsav1.PortForwardRequest{Message: &balsav1.PortForwardRequest_Start{Start: &balsav1.PortForwardStart{Name: "p", Port: 80}}}))
		must(t, s.Send(&balsav1.PortForwardRequest{Message: &balsav1.PortForwardRequest_Data{Data: []byte("ping")}}))
		must(t, s.Send(&balsav1.PortForwardRequest{Message: &balsav1.PortForwardRequest_Close{Close: true}}))
		var got []string
		for {
			m, err := s.Receive()
			if errors.Is(err, io.EOF) {
				break
			}
			must(t, err)
			switch {
			case m.GetConnected():
				got = append(got, "connected")
			case m.GetClose():
				got = append(got, "close")
			default:
				got = append(got, string(m.GetData()))
			}
		}
		if !slices.Equal(got, []string{"connected", "ping", "close"}) {
			t.Errorf("got %q", got)
		}
		must(t, s.CloseRequest())
	})
}

func TestCopyIsRelayed(t *testing.T) {
	withAgent(t, func(t *testing.T, w *world, a *agentFake, _ *balsav1.Pod) {
		in, err := w.admin().pods.CopyIn(t.Context())
		must(t, err)
		must(t, in.Send(&balsav1.CopyInRequest{Message: &balsav1.CopyInRequest_Start{Start: &balsav1.CopyInStart{Name: "p", Path: "/data"}}}))
		for range 3 {
			must(t, in.Send(&balsav1.CopyInRequest{Message: &balsav1.CopyInRequest_Tar{Tar: []byte("part")}}))
		}
		res, err := in.CloseAndReceive()
		must(t, err)
		if a.archive.String() != "partpartpart" || res.GetBytes() != 12 {
			t.Errorf("the node got %q and said %v", a.archive.String(), res)
		}
		out, err := w.admin().pods.CopyOut(t.Context(), &balsav1.CopyOutRequest{Name: "p", Path: "/data"})
		must(t, err)
		if !out.Receive() || string(out.Msg().GetTar()) != "tar of /data" || out.Receive() {
			t.Errorf("copied %v, %v", out.Msg(), out.Err())
		}
		must(t, out.Close())
	})
}

func TestStatsNamesWhoIsSilent(t *testing.T) {
	withAgent(t, func(t *testing.T, w *world, a *agentFake, pod *balsav1.Pod) {
		w.register("n2")
		a.silent = "n2"
		before := time.Now()
		res, err := w.reader().pods.Stats(t.Context(), &balsav1.StatsRequest{NodesOnly: true})
		must(t, err)
		if took := time.Since(before); took > statsTimeout+time.Second {
			t.Errorf("it took %v", took)
		}
		if len(res.GetNodes()) != 1 || len(res.GetUnavailable()) != 1 || res.GetUnavailable()[0].GetNode() != "n2" || !strings.Contains(res.GetUnavailable()[0].GetReason(), "2s") {
			t.Errorf("stats %v", res)
		}
		res, err = w.reader().pods.Stats(t.Context(), &balsav1.StatsRequest{Name: "p"})
		must(t, err)
		if len(res.GetUnavailable()) != 0 || len(res.GetNodes()) != 1 || res.GetNodes()[0].GetPods()[0].GetUid() != pod.GetMetadata().GetUid() {
			t.Errorf("of one pod: %v", res)
		}
		_, err = w.reader().pods.Stats(t.Context(), &balsav1.StatsRequest{Name: "absent"})
		refused(t, err, connect.CodeNotFound, "NotFound")
		_, err = w.reader().pods.Stats(t.Context(), &balsav1.StatsRequest{Node: "n9"})
		refused(t, err, connect.CodeNotFound, "NotFound")
		<-time.NewTimer(2 * time.Minute).C // until the last dial is given up
	})
}

func TestDebugAddsAContainer(t *testing.T) {
	withAgent(t, func(t *testing.T, w *world, _ *agentFake, _ *balsav1.Pod) {
		debug := func(c *clients, name string) (*balsav1.DebugResponse, error) {
			return c.pods.Debug(t.Context(), &balsav1.DebugRequest{Name: "p", Container: &balsav1.EphemeralContainer{Name: name, Image: "tools:1", TargetContainerName: "main"}})
		}
		res, err := debug(w.admin(), "look")
		must(t, err)
		if got := res.GetPod().GetSpec().GetEphemeralContainers(); len(got) != 1 || got[0].GetName() != "look" || got[0].GetTerminationMessagePath() == "" {
			t.Errorf("the pod has %v, want one with defaults", got)
		}
		// Somebody writes between reading and proposing: it is planned anew.
		once := true
		w.backend.before = func(c *internalv1.Command) error {
			if once && c.GetTxn() != nil {
				once = false
				pod := res.GetPod()
				pod.Metadata.Labels = map[string]string{"touched": "yes"}
				pod.Metadata.ResourceVersion = ""
				_, err := w.admin().objects.Update(t.Context(), &balsav1.UpdateRequest{Object: &balsav1.Object{Object: &balsav1.Object_Pod{Pod: pod}}})
				return err
			}
			return nil
		}
		res, err = debug(w.admin(), "again")
		must(t, err)
		if len(res.GetPod().GetSpec().GetEphemeralContainers()) != 2 || res.GetPod().GetMetadata().GetLabels()["touched"] != "yes" {
			t.Errorf("after a conflict the pod reads %v", res.GetPod())
		}
		_, err = debug(w.admin(), "look")
		refused(t, err, connect.CodeInvalidArgument, "Invalid")
		_, err = debug(w.admin(), "main")
		refused(t, err, connect.CodeInvalidArgument, "Invalid")
		_, err = debug(w.reader(), "x")
		refused(t, err, connect.CodePermissionDenied, "Forbidden")
	})
}
