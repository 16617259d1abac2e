// Command balsa-shim is the process that must never die: one for each pod, in a
// session and a cgroup of its own. It starts containers through balsa-runc,
// owns their log pipes, reaps them and keeps their exit codes on disk, and
// answers the agent on a unix socket, in a line protocol that agents one
// version apart speak. See DESIGN.md.
//
// It refuses to decide anything, imports nothing of ours and none of fmt, net,
// os and encoding: what is linked decides how much memory every pod pays.
//
//	balsa-shim DIR UID HELPER [CGROUP.PROCS ...]
//	balsa-shim pause ...	see pause_linux.go
//
// Descriptor 3 is a pipe on which it writes "ready" or why not; descriptor 4
// the pod's lock file, locked by whoever started it: as long as the shim
// lives, the lock is held.
package main

import "syscall"

const (
	readyFD = 3
	lockFD  = 4
	// socketName is the socket's name in the pod's directory.
	socketName   = "shim.sock"
	maxArgsBytes = 64 << 10
	fixedArgs    = 4
)

func main() {
	if args, err := arguments(); err == nil && len(args) > 1 && args[1] == pauseVerb {
		pause(args[2:])
	}
	s, err := setup()
	if err != "" {
		writeAll(readyFD, []byte("error "+err+"\n"))
		syscall.Exit(1)
	}
	writeAll(readyFD, []byte("ready\n"))
	syscall.Close(readyFD)
	if err := s.run(); err != nil {
		writeAll(2, []byte("balsa-shim: "+err.Error()+"\n"))
		syscall.Exit(1)
	}
	syscall.Unlink(socketName)
	syscall.Exit(0)
}

func setup() (*shim, string) {
	args, err := arguments()
	if err != nil || len(args) < fixedArgs {
		return nil, "usage: balsa-shim DIR UID HELPER [CGROUP.PROCS ...]"
	}
	if err := closeOnExec(readyFD); err != nil {
		return nil, "descriptor 3: " + err.Error()
	}
	if err := closeOnExec(lockFD); err != nil {
		return nil, "descriptor 4: " + err.Error()
	}
	if err := isolate(args[1], args[fixedArgs:]); err != "" {
		return nil, err
	}
	s, err := newShim(args[2], args[3])
	if err != nil {
		return nil, "epoll: " + err.Error()
	}
	if err := s.listen(socketName); err != nil {
		return nil, "listen on " + args[1] + "/" + socketName + ": " + err.Error()
	}
	return s, ""
}

// isolate leaves whatever could take the shim down with the agent.
func isolate(dir string, cgroupProcs []string) string {
	if err := syscall.Chdir(dir); err != nil {
		return "directory " + dir + ": " + err.Error()
	}
	if _, err := syscall.Setsid(); err != nil && err != syscall.EPERM {
		return "setsid: " + err.Error()
	}
	if err := setSubreaper(); err != nil {
		return "become a subreaper: " + err.Error()
	}
	for _, procs := range cgroupProcs {
		if err := joinCgroup(procs); err != nil {
			return "join cgroup " + procs + ": " + err.Error()
		}
	}
	return ""
}

// joinCgroup moves the whole process: 0 stands for the writer.
func joinCgroup(procs string) error {
	fd, err := syscall.Open(procs, syscall.O_WRONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	return writeAll(fd, []byte("0"))
}

// arguments reads the command line without package os.
func arguments() ([]string, error) {
	content, err := readSmall("/proc/self/cmdline", maxArgsBytes)
	if err != nil {
		return nil, err
	}
	var args []string
	start := 0
	for i, b := range content {
		if b == 0 {
			args = append(args, string(content[start:i]))
			start = i + 1
		}
	}
	return args, nil
}
