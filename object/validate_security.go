package object

import (
	"slices"
	"strconv"
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/codec"
)

// Limits of security contexts.
const (
	maxSysctls      = 64
	maxGroups       = 64
	maxSysctlLength = 253
	maxSysctlValue  = 1024
	// maxUserID is Kubernetes'.
	maxUserID = maxInt32
)

func (c *check) podSecurity(path string, spec *balsav1.PodSpec) {
	s := spec.GetSecurityContext()
	if s == nil {
		return
	}
	c.userID(field(path, "runAsUser"), s.RunAsUser)
	c.userID(field(path, "runAsGroup"), s.RunAsGroup)
	c.userID(field(path, "fsGroup"), s.FsGroup)
	here := field(path, "supplementalGroups")
	if c.atMost(here, len(s.GetSupplementalGroups()), maxGroups, "groups") {
		for i, id := range s.GetSupplementalGroups() {
			c.userID(index(here, i), &id)
		}
	}
	c.optional(field(path, "supplementalGroupsPolicy"), s.GetSupplementalGroupsPolicy(), GroupsMerge, GroupsStrict)
	c.optional(field(path, "fsGroupChangePolicy"), s.GetFsGroupChangePolicy(), FSGroupAlways, FSGroupOnRootMismatch)
	c.seccomp(field(path, "seccompProfile"), s.GetSeccompProfile())
	c.sysctls(field(path, "sysctls"), s.GetSysctls(), spec)
}

func (c *check) userID(path string, id *int64) {
	if id != nil {
		c.between(path, *id, 0, maxUserID)
	}
}

func (c *check) seccomp(path string, p *balsav1.SeccompProfile) {
	if p == nil {
		return
	}
	c.oneOf(field(path, "type"), p.GetType(), []string{SeccompRuntimeDefault, SeccompUnconfined, SeccompLocalhost})
	here := field(path, "localhostProfile")
	switch {
	case p.GetType() == SeccompLocalhost && p.GetLocalhostProfile() == "":
		c.required(here, "name a file below the agent's seccomp folder")
	case p.GetType() == SeccompLocalhost:
		c.relativePath(here, p.GetLocalhostProfile())
	case p.GetLocalhostProfile() != "":
		c.add(Violation{Field: here, Message: "has no meaning unless type is Localhost", Hint: "remove the field"})
	}
}

func (c *check) sysctls(path string, list []*balsav1.Sysctl, spec *balsav1.PodSpec) {
	if !c.atMost(path, len(list), maxSysctls, "sysctls") {
		return
	}
	seen := map[string]bool{}
	for i, s := range list {
		here := index(path, i)
		switch name := s.GetName(); {
		case name == "":
			c.required(field(here, "name"), "")
		case seen[name]:
			c.duplicate(field(here, "name"), quoted(name))
		default:
			c.sysctl(field(here, "name"), name, spec)
		}
		seen[s.GetName()] = true
		if len(s.GetValue()) > maxSysctlValue || strings.ContainsAny(s.GetValue(), "\r\n\x00") {
			c.add(Violation{Field: field(here, "value"), Message: "is not one line", Allowed: "one line of at most " + strconv.Itoa(maxSysctlValue) + " characters"})
		}
	}
}

const allowedSysctls = "what belongs to a pod's own namespaces: kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.*, net.*"

// sysctl lets through what changes the pod only.
func (c *check) sysctl(path, name string, spec *balsav1.PodSpec) {
	of := SysctlNamespace(name)
	switch {
	case len(name) > maxSysctlLength || !isSysctlName(name):
		c.text(path, name, "lower-case letters, digits, - and _, in parts that are separated by dots")
	case of == "":
		c.add(Violation{Field: path, Message: "would change the whole node", Found: quoted(name), Allowed: allowedSysctls})
	case of == "net" && spec.GetHostNetwork():
		c.add(Violation{Field: path, Message: "would change the node's network, since hostNetwork is true", Found: quoted(name), Hint: "remove one of the two"})
	case of == "ipc" && spec.GetHostIpc():
		c.add(Violation{Field: path, Message: "would change the node's, since hostIPC is true", Found: quoted(name), Hint: "remove one of the two"})
	}
}

// SysctlNamespace is the namespace that a kernel parameter belongs to, "net" or
// "ipc"; "" when it is the whole machine's.
func SysctlNamespace(name string) string {
	switch {
	case strings.HasPrefix(name, "net."):
		return "net"
	case name == "kernel.sem", strings.HasPrefix(name, "kernel.shm"), strings.HasPrefix(name, "kernel.msg"), strings.HasPrefix(name, "fs.mqueue."):
		return "ipc"
	}
	return ""
}

func isSysctlName(s string) bool {
	for part := range strings.SplitSeq(s, ".") {
		if part == "" || strings.Trim(part, "-_") != part {
			return false
		}
		for i := range len(part) {
			if !isLower(part[i]) && !isDigit(part[i]) && part[i] != '-' && part[i] != '_' {
				return false
			}
		}
	}
	return true
}

func (c *check) securityContext(path string, s *balsav1.SecurityContext, spec *balsav1.PodSpec) {
	if s == nil {
		return
	}
	c.userID(field(path, "runAsUser"), s.RunAsUser)
	c.userID(field(path, "runAsGroup"), s.RunAsGroup)
	c.seccomp(field(path, "seccompProfile"), s.GetSeccompProfile())
	c.capabilities(field(path, "capabilities.add"), s.GetCapabilities().GetAdd())
	c.capabilities(field(path, "capabilities.drop"), s.GetCapabilities().GetDrop())
	c.escalation(field(path, "allowPrivilegeEscalation"), s)
	c.optional(field(path, "procMount"), s.GetProcMount(), ProcMountDefault, ProcMountUnmasked)
	if s.GetProcMount() == ProcMountUnmasked && (spec.HostUsers == nil || spec.GetHostUsers()) {
		c.add(Violation{Field: field(path, "procMount"), Message: "needs a user namespace", Found: quoted(ProcMountUnmasked), Hint: "set hostUsers: false in the pod's spec"})
	}
}

// escalation: false cannot be kept where the program has every power anyway.
func (c *check) escalation(path string, s *balsav1.SecurityContext) {
	if s.AllowPrivilegeEscalation == nil || s.GetAllowPrivilegeEscalation() {
		return
	}
	switch {
	case s.GetPrivileged():
		c.add(Violation{Field: path, Message: "cannot be false in a privileged container", Hint: "remove one of the two"})
	case slices.Contains(s.GetCapabilities().GetAdd(), "SYS_ADMIN"):
		c.add(Violation{Field: path, Message: "cannot be false with the capability SYS_ADMIN", Hint: "remove one of the two"})
	}
}

func (c *check) capabilities(path string, list []string) {
	if !c.atMost(path, len(list), maxCapabilities, "capabilities") {
		return
	}
	known := CapabilityNames()
	for i, name := range list {
		if name == "ALL" || slices.Contains(known, name) {
			continue
		}
		v := Violation{Field: index(path, i), Message: "is not a capability of Linux", Found: quoted(name), Allowed: "ALL, or a name without CAP_ such as NET_ADMIN"}
		v.Hint = codec.Nearest(strings.TrimPrefix(strings.ToUpper(name), "CAP_"), append(known, "ALL"))
		c.add(v)
	}
}

const maxCapabilities = 64

// CapabilityNames lists Linux' capabilities without CAP_, in the order of their
// numbers, from 0.
func CapabilityNames() []string {
	return strings.Fields(`CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE
		NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE
		SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL
		SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE`)
}
