package main

import (
	"fmt"
	"os"
	"runtime"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// reach is a folder that everybody can walk to. It stays empty on the node,
// where an exec starts in it.
const reach = "/run/balsa-rootfs"

// rootWithinReach shows the root file system of a container with a user
// namespace at a place that its root can walk to. The node's own root may
// walk anywhere, but to the container's, a data directory of mode 0700 is
// closed. The place exists in a mount namespace that this thread and its
// children alone are in, so it needs no cleaning up.
func rootWithinReach(spec *specs.Spec) error {
	users := slices.ContainsFunc(spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.UserNamespace })
	if !users {
		return nil
	}
	runtime.LockOSThread() // never unlocked: the container must be forked from here
	if err := os.MkdirAll(reach, 0o755); err != nil {
		return fmt.Errorf("make a place for the root file system: %w", err)
	}
	for _, step := range []func() error{
		func() error { return unix.Unshare(unix.CLONE_NEWNS) },
		func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, "") },
		func() error { return unix.Mount(spec.Root.Path, reach, "", unix.MS_BIND|unix.MS_REC, "") },
	} {
		if err := step(); err != nil {
			return fmt.Errorf("show the root file system at %s: %w", reach, err)
		}
	}
	spec.Root.Path = reach
	return nil
}
