package runtime

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// checkNamespaces refuses what cannot be shared and owned at once.
func (p PodConfig) checkNamespaces() error {
	if p.HostPID && p.ShareProcessNamespace {
		return p.invalid("shareProcessNamespace and hostPID are both set: choose one")
	}
	if p.Users == nil {
		return nil
	}
	for name, set := range map[string]bool{"hostNetwork": p.HostNetwork, "hostPID": p.HostPID, "hostIPC": p.HostIPC} {
		if set {
			return p.invalid("hostUsers is false and %s is true: a user namespace of its own has no rights in the node's", name)
		}
	}
	if p.Users.HostID == 0 || p.Users.Size < MinUserIDs || uint64(p.Users.HostID)+uint64(p.Users.Size) > 1<<32-1 {
		return p.invalid("users: ids from %d, %d of them: want at least %d, from 1 up and below %d", p.Users.HostID, p.Users.Size, MinUserIDs, uint32(1<<32-1))
	}
	return nil
}

// checkSysctls allows what the kernel keeps for each namespace: anything else
// would change the node.
func (p PodConfig) checkSysctls() error {
	if len(p.Sysctls) > MaxSysctls {
		return p.invalid("%d sysctls, at most %d are allowed", len(p.Sysctls), MaxSysctls)
	}
	for name, value := range p.Sysctls {
		file, err := SysctlFile(name)
		if err != nil {
			return p.invalid("%w", err)
		}
		host := map[string]bool{"net": p.HostNetwork, "ipc": p.HostIPC}[SysctlNamespace(file)]
		switch {
		case SysctlNamespace(file) == "":
			return p.invalid("sysctl %q belongs to the node, not to a namespace: allowed are net.*, kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.* and kernel.domainname", name)
		case host:
			return p.invalid("sysctl %q would change the node, whose %s namespace this pod shares", name, SysctlNamespace(file))
		case strings.ContainsAny(value, "\x00\n") || len(value) > maxSysctlBytes:
			return p.invalid("sysctl %q: value %q: want one line of at most %d bytes", name, value, maxSysctlBytes)
		}
	}
	return nil
}

// SysctlNamespace names the kind of namespace that a sysctl's file belongs to,
// or "" for those of the whole node.
func SysctlNamespace(file string) string {
	switch {
	case strings.HasPrefix(file, "net/"):
		return "net"
	case strings.HasPrefix(file, "kernel/shm"), strings.HasPrefix(file, "kernel/msg"), file == "kernel/sem", strings.HasPrefix(file, "fs/mqueue/"):
		return "ipc"
	case file == "kernel/domainname":
		return "uts"
	}
	return ""
}

// SysctlFile is the path of a sysctl below /proc/sys. As with sysctl(8), the
// first separator decides: "net.ipv4.conf.eth0/1.forwarding" and
// "net/ipv4/conf/eth0.1/forwarding" are the same.
func SysctlFile(name string) (string, error) {
	file := name
	if at := strings.IndexAny(name, "./"); at > 0 && name[at] == '.' {
		file = strings.NewReplacer(".", "/", "/", ".").Replace(name)
	}
	if name == "" || len(name) > maxSysctlBytes || strings.ContainsAny(name, "\x00\n=") || path.Clean("/"+file) != "/"+file {
		return "", fmt.Errorf("sysctl %q: want a name such as net.ipv4.ip_unprivileged_port_start", name)
	}
	return file, nil
}

// CheckPod refuses a container that its pod cannot hold.
func (c ContainerConfig) CheckPod(pod PodConfig) error {
	if c.Security.UnmaskedProc && pod.Users == nil {
		return c.invalid("procMount Unmasked: only with a user namespace (hostUsers: false)")
	}
	for _, m := range c.Mounts {
		switch {
		case m.Mapped && pod.Users == nil:
			return c.invalid("mount at %q: ids can only be mapped with a user namespace (hostUsers: false)", m.ContainerPath)
		case m.Propagation == PropagationBidirectional && pod.Users != nil:
			return c.invalid("mount at %q: mountPropagation Bidirectional: mounts do not leave a user namespace (hostUsers: false)", m.ContainerPath)
		}
	}
	return nil
}

// CheckTarget refuses a container that wants to join one that does not run.
func (c ContainerConfig) CheckTarget(pod PodState) (ContainerState, error) {
	target, ok := pod.Container(c.TargetContainer)
	if !ok {
		return target, fmt.Errorf("container %s: target container %q: %w", c.Name, c.TargetContainer, ErrContainerNotFound)
	}
	if target.Status != ContainerRunning {
		return target, fmt.Errorf("container %s: target container %q is %s: %w", c.Name, c.TargetContainer, target.Status, ErrNotRunning)
	}
	return target, nil
}

