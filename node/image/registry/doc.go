// Package registry fetches images from OCI registries: what a name stands for,
// manifests, and blobs from any offset on. Authentication and tokens are
// go-containerregistry's; requests, redirects, retries and ranges are made here,
// because a node must go on where a transfer broke and must not trust a registry.
//
// A registry is taken for hostile: everything it sends has a limit, a transfer
// that stalls ends, redirects are few and lead neither to this machine nor to
// link-local addresses, credentials go to the registry they are for and to the
// token server it names, never elsewhere, and plain HTTP is for hosts alone that
// the node's configuration says so of.
//
// It refuses to keep anything, to check digests of blobs (who keeps them does),
// and to push.
package registry
