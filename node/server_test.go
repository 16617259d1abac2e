package node_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/node"
	"github.com/balsa-run/balsa/object"
)

// server is a control plane in memory, with the manners of the real one: a
// revision for each write, assignments as full sets and consistent steps cut
// into several messages, reports that are refused when they are old, and pods
// that go only when their node has ended them.
type server struct {
	mu       sync.Mutex
	revision int64
	objects  map[string]object.Message
	changed  chan struct{}
	// down: nothing answers, and streams break.
	down bool
	// resync: open streams send a full set again, as after a compaction.
	resync int
	// loseAnswers: writes happen, and the answer is lost.
	loseAnswers bool
	// dropReports: reports are taken, and nothing comes of them.
	dropReports bool
	// silent: nobody says that a pod which was deleted is out of service.
	silent    bool
	podCIDR   string
	clusterID string

	registers  int
	beats      []*balsav1.HeartbeatRequest
	reports    []*balsav1.ReportStatusRequest
	events     []*balsav1.Event
	forgetNode bool
	taken      int
	refuses    error // of heartbeats
	removed    *balsav1.RemovedIdentities
}

func newServer() *server {
	return &server{revision: 100, objects: map[string]object.Message{}, changed: make(chan struct{}), podCIDR: "10.244.1.0/24", clusterID: "c"}
}

func unavailable() error {
	return connect.NewError(connect.CodeUnavailable, errors.New("no server can be reached"))
}

func (s *server) wakeLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// put writes an object as a user or another part of the control plane would.
func (s *server) put(m object.Message) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.putLocked(object.Clone(m))
}

func (s *server) putLocked(m object.Message) int64 {
	s.revision++
	meta := object.EnsureMetadata(m)
	meta.ResourceVersion = strconv.FormatInt(s.revision, 10)
	if meta.Uid == "" {
		meta.Uid = "uid-" + meta.Name
	}
	if meta.CreationTimestamp == nil {
		meta.CreationTimestamp = timestamppb.Now()
	}
	s.objects[object.KeyOf(m)] = m
	s.wakeLocked()
	return s.revision
}

func (s *server) remove(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revision++
	delete(s.objects, key)
	s.wakeLocked()
}

// deletePod asks for a pod's deletion.
func (s *server) deletePod(name string, grace int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := object.Clone(s.objects["pods/default/"+name].(*balsav1.Pod))
	p.Metadata.DeletionTimestamp = timestamppb.Now()
	p.Metadata.DeletionGracePeriodSeconds = &grace
	if !s.silent {
		drained(p)
	}
	s.putLocked(p)
}

// drained says that no node sends new connections to a pod.
func drained(p *balsav1.Pod) {
	if p.Status == nil {
		p.Status = &balsav1.PodStatus{}
	}
	p.Status.Conditions, _ = object.SetCondition(p.Status.Conditions, &balsav1.Condition{Type: object.ConditionDrained, Status: object.ConditionTrue}, time.Now())
}

func (s *server) pod(name string) *balsav1.Pod {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, _ := s.objects["pods/default/"+name].(*balsav1.Pod)
	return p
}

func (s *server) setDown(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
	s.wakeLocked()
}

func (s *server) compact() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resync++
	s.wakeLocked()
}

// Register implements node.API.
func (s *server) Register(ctx context.Context, req *balsav1.RegisterRequest) (*balsav1.RegisterResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuses != nil {
		return nil, s.refuses
	}
	if s.down {
		return nil, unavailable()
	}
	s.registers++
	s.forgetNode = false
	n := object.Clone(req.GetNode())
	if live, ok := s.objects[object.KeyOf(n)].(*balsav1.Node); ok {
		n.Spec = live.Spec
		n.Metadata.Uid = live.Metadata.Uid
	} else {
		n.Spec = &balsav1.NodeSpec{PodCidr: s.podCIDR}
	}
	s.putLocked(n)
	if s.loseAnswers {
		return nil, unavailable()
	}
	return &balsav1.RegisterResponse{Node: n, Cluster: &balsav1.ClusterInfo{
		ClusterId: s.clusterID, PodCidr: "10.244.0.0/16", ServiceCidr: "10.96.0.0/12", DnsDomain: "cluster.local",
		Servers: []string{"10.0.0.1:7443"}, HeartbeatIntervalMs: 1000, LeaseDurationMs: 5000,
	}}, nil
}

