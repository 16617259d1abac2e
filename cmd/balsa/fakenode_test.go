package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/gen/balsa/v1/balsav1connect"

	"github.com/balsa-run/balsa/client"
	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/pki"
)

// fakeNode plays an agent towards the server: it says of every pod that it runs,
// and of one that is to end that it is gone, but for those named stuck.
type fakeNode struct {
	t      *testing.T
	name   string
	client *client.Client
	pods   map[string]*balsav1.Pod // by uid; of the one goroutine that follows the assignments
}

// startNode lets a node in, and plays it until the test ends.
func startNode(t *testing.T, s *server, name string, labels map[string]string) {
	t.Helper()
	n := &fakeNode{t: t, name: name, client: joinAgent(t, s, name), pods: map[string]*balsav1.Pod{}}
	node := &balsav1.Node{
		ApiVersion: "v1", Kind: "Node", Metadata: &balsav1.ObjectMeta{Name: name, Labels: labels},
		Status: &balsav1.NodeStatus{
			Capacity: room("4", "8Gi"), Allocatable: room("3", "6Gi"), Addresses: []*balsav1.NodeAddress{{Type: "InternalIP", Address: "10.0.0.11"}},
			NodeInfo: &balsav1.NodeSystemInfo{
				MachineId: "machine", BootId: "boot", KernelVersion: "6.1.0", OsImage: "Debian GNU/Linux 12", ContainerRuntimeVersion: "balsa-runc://1",
				KubeletVersion: "0.1.0", OperatingSystem: "linux", Architecture: "amd64",
			},
			Images: []*balsav1.ContainerImage{{Names: []string{"web:1"}, SizeBytes: 3 << 20}},
		},
	}
	_, err := n.client.Nodes.Register(t.Context(), &balsav1.RegisterRequest{Node: node})
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { n.beat(ctx) })
	running.Go(func() { n.follow(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
		n.client.Close()
	})
}

func room(cpu, memory string) map[string]*balsav1.Quantity {
	return map[string]*balsav1.Quantity{"cpu": {String_: cpu}, "memory": {String_: memory}, "ephemeral-storage": {String_: "10Gi"}, "pods": {String_: "110"}}
}

func (n *fakeNode) beat(ctx context.Context) {
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	for sequence := uint64(1); ctx.Err() == nil; sequence++ {
		_, _ = n.client.Nodes.Heartbeat(ctx, &balsav1.HeartbeatRequest{NodeName: n.name, BootId: "boot", Sequence: sequence}) // the next one follows
		select {
		case <-ticker.C:
		case <-ctx.Done():
		}
	}
}

func (n *fakeNode) follow(ctx context.Context) {
	stream, err := n.client.Nodes.Assignments(ctx, &balsav1.AssignmentsRequest{NodeName: n.name})
	if err != nil {
		n.t.Error(err)
		return
	}
	for stream.Receive() {
		for _, o := range stream.Msg().GetUpserts() {
			if pod := o.GetPod(); pod != nil {
				n.report(ctx, pod)
			}
		}
	}
	if ctx.Err() == nil {
		n.t.Errorf("the assignments have ended: %v", stream.Err())
	}
}

func (n *fakeNode) report(ctx context.Context, pod *balsav1.Pod) {
	meta := pod.GetMetadata()
	if n.pods[meta.GetUid()] != nil && !object.IsTerminating(pod) {
		return // it was told already
	}
	n.pods[meta.GetUid()] = pod
	if object.IsTerminating(pod) && strings.HasPrefix(meta.GetName(), "stuck") {
		return
	}
	running := &balsav1.ContainerState{Running: &balsav1.ContainerStateRunning{StartedAt: timestamppb.Now()}}
	status := &balsav1.PodStatus{
		Phase: object.PodRunning, PodIp: "10.244.0.9", ObservedGeneration: meta.GetGeneration(),
		Conditions: []*balsav1.Condition{
			{Type: object.ConditionInitialized, Status: object.ConditionTrue}, {Type: object.ConditionReady, Status: object.ConditionTrue},
		},
		ContainerStatuses: []*balsav1.ContainerStatus{{Name: "web", Image: "web:1", Ready: proto.Bool(true), Started: proto.Bool(true), State: running}},
	}
	if image := pod.GetSpec().GetContainers()[0].GetImage(); strings.HasPrefix(image, "bad") {
		unready(status, image)
	}
	_, err := n.client.Nodes.ReportStatus(ctx, &balsav1.ReportStatusRequest{NodeName: n.name, Pods: []*balsav1.PodReport{{
		Namespace: meta.GetNamespace(), Name: meta.GetName(), Uid: meta.GetUid(), Status: status, Removed: object.IsTerminating(pod),
	}}})
	if err != nil && ctx.Err() == nil {
		n.t.Error(err)
	}
}

// unready makes it the status of a pod whose image cannot be pulled.
func unready(status *balsav1.PodStatus, image string) {
	status.Phase = object.PodPending
	status.Conditions = []*balsav1.Condition{{Type: object.ConditionReady, Status: object.ConditionFalse, Message: "containers with unready status: [web]"}}
	status.ContainerStatuses = []*balsav1.ContainerStatus{{Name: "web", Image: image, Ready: proto.Bool(false), State: &balsav1.ContainerState{
		Waiting: &balsav1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: fmt.Sprintf("Back-off pulling image %q: not found", image)},
	}}}
}

// joinAgent makes an agent's identity as an agent does.
func joinAgent(t *testing.T, s *server, name string) *client.Client {
	t.Helper()
	token, err := pki.ParseToken(strings.TrimSpace(done(t, s.config, "token", "create", "--role", "agent")))
	must(t, err)
	key, err := pki.JoinKey(pki.OSDir(t.TempDir()), pki.RoleAgent)
	must(t, err)
	side, err := pki.NewJoiner(token, pki.RoleAgent, name, pki.SANs{}, key)
	must(t, err)
	request, err := side.Request()
	must(t, err)
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return pki.Dial(ctx, &net.Dialer{}, s.listen, pki.JoinClientTLS(token, clock.Real{}))
	}
	defer transport.CloseIdleConnections()
	join := balsav1connect.NewJoinServiceClient(&http.Client{Transport: transport}, "http://"+s.listen, connect.WithGRPC())
	response, err := join.Join(t.Context(), &balsav1.JoinRequest{
		Token: token.Reveal(), Role: string(request.Role), Name: request.Name, Csr: request.CSR, Version: "0.1.0",
	})
	must(t, err)
	credential, _, err := side.Accept(pki.JoinReply{CertPEM: response.GetCertificate(), CAPEM: response.GetCa()})
	must(t, err)
	c, err := client.FromCredentials(pki.NewCredentials(credential), []string{s.listen}, nil)
	must(t, err)
	return c
}

// TestNodeScripts runs testdata/node/*.txtar against a server with one node.
func TestNodeScripts(t *testing.T) {
	dir, err := os.MkdirTemp("", "balsa-cli-test-")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := startServer(t, dir, "s1", "--init", "--log-level", "error")
	t.Cleanup(func() { s.stop() }) // after the node's
	waitUntilServing(t, s)
	startNode(t, s, "n1", map[string]string{"disk": "ssd"})
	runScripts(t, s, filepath.Join("testdata", "node"), 2)
}
