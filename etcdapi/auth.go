package etcdapi

import (
	"context"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// errAuth is the answer to all of etcd's user management: who may do what is a
// matter of certificates, which Balsa signs.
var errAuth = status.Error(codes.FailedPrecondition,
	"etcdserver: there are no passwords and no roles to manage here: a client is who its certificate says; "+
		"make one with `balsa user create NAME --role admin --pem DIR` (or --role reader) and take it away with `balsa user remove NAME --role ROLE`")

// registerAuth adds etcdserverpb.Auth, every method of which is refused alike. Authenticate
// too: an etcd without authentication says that there is no need to, and a program that
// was given a password goes on with rights that nobody gave to its user.
func registerAuth(r grpc.ServiceRegistrar) {
	desc := pb.Auth_ServiceDesc
	desc.Methods = slices.Clone(desc.Methods)
	for i := range desc.Methods {
		method := "/" + desc.ServiceName + "/" + desc.Methods[i].MethodName
		desc.Methods[i].Handler = func(srv any, ctx context.Context, _ func(any) error, chain grpc.UnaryServerInterceptor) (any, error) {
			refuse := func(context.Context, any) (any, error) { return nil, errAuth }
			if chain == nil {
				return refuse(ctx, nil)
			}
			return chain(ctx, nil, &grpc.UnaryServerInfo{Server: srv, FullMethod: method}, refuse)
		}
	}
	r.RegisterService(&desc, nil)
}
