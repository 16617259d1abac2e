// Package dns is the resolver of a node: it answers for the cluster's domain
// from a Zone, built from services and endpoint slices, and hands everything
// else to the upstream servers of the node's resolv.conf.
//
// Names follow the Kubernetes DNS specification (kubernetes/dns,
// docs/specification.md, schema 1.1.0):
//
//	svc.ns.svc.cluster.local             A    cluster IP, or ready endpoints if headless
//	host.svc.ns.svc.cluster.local        A    one endpoint of a headless service
//	_port._proto.svc.ns.svc.cluster.local SRV
//	reverse of cluster IPs and endpoints PTR
//	svc.ns.svc.cluster.local             CNAME of an ExternalName service
//	1-2-3-4.ns.pod.cluster.local         A    any address of the pods' network
//
// A pod's resolver tries a name with one search domain after the other. When the
// first of these questions comes, the server goes through the rest itself and
// answers with an alias, so that ndots costs no round trips (as CoreDNS' autopath).
//
// A name that exists without records of the asked type is NODATA, one that does
// not exist NXDOMAIN; before the first zone has come, the cluster's names are
// SERVFAIL, since the resolver does not know. It refuses to do zone transfers,
// updates, recursion of its own, DNSSEC, and to keep answers longer than
// maxTTL.
package dns
