package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// hidden names what program takes away from itself, for tests of machines that
// lack it: a kernel cannot be told to forget a feature, but a filter of a
// process's system calls can answer as a kernel without it does.
const hidden = "BALSA_TEST_HIDDEN"

// program is balsa as a process: the test binary started again.
func program() {
	if err := hide(os.Getenv(hidden)); err != nil {
		fmt.Fprintln(os.Stderr, "hide:", err)
		os.Exit(99)
	}
	os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// hide makes the kernel lack "overlay", "netfilter" or both, for this process.
func hide(list string) error {
	if list == "" {
		return nil
	}
	const number, first, third = 0, 16, 32 // where seccomp_data has the call and two of its arguments
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	unless := func(value uint32, skip uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: value, Jf: skip}
	}
	answer := func(value uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: value}
	}
	var filter []unix.SockFilter
	for what := range strings.FieldsSeq(list) {
		switch what {
		case "overlay":
			filter = append(filter, load(number), unless(unix.SYS_FSOPEN, 1), answer(unix.SECCOMP_RET_ERRNO|uint32(unix.ENODEV)))
		case "netfilter":
			filter = append(filter, load(number), unless(unix.SYS_SOCKET, 5), load(first), unless(unix.AF_NETLINK, 3),
				load(third), unless(unix.NETLINK_NETFILTER, 1), answer(unix.SECCOMP_RET_ERRNO|uint32(unix.EPROTONOSUPPORT)))
		default:
			return fmt.Errorf("%q cannot be hidden", what)
		}
	}
	filter = append(filter, answer(unix.SECCOMP_RET_ALLOW))
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return errno
	}
	return nil
}

// process prepares balsa as a process of its own.
func process(t *testing.T, binary string, args ...string) *exec.Cmd {
	t.Helper()
	command := exec.CommandContext(t.Context(), binary, args...)
	command.Dir = "/"
	command.Env = append(os.Environ(), asProgram+"=1")
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return command
}

func itself(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	must(t, err)
	return path
}

func TestAgentIsNotRoot(t *testing.T) {
	const nobody = 65534
	// Where the test binary is, only root may look.
	dir, err := os.MkdirTemp("", "balsa-cli-test-")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755))
	binary := filepath.Join(dir, "balsa")
	text, err := os.ReadFile(itself(t))
	must(t, err)
	must(t, os.WriteFile(binary, text, 0o755))

	for _, args := range [][]string{
		{"agent", "--join", "127.0.0.1:1", "--token", "t", "--name", "n1", "--data-dir", "/var/empty/balsa"},
		{"dev", "--data-dir", "/var/empty/balsa", "--listen", freeAddress(t)},
	} {
		command := process(t, binary, args...)
		command.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
		want := "error: an agent makes namespaces, mounts and cgroups: run it as root\n"
		checkProcess(t, command, want)
	}
}

func TestKernelLacksFeatures(t *testing.T) {
	const (
		overlay   = "the kernel does not know the file system \"overlay\" (CONFIG_OVERLAY_FS, or modprobe overlay): images cannot be mounted\n"
		netfilter = "the kernel has no netfilter (CONFIG_NF_TABLES, CONFIG_NF_CONNTRACK): services cannot be routed\n"
	)
	for _, c := range []struct{ hidden, want string }{
		{"overlay", "error: " + overlay}, {"netfilter", "error: " + netfilter}, {"overlay netfilter", "error: " + netfilter + overlay},
	} {
		t.Run(c.hidden, func(t *testing.T) {
			command := process(t, itself(t), "agent", "--join", "127.0.0.1:1", "--token", "t", "--name", "n1", "--data-dir", t.TempDir())
			command.Env = append(command.Env, hidden+"="+c.hidden)
			checkProcess(t, command, c.want)
		})
	}
}

// checkProcess runs a process that must refuse, with nothing but want.
func checkProcess(t *testing.T, command *exec.Cmd, want string) {
	t.Helper()
	out, err := command.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != exitFailed {
		t.Errorf("%v ended with %v, want exit code %d; it printed:\n%s", command.Args, err, exitFailed, out)
	}
	if string(out) != want {
		t.Errorf("%v printed:\n%swant:\n%s", command.Args, out, want)
	}
}
