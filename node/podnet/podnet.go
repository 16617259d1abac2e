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
	// Addresses are those that pods have, by uid, also after a restart.
	Addresses() map[string]netip.Addr
	// SyncRoutes makes the ways to other nodes' pods exactly these. Those that
	// cannot be set, or contradict others (see Usable), are in the error; the
	// others are set.
	SyncRoutes(ctx context.Context, routes []NodeRoute) error
	// SyncAnnounced makes the node answer for exactly these addresses, on the
	// device that leads to the other nodes. Before an address is taken the link
	// is asked who has it, which takes a moment; one that a stranger has is left
	// alone and is in the error (ErrForeignAddress), the others are set.
	SyncAnnounced(ctx context.Context, addrs []netip.Addr) error
	// Scrub compares the kernel with what the calls above and the preparation
	// have set, and repairs. It returns what it found and repaired, one line
	// each, and in the error what it could not, or what does not fit.
	Scrub(ctx context.Context) (repaired []string, err error)
	// NextDisturbance waits until somebody may have changed what Scrub looks at.
	// There is one caller at a time.
	NextDisturbance(ctx context.Context) error
	// Cleanup disconnects and frees all pods but the living, and returns what
	// it removed: uids where they are known, else device names.
	Cleanup(ctx context.Context, living []string) (removed []string, err error)
}

// NodeRoute says through which node a pod CIDR is reached.
type NodeRoute struct {
	// Name of the node, for messages.
	Name    string
	PodCIDR netip.Prefix
	NodeIP  netip.Addr
}

// Errors that callers may test for.
var (
	// ErrExhausted: every address of the pod CIDR is taken.
	ErrExhausted = errors.New("no free address")
	// ErrBadUID: a pod uid that cannot be kept on disk.
	ErrBadUID = errors.New("bad pod uid")
	// ErrOverlap: two networks share addresses, so that no route can be right.
	ErrOverlap = errors.New("networks overlap")
	// ErrForeignAddress: a machine that is no node of the cluster has an address
	// that this node should answer for.
	ErrForeignAddress = errors.New("a stranger has the address")
	// ErrMTU: the uplink's MTU leaves no room for a tunnel.
	ErrMTU = errors.New("the MTU does not fit")
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

// Problems takes apart what SyncRoutes, SyncAnnounced and Scrub return: one error
// each for what is wrong, without saying by which call it was found.
func Problems(err error) []error {
	if err == nil {
		return nil
	}
	var joined interface{ Unwrap() []error }
	if !errors.As(err, &joined) {
		return []error{err}
	}
	var out []error
	for _, e := range joined.Unwrap() {
		out = append(out, Problems(e)...)
	}
	return out
}
