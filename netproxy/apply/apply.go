//go:build linux

package apply

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/google/nftables"
	mdnetlink "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/netproxy"
)

// DefaultTable is the name of the nftables table (family ip).
const DefaultTable = "balsa"

const (
	// maxElementsPerMessage: the elements of a message share an attribute whose
	// length has 16 bits; the library lets it wrap and loses elements without
	// an error from about 1,450 slot elements on.
	maxElementsPerMessage = 400
	// socketBuffer bounds one transaction in the kernel's send queue, and the
	// acknowledgements of its messages on the way back.
	socketBuffer = 256 << 20
)

// Options choose the namespace and the names.
type Options struct {
	// NetNS is the path of a network namespace; empty means the caller's.
	NetNS string
	// Table is the nftables table; empty means DefaultTable.
	Table string
	// Logger is where repairs and retries are told; nil means nowhere.
	Logger *slog.Logger
}

// Applier implements netproxy.Kernel. Its methods may be called from any
// goroutine; they run one at a time.
type Applier struct {
	table string
	log   *slog.Logger
	ns    *os.File // nil for the caller's namespace
	link  *netlink.Handle
	flows *netlink.Handle
	// features are what the kernel is asked for when it has refused something.
	features []feature
	// commit sends a transaction.
	commit func(*nftables.Conn) error

	mu   sync.Mutex
	conn *nftables.Conn // guarded by mu; nil until needed and after an error
	// have is what the kernel holds if known is true, and the last wish in any
	// case; guarded by mu.
	have  netproxy.Ruleset
	known bool
	// begun is set once the kernel's state was looked at; guarded by mu.
	begun bool
	// refused are units that the kernel has refused, with its reasons; they are
	// left out as long as they stay the same; guarded by mu.
	refused map[string]refusal
	// routed is what the service route was made for; guarded by mu.
	routed netproxy.Params
	// stale remembers flows that a failed deletion has left; guarded by mu.
	stale staleWork
	// monitor hears what others change while Watch runs; guarded by mu.
	monitor *monitor
}

var _ netproxy.Kernel = (*Applier)(nil)

// New opens the namespace; it changes nothing there.
func New(o Options) (*Applier, error) {
	a := &Applier{table: o.Table, log: o.Logger, features: features(), commit: (*nftables.Conn).Flush}
	if a.table == "" {
		a.table = DefaultTable
	}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	if err := a.open(o.NetNS); err != nil {
		return nil, errors.Join(fmt.Errorf("open network namespace %q for table %s: %w", o.NetNS, a.table, err), a.Close())
	}
	return a, nil
}

func (a *Applier) open(path string) (err error) {
	handle := netns.None()
	if path != "" {
		if a.ns, err = os.Open(path); err != nil {
			return err
		}
		handle = netns.NsHandle(a.ns.Fd())
	}
	if a.link, err = netlink.NewHandleAt(handle, unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("route socket: %w", err)
	}
	if a.flows, err = netlink.NewHandleAt(handle, unix.NETLINK_NETFILTER); err != nil {
		return fmt.Errorf("connection tracking socket: %w", err)
	}
	return nil
}

// Close frees the sockets. Rules, route and flows stay: services go on working
// while the agent is away.
func (a *Applier) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.disconnectLocked()
	for _, h := range []*netlink.Handle{a.link, a.flows} {
		if h != nil {
			h.Close()
		}
	}
	if a.ns == nil {
		return nil
	}
	return a.ns.Close()
}

// Sync implements netproxy.Kernel.
func (a *Applier) Sync(ctx context.Context, r netproxy.Ruleset) (netproxy.Result, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	result, err := a.syncLocked(ctx, r)
	if err != nil {
		return result, fmt.Errorf("sync table %s at revision %d: %w", a.table, r.Revision, err)
	}
	return result, nil
}

func (a *Applier) syncLocked(ctx context.Context, r netproxy.Ruleset) (result netproxy.Result, err error) {
	start := time.Now()
	if err := ctx.Err(); err != nil {
		return result, err
	}
	r = a.acceptableLocked(r)
	first := !a.begun
	if !a.known && a.adoptLocked(r) {
		if err := a.removeTableLocked(a.standIn()); err != nil {
			return result, fmt.Errorf("an earlier replacement's table: %w", err)
		}
		a.have, a.known = r, true
		a.stale.udp = true
	}
	a.begun = true
	change, err := a.writeLocked(ctx, r, func() { result.Effective = time.Since(start) })
	if err != nil {
		return result, err
	}
	result.Replaced, result.Elements, result.Problems = change.Replace, change.Elements(), a.refusalsLocked()
	if a.routed != r.Params {
		if err := a.ensureRoute(r.Params); err != nil {
			return result, err
		}
		a.routed = r.Params
	}
	a.stale.add(change)
	if first && change.Replace {
		// The policies that were in force before are unknown.
		a.stale.judgeAll(a.have)
	}
	result.ForgottenFlows, err = a.forgetFlowsLocked()
	return result, err
}

