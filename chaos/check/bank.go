package check

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/balsa-run/balsa/chaos/history"
)

// Bank judges transfers between accounts. The promise: nobody ever sees money
// appear or vanish, which snapshot isolation and all above it give. It is judged
// in every List and every Txn that reads all accounts, also stale ones, and, with
// members, in the state after each revision.
//
// All accounts are opened by one transaction, or before the first read. Balances
// are decimal; a transfer is a Txn of MopRead and MopWrite, or anything else that
// writes both accounts in one revision.
//
// The rules:
//
//	total       the balances do not have the sum that was paid in
//	missing     some accounts are there, or were, and others are not
//	negative    a balance is below nothing
//	unreadable  a balance is no number
//	phantom     an account that nobody opened
//
// Source: the bank workload of Jepsen.
type Bank struct {
	findings
	pairs    pairing
	accounts []string
	total    int64
	// opened is the first record that shows that the accounts exist.
	opened history.Record
	// before tells of a running operation whether it began before that was known.
	before map[int64]bool
}

// NewBank returns a checker of accounts that hold total together.
func NewBank(accounts []string, total int64) *Bank {
	return &Bank{accounts: slices.Sorted(slices.Values(accounts)), total: total, before: map[int64]bool{}}
}

// Add takes the next record.
func (c *Bank) Add(r history.Record) {
	invoke, ended := c.pairs.next(r)
	if r.Type == history.Invoke {
		c.before[invoke.seq] = c.opened.F == 0
		return
	}
	if !ended {
		return
	}
	early := c.before[invoke.seq]
	delete(c.before, invoke.seq)
	c.out.Checked++
	if r.Type != history.OK {
		if r.Type == history.Unknown {
			c.out.Unknown++
		}
		return
	}
	switch r.F {
	case history.List, history.StaleList:
		if c.covers(r, invoke) {
			c.judge(balances(r.KVs), early || invoke.At != 0 || r.F == history.StaleList, r)
		}
	case history.Txn:
		if found, all := c.reads(r.Mops); all {
			c.judge(found, early, r)
		} else if c.opened.F == 0 && writes(r.Mops) {
			c.opened = r
		}
	}
}

// covers: a list of all accounts, with nothing left for another page.
func (c *Bank) covers(r history.Record, invoke started) bool {
	if r.More || len(c.accounts) == 0 {
		return false
	}
	return inRange(c.accounts[0], invoke.Key, invoke.End) && inRange(c.accounts[len(c.accounts)-1], invoke.Key, invoke.End)
}

func balances(kvs []history.KV) map[string]string {
	out := map[string]string{}
	for _, kv := range kvs {
		out[kv.Key] = kv.Value
	}
	return out
}

// reads are the accounts that a transaction found before it wrote anything, and
// whether it looked at all of them.
func (c *Bank) reads(mops []history.Mop) (found map[string]string, all bool) {
	found, looked := map[string]string{}, map[string]bool{}
	for _, m := range mops {
		if m.F != history.MopRead {
			break
		}
		looked[m.Key] = true
		if len(m.Values) > 0 {
			found[m.Key] = m.Values[0]
		}
	}
	return found, len(c.accounts) > 0 && !slices.ContainsFunc(c.accounts, func(a string) bool { return !looked[a] })
}

func writes(mops []history.Mop) bool {
	return slices.ContainsFunc(mops, func(m history.Mop) bool { return m.F == history.MopWrite })
}

// judge is of all balances at one moment. The moment may be before the accounts
// were opened: then there is nothing.
func (c *Bank) judge(found map[string]string, early bool, r history.Record) {
	if len(found) == 0 && early {
		return
	}
	if c.opened.F == 0 {
		c.opened = r
	}
	proof := []history.Record{r}
	sum, whole := int64(0), true
	for _, account := range c.accounts {
		text, ok := found[account]
		if !ok {
			whole = false
			c.addf("missing", c.since(r), "%s is not there", account)
			continue
		}
		balance, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			whole = false
			c.addf("unreadable", proof, "the balance of %s is %q", account, text)
		} else if balance < 0 {
			c.addf("negative", proof, "the balance of %s is %d", account, balance)
		}
		sum += balance
	}
	c.strangers(found, proof)
	if whole && sum != c.total {
		c.addf("total", proof, "all accounts together hold %d, and %d was paid in", sum, c.total)
	}
}

func (c *Bank) since(r history.Record) []history.Record {
	if c.opened.Index == r.Index {
		return []history.Record{r}
	}
	return []history.Record{c.opened, r}
}

func (c *Bank) strangers(found map[string]string, proof []history.Record) {
	var strangers []string
	for account := range found {
		if _, ok := slices.BinarySearch(c.accounts, account); !ok {
			strangers = append(strangers, account)
		}
	}
	if slices.Sort(strangers); len(strangers) > 0 {
		c.addf("phantom", proof, "nobody opened %s", strings.Join(strangers, ", "))
	}
}

// Verdict judges the state after each revision that members hold, too.
func (c *Bank) Verdict(members []Member) Verdict {
	if len(members) == 0 {
		c.leftf("the total at every revision: no member was asked")
	}
	unended := int64(len(c.pairs.unended()))
	c.out.Checked += unended
	c.out.Unknown += unended
	for _, m := range members {
		if !c.replay(m) {
			break // the others have the same, or Hashes says that they have not
		}
	}
	return c.verdict("bank", c.pairs.odd)
}

// replay judges a member's states, from the first that has all accounts, and says
// whether all were right.
func (c *Bank) replay(m Member) bool {
	state, bad := map[string]string{}, len(c.out.Violations)
	opened, touched := false, false
	for i, kv := range m.Changes {
		if _, account := slices.BinarySearch(c.accounts, kv.Key); account {
			touched = true
			if state[kv.Key] = kv.Value; kv.Deleted {
				delete(state, kv.Key)
			}
		}
		last := i+1 == len(m.Changes) || m.Changes[i+1].ModRevision != kv.ModRevision
		opened = opened || last && len(state) == len(c.accounts)
		if !last || !touched || !opened || kv.ModRevision < m.First {
			continue
		}
		touched = false
		if !c.sound(state) {
			c.judge(state, false, c.shown(m, state, kv.ModRevision))
		}
		if len(c.out.Violations) > bad {
			return false
		}
	}
	return true
}

// sound is whether there is nothing to find in a state.
func (c *Bank) sound(state map[string]string) bool {
	sum := int64(0)
	for _, account := range c.accounts {
		balance, err := strconv.ParseInt(state[account], 10, 64)
		if err != nil || balance < 0 {
			return false
		}
		sum += balance
	}
	return sum == c.total
}

// shown is what a member holds at a revision, as if it had been listed.
func (c *Bank) shown(m Member, state map[string]string, revision int64) history.Record {
	r := history.Record{Type: history.OK, F: history.List, Server: m.Name, At: revision, Value: fmt.Sprintf("at rest, %d accounts", len(state))}
	for _, account := range c.accounts {
		if v, ok := state[account]; ok {
			r.KVs = append(r.KVs, history.KV{Key: account, Value: v})
		}
	}
	return r
}
