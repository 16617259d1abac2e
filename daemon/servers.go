package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/internal/atomicfile"
)

// writeServers keeps the servers' addresses for the next start.
func writeServers(path string, addresses []string) error {
	text, err := json.Marshal(addresses)
	if err != nil {
		return fmt.Errorf("encode the servers' addresses: %w", err)
	}
	return atomicfile.Write(path, append(text, '\n'), 0o600)
}

// readServers returns none where none were kept, or nothing readable: the
// command line then has to tell.
func readServers(path string) []string {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	var addresses []string
	if err := json.Unmarshal(text, &addresses); err != nil {
		return nil
	}
	return addresses
}

// checkMachine refuses early, and in one message, what an agent cannot do
// without.
func checkMachine() error {
	if os.Geteuid() != 0 {
		// Who is not root cannot ask for the rest.
		return errors.New("an agent makes namespaces, mounts and cgroups: run it as root")
	}
	var missing []error
	if err := hasNetfilter(); err != nil {
		missing = append(missing, err)
	}
	if err := knowsFilesystem("overlay"); err != nil {
		missing = append(missing, err)
	}
	if err := unix.Access("/sys/fs/cgroup", unix.F_OK); err != nil {
		missing = append(missing, errors.New("/sys/fs/cgroup is not there: mount the cgroup file systems"))
	}
	return errors.Join(missing...)
}

// knowsFilesystem asks for the file system instead of reading /proc/filesystems:
// where it is a module, as in Debian's kernel, the question loads it.
func knowsFilesystem(name string) error {
	fd, err := unix.Fsopen(name, unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("the kernel does not know the file system %q (CONFIG_OVERLAY_FS, or modprobe overlay): images cannot be mounted", name)
	}
	if err != nil {
		return fmt.Errorf("see whether the kernel knows the file system %q: %w", name, err)
	}
	return unix.Close(fd)
}

// hasNetfilter opens the socket that nftables and conntrack are asked through;
// that, too, loads the module.
func hasNetfilter() error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return errors.New("the kernel has no netfilter (CONFIG_NF_TABLES, CONFIG_NF_CONNTRACK): services cannot be routed")
	}
	if err != nil {
		return fmt.Errorf("see whether the kernel has netfilter: %w", err)
	}
	return unix.Close(fd)
}
