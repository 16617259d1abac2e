package main

import (
	"syscall"
	"unsafe"
)

// The second thing that this program can be: the process that makes a pod's
// user namespace, or stays as the first process of a pod's process namespace.
//
//	balsa-shim pause [hostname=NAME] [loopback=1] [root=1] [sysctl=FILE%3DVALUE ...]
//
// The agent makes the namespaces when it forks; this process prepares what
// only their own root may change, writes "ready" to descriptor 3, and waits on
// descriptor 5: "stay" makes it the reaper of the pod, the end of the pipe
// ends it. Descriptor 4 is a lock file, locked by whoever started it: as long
// as it is held, the process namespace lives.
const (
	pauseReadyFD = 3
	pauseLockFD  = 4
	pauseWaitFD  = 5

	pauseVerb       = "pause"
	maxSysctlBytes  = 4 << 10
	siocGetFlags    = 0x8913
	siocSetFlags    = 0x8914
	prSetNoNewPrivs = 38
	capVersion3     = 0x20080522
	sigIgnore       = 1
	maxSignal       = 31
	sigSetBytes     = 8
)

// pause does not return.
func pause(args []string) {
	if problem := preparePause(args); problem != "" {
		writeAll(pauseReadyFD, []byte("error "+problem+"\n"))
		syscall.Exit(1)
	}
	writeAll(pauseReadyFD, []byte("ready\n"))
	syscall.Close(pauseReadyFD)
	var word [8]byte
	n, err := read(pauseWaitFD, word[:])
	if err != nil || string(word[:max(n, 0)]) != "stay" {
		syscall.Exit(0)
	}
	syscall.Close(pauseWaitFD)
	reapForever()
}

func preparePause(args []string) string {
	enclose := false
	for _, arg := range args {
		kv, ok := parseKeyValue(arg)
		if !ok {
			return "argument " + arg + ": want key=value"
		}
		problem := ""
		switch kv.key {
		case "hostname":
			problem = explain("host name", syscall.Sethostname([]byte(kv.value)))
		case "loopback":
			problem = explain("loopback", loopbackUp())
		case "sysctl":
			problem = setSysctl(kv.value)
		case "root":
			enclose = true
		default:
			problem = "argument " + arg + " is unknown"
		}
		if problem != "" {
			return problem
		}
	}
	if enclose {
		return leaveHost()
	}
	return ""
}

func explain(what string, err error) string {
	if err == nil {
		return ""
	}
	return what + ": " + err.Error()
}

// loopbackUp sets IFF_UP on the loopback of this process's network namespace:
// struct ifreq is a name of 16 bytes and a union of 24.
func loopbackUp() error {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	var request struct {
		name  [16]byte
		flags uint16
		_     [22]byte
	}
	copy(request.name[:], "lo")
	for _, call := range []uintptr{siocGetFlags, siocSetFlags} {
		_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), call, uintptr(unsafe.Pointer(&request)))
		if errno != 0 {
			return errno
		}
		request.flags |= syscall.IFF_UP | syscall.IFF_RUNNING
	}
	return nil
}

// setSysctl takes "net/ipv4/file=value".
func setSysctl(setting string) string {
	for i := range len(setting) {
		if setting[i] != '=' {
			continue
		}
		fd, err := syscall.Open("/proc/sys/"+setting[:i], syscall.O_WRONLY|syscall.O_CLOEXEC, 0)
		if err == nil {
			err = writeAll(fd, []byte(setting[i+1:]))
			syscall.Close(fd)
		}
		return explain("sysctl "+setting, err)
	}
	return "sysctl " + setting + ": want file=value"
}

// leaveHost leaves nothing to find in /proc/1 of the pod: an empty root of its
// own, no capabilities, and signals that do nothing.
func leaveHost() string {
	const empty = "/sys" // exists everywhere; covered in this mount namespace only
	steps := []struct {
		what string
		do   func() error
	}{
		{"make mounts private", func() error { return syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, "") }},
		{"mount an empty root", func() error {
			return syscall.Mount("tmpfs", empty, "tmpfs", syscall.MS_NOSUID|syscall.MS_NOEXEC|syscall.MS_NODEV, "size=4k,nr_inodes=2,mode=555")
		}},
		{"enter the empty root", func() error { return syscall.Chdir(empty) }},
		{"pivot_root", func() error { return syscall.PivotRoot(".", ".") }},
		{"leave the old root", func() error { return syscall.Unmount(".", syscall.MNT_DETACH) }},
		{"enter the root", func() error { return syscall.Chdir("/") }},
		{"close the root", func() error {
			return syscall.Mount("", "/", "", syscall.MS_REMOUNT|syscall.MS_BIND|syscall.MS_RDONLY, "")
		}},
		{"no new privileges", func() error { return everyThread(syscall.SYS_PRCTL, prSetNoNewPrivs, 1) }},
		{"drop capabilities", dropCapabilities},
	}
	for _, step := range steps {
		if err := step.do(); err != nil {
			return explain(step.what, err)
		}
	}
	return ""
}

// dropCapabilities is capset(2) with empty sets, on every thread: each has its
// own entry in /proc.
func dropCapabilities() error {
	header := [2]uint32{capVersion3, 0}
	var sets [6]uint32
	return everyThread(syscall.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&sets)))
}

func everyThread(call, a, b uintptr) error {
	_, _, errno := syscall.AllThreadsSyscall(call, a, b, 0)
	return asError(errno)
}

// reapForever: with SIGCHLD ignored the kernel reaps children, also those that
// were adopted, by itself (wait(2), NOTES). Other signals are ignored because
// this process can be reached by every container of the pod.
func reapForever() {
	const kill, stop, fault, bus, fpe, ill = 9, 19, 11, 7, 8, 4
	ignore := [4]uintptr{sigIgnore}
	for signal := uintptr(1); signal <= maxSignal; signal++ {
		switch signal {
		case kill, stop, fault, bus, fpe, ill:
			continue
		}
		syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, signal, uintptr(unsafe.Pointer(&ignore)), 0, sigSetBytes, 0, 0)
	}
	for {
		syscall.Syscall6(syscall.SYS_PPOLL, 0, 0, 0, 0, 0, 0)
	}
}
