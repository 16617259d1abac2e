// Package fake is a podnet.Network without a kernel, with the real one's
// manners: the same address pool, idempotent calls, the same errors. It is for
// tests of the agent and for the simulator.
package fake

import (
	"context"
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
}

var _ podnet.Network = (*Network)(nil)

// New makes the network of a node. Addresses are kept in dir as in production;
// dir "" means in memory.
func New(podCIDR netip.Prefix, dir string) (*Network, error) {
	pool, err := podnet.OpenPool(podCIDR, dir)
	if err != nil {
		return nil, err
	}
	return &Network{pool: pool, self: podCIDR.Masked(), pods: map[string]string{}, routes: map[netip.Prefix]netip.Addr{}}, nil
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
	if err := podnet.CheckRoutes(routes); err != nil {
		return fmt.Errorf("sync routes: %w", err)
	}
	clear(n.routes)
	for _, r := range routes {
		if r.PodCIDR.Masked() != n.self {
			n.routes[r.PodCIDR.Masked()] = r.NodeIP
		}
	}
	return nil
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
