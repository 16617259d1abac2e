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
	"strconv"
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/internal/version"
	"github.com/balsa-run/balsa/node"
)

// thisMachine is node.Machine: what /proc and /etc tell.
type thisMachine struct{}

func (thisMachine) Facts(context.Context) (node.MachineFacts, error) {
	memory, err := memoryBytes()
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
	machine, err := firstLine("/etc/machine-id")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return node.MachineFacts{}, err
	}
	return node.MachineFacts{
		MilliCPU: int64(runtime.NumCPU()) * 1000, MemoryBytes: memory,
		Info: &balsav1.NodeSystemInfo{
			MachineId: machine, BootId: boot, KernelVersion: kernel, OsImage: osName(),
			ContainerRuntimeVersion: "runc (libcontainer)", KubeletVersion: version.Version(),
			OperatingSystem: runtime.GOOS, Architecture: runtime.GOARCH,
		},
	}, nil
}

func firstLine(path string) (string, error) {
	text, err := os.ReadFile(path)
	line, _, _ := strings.Cut(string(text), "\n")
	return strings.TrimSpace(line), err
}

func memoryBytes() (int64, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) >= 2 && fields[0] == "MemTotal:" {
			kib, err := strconv.ParseInt(fields[1], 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("/proc/meminfo has no MemTotal")
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
