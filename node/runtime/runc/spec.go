package runc

import (
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/balsa-run/balsa/internal/hostcap"
	"github.com/balsa-run/balsa/internal/runcwire"
	"github.com/balsa-run/balsa/node/runtime"
)

// specInput is everything that a container's OCI configuration is made from.
type specInput struct {
	container  runtime.ContainerConfig
	process    runtime.Process
	user       specs.User
	podDir     string
	rootFS     string
	cgroupPath string
	hostNet    bool
}

// buildSpec is pure: the same input gives the same configuration.
func buildSpec(in specInput) (*specs.Spec, error) {
	sec := in.container.Security
	caps, err := hostcap.Resolve(sec.AddCapabilities, sec.DropCapabilities)
	if err != nil {
		return nil, err
	}
	if sec.Privileged {
		caps = hostcap.Names()
	}
	return &specs.Spec{
		Version:     specs.Version,
		Root:        &specs.Root{Path: in.rootFS, Readonly: sec.ReadOnlyRootFS},
		Process:     specProcess(in, caps),
		Mounts:      specMounts(in),
		Annotations: map[string]string{runcwire.AnnotationSeccomp: seccompProfile(sec)},
		Linux: &specs.Linux{
			CgroupsPath:       in.cgroupPath,
			Namespaces:        specNamespaces(in),
			Resources:         specResources(in.container),
			RootfsPropagation: "rslave",
			MaskedPaths:       maskedPaths(sec),
			ReadonlyPaths:     readonlyPaths(sec),
		},
	}, nil
}

func seccompProfile(sec runtime.Security) string {
	if sec.Privileged || sec.SeccompUnconfined {
		return runcwire.SeccompUnconfined
	}
	return runcwire.SeccompDefault
}

func specProcess(in specInput, caps []string) *specs.Process {
	r := in.container.Resources
	noFile := r.NoFileLimit
	if noFile == 0 {
		noFile = runtime.DefaultNoFileLimit
	}
	adj := r.OOMScoreAdj
	effective := caps
	if in.user.UID != 0 {
		// As execve would: a user who is not root starts without them.
		effective = nil
	}
	sec := in.container.Security
	return &specs.Process{
		User: in.user, Args: in.process.Args, Env: in.process.Env, Cwd: in.process.WorkingDir,
		Capabilities:    &specs.LinuxCapabilities{Bounding: caps, Effective: effective, Permitted: effective},
		Rlimits:         []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: noFile, Soft: noFile}},
		NoNewPrivileges: !sec.AllowPrivilegeEscalation && !sec.Privileged,
		OOMScoreAdj:     &adj,
	}
}

// specNamespaces: network, host name and IPC are the pod's; processes, mounts
// and the view of cgroups are the container's own.
func specNamespaces(in specInput) []specs.LinuxNamespace {
	ns := []specs.LinuxNamespace{
		{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.CgroupNamespace},
		{Type: specs.UTSNamespace, Path: path.Join(in.podDir, nsDir, "uts")},
		{Type: specs.IPCNamespace, Path: path.Join(in.podDir, nsDir, "ipc")},
	}
	if !in.hostNet {
		ns = append(ns, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: path.Join(in.podDir, nsDir, "net")})
	}
	return ns
}

func specResources(c runtime.ContainerConfig) *specs.LinuxResources {
	r := c.Resources
	pids := r.PidsLimit
	if pids == 0 {
		pids = runtime.DefaultPidsLimit
	}
	out := &specs.LinuxResources{
		Devices: []specs.LinuxDeviceCgroup{{Allow: c.Security.Privileged, Access: "rwm"}},
		Pids:    &specs.LinuxPids{Limit: &pids},
		CPU:     specCPU(r),
	}
	if r.MemoryLimitBytes > 0 {
		limit := r.MemoryLimitBytes
		out.Memory = &specs.LinuxMemory{Limit: &limit, Swap: &limit}
	}
	return out
}

func specCPU(r runtime.Resources) *specs.LinuxCPU {
	cpu := &specs.LinuxCPU{}
	if shares := r.CPUShares; shares > 0 {
		cpu.Shares = &shares
	}
	if quota := r.CPUQuotaMicros; quota > 0 {
		period := r.CPUPeriodMicros
		if period == 0 {
			period = runtime.DefaultCPUPeriodMicros
		}
		cpu.Quota, cpu.Period = &quota, &period
	}
	return cpu
}

func specMounts(in specInput) []specs.Mount {
	sysMode := "ro"
	if in.container.Security.Privileged {
		sysMode = "rw"
	}
	mounts := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", sysMode}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", sysMode}},
		bind(path.Join(in.podDir, shmDir), "/dev/shm", false),
	}
	if in.hostNet {
		// A sysfs can only be mounted by whoever owns the network namespace.
		mounts[4] = specs.Mount{Destination: "/sys", Type: "none", Source: "/sys", Options: []string{"rbind", "rslave", "nosuid", "noexec", "nodev", sysMode}}
	}
	for _, file := range etcFiles() {
		mounts = append(mounts, bind(path.Join(in.podDir, etcDir, file), "/etc/"+file, false))
	}
	return append(withoutReplaced(mounts, in.container.Mounts), userMounts(in.container.Mounts)...)
}

func bind(source, destination string, readOnly bool) specs.Mount {
	mode := "rw"
	if readOnly {
		mode = "ro"
	}
	return specs.Mount{Destination: destination, Type: "bind", Source: source, Options: []string{"bind", "rprivate", mode}}
}

// withoutReplaced drops what a mount of the pod takes the place of.
func withoutReplaced(mounts []specs.Mount, replaced []runtime.Mount) []specs.Mount {
	return slices.DeleteFunc(mounts, func(m specs.Mount) bool {
		return slices.ContainsFunc(replaced, func(r runtime.Mount) bool { return path.Clean(r.ContainerPath) == m.Destination })
	})
}

// userMounts puts outer paths before inner ones.
func userMounts(mounts []runtime.Mount) []specs.Mount {
	var out []specs.Mount
	for _, m := range mounts {
		out = append(out, bind(m.HostPath, path.Clean(m.ContainerPath), m.ReadOnly))
	}
	slices.SortStableFunc(out, func(a, b specs.Mount) int {
		return strings.Count(a.Destination, "/") - strings.Count(b.Destination, "/")
	})
	return out
}

// maskedPaths hide what of /proc and /sys is the machine's and not the container's.
func maskedPaths(sec runtime.Security) []string {
	if sec.Privileged {
		return nil
	}
	return []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
		"/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
	}
}

func readonlyPaths(sec runtime.Security) []string {
	if sec.Privileged {
		return nil
	}
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}
