package inside

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Kind is a way in which a machine or its links fail.
type Kind string

const (
	// Kill ends the process; its connections end at once.
	Kill Kind = "kill"
	// PowerCut ends the process, and the others hear nothing until it is back.
	PowerCut Kind = "power cut"
	// PowerCutAll is that for all machines at once.
	PowerCutAll Kind = "power cut all"
	// Restart stops the process in good order, and starts it again.
	Restart Kind = "restart"
	// Isolate holds what goes between a server and the others, both ways. Its
	// clients reach it.
	Isolate Kind = "isolate"
	// CutOff is Isolate from the clients as well.
	CutOff Kind = "cut off"
	// Deaf holds what the others send to a server, Mute what it sends.
	Deaf Kind = "deaf"
	Mute Kind = "mute"
	// Late delays what the others send to a server by By, each link by its own
	// share of it: answers prove less than they seem to.
	Late Kind = "late"
	// Hang lets no write to a server's disk end.
	Hang Kind = "hang"
	// Stall is Hang with CutOff: all that a frozen machine shows to others. What
	// it does not model: the clocks of its process run on.
	Stall Kind = "stall"
)

// Kinds are all kinds.
func Kinds() []Kind {
	return []Kind{Kill, PowerCut, PowerCutAll, Restart, Isolate, CutOff, Deaf, Mute, Late, Hang, Stall}
}

// Target says which server a fault is done to. It is decided at that moment.
type Target string

const (
	Leader   Target = "leader"
	Follower Target = "follower"
	Any      Target = "any"
)

// Fault is one thing that goes wrong for a while.
type Fault struct {
	Kind   Kind
	Target Target
	For    time.Duration
	By     time.Duration // of Late
}

func (f Fault) String() string {
	text := fmt.Sprintf("%s %s for %v", f.Kind, f.Target, f.For)
	if f.By != 0 {
		text += fmt.Sprintf(" by up to %v", f.By)
	}
	return text
}

// Step is a fault and when it begins, counted from the beginning of the schedule.
type Step struct {
	At time.Duration
	Fault
}

// Schedule is what goes wrong in a run, in order of time. Steps may overlap.
type Schedule []Step

// Bounds of what Generate draws. A stall must end before a server gives up on
// its disk (cluster.DefaultStallFatal).
const (
	faultMin = 200 * time.Millisecond
	faultMax = 4 * time.Second
	stallMax = 7 * time.Second
	lateMin  = 20 * time.Millisecond
	lateMax  = 800 * time.Millisecond
	pauseMin = 500 * time.Millisecond
	pauseMax = 4 * time.Second
	// One fault in overlaps begins while the one before is still there.
	overlaps = 4
)

// Generate draws a schedule of about a given length. Whatever the numbers, a
// leader dies once in it and is cut off once, and in every second one all lose
// power: nothing else shows so well what a disk has forgotten.
func Generate(chance *rand.Rand, length time.Duration) Schedule {
	var out Schedule
	sure := []Fault{
		{Kind: pick(chance, Kill, PowerCut), Target: Leader, For: between(chance, time.Second, faultMax)},
		{Kind: pick(chance, Isolate, CutOff), Target: Leader, For: between(chance, 2*time.Second, faultMax)},
	}
	chance.Shuffle(len(sure), func(i, j int) { sure[i], sure[j] = sure[j], sure[i] })
	if chance.IntN(2) == 0 {
		sure = append(sure, Fault{Kind: PowerCutAll, Target: Any, For: between(chance, faultMin, faultMax)})
	}
	for at := pauseMin; at < length; {
		f := draw(chance)
		if len(sure) > 0 {
			f, sure = sure[0], sure[1:]
		}
		out = append(out, Step{At: at.Round(time.Microsecond), Fault: f})
		if chance.IntN(overlaps) == 0 {
			at += between(chance, 0, f.For)
		} else {
			at += f.For + between(chance, pauseMin, pauseMax)
		}
	}
	return out
}

func draw(chance *rand.Rand) Fault {
	f := Fault{
		Kind: pick(chance, Kinds()...), Target: pick(chance, Leader, Leader, Follower, Any),
		For: between(chance, faultMin, faultMax).Round(time.Microsecond),
	}
	switch f.Kind {
	case Late:
		f.By = between(chance, lateMin, lateMax).Round(time.Microsecond)
	case Hang, Stall:
		f.For = between(chance, faultMin, stallMax).Round(time.Microsecond)
	}
	return f
}

