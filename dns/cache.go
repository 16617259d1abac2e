package dns

import (
	"container/list"
	"sync"
	"time"

	mdns "github.com/miekg/dns"
)

const (
	// maxCacheEntries bounds the cache; the answer used longest ago goes first.
	maxCacheEntries = 10_000
	// maxTTL bounds how long an upstream's answer is kept, a "no" as well.
	maxTTL = 30 * time.Second
	// failureTTL is how long a failure is kept, so that clients which retry at
	// once do not multiply it (RFC 9520 asks for at least one second).
	failureTTL = time.Second
)

// cacheKey is what answers depend on.
type cacheKey struct {
	name  string // canonical
	qtype uint16
	do    bool // the client wants DNSSEC records
}

// cacheEntry is an upstream's answer, or the reason why there is none. Both are
// never changed once stored.
type cacheEntry struct {
	key     cacheKey
	reply   *mdns.Msg
	failure *failure
	stored  time.Time
	expires time.Time
}

// cache keeps answers of upstreams, positive and negative.
type cache struct {
	mu      sync.Mutex
	entries map[cacheKey]*list.Element // guarded by mu; values are *cacheEntry
	order   *list.List                 // guarded by mu; the front was used last
}

func newCache() *cache { return &cache{entries: map[cacheKey]*list.Element{}, order: list.New()} }

// get returns an answer with its TTLs as they are now.
func (c *cache) get(k cacheKey, now time.Time) (reply *mdns.Msg, failed *failure, found bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	element, found := c.entries[k]
	if !found {
		return nil, nil, false
	}
	entry := element.Value.(*cacheEntry)
	if !now.Before(entry.expires) {
		c.order.Remove(element)
		delete(c.entries, k)
		return nil, nil, false
	}
	c.order.MoveToFront(element)
	if entry.failure != nil {
		return nil, entry.failure, true
	}
	return aged(entry.reply, now.Sub(entry.stored)), nil, true
}

func (c *cache) put(entry *cacheEntry) {
	if !entry.stored.Before(entry.expires) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if element, found := c.entries[entry.key]; found {
		c.order.Remove(element)
	}
	c.entries[entry.key] = c.order.PushFront(entry)
	if c.order.Len() > maxCacheEntries {
		oldest := c.order.Remove(c.order.Back()).(*cacheEntry)
		delete(c.entries, oldest.key)
	}
}

func (c *cache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.entries)
	c.order.Init()
}

// aged is a copy with TTLs less the time since they were received.
func aged(m *mdns.Msg, age time.Duration) *mdns.Msg {
	out := m.Copy()
	for _, section := range [][]mdns.RR{out.Answer, out.Ns, out.Extra} {
		for _, rr := range section {
			if h := rr.Header(); h.Rrtype != mdns.TypeOPT {
				h.Ttl -= min(h.Ttl, uint32(age/time.Second))
			}
		}
	}
	return out
}

// lifetime is how long a reply may be kept: the least TTL of its answer, or for
// a "no" what its SOA record allows (RFC 2308); 0 means not at all.
func lifetime(m *mdns.Msg) time.Duration {
	if m.Truncated || m.Rcode != mdns.RcodeSuccess && m.Rcode != mdns.RcodeNameError {
		return 0
	}
	ttl := uint32(maxTTL / time.Second)
	if len(m.Answer) == 0 || m.Rcode == mdns.RcodeNameError {
		return time.Duration(min(ttl, negativeTTL(m))) * time.Second
	}
	for _, rr := range m.Answer {
		ttl = min(ttl, rr.Header().Ttl)
	}
	return time.Duration(ttl) * time.Second
}

func negativeTTL(m *mdns.Msg) uint32 {
	for _, rr := range m.Ns {
		if soa, ok := rr.(*mdns.SOA); ok {
			return min(soa.Hdr.Ttl, soa.Minttl)
		}
	}
	return 0
}