func (c ContainerConfig) checkSecurity() error {
	sec := c.Security
	for name, id := range map[string]*int64{"runAsUser": sec.RunAsUser, "runAsGroup": sec.RunAsGroup} {
		if id != nil && (*id < 0 || *id > MaxID) {
			return c.invalid("%s: found %d, want 0 to %d", name, *id, MaxID)
		}
	}
	for _, gid := range sec.SupplementalGroups {
		if gid < 0 || gid > MaxID {
			return c.invalid("supplementalGroups: found %d, want 0 to %d", gid, MaxID)
		}
	}
	if len(sec.SeccompProfile) == 0 {
		return nil
	}
	if sec.SeccompUnconfined {
		return c.invalid("seccompProfile: both a filter and Unconfined: choose one")
	}
	if _, err := ParseSeccomp(sec.SeccompProfile); err != nil {
		return c.invalid("%w", err)
	}
	return nil
}

// ParseSeccomp reads a filter in the JSON of the OCI runtime specification. It
// takes nothing that would be left out: an unknown field is an error.
func ParseSeccomp(profile []byte) (*specs.LinuxSeccomp, error) {
	if len(profile) > MaxSeccompBytes {
		return nil, fmt.Errorf("seccompProfile: %d bytes, at most %d are allowed", len(profile), MaxSeccompBytes)
	}
	out := &specs.LinuxSeccomp{}
	decoder := json.NewDecoder(bytes.NewReader(profile))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(out); err != nil {
		return nil, fmt.Errorf("seccompProfile: %w: want the JSON of linux.seccomp in the OCI runtime specification", err)
	}
	if decoder.More() {
		return nil, fmt.Errorf("seccompProfile: more than one JSON value")
	}
	return out, checkSeccomp(out)
}

// The words of the OCI runtime specification, config-linux.md, that a filter
// without an agent of its own can use.
const (
	seccompActions = " SCMP_ACT_KILL SCMP_ACT_KILL_PROCESS SCMP_ACT_KILL_THREAD SCMP_ACT_TRAP SCMP_ACT_ERRNO SCMP_ACT_TRACE SCMP_ACT_ALLOW SCMP_ACT_LOG "
	seccompOps     = " SCMP_CMP_NE SCMP_CMP_LT SCMP_CMP_LE SCMP_CMP_EQ SCMP_CMP_GE SCMP_CMP_GT SCMP_CMP_MASKED_EQ "
	seccompFlags   = " SECCOMP_FILTER_FLAG_TSYNC SECCOMP_FILTER_FLAG_LOG SECCOMP_FILTER_FLAG_SPEC_ALLOW "
	seccompArchs   = " SCMP_ARCH_X86 SCMP_ARCH_X86_64 SCMP_ARCH_X32 SCMP_ARCH_ARM SCMP_ARCH_AARCH64 SCMP_ARCH_MIPS SCMP_ARCH_MIPS64 SCMP_ARCH_MIPS64N32 " +
		"SCMP_ARCH_MIPSEL SCMP_ARCH_MIPSEL64 SCMP_ARCH_MIPSEL64N32 SCMP_ARCH_PPC SCMP_ARCH_PPC64 SCMP_ARCH_PPC64LE SCMP_ARCH_S390 SCMP_ARCH_S390X " +
		"SCMP_ARCH_PARISC SCMP_ARCH_PARISC64 SCMP_ARCH_RISCV64 SCMP_ARCH_LOONGARCH64 "
	// maxSyscallArgs is the kernel's.
	maxSyscallArgs = 6
)

func oneOf(words, word string) bool { return word != "" && strings.Contains(words, " "+word+" ") }

func checkSeccomp(p *specs.LinuxSeccomp) error {
	if !oneOf(seccompActions, string(p.DefaultAction)) {
		return fmt.Errorf("seccompProfile: defaultAction: found %q, want one of%s", p.DefaultAction, seccompActions)
	}
	if p.ListenerPath != "" || p.ListenerMetadata != "" {
		return fmt.Errorf("seccompProfile: listenerPath: filters that ask a listener are not supported")
	}
	for i, arch := range p.Architectures {
		if !oneOf(seccompArchs, string(arch)) {
			return fmt.Errorf("seccompProfile: architectures[%d]: found %q, want one of%s", i, arch, seccompArchs)
		}
	}
	for i, flag := range p.Flags {
		if !oneOf(seccompFlags, string(flag)) {
			return fmt.Errorf("seccompProfile: flags[%d]: found %q, want one of%s", i, flag, seccompFlags)
		}
	}
	for i, call := range p.Syscalls {
		if err := checkSyscall(call); err != nil {
			return fmt.Errorf("seccompProfile: syscalls[%d]: %w", i, err)
		}
	}
	return nil
}

func checkSyscall(call specs.LinuxSyscall) error {
	if len(call.Names) == 0 || slices.Contains(call.Names, "") {
		return fmt.Errorf("names: want the names of system calls")
	}
	if !oneOf(seccompActions, string(call.Action)) {
		return fmt.Errorf("action: found %q, want one of%s", call.Action, seccompActions)
	}
	for i, arg := range call.Args {
		if arg.Index >= maxSyscallArgs || !oneOf(seccompOps, string(arg.Op)) {
			return fmt.Errorf("args[%d]: index %d, op %q: want an index below %d and one of%s", i, arg.Index, arg.Op, maxSyscallArgs, seccompOps)
		}
	}
	return nil
}
