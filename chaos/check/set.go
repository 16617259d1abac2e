package check

import (
	"strings"

	"github.com/balsa-run/balsa/chaos/history"
)

// Set judges a set that only grows: each element is a key of its own, added by Put
// or by CAS on nothing (Base 0), and read by List. The promise: what was added and
// acknowledged, or once seen, is in every List that begins later. A page shows only
// what is up to its last key; a List that asks for a revision, and a StaleList, may
// be old.
//
// The rules:
//
//	lost        known, and not in the last List that ought to have it
//	stale       known, missing in a List, and there again in a later one
//	phantom     in a List, and nobody added it before the List ended
//	refused     in a List, though its add was refused
//	duplicated  in one List twice
//
// Elements that were known and that no later List could have shown were never
// read, and are Left; adds of an unknown outcome that were seen are recovered, and
// no longer unknown. Source: Jepsen's checker set-full, whose words these are.
type Set struct {
	findings
	pairs    pairing
	elements map[string]*member
	// known are the elements that later reads must have, in the order in which
	// that became true.
	known []*member
	// must is how many were known when a List began, by the List's position.
	must map[int64]int
	// last is the List that began last of those that must be new.
	last int64
	// other counts what is no operation of a set.
	other int64
}

// member is an element of the set.
type member struct {
	key           string
	asked, twice  bool // an add began, and another one
	known         bool
	unknown       bool
	refused, sure history.Record // sure is why it is known
	// missing is the first List without it, absent the one that began last and
	// present likewise with it; their positions are 0 when there is none.
	missing          history.Record
	absent, present  int64
	recovered, wrong bool
}

// NewSet returns a checker of a set.
func NewSet() *Set { return &Set{elements: map[string]*member{}, must: map[int64]int{}} }

// Add takes the next record.
func (c *Set) Add(r history.Record) {
	invoke, ended := c.pairs.next(r)
	switch r.F {
	case history.Put, history.CAS:
		c.add(r, invoke, ended)
	case history.List, history.StaleList:
		if r.Type == history.Invoke {
			c.must[invoke.seq] = len(c.known)
		} else if ended {
			if r.Type == history.OK {
				c.read(r, invoke)
			}
			delete(c.must, invoke.seq)
		}
	default:
		c.other++
	}
}

func (c *Set) element(key string) *member {
	if c.elements[key] == nil {
		c.elements[key] = &member{key: key}
	}
	return c.elements[key]
}

func (c *Set) add(r history.Record, invoke started, ended bool) {
	e := c.element(r.Key)
	switch {
	case r.Type == history.Invoke:
		c.out.Checked++
		e.twice = e.twice || e.asked
		e.asked, e.unknown = true, !e.known
		if e.twice || r.Base != 0 {
			c.other++
		}
	case !ended || invoke.Key != r.Key:
	case r.Type == history.OK:
		e.unknown = false
		c.know(e, r)
	case r.Type == history.Refused:
		if e.unknown = false; !e.twice {
			e.refused = r
		}
	}
}

// know: from here on, every List must have it.
func (c *Set) know(e *member, why history.Record) {
	if !e.known {
		e.known, e.sure = true, why
		c.known = append(c.known, e)
	}
}

// read judges a List, which shows what is in its range, and up to its last key when
// there is more.
func (c *Set) read(r history.Record, invoke started) {
	c.out.Checked++
	found := make(map[string]bool, len(r.KVs))
	for _, kv := range r.KVs {
		if found[kv.Key] {
			c.addf("duplicated", []history.Record{r}, "%s is there twice", kv.Key)
		}
		found[kv.Key] = true
		c.seen(c.element(kv.Key), r, invoke)
	}
	if r.F == history.StaleList || invoke.At != 0 {
		return
	}
	c.last = max(c.last, invoke.seq)
	for _, e := range c.known[:c.must[invoke.seq]] {
		if !found[e.key] && shows(r, invoke, e.key) {
			if e.absent = max(e.absent, invoke.seq); e.missing.F == 0 {
				e.missing = r
			}
		}
	}
}

func (c *Set) seen(e *member, r history.Record, invoke started) {
	switch {
	case e.wrong:
		return
	case !e.asked:
		e.wrong = true
		c.addf("phantom", []history.Record{r}, "nobody has added %s yet", e.key)
	case e.refused.F != 0:
		e.wrong = true
		c.addf("refused", []history.Record{e.refused, r}, "%s is there, though its add was refused", e.key)
	}
	if e.wrong {
		return
	}
	if r.F == history.List && invoke.At == 0 {
		e.present = max(e.present, invoke.seq)
	}
	e.recovered = e.recovered || e.unknown
	c.know(e, r)
}

// shows says whether a page is as wide as to have a key, if the key exists.
func shows(r history.Record, invoke started, key string) bool {
	if !inRange(key, invoke.Key, invoke.End) {
		return false
	}
	return !r.More || len(r.KVs) > 0 && key <= r.KVs[len(r.KVs)-1].Key
}

// Verdict judges each element.
func (c *Set) Verdict([]Member) Verdict {
	var never []string
	recovered := 0
	for _, e := range c.known {
		switch {
		case e.absent > e.present:
			c.addf("lost", []history.Record{e.sure, e.missing}, "%s was known, and the last list that ought to have it does not", e.key)
		case e.absent > 0:
			c.addf("stale", []history.Record{e.sure, e.missing}, "%s was known before this list began, and lists that began later have it", e.key)
		case e.present == 0:
			never = append(never, e.key)
		}
		if e.recovered {
			recovered++
		}
	}
	for _, e := range c.elements {
		if e.unknown && !e.recovered {
			c.out.Unknown++
		}
	}
	if len(never) > 0 {
		c.leftf("%d acknowledged elements that no list could show any more: %s", len(never), strings.Join(brief(never), ", "))
	}
	if recovered > 0 {
		c.notef("%d adds of an unknown outcome took effect", recovered)
	}
	if c.other > 0 {
		c.leftf("%d records of what is no operation of a set, or adds an element again", c.other)
	}
	return c.verdict("set", c.pairs.odd)
}
