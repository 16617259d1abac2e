package apiserver

import (
	"context"
	"fmt"
	"slices"
	"time"

	"connectrpc.com/connect"
	"connectrpc.com/grpchealth"
)

// healthPatience is how long a health check waits for the cluster.
const healthPatience = 2 * time.Second

// health answers grpc.health.v1: a server serves when it can make a read
// linearizable, so when it reaches a leader and keeps up with it. One that only
// runs does not count.
type health struct {
	*Server
	services []string
}

// Check tells about a service, or about the whole server when none is named.
func (h health) Check(ctx context.Context, req *grpchealth.CheckRequest) (*grpchealth.CheckResponse, error) {
	if req.Service != "" && !slices.Contains(h.services, req.Service) {
		return nil, &problem{
			code: connect.CodeNotFound, reason: "NotFound", hint: "leave the service out to ask about the whole server",
			err: fmt.Errorf("there is no service %q", clip(req.Service)),
		}
	}
	ctx, cancel := context.WithTimeout(ctx, healthPatience)
	defer cancel()
	if err := h.barrier(ctx); err != nil {
		h.log.Debug("not healthy", "err", err.Error())
		return &grpchealth.CheckResponse{Status: grpchealth.StatusNotServing}, nil
	}
	return &grpchealth.CheckResponse{Status: grpchealth.StatusServing}, nil
}