// Heartbeat implements node.API.
func (s *server) Heartbeat(ctx context.Context, req *balsav1.HeartbeatRequest) (*balsav1.HeartbeatResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return nil, unavailable()
	}
	s.beats = append(s.beats, proto.CloneOf(req))
	if s.refuses != nil {
		return nil, s.refuses
	}
	_, known := s.objects["nodes/"+req.GetNodeName()]
	return &balsav1.HeartbeatResponse{LeaseDurationMs: 5000, Register: !known || s.forgetNode, Removed: s.removed}, nil
}

// ReportStatus implements node.API with the rules of the real server.
func (s *server) ReportStatus(ctx context.Context, req *balsav1.ReportStatusRequest) (*balsav1.ReportStatusResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return nil, unavailable()
	}
	s.reports = append(s.reports, proto.CloneOf(req))
	s.events = append(s.events, req.GetEvents()...)
	res := &balsav1.ReportStatusResponse{}
	for _, r := range req.GetPods() {
		if s.dropReports {
			continue
		}
		if reason := s.reportLocked(r); reason != "" {
			res.Rejected = append(res.Rejected, &balsav1.RejectedReport{Uid: r.GetUid(), Reason: reason})
		} else {
			s.taken++
		}
	}
	for _, name := range req.GetDeletedVolumes() {
		s.revision++
		delete(s.objects, "persistentvolumes/"+name)
		s.wakeLocked()
	}
	if s.loseAnswers {
		return nil, unavailable()
	}
	return res, nil
}

func (s *server) reportLocked(r *balsav1.PodReport) string {
	live, there := s.objects["pods/"+r.GetNamespace()+"/"+r.GetName()].(*balsav1.Pod)
	gone := !there || live.GetMetadata().GetUid() != r.GetUid()
	switch {
	case gone && r.GetRemoved():
		return ""
	case gone:
		return "NotFound"
	case r.GetRemoved() && !object.IsTerminating(live):
		return "DeletionNotAsked"
	case r.GetRemoved():
		s.revision++
		delete(s.objects, object.KeyOf(live))
		s.wakeLocked()
		return ""
	case object.PodFinished(live) && r.GetStatus().GetPhase() != live.GetStatus().GetPhase():
		return "Final"
	}
	next := object.Clone(live)
	next.Status = proto.CloneOf(r.GetStatus())
	for _, c := range live.GetStatus().GetConditions() {
		if object.FindCondition(next.Status.Conditions, c.GetType()) == nil {
			next.Status.Conditions = append(next.Status.Conditions, c)
		}
	}
	if proto.Equal(next.Status, live.Status) {
		return ""
	}
	s.putLocked(next)
	return ""
}

// Assignments implements node.API.
func (s *server) Assignments(ctx context.Context, req *balsav1.AssignmentsRequest) (node.AssignmentStream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuses != nil {
		return nil, s.refuses
	}
	if s.down {
		return nil, unavailable()
	}
	return &stream{s: s, ctx: ctx, node: req.GetNodeName(), resync: s.resync - 1}, nil
}

type stream struct {
	s      *server
	ctx    context.Context
	node   string
	sent   map[string]object.Message
	resync int
	queue  []*balsav1.AssignmentsResponse
}

func (t *stream) Close() error { return nil }