// writeLocked writes the difference; if the kernel refuses it, somebody else has
// changed the table, and it is written as a whole. What the kernel refuses even
// then is looked for and left out.
func (a *Applier) writeLocked(ctx context.Context, r netproxy.Ruleset, effective func()) (netproxy.Change, error) {
	if a.known {
		c := netproxy.Diff(a.have, r)
		err := a.commitLocked(c, effective)
		if err == nil {
			a.have = r
			return c, nil
		}
		a.log.Warn("nftables refused a change; replacing the table", "table", a.table, "revision", r.Revision, "error", err)
	}
	a.known = false
	c := netproxy.Full(r)
	err := a.commitLocked(c, effective)
	if refusedByKernel(err) {
		if r, err = a.isolateLocked(ctx, r, err); err == nil {
			c = netproxy.Full(r)
			err = a.commitLocked(c, effective)
		}
	}
	if err != nil {
		return c, err
	}
	a.have, a.known = r, true
	return c, nil
}

// commitLocked carries out one change. When it returns, no packet is under way
// through rules older than the change; effective is called when new connections
// follow the change.
func (a *Applier) commitLocked(c netproxy.Change, effective func()) error {
	if c.Replace {
		return a.replaceLocked(c, effective)
	}
	if c.Empty() {
		return nil
	}
	t, n := a.kernelTable(), c.Elements()
	if c.Prepares() {
		if err := a.transactLocked(t, n, func(b *builder) error { return b.first(c) }); err != nil {
			return err
		}
	}
	if err := a.transactLocked(t, n, func(b *builder) error { return b.second(c) }); err != nil {
		return err
	}
	effective()
	if !c.Removes() {
		return nil
	}
	if err := gracePeriod(); err != nil {
		return err
	}
	if c.DropElements() == 0 {
		return nil
	}
	return a.transactLocked(t, n, func(b *builder) error { return b.third(c) })
}

// transactLocked sends one transaction on a table; elements is for its error.
func (a *Applier) transactLocked(t *nftables.Table, elements int, build func(*builder) error) error {
	b, err := a.builderLocked(t)
	if err != nil {
		return err
	}
	if err := build(b); err != nil {
		a.disconnectLocked()
		return fmt.Errorf("nftables transaction of %d elements on table %s: %w", elements, t.Name, err)
	}
	if err := a.flushLocked(); err != nil {
		return fmt.Errorf("nftables transaction of %d elements on table %s: %w", elements, t.Name, err)
	}
	return nil
}

func (a *Applier) builderLocked(t *nftables.Table) (*builder, error) {
	if err := a.connectLocked(); err != nil {
		return nil, err
	}
	return &builder{conn: a.conn, table: t}, nil
}

func (a *Applier) kernelTable() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyIPv4, Name: a.table}
}

// flushLocked sends the transaction, unheard by our own monitor.
func (a *Applier) flushLocked() error {
	listen := a.monitor.deafen()
	err := a.commit(a.conn)
	if err != nil {
		// After an error replies may still be on their way, and a message may
		// be half built: never use that connection again.
		a.disconnectLocked()
	}
	listen()
	return err
}

// membarrierGlobal is MEMBARRIER_CMD_GLOBAL.
const membarrierGlobal = 1

// gracePeriod waits until every packet that was being handled when it was
// called is through the hook that handled it: the kernel runs hooks as RCU
// readers, and this system call is synchronize_rcu.
func gracePeriod() error {
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0); errno != 0 {
		return fmt.Errorf("wait for packets under way: membarrier: %w", errno)
	}
	return nil
}

func (a *Applier) connectLocked() error {
	if a.conn != nil {
		return nil
	}
	options := []nftables.ConnOption{nftables.AsLasting(), nftables.WithSockOptions(
		func(c *mdnetlink.Conn) error { return c.SetWriteBuffer(socketBuffer) },
		func(c *mdnetlink.Conn) error { return c.SetReadBuffer(socketBuffer) })}
	if a.ns != nil {
		options = append(options, nftables.WithNetNSFd(int(a.ns.Fd())))
	}
	conn, err := nftables.New(options...)
	if err != nil {
		return fmt.Errorf("connect to nftables: %w", err)
	}
	a.conn = conn
	return nil
}

func (a *Applier) disconnectLocked() {
	if a.conn == nil {
		return
	}
	if err := a.conn.CloseLasting(); err != nil {
		a.log.Warn("close nftables connection", "table", a.table, "error", err)
	}
	a.conn = nil
}

// Remove deletes the table and the route, for a node that leaves the cluster.
func (a *Applier) Remove() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.known, a.routed = false, netproxy.Params{}
	if err := a.connectLocked(); err != nil {
		return fmt.Errorf("remove table %s: %w", a.table, err)
	}
	for _, t := range []*nftables.Table{a.kernelTable(), a.standIn()} {
		a.conn.AddTable(t) // deleting what is not there fails
		a.conn.DelTable(t)
	}
	if err := a.flushLocked(); err != nil {
		return fmt.Errorf("remove table %s: %w", a.table, err)
	}
	return a.removeRoutes()
}
