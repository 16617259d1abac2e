package apiserver

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/balsa-run/balsa/apiserver/why"
	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/store"
)

// countersTimeout is how long nodes have to say what they counted. An answer
// without their figures is one as well.
const countersTimeout = 2 * time.Second

// networkService is balsa.v1.NetworkService.
type networkService struct{ *Server }

// ExplainConnection tells what becomes of a connection, by the store as it is now.
func (n networkService) ExplainConnection(ctx context.Context, req *balsav1.ExplainConnectionRequest) (*balsav1.ExplainConnectionResponse, error) {
	if err := n.barrier(ctx); err != nil {
		return nil, err
	}
	view := n.store.Space(store.SpaceObjects).View()
	e, err := why.Explain(view, n.policies, req)
	var asked *why.Error
	switch {
	case errors.As(err, &asked) && asked.Missing != "":
		kind, namespace, name, _ := object.ParseKey(asked.Missing)
		return nil, notFound(kind, namespace, name)
	case errors.As(err, &asked):
		return nil, invalid(asked.Field, asked.Hint, "%w", asked.Err)
	case err != nil:
		return nil, err
	}
	n.addCounts(ctx, view, e)
	return e.ExplainConnectionResponse, nil
}

// addCounts asks the nodes, all at once. Each step has an answer of its own.
func (n networkService) addCounts(ctx context.Context, view store.View, e *why.Explanation) {
	ctx, cancel := context.WithTimeout(ctx, countersTimeout)
	defer cancel()
	var asking sync.WaitGroup
	for _, c := range e.Counts {
		asking.Go(func() {
			if packets, ok := n.packets(ctx, view, c); ok {
				e.Steps[c.Step].Packets = &packets
			}
		})
	}
	asking.Wait()
}

func (n networkService) packets(ctx context.Context, view store.View, c why.Count) (uint64, bool) {
	kind, _ := object.KindByName("Node")
	kv, _ := view.Get(object.Key(kind, "", c.Node))
	node, ok := kv.Object.(*balsav1.Node)
	if _, err := netip.ParseAddr(c.PodIP); !ok || err != nil {
		return 0, false
	}
	agent, err := n.nodes.Agent(ctx, node)
	if err != nil {
		return 0, false
	}
	res, err := agent.PolicyCounters(ctx, &internalv1.PolicyCountersRequest{PodIp: c.PodIP})
	if err != nil {
		if code := connect.CodeOf(err); code != connect.CodeUnimplemented { // an older agent
			n.log.Debug("a node does not tell what its policies counted", "node", c.Node, "error", err)
		}
		return 0, false
	}
	for _, counter := range res.GetCounters() {
		if counter.GetPodIp() == c.PodIP && counter.GetDirection() == c.Direction {
			if c.Allowed {
				return counter.GetAllowed(), true
			}
			return counter.GetRefused(), true
		}
	}
	return 0, false
}
