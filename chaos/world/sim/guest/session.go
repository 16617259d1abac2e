package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/balsa-run/balsa/chaos/history"
	"github.com/balsa-run/balsa/chaos/world/sim/inside"
	"github.com/balsa-run/balsa/cluster"
	"github.com/balsa-run/balsa/daemon/core"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/store"
)

// opLimit bounds one operation.
const opLimit = 3 * time.Second

var (
	errOff  = errors.New("the server is off")
	errDied = errors.New("the server died before it could answer")
)

// session is a client of the etcd space that lives in a server's own process, as
// the handlers of an API do, and dies with it: what a server says after its death
// nobody hears.
type session struct {
	*scenario
	name     string
	workload string
	process  *history.Process
	chance   *rand.Rand
	server   *inside.Server
	made     int
}

func (s *scenario) session(workload string, i int) *session {
	name := fmt.Sprintf("%s%d", workload, i+1)
	c := &session{scenario: s, name: name, workload: workload, chance: s.world.Chance("session " + name)}
	c.process = s.etcd.Process("")
	c.goTo(i)
	return c
}

// goTo makes the session a client of another server.
func (c *session) goTo(i int) {
	servers := c.world.Servers()
	c.server = servers[i%len(servers)]
	c.process.Ask(c.server.Name)
}

// wander goes to some server now and then.
func (c *session) wander() {
	if c.chance.IntN(8) == 0 {
		c.goTo(c.chance.IntN(len(c.world.Servers())))
	}
}

// value is one that nobody else writes.
func (c *session) value() string {
	c.made++
	return fmt.Sprintf("%s-%d", c.name, c.made)
}

func between(chance *rand.Rand, low, high time.Duration) time.Duration {
	return low + time.Duration(chance.Int64N(int64(high-low)))
}

// think waits between two operations; false when the work is over.
func (c *session) think(ctx context.Context) bool {
	return inside.Sleep(ctx, c.thinking(c.chance))
}

// begin records an invocation, and gives it its time. An operation that has begun
// is seen to its end also when the work is over meanwhile.
func (c *session) begin(ctx context.Context, invoke history.Record) (context.Context, context.CancelFunc, *history.Op) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), opLimit)
	return ctx, cancel, c.process.Begin(invoke)
}

func (c *session) ok(o *history.Op) {
	c.count(c.workload, history.OK)
	o.OK()
}

func (c *session) refused(o *history.Op, err error) {
	c.count(c.workload, history.Refused)
	o.Refused(err)
}

func (c *session) unknown(o *history.Op, err error) {
	c.count(c.workload, history.Unknown)
	o.Unknown(err)
}

// propose sends a command. When that does not come to an outcome of OK it ends
// the operation and returns nil.
func (c *session) propose(ctx context.Context, o *history.Op, command *internalv1.Command) *internalv1.CommandResult {
	running := c.server.Core()
	if running == nil {
		c.refused(o, errOff)
		return nil
	}
	command.Space = store.SpaceEtcd
	result, err := running.Cluster().Propose(ctx, command)
	switch {
	case c.server.Core() != running:
		c.unknown(o, errDied)
	case err != nil && cluster.IsUnknown(err):
		c.unknown(o, err)
	case err != nil:
		c.refused(o, err)
	case result.GetOutcome() != internalv1.CommandResult_OUTCOME_OK:
		c.refused(o, outcomeError(result))
	default:
		o.Answer.At = result.GetRevision()
		return result
	}
	return nil
}

func outcomeError(result *internalv1.CommandResult) error {
	outcome := strings.ToLower(strings.TrimPrefix(result.GetOutcome().String(), "OUTCOME_"))
	return fmt.Errorf("%s: %s", strings.ReplaceAll(outcome, "_", " "), result.GetMessage())
}

// commit sends a transaction; nil as propose, and when its compares do not hold.
func (c *session) commit(ctx context.Context, o *history.Op, txn *internalv1.Txn) *internalv1.CommandResult {
	result := c.propose(ctx, o, &internalv1.Command{Op: &internalv1.Command_Txn{Txn: txn}})
	if result == nil {
		return nil
	}
	if !result.GetTxn().GetSucceeded() {
		c.refused(o, errors.New("conflict: a compare does not hold"))
		return nil
	}
	return result
}

// look is a view of the server's space: linearizable, or what it has when stale.
// A failure ends the operation.
func (c *session) look(ctx context.Context, o *history.Op, stale bool) (store.View, bool) {
	running, err := c.barrier(ctx, stale)
	if err != nil {
		c.refused(o, err)
		return store.View{}, false
	}
	return running.Store().Space(store.SpaceEtcd).View(), true
}

func (c *session) barrier(ctx context.Context, stale bool) (*core.Server, error) {
	running := c.server.Core()
	if running == nil {
		return nil, errOff
	}
	if stale {
		return running, nil
	}
	if _, err := running.Cluster().ReadIndex(ctx); err != nil {
		return nil, err
	}
	if c.server.Core() != running {
		return nil, errDied
	}
	return running, nil
}

// kvOf is a key as a history has it.
func kvOf(kv store.KV) history.KV {
	return history.KV{
		Key: kv.Key, Value: string(kv.Value), CreateRevision: int64(kv.CreateRevision),
		ModRevision: int64(kv.ModRevision), Version: kv.Version, Lease: kv.Lease,
	}
}

func eventOf(e store.Event) history.KV {
	kv := kvOf(e.KV)
	kv.Deleted = e.Type == store.EventDelete
	if e.Prev != nil {
		prev := kvOf(*e.Prev)
		kv.Prev = &prev
	}
	return kv
}

// The parts of commands.

func putOf(key, value string, lease int64) *internalv1.Op {
	return &internalv1.Op{Op: &internalv1.Op_Put{Put: &internalv1.Put{Key: []byte(key), Value: []byte(value), Lease: lease}}}
}

func deleteOf(key string) *internalv1.Op {
	return &internalv1.Op{Op: &internalv1.Op_DeleteRange{DeleteRange: &internalv1.DeleteRange{Key: []byte(key)}}}
}

// unchanged compares a key's modification revision; 0: there is none.
func unchanged(key string, revision int64) *internalv1.Compare {
	return compareOf(key, internalv1.Compare_TARGET_MOD, revision)
}

func compareOf(key string, target internalv1.Compare_Target, number int64) *internalv1.Compare {
	return &internalv1.Compare{Key: []byte(key), Target: target, Result: internalv1.Compare_RESULT_EQUAL, Number: number}
}

// endOf is the end of the range of all keys with a prefix that ends in "/".
func endOf(prefix string) string { return strings.TrimSuffix(prefix, "/") + "0" }

func number(text string) int64 {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return -1 // nothing that any workload writes
	}
	return n
}
