package etcdapi

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// registerRest adds the services beside KV and Watch.
func (s *Server) registerRest(r grpc.ServiceRegistrar) {
	pb.RegisterLeaseServer(r, &leaseServer{Server: s})
	pb.RegisterClusterServer(r, &clusterServer{Server: s})
	pb.RegisterMaintenanceServer(r, &maintenanceServer{Server: s})
	v3lockpb.RegisterLockServer(r, &lockServer{Server: s})
	v3electionpb.RegisterElectionServer(r, &electionServer{Server: s})
	// As etcd's: it serves until it stops. Whether there is a leader is /readyz's to say.
	healthpb.RegisterHealthServer(r, s.health)
	registerAuth(r)
}
