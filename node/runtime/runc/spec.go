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
	pod        runtime.PodConfig
	mounts     []runtime.Mount // the container's, staged
	devices    []specs.LinuxDevice
	podDir     string
	rootFS     string
	cgroupPath string
	pidNS      string // file of the one to join, or "" for its own
	unified    bool   // cgroup version 2 alone
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
	seccomp, err := seccompFilter(sec)
	if err != nil {
		return nil, err
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
			Resources:         specResources(in),
			Devices:           in.devices,
			Seccomp:           seccomp,
			RootfsPropagation: rootPropagation(in.mounts),
			MaskedPaths:       maskedPaths(sec),
			ReadonlyPaths:     readonlyPaths(sec),
		},
	}, nil
}

func seccompProfile(sec runtime.Security) string {
	if sec.Privileged || sec.SeccompUnconfined {
		return runcwire.SeccompUnconfined
	}
	if len(sec.SeccompProfile) > 0 {
		return runcwire.SeccompProfile
	}
	return runcwire.SeccompDefault
}

// seccompFilter is the pod's own filter; the default one is balsa-runc's.
func seccompFilter(sec runtime.Security) (*specs.LinuxSeccomp, error) {
	if seccompProfile(sec) != runcwire.SeccompProfile {
		return nil, nil
	}
	return runtime.ParseSeccomp(sec.SeccompProfile)
}

// rootPropagation: mounts of the container leave it only if nothing above them
// is a slave.
func rootPropagation(mounts []runtime.Mount) string {
	if slices.ContainsFunc(mounts, func(m runtime.Mount) bool { return m.Propagation == runtime.PropagationBidirectional }) {
		return "rshared"
	}
	return "rslave"
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
		User: in.user, Args: in.process.Args, Terminal: in.container.TTY, Env: in.process.Env, Cwd: in.process.WorkingDir,
		Capabilities:    &specs.LinuxCapabilities{Bounding: caps, Effective: effective, Permitted: effective},
		Rlimits:         []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: noFile, Soft: noFile}},
		NoNewPrivileges: !sec.AllowPrivilegeEscalation && !sec.Privileged,
		OOMScoreAdj:     &adj,
	}
}

// specNamespaces: network, host name, IPC and users are the pod's; mounts and
// the view of cgroups are the container's own, and processes what was asked for.
func specNamespaces(in specInput) []specs.LinuxNamespace {
	ns := []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.CgroupNamespace}}
	pinned := func(kind specs.LinuxNamespaceType, name string) {
		ns = append(ns, specs.LinuxNamespace{Type: kind, Path: path.Join(in.podDir, nsDir, name)})
	}
	pinned(specs.UTSNamespace, "uts")
	if !in.pod.HostIPC {
		pinned(specs.IPCNamespace, "ipc")
	}
	if !in.pod.HostNetwork {
		pinned(specs.NetworkNamespace, "net")
	}
	if in.pod.Users != nil {
		pinned(specs.UserNamespace, "user")
	}
	if !in.pod.HostPID {
		ns = append(ns, specs.LinuxNamespace{Type: specs.PIDNamespace, Path: in.pidNS})
	}
	return ns
}

func specResources(in specInput) *specs.LinuxResources {
	r := in.container.Resources
	pids := r.PidsLimit
	if pids == 0 {
		pids = runtime.DefaultPidsLimit
	}
	out := &specs.LinuxResources{
		Devices: []specs.LinuxDeviceCgroup{{Allow: in.container.Security.Privileged, Access: "rwm"}},
		Pids:    &specs.LinuxPids{Limit: &pids},
		CPU:     specCPU(in.pod.Resources, r),
	}
	if r.MemoryLimitBytes > 0 {
		limit := r.MemoryLimitBytes
		out.Memory = &specs.LinuxMemory{Limit: &limit, Swap: &limit}
	}
	if in.unified {
		// A container that lost one of its processes is not the one that was
		// started: all of it goes, as in Kubernetes.
		out.Unified = map[string]string{"memory.oom.group": "1"}
	}
	return out
}

func specCPU(pod, r runtime.Resources) *specs.LinuxCPU {
	cpu := &specs.LinuxCPU{}
	if shares := r.CPUShares; shares > 0 {
		cpu.Shares = &shares
	}
	if quota, period := quotaWithin(pod, r); quota > 0 {
		cpu.Quota, cpu.Period = &quota, &period
	}
	return cpu
}

func quotaOf(r runtime.Resources) (quota int64, period uint64) {
	period = r.CPUPeriodMicros
	if period == 0 {
		period = runtime.DefaultCPUPeriodMicros
	}
	return r.CPUQuotaMicros, period
}

// quotaWithin is a container's quota, at most its pod's: version 1 of cgroups
// refuses a child that may use more than its parent.
func quotaWithin(pod, container runtime.Resources) (quota int64, period uint64) {
	quota, period = quotaOf(container)
	if quota == 0 || pod.CPUQuotaMicros == 0 {
		return quota, period
	}
	podQuota, podPeriod := quotaOf(pod)
	if float64(quota)/float64(period) <= float64(podQuota)/float64(podPeriod) {
		return quota, period
	}
	return podQuota, podPeriod
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
		bind(shmSource(in), "/dev/shm", false),
	}
	if in.pod.HostNetwork {
		// A sysfs can only be mounted by whoever owns the network namespace.
		mounts[4] = specs.Mount{Destination: "/sys", Type: "none", Source: "/sys", Options: []string{"rbind", "rslave", "nosuid", "noexec", "nodev", sysMode}}
	}
	for _, file := range etcFiles() {
		mounts = append(mounts, bind(path.Join(in.podDir, etcDir, file), "/etc/"+file, false))
	}
	return append(withoutReplaced(mounts, in.mounts), userMounts(in.mounts)...)
}

// shmSource: shared memory goes with the IPC namespace.
func shmSource(in specInput) string {
	if in.pod.HostIPC {
		return "/dev/shm"
	}
	return path.Join(in.podDir, shmDir)
}

// bind shows what is mounted below the source, too; a read-only one leaves
// nothing of that writable ("rro": also the mounts below).
func bind(source, destination string, readOnly bool) specs.Mount {
	mode := "rw"
	if readOnly {
		mode = "rro"
	}
	return specs.Mount{Destination: destination, Type: "bind", Source: source, Options: []string{"rbind", "rprivate", mode}}
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
		b := bind(m.HostPath, path.Clean(m.ContainerPath), m.ReadOnly)
		switch m.Propagation {
		case runtime.PropagationHostToContainer:
			b.Options[1] = "rslave"
		case runtime.PropagationBidirectional:
			b.Options[1] = "rshared"
		}
		out = append(out, b)
	}
	slices.SortStableFunc(out, func(a, b specs.Mount) int {
		return strings.Count(a.Destination, "/") - strings.Count(b.Destination, "/")
	})
	return out
}

// maskedPaths hide what of /proc and /sys is the machine's and not the container's.
func maskedPaths(sec runtime.Security) []string {
	return unlessUnmasked(sec, []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
		"/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
	})
}

func readonlyPaths(sec runtime.Security) []string {
	return unlessUnmasked(sec, []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"})
}

func unlessUnmasked(sec runtime.Security, paths []string) []string {
	if sec.Privileged {
		return nil
	}
	return slices.DeleteFunc(paths, func(p string) bool { return sec.UnmaskedProc && strings.HasPrefix(p, "/proc/") })
}
