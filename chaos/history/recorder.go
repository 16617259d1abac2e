package history

import (
	"fmt"
	"sync"
	"time"
)

// Recorder makes records of what many goroutines do, in one order. Its methods,
// and those of the processes and operations that come from it, may be called at
// the same time, except that one process does one operation at a time.
type Recorder struct {
	clock func() time.Duration
	sink  func(Record) error

	mu sync.Mutex
	// The lock guards what follows, and the clock and the sink are called under it:
	// so the order of the records is that of their times.
	next    int64
	process int32
	err     error
}

// NewRecorder returns a recorder that gives each record to sink. The clock is
// monotonic and starts at 0 with the history. After the first error sink is not
// called again; see Err.
func NewRecorder(clock func() time.Duration, sink func(Record) error) *Recorder {
	return &Recorder{clock: clock, sink: sink}
}

// Err is the first error of the sink: a history that has one is not whole, and is
// not to be judged.
func (r *Recorder) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// Len is how many records were made.
func (r *Recorder) Len() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.next
}

// Process returns a new process, which asks server ("" when that is told with each
// operation).
func (r *Recorder) Process(server string) *Process {
	p := &Process{recorder: r, server: server}
	r.mu.Lock()
	defer r.mu.Unlock()
	p.renewLocked()
	return p
}

// Note records what has no invocation, such as a state hash, as the process 0.
// Index and Time are set here.
func (r *Recorder) Note(rec Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.addLocked(rec)
}

// Fault records that something is done to the cluster, and returns a function that
// records that it was healed.
func (r *Recorder) Fault(what string) func() {
	r.Note(Record{Type: Invoke, F: Fault, Value: what})
	return func() { r.Note(Record{Type: Unknown, F: Fault, Value: what}) }
}

func (r *Recorder) addLocked(rec Record) {
	rec.Index, rec.Time = r.next, r.clock()
	r.next++
	if r.err != nil {
		return
	}
	if err := r.sink(rec); err != nil {
		r.err = fmt.Errorf("record %d of the history (%s %s): %w", rec.Index, rec.Type, rec.F, err)
	}
}

// Process is one client of the cluster. It does one operation at a time, and after
// one that ended as Unknown it goes on under a new number.
type Process struct {
	recorder *Recorder
	// server and id are written under the recorder's lock.
	server string
	id     int32
	// open is the operation that has not ended.
	open *Op
}

// renewLocked gives the process a number that nobody had. 0 is for what is no
// process.
func (p *Process) renewLocked() {
	p.recorder.process++
	p.id = p.recorder.process
}

// ID is the number of the process now.
func (p *Process) ID() int32 {
	p.recorder.mu.Lock()
	defer p.recorder.mu.Unlock()
	return p.id
}

// Ask makes the next operations of the process ask server.
func (p *Process) Ask(server string) {
	p.recorder.mu.Lock()
	defer p.recorder.mu.Unlock()
	p.server = server
}

// Begin records that the process asks for something, before it is sent. Index,
// Time, Process, Type, and Server when it is empty, are set here. The last
// operation of the process must have ended: to begin another is a programmer's
// mistake, and panics.
func (p *Process) Begin(invoke Record) *Op {
	p.recorder.mu.Lock()
	defer p.recorder.mu.Unlock()
	if p.open != nil {
		panic(fmt.Sprintf("history: process %d begins %s while its %s has not ended", p.id, invoke.F, p.open.Answer.F))
	}
	invoke.Process, invoke.Type = p.id, Invoke
	if invoke.Server == "" {
		invoke.Server = p.server
	}
	p.recorder.addLocked(invoke)
	p.open = &Op{process: p, Answer: invoke}
	return p.open
}

// Op is an operation that has begun and not ended. It ends once, by OK, Refused or
// Unknown; to end it again is a programmer's mistake, and panics.
type Op struct {
	process *Process
	// Answer is what the end will say. It begins as the invocation; set what the
	// answer told, then call OK. Index, Time, Process and Type are set there.
	Answer Record
}

// OK ends the operation: it took effect.
func (o *Op) OK() { o.end(OK, nil) }

// Refused ends the operation: it did not take effect and never will.
func (o *Op) Refused(err error) { o.end(Refused, err) }

// Unknown ends the operation: whether it took effect, or will, is not known. The
// process goes on under a new number.
func (o *Op) Unknown(err error) { o.end(Unknown, err) }

func (o *Op) end(t Type, err error) {
	p := o.process
	p.recorder.mu.Lock()
	defer p.recorder.mu.Unlock()
	if p.open != o {
		panic(fmt.Sprintf("history: %s of process %d ended twice, now as %s", o.Answer.F, o.Answer.Process, t))
	}
	p.open = nil
	o.Answer.Process, o.Answer.Type = p.id, t
	if err != nil {
		o.Answer.Error = err.Error()
	}
	p.recorder.addLocked(o.Answer)
	if t == Unknown {
		p.renewLocked()
	}
}

// Deliver records what an open watch delivered, as of revision at; without kvs it
// is a progress mark.
func (o *Op) Deliver(kvs []KV, at int64) {
	p := o.process
	p.recorder.mu.Lock()
	defer p.recorder.mu.Unlock()
	if p.open != o || o.Answer.F != Watch {
		panic(fmt.Sprintf("history: %s of process %d is no open watch that could deliver", o.Answer.F, o.Answer.Process))
	}
	p.recorder.addLocked(Record{
		Process: p.id, Type: OK, F: Deliver, Server: o.Answer.Server, Key: o.Answer.Key, End: o.Answer.End, KVs: kvs, At: at,
	})
}
