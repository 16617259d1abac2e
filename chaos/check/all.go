package check

import (
	"fmt"
	"time"

	"github.com/balsa-run/balsa/chaos/history"
)

// The prefixes of the keys that each workload writes, so that each checker sees its
// own operations only. A list or a watch of all keys is of no workload: Ranges,
// Watch, Hashes and Linearizable see everything that there is.
const (
	// PrefixRegister: reads and writes of one key each, for Linearizable alone.
	PrefixRegister = "reg/"
	// PrefixTxn: transactions of appends and reads, for Txn.
	PrefixTxn = "txn/"
	// PrefixSet: adds, and lists of all of the prefix, for Set.
	PrefixSet = "set/"
	// PrefixBank: accounts, for Bank.
	PrefixBank = "bank/"
	// PrefixRange: keys that come and go, listed whole and in pages, for Ranges.
	PrefixRange = "range/"
	// PrefixLock: locks and the keys that they fence; PrefixLease: keys that are
	// bound to leases; both for Locks.
	PrefixLock  = "lock/"
	PrefixLease = "lease/"
)

// The bank of the simulation: accounts that hold BankTotal together.
const (
	bankAccounts = 5
	BankTotal    = 500
)

// BankAccounts are the keys of the simulation's accounts.
func BankAccounts() []string {
	out := make([]string, bankAccounts)
	for i := range out {
		out[i] = fmt.Sprintf("%s%d", PrefixBank, i)
	}
	return out
}

// simulatedDrift is by how much the clocks of simulated servers may run fast within a
// lease.
const simulatedDrift = 250 * time.Millisecond

// Simulated are the options for the history of a simulated run's etcd space.
func Simulated() Options {
	return Options{Drift: simulatedDrift, Accounts: BankAccounts(), Total: BankTotal, LocksWrite: true}
}

// Options say what a history is of.
type Options struct {
	Linearizable LinearizableOptions
	// LocksWrite says that whoever takes a lock creates its key, bound to a lease, and
	// who leaves it deletes the key: then these are writes to Linearizable.
	LocksWrite bool
	// Drift bounds how much earlier than by the clients' clock a lease may expire.
	Drift time.Duration
	// Accounts are the keys of the accounts below PrefixBank, and Total is what they
	// hold together. Without accounts there is no bank to judge.
	Accounts []string
	Total    int64
}

// All are the checkers of a history with all workloads, each for its own part. Every
// record is to be added to each of them.
func All(opts Options) []Checker {
	var linearizable Checker = NewLinearizable(opts.Linearizable)
	if opts.LocksWrite {
		linearizable = lockWrites{linearizable}
	}
	out := []Checker{
		linearizable,
		NewHashes(),
		NewRanges(),
		NewWatch(),
		Scope(NewTxn(), PrefixTxn),
		Scope(NewSet(), PrefixSet),
		Scope(NewLocks(opts.Drift), PrefixLock, PrefixLease),
	}
	if len(opts.Accounts) > 0 {
		out = append(out, Scope(NewBank(opts.Accounts, opts.Total), PrefixBank))
	}
	return out
}

// lockWrites shows operations on locks as what they are to whoever knows of no locks.
type lockWrites struct{ Checker }

func (c lockWrites) Add(r history.Record) {
	switch r.F {
	case history.Lock:
		r.F, r.Base = history.CAS, 0
	case history.Unlock:
		r.F = history.Delete
	}
	c.Checker.Add(r)
}
