package node

import (
	"context"
	"fmt"

	"connectrpc.com/connect"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/netproxy"
)

// PolicyCounter is a Proxy that counts what policies decide.
type PolicyCounter interface {
	PolicyCounters(ctx context.Context) ([]netproxy.PolicyCount, error)
}

// PolicyCounters tells what the kernel has counted of the pods that policies limit.
func (s agentService) PolicyCounters(ctx context.Context, req *internalv1.PolicyCountersRequest) (*internalv1.PolicyCountersResponse, error) {
	if !s.a.registered.Load() {
		return nil, connect.NewError(connect.CodeUnavailable, fmt.Errorf("node %s is not part of a cluster yet: try again", s.a.cfg.Name))
	}
	counter, ok := s.a.plant.Proxy.(PolicyCounter)
	if !ok {
		return nil, connect.NewError(connect.CodeUnimplemented, fmt.Errorf("node %s does not count what policies decide", s.a.cfg.Name))
	}
	counts, err := counter.PolicyCounters(ctx)
	if err != nil {
		return nil, connect.NewError(connect.CodeInternal, fmt.Errorf("node %s: %w", s.a.cfg.Name, err))
	}
	res := &internalv1.PolicyCountersResponse{}
	for _, c := range counts {
		if ip := c.PodIP.String(); req.GetPodIp() == "" || req.GetPodIp() == ip {
			res.Counters = append(res.Counters, &internalv1.PolicyCounter{PodIp: ip, Direction: c.Direction.String(), Allowed: c.Allowed, Refused: c.Refused})
		}
	}
	return res, nil
}
