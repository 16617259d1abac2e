package daemon

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/internal/version"
	"github.com/balsa-run/balsa/node"
)

// thisMachine is node.Machine: what /proc and /etc tell. What it uses is in
// meter.go.
type thisMachine struct {
	// dirs hold images, volumes, logs and what containers write; the first is what
	// pods are promised room on.
	dirs []string
}

func (m thisMachine) Facts(context.Context) (node.MachineFacts, error) {
	memory, err := memInfo("MemTotal")
	if err != nil {
		return node.MachineFacts{}, err
	}
	boot, err := firstLine("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return node.MachineFacts{}, err
	}
	kernel, err := firstLine("/proc/sys/kernel/osrelease")
	if err != nil {
		return node.MachineFacts{}, err
	}
	disk, err := diskOf(m.dirs[:min(len(m.dirs), 1)])
	if err != nil {
		return node.MachineFacts{}, err
	}
	return node.MachineFacts{
		MilliCPU: int64(runtime.NumCPU()) * 1000, MemoryBytes: memory, EphemeralBytes: disk.bytes,
		Info: &balsav1.NodeSystemInfo{
			MachineId: machineID(), BootId: boot, KernelVersion: kernel, OsImage: osName(),
			ContainerRuntimeVersion: "runc://" + libraryVersion("github.com/opencontainers/runc"), KubeletVersion: version.Version(),
			OperatingSystem: runtime.GOOS, Architecture: runtime.GOARCH,
		},
	}, nil
}

func firstLine(path string) (string, error) {
	text, err := os.ReadFile(path)
	line, _, _ := strings.Cut(string(text), "\n")
	return strings.TrimSpace(line), err
}

// machineID is systemd's, else the one of D-Bus or of the firmware; empty where
// there is none.
func machineID() string {
	for _, path := range []string{"/etc/machine-id", "/var/lib/dbus/machine-id", "/sys/class/dmi/id/product_uuid"} {
		if id, err := firstLine(path); err == nil && id != "" {
			return id
		}
	}
	return ""
}

// libraryVersion is that of a module that the program was built with.
func libraryVersion(module string) string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == module {
				return strings.TrimPrefix(m.Version, "v")
			}
		}
	}
	return "unknown"
}

// memInfo is a line of /proc/meminfo in bytes.
func memInfo(name string) (int64, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) >= 2 && fields[0] == name+":" {
			kib, err := strconv.ParseInt(fields[1], 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("/proc/meminfo has no %s", name)
}

// osName is PRETTY_NAME of os-release(5), or "Linux".
func osName() string {
	text, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "Linux"
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
			return strings.Trim(value, `"`)
		}
	}
	return "Linux"
}

// ownAddress is the address from which this machine reaches another, found
// without sending anything.
func ownAddress(ctx context.Context, to string) (netip.Addr, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "udp4", to)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("find the address that leads to %s: %w; give it with --node-ip", to, err)
	}
	defer conn.Close()
	own, err := netip.ParseAddrPort(conn.LocalAddr().String())
	if err != nil {
		return netip.Addr{}, err
	}
	return own.Addr(), nil
}

// machineAddress is an address of this machine that pods can answer to: the one
// that leads out, or else any that is not loopback's.
func machineAddress(ctx context.Context) (netip.Addr, error) {
	if own, err := ownAddress(ctx, "192.0.2.1:9"); err == nil { // RFC 5737: nobody has it, nothing is sent
		return own, nil
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return netip.Addr{}, fmt.Errorf("list this machine's addresses: %w", err)
	}
	for _, address := range addresses {
		prefix, err := netip.ParsePrefix(address.String())
		if err == nil && prefix.Addr().Is4() && prefix.Addr().IsGlobalUnicast() {
			return prefix.Addr(), nil
		}
	}
	return netip.Addr{}, errors.New("this machine has no IPv4 address but loopback's, and pods could not answer to that: connect it, or add one (ip addr add 192.168.255.1/32 dev lo)")
}
