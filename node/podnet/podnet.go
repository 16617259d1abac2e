package podnet

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
)

// Network is the network of one node's pods. Linux and fake.Network implement
// it. Calls for different pods may run at once.
type Network interface {
	// Setup gives the pod an address and joins the network namespace at
	// netnsPath to the node. Repeating it returns the same address and mends
	// what is missing.
	Setup(ctx context.Context, uid, netnsPath string) (netip.Addr, error)
	// Teardown disconnects the pod and frees its address. A pod that is not
	// known is no error.
	Teardown(ctx context.Context, uid string) error
	// SyncRoutes makes the routes to other nodes' pods exactly these. Routes
	// that cannot be set are in the error; the others are set.
	SyncRoutes(ctx context.Context, routes []NodeRoute) error
	// Cleanup disconnects and frees all pods but the living, and returns what
	// it removed: uids where they are known, else device names.
	Cleanup(ctx context.Context, living []string) (removed []string, err error)
}

// NodeRoute says through which node a pod CIDR is reached.
type NodeRoute struct {
	PodCIDR netip.Prefix
	NodeIP  netip.Addr
}

// Errors that callers may test for.
var (
	// ErrExhausted: every address of the pod CIDR is taken.
	ErrExhausted = errors.New("no free address")
	// ErrBadUID: a pod uid that cannot be kept on disk.
	ErrBadUID = errors.New("bad pod uid")
)

// maxUIDLength bounds what is taken for a uid.
const maxUIDLength = 128

// CheckUID refuses uids that are empty, long or would not survive as a line of
// a file.
func CheckUID(uid string) error {
	if uid == "" || len(uid) > maxUIDLength {
		return fmt.Errorf("%w %q: need 1 to %d characters", ErrBadUID, uid, maxUIDLength)
	}
	for _, c := range uid {
		if c <= ' ' || c > '~' {
			return fmt.Errorf("%w %q: only printable ASCII without spaces is allowed", ErrBadUID, uid)
		}
	}
	return nil
}

// devicePrefix marks the node's end of a pod's veth pair.
const devicePrefix = "bls"

// DeviceName is the name of the node's end of a pod's veth pair: 15 characters,
// the most Linux allows, 48 bits of them a hash of the uid.
func DeviceName(uid string) string {
	sum := sha256.Sum256([]byte(uid))
	return devicePrefix + hex.EncodeToString(sum[:6])
}

// CheckRoutes refuses sets of routes that contradict themselves.
func CheckRoutes(routes []NodeRoute) error {
	seen := map[netip.Prefix]netip.Addr{}
	for _, r := range routes {
		if !r.PodCIDR.Addr().Is4() || !r.NodeIP.Is4() {
			return fmt.Errorf("route %s via %s: only IPv4 works", r.PodCIDR, r.NodeIP)
		}
		cidr := r.PodCIDR.Masked()
		if other, found := seen[cidr]; found && other != r.NodeIP {
			return fmt.Errorf("pod CIDR %s is claimed by nodes %s and %s", cidr, other, r.NodeIP)
		}
		seen[cidr] = r.NodeIP
	}
	return nil
}
