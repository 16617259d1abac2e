package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/internal/runcwire"
)

// setSeccomp puts the filter in that the configuration asks for by name.
func setSeccomp(spec *specs.Spec) error {
	switch profile := spec.Annotations[runcwire.AnnotationSeccomp]; profile {
	case runcwire.SeccompUnconfined:
		return nil
	case runcwire.SeccompDefault:
		spec.Linux.Seccomp = defaultSeccomp(spec.Process.Capabilities)
		return nil
	case runcwire.SeccompProfile:
		if spec.Linux.Seccomp == nil {
			return fmt.Errorf("annotation %s is %q, but linux.seccomp is not set", runcwire.AnnotationSeccomp, profile)
		}
		return nil
	default:
		return fmt.Errorf("annotation %s: found %q, want %q, %q or %q",
			runcwire.AnnotationSeccomp, profile, runcwire.SeccompDefault, runcwire.SeccompUnconfined, runcwire.SeccompProfile)
	}
}

// defaultSeccomp allows by name, and answers EPERM to everything else. What it
// leaves out either reaches beyond the container (modules, clocks, kexec,
// mounts, namespaces, tracing of others) or has been a steady source of kernel
// exploits that ordinary programs do not need (io_uring, userfaultfd, keyrings,
// bpf, perf). A capability opens the calls that it is about.
func defaultSeccomp(caps *specs.LinuxCapabilities) *specs.LinuxSeccomp {
	var bounding []string
	if caps != nil {
		bounding = caps.Bounding
	}
	eperm := uint(unix.EPERM)
	profile := &specs.LinuxSeccomp{
		DefaultAction: specs.ActErrno, DefaultErrnoRet: &eperm,
		Architectures: nativeArchitectures(),
		Syscalls:      []specs.LinuxSyscall{allow(strings.Fields(ordinaryCalls)...)},
	}
	profile.Syscalls = append(profile.Syscalls, restrictedCalls()...)
	admin := slices.Contains(bounding, "CAP_SYS_ADMIN")
	for _, gate := range capabilityCalls() {
		if slices.Contains(bounding, gate.capability) {
			profile.Syscalls = append(profile.Syscalls, allow(strings.Fields(gate.calls)...))
		}
	}
	if !admin {
		profile.Syscalls = append(profile.Syscalls, cloneWithoutNamespaces(), clone3Unknown())
	}
	return profile
}

func allow(names ...string) specs.LinuxSyscall {
	return specs.LinuxSyscall{Names: names, Action: specs.ActAllow}
}

// cloneWithoutNamespaces lets threads and processes be made, but no
// namespaces: they would hand out capabilities inside.
func cloneWithoutNamespaces() specs.LinuxSyscall {
	const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER |
		unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP
	call := allow("clone")
	call.Args = []specs.LinuxSeccompArg{{Index: 0, Value: namespaces, ValueTwo: 0, Op: specs.OpMaskedEqual}}
	return call
}

// clone3Unknown: its flags lie in memory, where a filter cannot look. ENOSYS
// makes C libraries fall back to clone.
func clone3Unknown() specs.LinuxSyscall {
	enosys := uint(unix.ENOSYS)
	return specs.LinuxSyscall{Names: []string{"clone3"}, Action: specs.ActErrno, ErrnoRet: &enosys}
}

// restrictedCalls are allowed with some arguments only.
func restrictedCalls() []specs.LinuxSyscall {
	// The execution domains that change nothing but how a process names
	// itself (personality(2)): Linux, UNAME26 and both with 32 bits; the last
	// asks without changing.
	const linux32, uname26, ask = 0x0008, 0x20000, 0xffffffff
	var calls []specs.LinuxSyscall
	for _, domain := range []uint64{0, linux32, uname26, uname26 | linux32, ask} {
		call := allow("personality")
		call.Args = []specs.LinuxSeccompArg{{Index: 0, Value: domain, Op: specs.OpEqualTo}}
		calls = append(calls, call)
	}
	// AF_VSOCK would reach the hypervisor past every network policy.
	socket := allow("socket")
	socket.Args = []specs.LinuxSeccompArg{{Index: 0, Value: unix.AF_VSOCK, Op: specs.OpNotEqual}}
	return append(calls, socket)
}

// capabilityGate are calls that a capability is needed for anyway.
type capabilityGate struct{ capability, calls string }

