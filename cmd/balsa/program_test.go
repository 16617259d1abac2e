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

	"golang.org/x/sys/unix"
)

// hidden names what program takes away from itself, for tests of machines that
// lack it: a kernel cannot be told to forget a feature, but what a process sees
// of it can be covered in a mount namespace of its own.
const hidden = "BALSA_TEST_HIDDEN"

// program is balsa as a process: the test binary started again.
func program() {
	if err := hide(os.Getenv(hidden)); err != nil {
		fmt.Fprintln(os.Stderr, "hide:", err)
		os.Exit(99)
	}
	os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// hide covers paths, "what=with" each: with is a file, or empty for an empty
// folder.
func hide(list string) error {
	var failed []error
	for _, pair := range strings.Fields(list) {
		what, with, _ := strings.Cut(pair, "=")
		if with == "" {
			failed = append(failed, unix.Mount("none", what, "tmpfs", 0, ""))
			continue
		}
		failed = append(failed, unix.Mount(with, what, "", unix.MS_BIND, ""))
	}
	return errors.Join(failed...)
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
	none := filepath.Join(t.TempDir(), "filesystems")
	must(t, os.WriteFile(none, []byte("nodev\tproc\n\text4\n"), 0o644))
	for _, c := range []struct{ name, hidden, want string }{
		{"overlay", "/proc/filesystems=" + none,
			"error: the kernel does not know the file system \"overlay\" (CONFIG_OVERLAY_FS, or modprobe overlay): images cannot be mounted\n"},
		{"netfilter", "/proc/sys/net=",
			"error: the kernel has no netfilter (CONFIG_NF_TABLES, CONFIG_NF_CONNTRACK): services cannot be routed\n"},
		{"all", "/proc/sys/net= /proc/filesystems=" + none,
			"error: the kernel has no netfilter (CONFIG_NF_TABLES, CONFIG_NF_CONNTRACK): services cannot be routed\n" +
				"the kernel does not know the file system \"overlay\" (CONFIG_OVERLAY_FS, or modprobe overlay): images cannot be mounted\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			command := process(t, itself(t), "agent", "--join", "127.0.0.1:1", "--token", "t", "--name", "n1", "--data-dir", t.TempDir())
			command.Env = append(command.Env, hidden+"="+c.hidden)
			command.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS
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
