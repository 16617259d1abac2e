package apiserver

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/store"
)

const (
	// statsTimeout is how long a node has to say what it uses.
	statsTimeout = 2 * time.Second
	// statsParallel bounds the nodes that are asked at once.
	statsParallel = 64
)

// Stats asks the nodes what they and their pods use. A node that does not answer
// in time is named, and holds up nobody.
func (p podService) Stats(ctx context.Context, req *balsav1.StatsRequest) (*balsav1.StatsResponse, error) {
	selector, err := object.ParseSelector(req.GetLabelSelector())
	if err != nil {
		return nil, invalid("labelSelector", "write it as key=value,key2 in (a, b)", "%w", err)
	}
	if err := p.barrier(ctx); err != nil {
		return nil, err
	}
	view := p.store.Space(store.SpaceObjects).View()
	nodes, err := p.statsNodes(view, req)
	if err != nil {
		return nil, err
	}
	wanted, err := statsPods(view, req, selector)
	if err != nil {
		return nil, err
	}
	narrow := req.GetName() != "" || req.GetNamespace() != "" || req.GetLabelSelector() != ""
	asked := map[string]*internalv1.StatsRequest{}
	for name := range nodes {
		switch {
		case req.GetNodesOnly():
			asked[name] = &internalv1.StatsRequest{NodeOnly: true}
		case !narrow:
			asked[name] = &internalv1.StatsRequest{}
		case len(wanted[name]) > 0:
			asked[name] = &internalv1.StatsRequest{PodUids: wanted[name]}
		}
	}
	return p.askNodes(ctx, nodes, asked), nil
}

// statsNodes are the nodes that a request is about, by name.
func (p podService) statsNodes(view store.View, req *balsav1.StatsRequest) (map[string]*balsav1.Node, error) {
	kind, _ := object.KindByName("Node")
	nodes := map[string]*balsav1.Node{}
	for kv := range view.Prefix(object.Prefix(kind, "")) {
		m, err := messageOf(kv)
		if err != nil {
			return nil, err
		}
		node := m.(*balsav1.Node)
		if name := node.GetMetadata().GetName(); req.GetNode() == "" || req.GetNode() == name {
			nodes[name] = node
		}
	}
	if req.GetNode() != "" && len(nodes) == 0 {
		return nil, notFound(kind, "", req.GetNode())
	}
	return nodes, nil
}

// statsPods are the uids of the pods that a request is about, by node.
func statsPods(view store.View, req *balsav1.StatsRequest, selector object.Selector) (map[string][]string, error) {
	kind, _ := object.KindByName("Pod")
	wanted, found := map[string][]string{}, false
	for kv := range view.Prefix(object.Prefix(kind, req.GetNamespace())) {
		m, err := messageOf(kv)
		if err != nil {
			return nil, err
		}
		meta := m.GetMetadata()
		if req.GetName() != "" && meta.GetName() != req.GetName() || !selector.Matches(meta.GetLabels()) {
			continue
		}
		found = true
		node := m.(*balsav1.Pod).GetSpec().GetNodeName()
		wanted[node] = append(wanted[node], meta.GetUid())
	}
	if req.GetName() != "" && !found {
		return nil, notFound(kind, cmp.Or(req.GetNamespace(), object.DefaultNamespace), req.GetName())
	}
	return wanted, nil
}

func (p podService) askNodes(ctx context.Context, nodes map[string]*balsav1.Node, asked map[string]*internalv1.StatsRequest) *balsav1.StatsResponse {
	var mu sync.Mutex
	out := &balsav1.StatsResponse{} // guarded by mu
	slots := make(chan struct{}, statsParallel)
	var wg sync.WaitGroup
	for _, name := range slices.Sorted(maps.Keys(asked)) {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			stats, err := p.askNode(ctx, nodes[name], asked[name])
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				out.Unavailable = append(out.Unavailable, &balsav1.NodeUnavailable{Node: name, Reason: whyNot(err)})
				return
			}
			out.Nodes = append(out.Nodes, stats)
		})
	}
	wg.Wait()
	slices.SortFunc(out.Nodes, func(a, b *balsav1.NodeStats) int { return cmp.Compare(a.GetNode(), b.GetNode()) })
	slices.SortFunc(out.Unavailable, func(a, b *balsav1.NodeUnavailable) int { return cmp.Compare(a.GetNode(), b.GetNode()) })
	return out
}

func (p podService) askNode(ctx context.Context, node *balsav1.Node, req *internalv1.StatsRequest) (*balsav1.NodeStats, error) {
	ctx, cancel := context.WithTimeout(ctx, statsTimeout)
	defer cancel()
	agent, err := p.nodes.Agent(ctx, node)
	if err != nil {
		return nil, err
	}
	res, err := agent.Stats(ctx, req)
	if err != nil {
		return nil, err
	}
	return res.GetNode(), nil
}

func whyNot(err error) string {
	if errors.Is(err, context.DeadlineExceeded) || connect.CodeOf(err) == connect.CodeDeadlineExceeded {
		return "it did not answer within " + statsTimeout.String()
	}
	var ce *connect.Error
	if errors.As(err, &ce) {
		return ce.Message()
	}
	return err.Error()
}
