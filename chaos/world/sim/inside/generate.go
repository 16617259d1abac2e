package inside

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// Bounds of what Generate draws. A stall must end before a server gives up on
// its disk.
const (
	faultMin = 200 * time.Millisecond
	faultMax = 4 * time.Second
	stallMax = 7 * time.Second
	lateMin  = 20 * time.Millisecond
	lateMax  = 1800 * time.Millisecond
	pauseMin = 500 * time.Millisecond
	pauseMax = 4 * time.Second
	// One fault in overlaps begins while the one before is still there.
	overlaps = 4
	// fewest faults that a schedule of a minute has; of a longer or shorter one in
	// proportion.
	fewest = 5
	// writesMax is before which write of a server it crashes.
	writesMax = 60
)

// Weights say how often Generate draws a kind beside others; one that is not
// there is never drawn.
type Weights map[Kind]int

// DefaultWeights have every kind but FlipEntry, which nothing survives for sure,
// and Compact: who judges a run by the history of objects needs all of it.
func DefaultWeights() Weights {
	return Weights{
		Kill: 6, PowerCut: 6, PowerCutAll: 4, Restart: 4, Storm: 2, CrashBefore: 4, CrashAfter: 6, Upgrade: 1,
		Isolate: 6, CutOff: 5, Split: 3, Deaf: 4, Mute: 4, Late: 6, Loss: 4, Reset: 4, Flap: 3, Swizzle: 3,
		Hang: 4, Stall: 5, Slow: 3, IOError: 3, NoRoom: 2, TornWrite: 3, FlipSnapshot: 1, DiskLost: 2,
		Jump: 3, Drift: 3,
		AddServer: 2, RemoveServer: 2, ReplaceServer: 2, Transfer: 5, Snapshot: 4,
	}
}

// Generate draws a schedule of about a given length with the default weights.
// Whatever the numbers, a leader dies once in it and is cut off once, and in
// every second one all lose power: nothing else shows so well what a disk has
// forgotten. In a minute there are five faults at least.
func Generate(chance *rand.Rand, length time.Duration) Schedule {
	return GenerateWith(chance, length, DefaultWeights())
}

// GenerateWith is Generate with other weights. Two faults that damage disks never
// overlap; Inject sees to it besides that no more than a minority is damaged.
func GenerateWith(chance *rand.Rand, length time.Duration, weights Weights) Schedule {
	lot := weights.lot()
	pace := 1.0
	for {
		out := generate(chance, length, lot, pace)
		if len(out) >= int(fewest*length/time.Minute) {
			return out
		}
		pace *= 0.7 // shorter pauses; below fewest it comes to an end, as faults are short
	}
}

func generate(chance *rand.Rand, length time.Duration, lot []Kind, pace float64) Schedule {
	var out Schedule
	sure := certain(chance)
	damagedUntil := time.Duration(0)
	for at := pauseMin; at < length; {
		f := draw(chance, lot)
		if len(sure) > 0 {
			f, sure = sure[0], sure[1:]
		}
		if damages(f.Kind) {
			at = max(at, damagedUntil)
			damagedUntil = at + f.For
		}
		if at >= length {
			break
		}
		out = append(out, Step{At: at.Round(time.Microsecond), Fault: f})
		if chance.IntN(overlaps) == 0 {
			at += between(chance, 0, max(f.For, 1))
		} else {
			at += f.For + time.Duration(pace*float64(between(chance, pauseMin, pauseMax)))
		}
	}
	return out
}

func certain(chance *rand.Rand) []Fault {
	sure := []Fault{
		{Kind: pick(chance, Kill, PowerCut), Target: Leader, For: between(chance, time.Second, faultMax)},
		{Kind: pick(chance, Isolate, CutOff), Target: Leader, For: between(chance, 2*time.Second, faultMax)},
	}
	chance.Shuffle(len(sure), func(i, j int) { sure[i], sure[j] = sure[j], sure[i] })
	if chance.IntN(2) == 0 {
		sure = append(sure, Fault{Kind: PowerCutAll, Target: Any, For: between(chance, faultMin, faultMax)})
	}
	for i := range sure {
		sure[i].For = sure[i].For.Round(time.Microsecond)
	}
	return sure
}

// lot holds each kind as often as it weighs, in the order of Kinds.
func (w Weights) lot() (out []Kind) {
	for _, k := range Kinds() {
		for range w[k] {
			out = append(out, k)
		}
	}
	for k := range w {
		if !slices.Contains(Kinds(), k) {
			panic(fmt.Sprintf("inside: a weight for %q, which is no kind", k))
		}
	}
	if len(out) == 0 {
		panic("inside: weights without a kind")
	}
	return out
}

func draw(chance *rand.Rand, lot []Kind) Fault {
	f := Fault{
		Kind: pick(chance, lot...), Target: pick(chance, Leader, Leader, Follower, Any),
		For: between(chance, faultMin, faultMax).Round(time.Microsecond),
	}
	by := func(low, high time.Duration) time.Duration { return between(chance, low, high).Round(time.Microsecond) }
	sign := func(d time.Duration) time.Duration { return pick(chance, d, -d) }
	switch f.Kind {
	case Late:
		f.By = by(lateMin, lateMax)
	case Hang, Stall:
		f.For = by(faultMin, stallMax)
	case Loss:
		f.By = by(50*time.Millisecond, 400*time.Millisecond)
	case Reset, Flap:
		f.By = by(50*time.Millisecond, time.Second)
	case Storm:
		f.By = by(300*time.Millisecond, 1200*time.Millisecond)
	case Slow:
		f.By = by(time.Millisecond, 300*time.Millisecond)
	case Jump:
		f.By = sign(by(time.Second, time.Hour))
	case Drift:
		f.By = sign(by(time.Millisecond, maxDrift))
	case CrashBefore, CrashAfter:
		f.N, f.What = 1+chance.IntN(writesMax), pick(chance, "", "", "append", "vote", "stable", "truncate", "snapshot")
		if f.What != "" && f.What != "append" {
			f.N = 1 // there are few of these
		}
	case Compact:
		f.By = time.Duration(chance.IntN(100))
	case RemoveServer, ReplaceServer:
		f.Target = Follower
	}
	return f
}

func pick[T any](chance *rand.Rand, from ...T) T { return from[chance.IntN(len(from))] }

// damages tells whether a kind takes away something that was on a disk, or a
// member: no more than a minority may suffer that at once.
func damages(k Kind) bool {
	switch k {
	case IOError, TornWrite, FlipSnapshot, FlipEntry, DiskLost, AddServer, RemoveServer, ReplaceServer:
		return true
	}
	return false
}