// Recv implements node.AssignmentStream. A step is cut into messages of two
// objects.
func (t *stream) Recv() (*balsav1.AssignmentsResponse, error) {
	for {
		if len(t.queue) > 0 {
			m := t.queue[0]
			t.queue = t.queue[1:]
			return m, nil
		}
		t.s.mu.Lock()
		if t.s.down {
			t.s.mu.Unlock()
			return nil, unavailable()
		}
		t.fillLocked()
		wait := t.s.changed
		t.s.mu.Unlock()
		if len(t.queue) > 0 {
			continue
		}
		progress := time.NewTimer(time.Second)
		select {
		case <-t.ctx.Done():
			progress.Stop()
			return nil, context.Cause(t.ctx)
		case <-wait:
		case <-progress.C:
			t.s.mu.Lock()
			t.queue = append(t.queue, &balsav1.AssignmentsResponse{Synced: true, Revision: t.s.revision})
			t.fillLocked()
			t.s.mu.Unlock()
		}
		progress.Stop()
	}
}

func (t *stream) fillLocked() {
	full := t.sent == nil || t.resync != t.s.resync
	t.resync = t.s.resync
	want := t.s.assignedLocked(t.node)
	messages := []*balsav1.AssignmentsResponse{{Full: full}}
	add := func() *balsav1.AssignmentsResponse {
		last := messages[len(messages)-1]
		if len(last.Upserts)+len(last.Deletes) == 2 {
			last = &balsav1.AssignmentsResponse{}
			messages = append(messages, last)
		}
		return last
	}
	for _, key := range keys(want) {
		if full || t.sent[key] != want[key] {
			last := add()
			last.Upserts = append(last.Upserts, object.Wrap(want[key]))
		}
	}
	for _, key := range keys(t.sent) {
		if _, kept := want[key]; !kept && !full {
			kind, namespace, name, _ := object.ParseKey(key)
			last := add()
			last.Deletes = append(last.Deletes, &balsav1.ObjectKey{Kind: kind.Name, Namespace: namespace, Name: name})
		}
	}
	t.sent = want
	last := messages[len(messages)-1]
	if !full && len(messages) == 1 && len(last.Upserts)+len(last.Deletes) == 0 {
		return
	}
	last.Synced, last.Revision = true, t.s.revision
	t.queue = append(t.queue, messages...)
}

func (s *server) assignedLocked(node string) map[string]object.Message {
	out := map[string]object.Message{}
	for key, m := range s.objects {
		if p, ok := m.(*balsav1.Pod); !ok || p.GetSpec().GetNodeName() == node {
			out[key] = m
		}
	}
	return out
}

func keys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// memDisk is a Disk in memory.
type memDisk struct {
	mu    sync.Mutex
	files map[string][]byte
	full  bool
	base  string
}

func newDisk(base string) *memDisk { return &memDisk{files: map[string][]byte{}, base: base} }

func (d *memDisk) Read(name string) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	data, ok := d.files[name]
	if !ok {
		return nil, fmt.Errorf("read %s: %w", name, errNotExist())
	}
	return slices.Clone(data), nil
}

func (d *memDisk) Write(name string, data []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.full {
		return fmt.Errorf("write %s: no space left on device", name)
	}
	d.files[name] = slices.Clone(data)
	return nil
}

func (d *memDisk) Show(name string, data []byte, _ fs.FileMode) error { return d.Write(name, data) }

func (d *memDisk) Tail(name string, most int) ([]byte, error) {
	data, err := d.Read(name)
	return data[max(0, len(data)-most):], err
}

func (d *memDisk) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.files, name)
	return nil
}

func (d *memDisk) List(folder string) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []string
	for name := range d.files {
		if len(name) > len(folder) && name[:len(folder)+1] == folder+"/" {
			out = append(out, name[len(folder)+1:])
		}
	}
	slices.Sort(out)
	return out, nil
}

func (d *memDisk) Path(name string) string { return d.base + "/" + name }

func (d *memDisk) setFull(full bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.full = full
}

var _ io.Closer = (*stream)(nil)
