//go:build linux

package apply

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	mdnetlink "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// tableAttribute is NFTA_TABLE_NAME and the NFTA_*_TABLE of chains, rules, sets
// and elements: all are 1.
const tableAttribute = 1

// monitor is a socket that hears what others change. While we write it leaves
// the group, so that the kernel need not tell us every element of ours.
type monitor struct{ conn *mdnetlink.Conn }

// deafen leaves the group until the function that it returns is called. What
// others do meanwhile is left to the periodic Scrub.
func (m *monitor) deafen() (listen func()) {
	if m == nil || m.conn.LeaveGroup(unix.NFNLGRP_NFTABLES) != nil {
		return func() {}
	}
	return func() {
		// A monitor that cannot listen is found out by the next Scrub, which
		// does not depend on it.
		_ = m.conn.JoinGroup(unix.NFNLGRP_NFTABLES)
	}
}

// Watch implements netproxy.Kernel by the kernel's own notices. One Watch runs at a
// time.
func (a *Applier) Watch(ctx context.Context, changed func()) error {
	config := &mdnetlink.Config{}
	if a.ns != nil {
		config.NetNS = int(a.ns.Fd())
	}
	conn, err := mdnetlink.Dial(unix.NETLINK_NETFILTER, config)
	if err != nil {
		return fmt.Errorf("watch table %s: %w", a.table, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer func() {
		if stop() {
			_ = conn.Close() // nothing was written to it
		}
	}()
	if err := a.listen(&monitor{conn}); err != nil {
		return fmt.Errorf("watch table %s: %w", a.table, err)
	}
	defer a.stopListening()
	for {
		messages, err := conn.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			changed() // so much has changed that not all of it could be told
		case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
			return fmt.Errorf("watch table %s: %w", a.table, err)
		case a.concerned(messages):
			changed()
		}
	}
}

// listen makes m the monitor that our own writes are kept from.
func (a *Applier) listen(m *monitor) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.monitor = m
	return m.conn.JoinGroup(unix.NFNLGRP_NFTABLES)
}

func (a *Applier) stopListening() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.monitor = nil
}

// concerned reports that a message is about our table. What rules themselves put
// into sets is not told.
func (a *Applier) concerned(messages []mdnetlink.Message) bool {
	const family = 4 // length of the header before the attributes
	for _, m := range messages {
		if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || uint8(m.Header.Type) == unix.NFT_MSG_NEWGEN || len(m.Data) < family {
			continue
		}
		d, err := mdnetlink.NewAttributeDecoder(m.Data[family:])
		if err != nil {
			continue
		}
		d.ByteOrder = binary.BigEndian
		for d.Next() {
			if d.Type() == tableAttribute && d.String() == a.table {
				return true
			}
		}
	}
	return false
}
