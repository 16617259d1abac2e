package podnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// arpLink sends and hears ARP on one device.
type arpLink struct {
	file  *os.File
	index int
}

// networkOrder is a protocol number as packet sockets want it.
func networkOrder(n uint16) uint16 { return n<<8 | n>>8 }

func (l *Linux) openARP(index int) (*arpLink, error) {
	link := &arpLink{index: index}
	err := l.inside(func() error {
		protocol := networkOrder(unix.ETH_P_ARP)
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(protocol))
		if err != nil {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: index}); err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		link.file = os.NewFile(uintptr(fd), "arp")
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("open a socket for ARP: %w", err)
	}
	return link, nil
}

func (a *arpLink) close() { _ = a.file.Close() } // nothing was written that could be lost

// send puts a packet on the link, for all to hear.
func (a *arpLink) send(p arpPacket) error {
	raw, err := a.file.SyscallConn()
	if err != nil {
		return err
	}
	to := &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ARP), Ifindex: a.index, Halen: macLength}
	copy(to.Addr[:], broadcast())
	var failed error
	if err := raw.Write(func(fd uintptr) bool {
		failed = unix.Sendto(int(fd), p.encode(), 0, to)
		return !errors.Is(failed, unix.EAGAIN)
	}); err != nil {
		return err
	}
	if failed != nil {
		return fmt.Errorf("send ARP: %w", failed)
	}
	return nil
}

// collect hears for a while who says to have one of the addresses.
func (a *arpLink) collect(ctx context.Context, wait time.Duration, self net.HardwareAddr, addrs []netip.Addr, owners map[netip.Addr]net.HardwareAddr) error {
	if err := a.file.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	buffer := make([]byte, 64)
	for len(owners) < len(addrs) {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		n, err := a.file.Read(buffer)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("hear ARP: %w", err)
		}
		p, ok := decodeARP(buffer[:n])
		if ok && slices.Contains(addrs, p.from) && p.sender.String() != self.String() {
			owners[p.from] = slices.Clone(p.sender)
		}
	}
	return nil
}
