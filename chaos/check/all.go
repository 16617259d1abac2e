package check

import "time"

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

// Options say what a history is of.
type Options struct {
	Linearizable LinearizableOptions
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
	out := []Checker{
		NewLinearizable(opts.Linearizable),
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
