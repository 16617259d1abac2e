// Package fake is a podnet.Network without a kernel, with the real one's
// manners: the same address pool, idempotent calls, the same errors. It is for
// tests of the agent and for the simulator.
package fake

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/balsa-run/balsa/node/podnet"
)

// Network implements podnet.Network.
type Network struct {
	pool *podnet.Pool
	self netip.Prefix

	mu     sync.Mutex
	pods   map[string]string           // guarded by mu; uid to namespace path
	routes map[netip.Prefix]netip.Addr // guarded by mu
	fail   error                       // guarded by mu
	// owned are the announced addresses that the node answers for, strangers those
	// that others have, damage what somebody has broken; guarded by mu.
	owned     []netip.Addr
	strangers map[netip.Addr]bool
	damage    []string
	scrubs    int
	disturbed chan struct{}
}

var _ podnet.Network = (*Network)(nil)

// New makes the network of a node. Addresses are kept in dir as in production;
// dir "" means in memory.
func New(podCIDR netip.Prefix, dir string) (*Network, error) {
	pool, err := podnet.OpenPool(podCIDR, dir)
	if err != nil {
		return nil, err
	}
	return &Network{pool: pool, self: podCIDR.Masked(), pods: map[string]string{}, routes: map[netip.Prefix]netip.Addr{},
		strangers: map[netip.Addr]bool{}, disturbed: make(chan struct{}, 1)}, nil
}

// FailNext makes the next call fail with err before it does anything.
func (n *Network) FailNext(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.fail = err
}

func (n *Network) beginLocked(ctx context.Context) error {
	if err := n.fail; err != nil {
		n.fail = nil
		return err
	}
	return context.Cause(ctx)
}

// Setup implements podnet.Network.
func (n *Network) Setup(ctx context.Context, uid, netnsPath string) (netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.beginLocked(ctx); err != nil {
		return netip.Addr{}, fmt.Errorf("set up network of pod %s: %w", uid, err)
	}
	if netnsPath == "" {
		return netip.Addr{}, fmt.Errorf("set up network of pod %s: no network namespace", uid)
	}
	a, err := n.pool.Acquire(uid)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("set up network of pod %s: %w", uid, err)
	}
	n.pods[uid] = netnsPath
	return a, nil
}

// Teardown implements podnet.Network.
func (n *Network) Teardown(ctx context.Context, uid string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.beginLocked(ctx); err != nil {
		return fmt.Errorf("tear down network of pod %s: %w", uid, err)
	}
	delete(n.pods, uid)
	return n.pool.Release(uid)
}

// SyncRoutes implements podnet.Network.
func (n *Network) SyncRoutes(ctx context.Context, routes []podnet.NodeRoute) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.beginLocked(ctx); err != nil {
		return fmt.Errorf("sync routes: %w", err)
	}
	usable, problems := podnet.Usable(n.self, routes, n.routes)
	clear(n.routes)
	for _, r := range usable {
		n.routes[r.PodCIDR] = r.NodeIP
	}
	if err := errors.Join(problems...); err != nil {
		return fmt.Errorf("sync routes: %w", err)
	}
	return nil
}

// Addresses implements podnet.Network.
func (n *Network) Addresses() map[string]netip.Addr { return n.pool.Addresses() }

// SyncAnnounced implements podnet.Network.
func (n *Network) SyncAnnounced(ctx context.Context, addrs []netip.Addr) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.beginLocked(ctx); err != nil {
		return fmt.Errorf("announced addresses: %w", err)
	}
	n.owned = nil
	var errs []error
	for _, a := range addrs {
		if n.strangers[a] {
			errs = append(errs, fmt.Errorf("announced addresses: %w: %s", podnet.ErrForeignAddress, a))
			continue
		}
		n.owned = append(n.owned, a)
	}
	slices.SortFunc(n.owned, netip.Addr.Compare)
	return errors.Join(errs...)
}

// SetStranger makes a machine outside the cluster have an address, or not.
func (n *Network) SetStranger(a netip.Addr, has bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.strangers[a] = has
}

// Announced returns the addresses that the node answers for.
func (n *Network) Announced() []netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.owned)
}

// Damage breaks something that the next Scrub finds and repairs.
func (n *Network) Damage(what string) {
	n.mu.Lock()
	n.damage = append(n.damage, what)
	n.mu.Unlock()
	select {
	case n.disturbed <- struct{}{}:
	default:
	}
}

// Scrub implements podnet.Network.
func (n *Network) Scrub(ctx context.Context) ([]string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.beginLocked(ctx); err != nil {
		return nil, fmt.Errorf("scrub: %w", err)
	}
	found := n.damage
	n.damage = nil
	n.scrubs++
	return found, nil
}

// Scrubs is how often Scrub has looked.
func (n *Network) Scrubs() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.scrubs
}

// NextDisturbance implements podnet.Network.
func (n *Network) NextDisturbance(ctx context.Context) error {
	select {
	case <-n.disturbed:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Cleanup implements podnet.Network.
func (n *Network) Cleanup(ctx context.Context, living []string) ([]string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.beginLocked(ctx); err != nil {
		return nil, fmt.Errorf("clean up pod networks: %w", err)
	}
	var removed []string
	for _, uid := range n.pool.UIDs() {
		if slices.Contains(living, uid) {
			continue
		}
		if err := n.pool.Release(uid); err != nil {
			return removed, err
		}
		delete(n.pods, uid)
		removed = append(removed, uid)
	}
	return removed, n.pool.ReleaseNameless()
}

// Pods returns the connected pods and their namespaces.
func (n *Network) Pods() map[string]string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.pods)
}

// Routes returns the routes to other nodes.
func (n *Network) Routes() map[netip.Prefix]netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.routes)
}
