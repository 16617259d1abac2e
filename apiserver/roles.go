package apiserver

import (
	"fmt"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"connectrpc.com/grpchealth"
	"connectrpc.com/grpcreflect"

	"github.com/balsa-run/balsa/gen/balsa/v1/balsav1connect"
	"github.com/balsa-run/balsa/gen/balsainternal/v1/internalv1connect"
	"github.com/balsa-run/balsa/pki"
)

// roleNone stands in the matrix for a caller without a certificate, who exists
// on connections of ALPN balsa-join/1 only.
const roleNone pki.Role = ""

// grant is what a role may do with a procedure.
type grant struct {
	role pki.Role
	// only narrows the grant; the handler enforces it. Empty: everything.
	only string
}

// class is what a procedure does, for the audit and for its errors.
type class uint8

const (
	// reads change nothing; the audit has them at level debug.
	reads class = iota
	// writes change something for a user: audited, and a failure says whether
	// it was applied.
	writes
	// looksInto reads what a user's program holds: audited like a write.
	looksInto
	// machineReads and machineWrites are calls that servers and agents make all
	// the time; the audit has them at level debug.
	machineReads
	machineWrites
)

// rule is one row of the matrix. A procedure without a row is refused.
type rule struct {
	procedure string
	class     class
	grants    []grant
}

// What handlers enforce per object, in the words that the matrix prints.
const (
	onlyOwnNode    = "own node"
	onlyNoValues   = "no Secret values"
	onlyUserKind   = "not EndpointSlice, NetworkPolicySlice, Node"
	onlyOwnStatus  = "not what servers derive"
	onlyNotDerived = "not EndpointSlice, NetworkPolicySlice"
)

// matrix is who may call what: the only place that says so. The order is the
// one in which it is printed.
func matrix() []rule { return append(objectMatrix(), serviceMatrix()...) }

func objectMatrix() []rule {
	server, admin := grant{role: pki.RoleServer}, grant{role: pki.RoleAdmin}
	readerBlind := grant{role: pki.RoleReader, only: onlyNoValues}
	adminMakes := grant{role: pki.RoleAdmin, only: onlyUserKind}
	adminStatus := grant{role: pki.RoleAdmin, only: onlyOwnStatus}
	adminChanges := grant{role: pki.RoleAdmin, only: onlyNotDerived}
	return []rule{
		{balsav1connect.ObjectServiceGetProcedure, reads, []grant{server, admin, readerBlind}},
		{balsav1connect.ObjectServiceListProcedure, reads, []grant{server, admin, readerBlind}},
		{balsav1connect.ObjectServiceWatchProcedure, reads, []grant{server, admin, readerBlind}},
		{balsav1connect.ObjectServiceCreateProcedure, writes, []grant{server, adminMakes}},
		{balsav1connect.ObjectServiceUpdateProcedure, writes, []grant{server, adminChanges}},
		{balsav1connect.ObjectServiceApplyProcedure, writes, []grant{server, adminMakes}},
		{balsav1connect.ObjectServiceUpdateStatusProcedure, writes, []grant{server, adminStatus}},
		{balsav1connect.ObjectServiceDeleteProcedure, writes, []grant{server, adminChanges}},
		{balsav1connect.ObjectServiceEvictProcedure, writes, []grant{server, admin}},
	}
}