func capabilityCalls() []capabilityGate {
	return []capabilityGate{
		{"CAP_DAC_READ_SEARCH", "open_by_handle_at"},
		{"CAP_SYS_ADMIN", "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr " +
			"move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare"},
		{"CAP_SYS_BOOT", "reboot"},
		{"CAP_SYS_CHROOT", "chroot"},
		{"CAP_SYS_MODULE", "delete_module init_module finit_module"},
		{"CAP_SYS_PACCT", "acct"},
		{"CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev"},
		{"CAP_SYS_RAWIO", "iopl ioperm"},
		{"CAP_SYS_TIME", "settimeofday stime clock_settime clock_settime64"},
		{"CAP_SYS_TTY_CONFIG", "vhangup"},
		{"CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"},
		{"CAP_SYSLOG", "syslog"},
		{"CAP_BPF", "bpf"},
		{"CAP_PERFMON", "perf_event_open"},
	}
}

// ordinaryCalls, by subject. Names that an architecture or this libseccomp
// does not know are skipped by libcontainer.
const ordinaryCalls = `
read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 sendfile sendfile64 splice tee vmsplice copy_file_range
open openat openat2 creat close close_range dup dup2 dup3 pipe pipe2 fcntl fcntl64 ioctl lseek _llseek
stat stat64 lstat lstat64 fstat fstat64 fstatat64 newfstatat statx statfs statfs64 fstatfs fstatfs64 statmount listmount
access faccessat faccessat2 readlink readlinkat getdents getdents64 getcwd chdir fchdir
mkdir mkdirat rmdir mknod mknodat link linkat symlink symlinkat unlink unlinkat rename renameat renameat2
chmod fchmod fchmodat fchmodat2 chown chown32 fchown fchown32 fchownat lchown lchown32 umask
truncate truncate64 ftruncate ftruncate64 fallocate fadvise64 fadvise64_64 arm_fadvise64_64 readahead cachestat
sync syncfs fsync fdatasync sync_file_range sync_file_range2 arm_sync_file_range flock
utime utimes utimensat utimensat_time64 futimesat
getxattr lgetxattr fgetxattr getxattrat setxattr lsetxattr fsetxattr setxattrat listxattr llistxattr flistxattr listxattrat removexattr lremovexattr fremovexattr removexattrat
inotify_init inotify_init1 inotify_add_watch inotify_rm_watch fanotify_mark name_to_handle_at
io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents io_pgetevents_time64
select _newselect pselect6 pselect6_time64 poll ppoll ppoll_time64 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_wait epoll_wait_old epoll_pwait epoll_pwait2 eventfd eventfd2

mmap mmap2 munmap mremap mprotect msync mincore madvise mlock mlock2 munlock mlockall munlockall brk remap_file_pages
membarrier memfd_create memfd_secret map_shadow_stack mseal pkey_alloc pkey_free pkey_mprotect process_mrelease

accept accept4 bind connect listen getsockname getpeername getsockopt setsockopt shutdown socketpair socketcall
send sendto sendmsg sendmmsg recv recvfrom recvmsg recvmmsg recvmmsg_time64

fork vfork execve execveat exit exit_group wait4 waitid waitid_time64 waitpid kill tkill tgkill
pidfd_open pidfd_send_signal getpid getppid gettid getpgid getpgrp setpgid getsid setsid
set_tid_address set_robust_list get_robust_list set_thread_area get_thread_area arch_prctl prctl modify_ldt rseq restart_syscall
futex futex_time64 futex_waitv futex_wake futex_wait futex_requeue ptrace
sched_yield sched_getaffinity sched_setaffinity sched_getparam sched_setparam sched_getscheduler sched_setscheduler sched_getattr sched_setattr
sched_get_priority_max sched_get_priority_min sched_rr_get_interval sched_rr_get_interval_time64
getpriority setpriority ioprio_get ioprio_set getcpu
getrlimit setrlimit ugetrlimit prlimit64 getrusage times sysinfo uname

signal sigaction sigpending sigprocmask sigsuspend sigaltstack sigreturn
rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_tgsigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64
signalfd signalfd4 pause alarm

getuid getuid32 geteuid geteuid32 getgid getgid32 getegid getegid32 getgroups getgroups32
setuid setuid32 setgid setgid32 setreuid setreuid32 setregid setregid32 setgroups setgroups32
getresuid getresuid32 getresgid getresgid32 setresuid setresuid32 setresgid setresgid32 setfsuid setfsuid32 setfsgid setfsgid32
capget capset seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self

time gettimeofday clock_gettime clock_gettime64 clock_getres clock_getres_time64 clock_nanosleep clock_nanosleep_time64 nanosleep
clock_adjtime clock_adjtime64 adjtimex
getitimer setitimer timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64
timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64
getrandom

ipc shmget shmat shmctl shmdt semget semop semctl semtimedop semtimedop_time64 msgget msgsnd msgrcv msgctl
mq_open mq_unlink mq_timedsend mq_timedsend_time64 mq_timedreceive mq_timedreceive_time64 mq_notify mq_getsetattr

breakpoint cacheflush set_tls riscv_hwprobe riscv_flush_icache
`
