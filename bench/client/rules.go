package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/balsa-run/balsa/netproxy"
	"github.com/balsa-run/balsa/netproxy/apply"
)

// ruleTimes are how long the rules of many services took, in milliseconds.
type ruleTimes struct {
	// FullMS is from the objects to the kernel, nothing being there before.
	FullMS []float64 `json:"fullMS"`
	// ChangeMS is from the slice of which one endpoint is another one until new
	// connections go to it; SettledMS until no packet follows the rules before.
	ChangeMS  []float64 `json:"changeMS"`
	SettledMS []float64 `json:"settledMS"`
	// Elements counts what the last full set of rules consisted of.
	Elements int `json:"elements"`
}

// changeStride spreads the changed services over all of them; it is prime.
const changeStride = 7919

// rules programs the namespace that the process is in, in the way of the agent.
func rules(ctx context.Context, o options) (times ruleTimes, err error) {
	all, err := objects(o.services, o.endpoints)
	if err != nil {
		return times, err
	}
	kernel, err := apply.New(apply.Options{})
	if err != nil {
		return times, err
	}
	defer func() { err = errors.Join(err, kernel.Remove(), kernel.Close()) }()
	node, err := nodeParams(o)
	if err != nil {
		return times, err
	}
	var tracker *netproxy.Tracker
	for range o.count {
		if err := kernel.Remove(); err != nil {
			return times, err
		}
		began := time.Now()
		tracker = netproxy.NewTracker(node)
		tracker.Set(all)
		result, err := programAll(ctx, kernel, tracker)
		if err != nil {
			return times, err
		}
		times.FullMS, times.Elements = append(times.FullMS, milliseconds(time.Since(began))), result.Elements
		if !result.Replaced || result.Elements < o.services*(1+o.endpoints) {
			return times, fmt.Errorf("%d services of %d endpoints became %d elements, and the table was written: %v", o.services, o.endpoints, result.Elements, result.Replaced)
		}
	}
	if err := replaceEndpoints(ctx, o, kernel, tracker, &times); err != nil {
		return times, err
	}
	report, err := kernel.Scrub(ctx)
	if err == nil && len(report.Findings) > 0 {
		err = fmt.Errorf("the kernel holds other rules than planned: %v", report.Findings)
	}
	return times, err
}

func replaceEndpoints(ctx context.Context, o options, kernel *apply.Applier, tracker *netproxy.Tracker, times *ruleTimes) error {
	for i := range o.changes {
		changed := moved(i*changeStride%o.services, o.endpoints, i)
		began := time.Now()
		tracker.SetSlice(changed)
		planned := tracker.Ruleset(int64(i) + 2)
		writing := time.Now()
		result, err := kernel.Sync(ctx, planned)
		if err != nil {
			return err
		}
		if result.Replaced || result.Elements == 0 {
			return fmt.Errorf("change %d became %d elements, and the table was replaced: %v", i, result.Elements, result.Replaced)
		}
		times.ChangeMS = append(times.ChangeMS, milliseconds(writing.Sub(began)+result.Effective))
		times.SettledMS = append(times.SettledMS, milliseconds(time.Since(began)))
	}
	return nil
}

func programAll(ctx context.Context, kernel *apply.Applier, tracker *netproxy.Tracker) (netproxy.Result, error) {
	r := tracker.Ruleset(1)
	if len(r.Problems) > 0 {
		return netproxy.Result{}, fmt.Errorf("not every service can be planned: %v", r.Problems[0])
	}
	result, err := kernel.Sync(ctx, r)
	if err == nil && len(result.Problems) > 0 {
		err = fmt.Errorf("the kernel left something out: %v", result.Problems[0])
	}
	return result, err
}

func nodeParams(o options) (netproxy.NodeParams, error) {
	ip, err := netip.ParseAddr(o.address)
	if err != nil {
		return netproxy.NodeParams{}, fmt.Errorf("-address: %w", err)
	}
	return netproxy.NodeParams{Name: nodeName(0), NodeIP: ip, PodCIDR: netip.MustParsePrefix("10.244.0.0/24"),
		ClusterCIDR: netip.MustParsePrefix("10.244.0.0/15"), ServiceCIDR: netip.MustParsePrefix("10.96.0.0/12")}, nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