func pick[T any](chance *rand.Rand, from ...T) T { return from[chance.IntN(len(from))] }

// Inject does a fault and returns what undoes it, or nil when there was nobody
// to do it to: no leader for a fault of the leader, or a server that is off.
func (w *World) Inject(f Fault, chance *rand.Rand) (heal func()) {
	if f.Kind == PowerCutAll {
		return w.powerCutAll(f)
	}
	s := w.target(f.Target, chance)
	if s == nil || s.Core() == nil {
		w.Trace.Sayf("", "no %s for %s", f.Target, f.Kind)
		return nil
	}
	w.Trace.Sayf(s.Name, "FAULT %s", f)
	undo := w.inject(s, f, chance)
	return func() {
		undo()
		w.Trace.Sayf(s.Name, "healed: %s", f.Kind)
	}
}

func (w *World) inject(s *Server, f Fault, chance *rand.Rand) (undo func()) {
	switch f.Kind {
	case Kill:
		return w.crash(s, true)
	case PowerCut:
		return both(w.hold(s, true, true, true), w.crash(s, false))
	case Restart:
		return w.restart(s)
	case Isolate:
		return w.hold(s, true, true, false)
	case CutOff:
		return w.hold(s, true, true, true)
	case Deaf:
		return w.hold(s, true, false, false)
	case Mute:
		return w.hold(s, false, true, false)
	case Late:
		return w.late(s, f.By, chance)
	case Hang:
		return s.hang()
	case Stall:
		return both(w.hold(s, true, true, true), s.hang())
	}
	panic("inside: no fault " + string(f.Kind))
}

// both undoes the second first.
func both(first, second func()) func() { return func() { second(); first() } }

func (w *World) powerCutAll(f Fault) (heal func()) {
	w.Trace.Sayf("", "FAULT %s for %v", f.Kind, f.For)
	var undo []func()
	for _, s := range w.servers {
		if s.Core() != nil {
			undo = append(undo, w.inject(s, Fault{Kind: PowerCut}, nil))
		}
	}
	return func() {
		for _, each := range undo {
			each()
		}
		w.Trace.Sayf("", "healed: %s", f.Kind)
	}
}

func (w *World) target(t Target, chance *rand.Rand) *Server {
	leader := w.Leader()
	switch t {
	case Leader:
		return leader
	case Follower:
		rest := slices.DeleteFunc(slices.Clone(w.servers), func(s *Server) bool { return s == leader })
		return pick(chance, rest...)
	}
	return pick(chance, w.servers...)
}

func (w *World) crash(s *Server, loud bool) (undo func()) {
	restore, err := s.Crash(loud)
	if err != nil {
		w.Wrongf("crash: %v", err)
		return func() {}
	}
	return func() {
		restore()
		w.start(s)
	}
}

// stopLimit is what a server may take to stop in good order, with or without the
// others.
const stopLimit = 30 * time.Second

func (w *World) restart(s *Server) (undo func()) {
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
		defer cancel()
		if err := s.Stop(ctx); err != nil {
			w.Wrongf("restart: %v", err)
		}
	}()
	return func() {
		<-stopped
		w.start(s)
	}
}

// start does nothing for a server that another fault's end has started.
func (w *World) start(s *Server) {
	if s.Core() != nil {
		return
	}
	if err := s.Start(); err != nil {
		w.Wrongf("after a crash: %v", err)
	}
}

// hold holds what a server receives from the other servers, what it sends to
// them, and both for clients.
func (w *World) hold(s *Server, in, out, clients bool) (undo func()) {
	var heals []func()
	for _, other := range w.hosts() {
		isClient := strings.HasSuffix(other, clientPort)
		if other == s.address || isClient && !clients {
			continue
		}
		if in {
			heals = append(heals, w.cut(other, s.address))
		}
		if out {
			heals = append(heals, w.cut(s.address, other))
		}
	}
	return func() {
		for _, heal := range heals {
			heal()
		}
	}
}

func (w *World) late(s *Server, by time.Duration, chance *rand.Rand) (undo func()) {
	var heals []func()
	for _, other := range w.Addresses() {
		if other != s.address {
			heals = append(heals, w.slow(other, s.address, by/2+time.Duration(chance.Int64N(int64(by/2)+1))))
		}
	}
	return func() {
		for _, heal := range heals {
			heal()
		}
	}
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
