//go:build linux && cgo

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/balsa-run/balsa/internal/runcwire"
)

// runContainer creates the container and executes its program. The container's
// streams are this process's own; its first process becomes a child of the
// shim when this one exits.
func runContainer(dir string, report *os.File) error {
	spec, err := readSpec(dir)
	if err != nil {
		return err
	}
	machine, err := thisMachine()
	if err != nil {
		return err
	}
	machine.clamp(spec)
	if err := setSeccomp(spec); err != nil {
		return err
	}
	if err := rootWithinReach(spec); err != nil {
		return err
	}
	quota := takeQuota(spec)
	c, err := create(dir, spec)
	if err != nil {
		return err
	}
	if err := start(c, spec, quota, report); err != nil {
		return destroyAfter(c, err)
	}
	_, err = report.WriteString(runcwire.OKReport())
	return err
}

func readSpec(dir string) (*specs.Spec, error) {
	path := filepath.Join(dir, runcwire.SpecFile)
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the container's configuration: %w", err)
	}
	spec := &specs.Spec{}
	if err := json.Unmarshal(content, spec); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if spec.Process == nil || spec.Linux == nil || spec.Root == nil {
		return nil, fmt.Errorf("read %s: process, linux and root must be set", path)
	}
	return spec, nil
}

// cpuQuota is CPU time per period, in microseconds.
type cpuQuota struct {
	quota  int64
	period uint64
}

// takeQuota removes the quota from the configuration: it is set once the
// container exists but before its program is executed, since libcontainer's
// own start would otherwise be throttled by it (374 ms instead of 16 ms with
// one per cent of a processor).
func takeQuota(spec *specs.Spec) cpuQuota {
	r := spec.Linux.Resources
	if r == nil || r.CPU == nil || r.CPU.Quota == nil {
		return cpuQuota{}
	}
	q := cpuQuota{quota: *r.CPU.Quota}
	if r.CPU.Period != nil {
		q.period = *r.CPU.Period
	}
	r.CPU.Quota, r.CPU.Period = nil, nil
	return q
}

func create(dir string, spec *specs.Spec) (*libcontainer.Container, error) {
	id := filepath.Base(dir)
	cfg, err := specconv.CreateLibcontainerConfig(&specconv.CreateOpts{CgroupName: id, Spec: spec})
	if err != nil {
		return nil, fmt.Errorf("configuration of %s: %w", id, err)
	}
	root, err := stateRoot()
	if err != nil {
		return nil, err
	}
	c, err := libcontainer.Create(root, id, cfg)
	if err != nil {
		return nil, fmt.Errorf("create container %s: %w", id, err)
	}
	return c, nil
}

// start is libcontainer's two phases with the quota between them.
func start(c *libcontainer.Container, spec *specs.Spec, q cpuQuota, report *os.File) error {
	p, err := newProcess(spec.Process, true)
	if err != nil {
		return err
	}
	p.Stdin, p.Stdout, p.Stderr = os.Stdin, os.Stdout, os.Stderr
	if spec.Process.Terminal {
		p.Stdin, p.Stdout, p.Stderr, p.Env = nil, nil, nil, withTerm(p.Env)
		p.ConsoleSocket = os.NewFile(runcwire.RunConsoleFD, "console")
	}
	if err := c.Start(p); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	pid, err := p.Pid()
	if err != nil {
		return fmt.Errorf("pid: %w", err)
	}
	if _, err := report.WriteString(runcwire.PIDReport(pid)); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	if q.quota > 0 {
		cfg := c.Config()
		cfg.Cgroups.CpuQuota, cfg.Cgroups.CpuPeriod = q.quota, q.period
		if err := c.Set(cfg); err != nil {
			return fmt.Errorf("cpu quota: %w", err)
		}
	}
	if err := c.Exec(); err != nil {
		return fmt.Errorf("execute %q: %w", spec.Process.Args[0], err)
	}
	return nil
}

func destroyAfter(c *libcontainer.Container, cause error) error {
	if err := c.Destroy(); err != nil {
		return fmt.Errorf("%w (and its remains: %w)", cause, err)
	}
	return cause
}

// newProcess carries over what specconv leaves out.
func newProcess(p *specs.Process, isInit bool) (*libcontainer.Process, error) {
	lp := &libcontainer.Process{
		Args: p.Args, Env: p.Env, Cwd: p.Cwd, Init: isInit,
		UID: int(p.User.UID), GID: int(p.User.GID),
		NoNewPrivileges: &p.NoNewPrivileges,
	}
	for _, gid := range p.User.AdditionalGids {
		lp.AdditionalGroups = append(lp.AdditionalGroups, int(gid))
	}
	if caps := p.Capabilities; caps != nil {
		lp.Capabilities = &configs.Capabilities{
			Bounding: caps.Bounding, Effective: caps.Effective, Permitted: caps.Permitted,
			Inheritable: caps.Inheritable, Ambient: caps.Ambient,
		}
	}
	for _, limit := range p.Rlimits {
		number, ok := rlimitNumber(limit.Type)
		if !ok {
			return nil, fmt.Errorf("resource limit %q is unknown", limit.Type)
		}
		lp.Rlimits = append(lp.Rlimits, configs.Rlimit{Type: number, Hard: limit.Hard, Soft: limit.Soft})
	}
	return lp, nil
}