// serviceMatrix has the other services, which are not about one kind of object.
func serviceMatrix() []rule {
	server, admin, agent := grant{role: pki.RoleServer}, grant{role: pki.RoleAdmin}, grant{role: pki.RoleAgent}
	reader, none := grant{role: pki.RoleReader}, grant{role: roleNone}
	agentOwn := grant{role: pki.RoleAgent, only: onlyOwnNode}
	return []rule{
		{balsav1connect.NodeServiceRegisterProcedure, machineWrites, []grant{server, agentOwn}},
		{balsav1connect.NodeServiceHeartbeatProcedure, machineReads, []grant{server, agentOwn}},
		{balsav1connect.NodeServiceAssignmentsProcedure, machineReads, []grant{server, agentOwn}},
		{balsav1connect.NodeServiceReportStatusProcedure, machineWrites, []grant{server, agentOwn}},
		{balsav1connect.NodeServiceGetImageProcedure, machineReads, []grant{server, agent}},
		{balsav1connect.NodeServiceGetBlobProcedure, machineReads, []grant{server, agent}},

		{balsav1connect.PodServiceLogsProcedure, looksInto, []grant{server, admin, reader}},
		{balsav1connect.PodServiceExecProcedure, looksInto, []grant{server, admin}},
		{balsav1connect.PodServiceAttachProcedure, looksInto, []grant{server, admin}},
		{balsav1connect.PodServicePortForwardProcedure, looksInto, []grant{server, admin}},
		{balsav1connect.PodServiceCopyOutProcedure, looksInto, []grant{server, admin}},
		{balsav1connect.PodServiceCopyInProcedure, looksInto, []grant{server, admin}},
		{balsav1connect.PodServiceStatsProcedure, reads, []grant{server, admin, reader}},
		{balsav1connect.PodServiceDebugProcedure, writes, []grant{server, admin}},

		{balsav1connect.ImageServiceImportProcedure, writes, []grant{server, admin}},
		{balsav1connect.ImageServiceListImagesProcedure, reads, []grant{server, admin, reader}},
		{balsav1connect.ImageServiceMissingBlobsProcedure, reads, []grant{server, admin}},
		{balsav1connect.ImageServicePushBlobProcedure, writes, []grant{server, admin}},
		{balsav1connect.ImageServicePushImageProcedure, writes, []grant{server, admin}},
		{balsav1connect.ImageServicePruneImagesProcedure, writes, []grant{server, admin}},

		{balsav1connect.NetworkServiceExplainConnectionProcedure, reads, []grant{server, admin, reader}},

		{balsav1connect.ClusterServiceGetVersionProcedure, reads, []grant{server, admin, agent, reader}},
		{balsav1connect.ClusterServiceGetStatusProcedure, reads, []grant{server, admin, reader}},
		{balsav1connect.ClusterServiceTransferLeadershipProcedure, writes, []grant{server, admin}},
		{balsav1connect.ClusterServiceRemoveMemberProcedure, writes, []grant{server, admin}},
		{balsav1connect.ClusterServiceCreateTokenProcedure, writes, []grant{server, admin}},
		{balsav1connect.ClusterServiceListTokensProcedure, reads, []grant{server, admin}},
		{balsav1connect.ClusterServiceRevokeTokenProcedure, writes, []grant{server, admin}},
		{balsav1connect.ClusterServiceCreateIdentityProcedure, writes, []grant{server, admin}},
		{balsav1connect.ClusterServiceListIdentitiesProcedure, reads, []grant{server, admin}},
		{balsav1connect.ClusterServiceRemoveIdentityProcedure, writes, []grant{server, admin}},

		{balsav1connect.JoinServiceJoinProcedure, writes, []grant{none}},
		{balsav1connect.JoinServiceRenewNonceProcedure, reads, []grant{none}},
		{balsav1connect.JoinServiceRenewProcedure, writes, []grant{none}},

		{internalv1connect.PeerServiceProposeProcedure, machineWrites, []grant{server}},
		{internalv1connect.PeerServiceProposeManyProcedure, machineWrites, []grant{server}},
		{internalv1connect.PeerServiceReadIndexProcedure, machineReads, []grant{server}},
		{internalv1connect.PeerServiceConfirmProcedure, machineReads, []grant{server}},
		{internalv1connect.PeerServiceHeartbeatProcedure, machineReads, []grant{server}},
		{internalv1connect.PeerServiceLeaseTimeProcedure, machineReads, []grant{server}},
		{internalv1connect.PeerServiceStateProcedure, machineReads, []grant{server}},
		{internalv1connect.PeerServiceHasBlobProcedure, machineReads, []grant{server}},
		{internalv1connect.PeerServicePutBlobProcedure, machineWrites, []grant{server}},
		{internalv1connect.PeerServiceGetBlobProcedure, machineReads, []grant{server}},

		{"/" + grpchealth.HealthV1ServiceName + "/Check", machineReads, []grant{server, admin, agent, reader}},
		{"/" + grpchealth.HealthV1ServiceName + "/Watch", machineReads, []grant{server, admin, reader}},
		{"/" + grpcreflect.ReflectV1ServiceName + "/ServerReflectionInfo", machineReads, []grant{server, admin, reader}},
		{"/" + grpcreflect.ReflectV1AlphaServiceName + "/ServerReflectionInfo", machineReads, []grant{server, admin, reader}},
	}
}

// policy is the matrix by procedure.
type policy map[string]rule

func newPolicy() policy {
	p := policy{}
	for _, r := range matrix() {
		p[r.procedure] = r
	}
	return p
}

// writes tells that a failure of the procedure must say whether it was applied.
func (p policy) writes(procedure string) bool {
	c := p[procedure].class
	return c == writes || c == machineWrites
}

// loud tells that the audit has the procedure at level info.
func (p policy) loud(procedure string) bool {
	c := p[procedure].class
	return c == writes || c == looksInto
}

// open tells that the procedure takes callers without a certificate.
func (p policy) open(procedure string) bool {
	return slices.ContainsFunc(p[procedure].grants, func(g grant) bool { return g.role == roleNone })
}

// check refuses a role that the matrix does not grant the procedure.
func (p policy) check(id pki.Identity, procedure string) error {
	grants := p[procedure].grants
	if slices.ContainsFunc(grants, func(g grant) bool { return g.role == id.Role }) {
		return nil
	}
	return &problem{
		code:   connect.CodePermissionDenied,
		reason: "Forbidden",
		hint:   "use an identity of another role; an admin makes one with balsa user create --role",
		err:    fmt.Errorf("%s may not call %s: it takes %s", id, rpcName(procedure), roleNames(grants)),
	}
}

// roleNames is for messages: "role admin or server".
func roleNames(grants []grant) string {
	if len(grants) == 0 {
		return "no role"
	}
	names := make([]string, 0, len(grants))
	for _, g := range grants {
		names = append(names, string(g.role))
	}
	slices.Sort(names)
	return "role " + strings.Join(names, " or ")
}

// rpcName is a procedure without its slash: balsa.v1.ObjectService/Get.
func rpcName(procedure string) string { return strings.TrimPrefix(procedure, "/") }
