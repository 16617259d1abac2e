package inside

import (
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"
)

// link is one direction between two hosts.
type link struct {
	cuts  int // faults that hold it
	delay time.Duration
	slow  []time.Duration // what faults add
	loss  []*loss
}

func (w *World) linkLocked(from, to string) *link {
	key := [2]string{from, to}
	if w.links[key] == nil {
		w.links[key] = &link{}
	}
	return w.links[key]
}

func (w *World) setDelay(from, to string, d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.linkLocked(from, to).delay = d
	w.net.Delay(from, to, d)
}

// cut holds back what goes from one host to another until the result is called:
// then it arrives. Several cuts of one link all have to end.
func (w *World) cut(from, to string) (heal func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.linkLocked(from, to)
	if l.cuts++; l.cuts == 1 {
		w.net.Cut(from, to)
	}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if l.cuts--; l.cuts == 0 {
			w.net.Heal(from, to)
		}
	}
}

// slow adds to the delay of a link; of several the longest counts.
func (w *World) slow(from, to string, by time.Duration) (heal func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.linkLocked(from, to)
	l.slow = append(l.slow, by)
	w.net.Delay(from, to, l.delay+slices.Max(l.slow))
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		i := slices.Index(l.slow, by)
		l.slow = slices.Delete(l.slow, i, i+1)
		longest := time.Duration(0)
		for _, d := range l.slow {
			longest = max(longest, d)
		}
		w.net.Delay(from, to, l.delay+longest)
	}
}

// lossIn segments one is lost.
const lossIn = 10

// loss is what a link that loses segments adds to their delay.
type loss struct {
	mu     sync.Mutex
	chance *rand.Rand // guarded by mu
	resend time.Duration
}

// takes is nothing for a segment that arrives, resend for one that is lost once,
// twice that on top for one that is lost again, and so on.
func (l *loss) takes() (extra time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for wait := l.resend; l.chance.IntN(lossIn) == 0 && wait < lossIn*l.resend; wait *= 2 {
		extra += wait
	}
	return extra
}

// lose lets a link lose segments.
func (w *World) lose(from, to string, resend time.Duration, chance *rand.Rand) (heal func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l, mine := w.linkLocked(from, to), &loss{chance: rand.New(rand.NewPCG(chance.Uint64(), 0)), resend: resend}
	l.loss = append(l.loss, mine)
	w.net.Extra(from, to, sum(l.loss))
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		l.loss = slices.DeleteFunc(slices.Clone(l.loss), func(other *loss) bool { return other == mine })
		w.net.Extra(from, to, sum(l.loss))
	}
}

func sum(of []*loss) func() time.Duration {
	if len(of) == 0 {
		return nil
	}
	return func() (extra time.Duration) {
		for _, l := range of {
			extra += l.takes()
		}
		return extra
	}
}

// partitioned tells whether a link among servers is held.
func (w *World) partitioned() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for key, l := range w.links {
		if l.cuts > 0 && strings.HasSuffix(key[0], apiPort) && strings.HasSuffix(key[1], apiPort) {
			return true
		}
	}
	return false
}

// hosts are all that were ever linked, sorted.
func (w *World) hosts() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for key := range w.links {
		out = append(out, key[0])
	}
	slices.Sort(out)
	return slices.Compact(out)
}
