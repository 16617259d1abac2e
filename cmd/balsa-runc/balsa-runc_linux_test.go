package main

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/internal/hostcap"
	"github.com/balsa-run/balsa/internal/runcwire"
)

func profile(t *testing.T, caps ...string) map[string][]specs.LinuxSyscall {
	t.Helper()
	spec := &specs.Spec{
		Annotations: map[string]string{runcwire.AnnotationSeccomp: runcwire.SeccompDefault},
		Process:     &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}, Linux: &specs.Linux{},
	}
	if err := setSeccomp(spec); err != nil {
		t.Fatal(err)
	}
	if s := spec.Linux.Seccomp; s.DefaultAction != specs.ActErrno || *s.DefaultErrnoRet != uint(unix.EPERM) {
		t.Errorf("what is not named gets %v %v, want EPERM", s.DefaultAction, s.DefaultErrnoRet)
	}
	rules := map[string][]specs.LinuxSyscall{}
	for _, call := range spec.Linux.Seccomp.Syscalls {
		for _, name := range call.Names {
			rules[name] = append(rules[name], call)
		}
	}
	return rules
}

func TestDefaultFilter(t *testing.T) {
	rules := profile(t, hostcap.Default()...)
	for _, name := range []string{"read", "openat2", "execve", "futex", "epoll_pwait2", "clone", "chroot", "ptrace", "socket", "statx", "rseq"} {
		if len(rules[name]) == 0 || rules[name][0].Action != specs.ActAllow {
			t.Errorf("%s: %+v, want allowed", name, rules[name])
		}
	}
	for _, name := range []string{
		"mount", "umount2", "unshare", "setns", "bpf", "perf_event_open", "init_module", "finit_module", "kexec_load", "kexec_file_load", "reboot", "swapon",
		"keyctl", "add_key", "request_key", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register", "open_by_handle_at", "clock_settime",
		"settimeofday", "acct", "pivot_root", "process_vm_readv", "syslog", "iopl", "ioperm", "mbind", "nfsservctl", "vm86", "uselib", "sysfs", "ustat", "lookup_dcookie",
	} {
		if len(rules[name]) > 0 {
			t.Errorf("%s: %+v, want refused", name, rules[name])
		}
	}
	if clone := rules["clone"]; len(clone) != 1 || len(clone[0].Args) != 1 || clone[0].Args[0].Value&unix.CLONE_NEWUSER == 0 {
		t.Errorf("clone: %+v, want no namespaces", clone)
	}
	if clone3 := rules["clone3"]; len(clone3) != 1 || clone3[0].ErrnoRet == nil || *clone3[0].ErrnoRet != uint(unix.ENOSYS) {
		t.Errorf("clone3: %+v, want ENOSYS", clone3)
	}
}

func TestCapabilitiesOpenTheirCalls(t *testing.T) {
	rules := profile(t, "CAP_SYS_ADMIN", "CAP_SYS_TIME")
	for _, name := range []string{"mount", "unshare", "clock_settime", "clone3"} {
		if len(rules[name]) != 1 || rules[name][0].Action != specs.ActAllow {
			t.Errorf("%s: %+v, want allowed", name, rules[name])
		}
	}
	if clone := rules["clone"]; len(clone) != 1 || len(clone[0].Args) != 0 {
		t.Errorf("clone: %+v, want allowed with any argument", clone)
	}
	if len(rules["chroot"]) > 0 {
		t.Error("chroot is allowed without its capability")
	}
}

func TestUnknownProfileIsRefused(t *testing.T) {
	if err := setSeccomp(&specs.Spec{Linux: &specs.Linux{}, Process: &specs.Process{}}); err == nil {
		t.Error("a configuration without a profile was taken: it would run unfiltered")
	}
}

// TestOwnProfileIsKept: the pod's filter is used as it is, and never absent.
func TestOwnProfileIsKept(t *testing.T) {
	spec := &specs.Spec{Annotations: map[string]string{runcwire.AnnotationSeccomp: runcwire.SeccompProfile}, Process: &specs.Process{}, Linux: &specs.Linux{}}
	if err := setSeccomp(spec); err == nil {
		t.Error("a configuration that lacks its own profile was taken: it would run unfiltered")
	}
	own := &specs.LinuxSeccomp{DefaultAction: specs.ActLog}
	spec.Linux.Seccomp = own
	if err := setSeccomp(spec); err != nil || spec.Linux.Seccomp != own {
		t.Errorf("%v, %+v", err, spec.Linux.Seccomp)
	}
}

// TestRootIsLeftAloneWithoutUsers: only user namespaces need another path.
func TestRootIsLeftAloneWithoutUsers(t *testing.T) {
	spec := &specs.Spec{Root: &specs.Root{Path: "/r"}, Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}}}}
	if err := rootWithinReach(spec); err != nil || spec.Root.Path != "/r" {
		t.Errorf("%v, %+v", err, spec.Root)
	}
}

func TestClamp(t *testing.T) {
	adj := -997
	caps := []string{"CAP_KILL", "CAP_SYS_RESOURCE"}
	spec := &specs.Spec{Process: &specs.Process{
		OOMScoreAdj: &adj, Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1 << 20, Soft: 1 << 20}},
		Capabilities: &specs.LinuxCapabilities{Bounding: slices.Clone(caps), Effective: slices.Clone(caps), Permitted: slices.Clone(caps)},
	}}
	machine{noFile: 20000, oomScoreAdj: 0, caps: []string{"CAP_KILL"}}.clamp(spec)
	only := []string{"CAP_KILL"}
	want := &specs.Process{
		OOMScoreAdj: new(int), Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 20000, Soft: 20000}},
		Capabilities: &specs.LinuxCapabilities{Bounding: only, Effective: only, Permitted: only},
	}
	if diff := cmp.Diff(want, spec.Process); diff != "" {
		t.Error(diff)
	}
}

// TestClampOfPrivileged: fs.nr_open binds even those who may raise limits.
func TestClampOfPrivileged(t *testing.T) {
	adj := -997
	spec := &specs.Spec{Process: &specs.Process{OOMScoreAdj: &adj, Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1 << 30, Soft: 1 << 30}}}}
	machine{noFile: 1 << 20, caps: []string{"CAP_SYS_RESOURCE"}}.clamp(spec)
	want := &specs.Process{OOMScoreAdj: new(-997), Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1 << 20, Soft: 1 << 20}}}
	if diff := cmp.Diff(want, spec.Process); diff != "" {
		t.Error(diff)
	}
	if n, err := mostFiles(); err != nil || n < 1024 {
		t.Errorf("fs.nr_open: %d, %v", n, err)
	}
}

func TestBoundingSet(t *testing.T) {
	caps, err := boundingSet([]byte("Name:\tx\nCapBnd:\t00000000a80425fb\nCapAmb:\t0\n"))
	want := hostcap.Default()
	slices.Sort(want)
	slices.Sort(caps)
	if diff := cmp.Diff(want, caps); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	if _, err := boundingSet([]byte("Name:\tx\n")); err == nil {
		t.Error("a status without CapBnd was taken")
	}
}

func TestQuotaIsSetAfterTheStart(t *testing.T) {
	quota, period := int64(1000), uint64(100000)
	spec := &specs.Spec{Linux: &specs.Linux{Resources: &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: &quota, Period: &period}}}}
	if q := takeQuota(spec); q.quota != 1000 || q.period != 100000 || spec.Linux.Resources.CPU.Quota != nil || spec.Linux.Resources.CPU.Period != nil {
		t.Errorf("took %+v, left %+v", q, spec.Linux.Resources.CPU)
	}
}
