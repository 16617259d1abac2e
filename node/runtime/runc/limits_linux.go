package runc

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/balsa-run/balsa/internal/hostcgroup"
	"github.com/balsa-run/balsa/node/runtime"
)

// limitPod bounds the pod as a whole. Memory and pids hold from now on, the
// CPU quota between the starts of containers.
func (p *pod) limitPod(cfg runtime.PodConfig) error {
	r := cfg.Resources
	return p.rt.cgroups.SetLimits(p.cgroup, hostcgroup.Limits{MemoryBytes: r.MemoryLimitBytes, Pids: r.PidsLimit})
}

// unthrottled lifts the pod's CPU quota as long as start runs: the programs
// that start a container run in the pod's cgroup, and with one per cent of a
// processor they would need seconds. The containers' own quotas stay.
func (p *pod) unthrottled(cfg runtime.PodConfig, start func() error) error {
	r := cfg.Resources
	if r.CPUQuotaMicros == 0 {
		return start()
	}
	if err := p.rt.cgroups.SetLimits(p.cgroup, hostcgroup.Limits{CPUQuotaMicros: hostcgroup.NoQuota}); err != nil {
		return err
	}
	err := start()
	return errors.Join(err, p.throttle(cfg))
}

func (p *pod) throttle(cfg runtime.PodConfig) error {
	if cfg.Resources.CPUQuotaMicros == 0 {
		return nil
	}
	quota, period := quotaOf(cfg.Resources)
	return p.rt.cgroups.SetLimits(p.cgroup, hostcgroup.Limits{CPUQuotaMicros: quota, CPUPeriodMicros: period})
}

// checkIDs refuses ids that the pod's user namespace does not have.
func checkIDs(cfg runtime.PodConfig, ids ...uint32) error {
	for _, id := range ids {
		if cfg.Users != nil && id >= cfg.Users.Size {
			return fmt.Errorf("id %d: the pod's user namespace has ids 0 to %d: %w", id, cfg.Users.Size-1, runtime.ErrInvalid)
		}
	}
	return nil
}

// killContainers kills everything of the pod but the process that holds its
// process namespace.
func (p *pod) killContainers(ctx context.Context) error {
	children, err := p.rt.cgroups.Children(p.cgroup)
	if err != nil {
		return err
	}
	for _, child := range children {
		if child == pauseCgroup {
			continue
		}
		if err := p.rt.cgroups.Kill(ctx, filepath.Join(p.cgroup, child)); err != nil {
			return err
		}
	}
	return nil
}
