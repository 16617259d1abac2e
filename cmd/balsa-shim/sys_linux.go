package main

import (
	"syscall"
	"unsafe"
)

// Numbers that package syscall lacks; the same on every architecture since
// they are newer than the common table (asm-generic/unistd.h).
const (
	sysPidfdSendSignal = 424
	sysPidfdOpen       = 434

	prSetChildSubreaper = 36
	pAll                = 0
	pPID                = 1
	fSetFD              = 2
	clockRealtime       = 0
)

// now is the wall clock in seconds and nanoseconds.
func now() (sec, nsec int64) {
	var ts syscall.Timespec
	syscall.Syscall(syscall.SYS_CLOCK_GETTIME, clockRealtime, uintptr(unsafe.Pointer(&ts)), 0)
	return ts.Unix()
}

// nowNanos is now in nanoseconds since 1970.
func nowNanos() int64 {
	sec, nsec := now()
	return sec*1e9 + nsec
}

// setSubreaper makes orphans of this process's children its own children: the
// containers, once the helper that started them has exited.
func setSubreaper() error {
	_, _, errno := syscall.Syscall(syscall.SYS_PRCTL, prSetChildSubreaper, 1, 0)
	return asError(errno)
}

// pidfdOpen also succeeds for a child that is a zombie already.
func pidfdOpen(pid int) (int, error) {
	fd, _, errno := syscall.Syscall(sysPidfdOpen, uintptr(pid), 0, 0)
	return int(fd), asError(errno)
}

func pidfdSignal(fd, sig int) error {
	_, _, errno := syscall.Syscall6(sysPidfdSendSignal, uintptr(fd), uintptr(sig), 0, 0, 0, 0)
	return asError(errno)
}

func closeOnExec(fd int) error {
	_, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), fSetFD, syscall.FD_CLOEXEC)
	return asError(errno)
}

func asError(errno syscall.Errno) error {
	if errno != 0 {
		return errno
	}
	return nil
}

// receiveFD takes one descriptor that comes over a socket.
func receiveFD(socket int) (int, error) {
	var name, oob [64]byte
	_, n, _, _, err := syscall.Recvmsg(socket, name[:], oob[:], syscall.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, err
	}
	messages, err := syscall.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return -1, syscall.EBADMSG
	}
	fds, err := syscall.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		closeAll(fds)
		return -1, syscall.EBADMSG
	}
	return fds[0], nil
}

func setTerminalSize(fd int, width, height uint16) {
	size := [4]uint16{height, width}
	syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), syscall.TIOCSWINSZ, uintptr(unsafe.Pointer(&size)))
}

// read and write retry what a signal interrupted.
func read(fd int, b []byte) (int, error) {
	for {
		n, err := syscall.Read(fd, b)
		if err != syscall.EINTR {
			return n, err
		}
	}
}

func write(fd int, b []byte) (int, error) {
	for {
		n, err := syscall.Write(fd, b)
		if err != syscall.EINTR {
			return n, err
		}
	}
}

// writeAll writes b to a blocking descriptor.
func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := write(fd, b)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// readSmall reads a file of at most limit bytes, such as those of procfs.
func readSmall(path string, limit int) ([]byte, error) {
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer syscall.Close(fd)
	buf := make([]byte, limit)
	total := 0
	for total < limit {
		n, err := read(fd, buf[total:])
		if err != nil {
			return nil, err
		}
		if n == 0 {
			break
		}
		total += n
	}
	return buf[:total], nil
}

// syncDir makes the names in a directory durable.
func syncDir(path string) error {
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	return syscall.Fsync(fd)
}

// waitChild reaps one child that is known to have exited.
func waitChild(pid int) (syscall.WaitStatus, bool) {
	var status syscall.WaitStatus
	for {
		got, err := syscall.Wait4(pid, &status, 0, nil)
		if err == syscall.EINTR {
			continue
		}
		return status, got == pid && err == nil
	}
}

// siginfo is the part of siginfo_t that waitid fills in, on 64-bit machines.
type siginfo struct {
	signo, errno, code, _ int32
	pid                   int32
	_                     [27]int32
}

// peekZombie returns some child that has exited and was not reaped, or 0.
func peekZombie() int {
	var info siginfo
	const options = syscall.WNOHANG | syscall.WNOWAIT | syscall.WEXITED
	syscall.Syscall6(syscall.SYS_WAITID, pAll, 0, uintptr(unsafe.Pointer(&info)), options, 0, 0)
	return int(info.pid)
}

// isChild tells whether pid is a child of this process, dead or alive. A
// process that was reaped may have lent its number to a stranger.
func isChild(pid int) bool {
	var info siginfo
	const options = syscall.WNOHANG | syscall.WNOWAIT | syscall.WEXITED
	_, _, errno := syscall.Syscall6(syscall.SYS_WAITID, pPID, uintptr(pid), uintptr(unsafe.Pointer(&info)), options, 0, 0)
	return errno == 0
}
