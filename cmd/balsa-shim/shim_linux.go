package main

import "syscall"

// shim is the program: an epoll loop over a listener, its connections, and for
// every container two log pipes and a pidfd. One thread, no locks.
type shim struct {
	ep         int
	sources    map[int]source
	generation int32
	containers map[string]*container
	watchers   []*conn
	attached   int // clients that are attached to a container
	helper     string
	uid        string
	buf        []byte // shared by all reads; nothing keeps a part of it
	quitting   bool
}

// source is what a descriptor in the epoll set stands for.
type source struct {
	// generation tells a descriptor from an earlier one of the same number
	// whose event is still in the batch.
	generation int32
	ready      func(events uint32)
}

const (
	readBufBytes = 32 << 10
	maxEvents    = 32
	// reapEveryMS is how often strays are reaped that no pidfd stands for:
	// children that a killed helper left behind.
	reapEveryMS   = 30_000
	maxContainers = 256
)

func newShim(uid, helper string) (*shim, error) {
	ep, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	return &shim{
		ep: ep, uid: uid, helper: helper, buf: make([]byte, readBufBytes),
		sources: map[int]source{}, containers: map[string]*container{},
	}, nil
}

// watch calls ready when a descriptor can be read.
func (s *shim) watch(fd int, ready func(events uint32)) error {
	s.generation++
	ev := syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(fd), Pad: s.generation}
	if err := syscall.EpollCtl(s.ep, syscall.EPOLL_CTL_ADD, fd, &ev); err != nil {
		return err
	}
	s.sources[fd] = source{s.generation, ready}
	return nil
}

// rewatch changes which events a descriptor waits for.
func (s *shim) rewatch(fd int, events uint32) {
	ev := syscall.EpollEvent{Events: events, Fd: int32(fd), Pad: s.sources[fd].generation}
	syscall.EpollCtl(s.ep, syscall.EPOLL_CTL_MOD, fd, &ev)
}

// drop takes a descriptor out of the set and closes it.
func (s *shim) drop(fd int) {
	if fd < 0 {
		return
	}
	syscall.EpollCtl(s.ep, syscall.EPOLL_CTL_DEL, fd, nil)
	delete(s.sources, fd)
	syscall.Close(fd)
}

// run serves until a client has asked it to quit and has been answered.
func (s *shim) run() error {
	var events [maxEvents]syscall.EpollEvent
	for !s.quitting {
		n, err := syscall.EpollWait(s.ep, events[:], reapEveryMS)
		if err != nil && err != syscall.EINTR {
			return err
		}
		for _, ev := range events[:max(n, 0)] {
			src, ok := s.sources[int(ev.Fd)]
			if ok && src.generation == ev.Pad {
				src.ready(ev.Events)
			}
		}
		if n == 0 {
			s.reapStrays()
		}
	}
	return nil
}

// reapStrays reaps children that no pidfd stands for. It looks first and then
// waits for that child by name: a wait for any could take the exit code of a
// container from its owner.
func (s *shim) reapStrays() {
	known := map[int]bool{}
	for _, c := range s.containers {
		known[c.pid], known[c.helper] = true, true
	}
	for {
		pid := peekZombie()
		if pid == 0 || known[pid] {
			return
		}
		waitChild(pid)
	}
}

// start begins an attempt; the answer comes when the helper is done.
func (s *shim) start(from *conn, r *request) {
	attempt, _ := r.number("attempt")
	if c, ok := s.containers[containerKey(r.get("name"), attempt)]; ok {
		s.startedBefore(c, from, r.id)
		return
	}
	if len(s.containers) >= maxContainers {
		from.refuse(r.id, "limit", "the pod holds too many attempts: forget some")
		return
	}
	c, problem := newContainer(r)
	if problem != "" {
		from.refuse(r.id, "bad-request", problem)
		return
	}
	s.containers[c.key] = c
	c.starters = append(c.starters, starter{from, r.id})
	if err := c.forkHelper(s.helper); err != nil {
		s.startFailed(c, "cannot run the helper "+s.helper+": "+err.Error())
		return
	}
	s.watchContainer(c)
}

func (s *shim) startedBefore(c *container, from *conn, id string) {
	if c.state == stateStarting {
		c.starters = append(c.starters, starter{from, id})
		return
	}
	s.answerStart(c, starter{from, id})
}

// watchContainer enters the container's streams and the helper's pidfd. A
// descriptor that epoll refuses would leave the start unanswered, so it fails it.
func (s *shim) watchContainer(c *container) {
	var failed error
	enter := func(fd int, ready func(events uint32)) {
		if fd < 0 {
			return
		}
		if err := s.watch(fd, ready); err != nil {
			failed = err
		}
	}
	enter(c.out.fd, func(uint32) { s.pump(c, &c.out) })
	enter(c.err.fd, func(uint32) { s.pump(c, &c.err) })
	enter(c.stdinFD, func(events uint32) { s.inputReady(c, events) })
	enter(c.consoleFD, func(uint32) { s.takeTerminal(c) })
	enter(c.helperFD, func(uint32) { s.helperDone(c) })
	if c.stdinFD >= 0 && failed == nil {
		s.rewatch(c.stdinFD, 0) // errors are told anyway
	}
	if failed != nil {
		pidfdSignal(c.helperFD, int(syscall.SIGKILL))
		s.helperDone(c)
	}
}

// pump moves one read from a pipe to the log.
func (s *shim) pump(c *container, from *stream) bool {
	n, err := read(from.fd, s.buf)
	if err == syscall.EAGAIN {
		return false
	}
	if err != nil || n <= 0 {
		s.endStream(c, from)
		return false
	}
	c.log.add(from, s.buf[:n])
	c.show(from, s.buf[:n])
	return true
}

func (s *shim) endStream(c *container, from *stream) {
	if from.fd < 0 {
		return
	}
	c.log.finish(from)
	s.drop(from.fd)
	from.fd = -1
}

// helperDone looks at what the helper has left behind.
func (s *shim) helperDone(c *container) {
	waitChild(c.helper)
	s.drop(c.helperFD)
	c.helper, c.helperFD = 0, -1
	pid, failure := c.readReport()
	syscall.Close(c.reportFD)
	c.reportFD, c.report = -1, nil
	if pid == 0 {
		s.startFailed(c, failure)
		return
	}
	s.adopt(c, pid, failure)
}

// adopt takes over the container's first process, which became a child of
// this one when the helper exited. After a failure that left the process
// behind, it is killed, and the start has failed once it is gone.
func (s *shim) adopt(c *container, pid int, failure string) {
	if failure != "" && !isChild(pid) {
		s.startFailed(c, failure)
		return
	}
	fd, err := pidfdOpen(pid)
	if err != nil {
		s.startFailed(c, "cannot watch process "+string(appendInt(nil, int64(pid)))+": "+err.Error())
		return
	}
	c.pid, c.pidfd, c.message = pid, fd, failure
	watchErr := s.watch(fd, func(uint32) { s.containerDone(c) })
	if failure != "" || watchErr != nil {
		pidfdSignal(fd, int(syscall.SIGKILL))
	}
	if watchErr != nil {
		c.message = "cannot watch the container: " + watchErr.Error()
		s.containerDone(c)
		return
	}
	if failure != "" {
		return
	}
	c.state, c.started = stateRunning, nowNanos()
	c.recordStart()
	s.answerStarters(c)
	s.tell(c)
}

func (s *shim) startFailed(c *container, message string) {
	c.failed(message)
	s.over(c)
}

func (s *shim) containerDone(c *container) {
	status, ok := waitChild(c.pid)
	s.drop(c.pidfd)
	c.pidfd = -1
	if c.state == stateStarting {
		s.startFailed(c, c.message)
		return
	}
	if !ok {
		status = syscall.WaitStatus(syscall.SIGKILL)
		c.message = "the exit status was taken by somebody else"
	}
	c.ended(status)
	s.over(c)
}

// over empties the pipes, closes the log, records the exit, then tells it.
// Whoever reads of the exit finds every line of the log on disk.
func (s *shim) over(c *container) {
	s.takeTerminal(c)
	s.drop(c.consoleFD)
	c.consoleFD = -1
	for _, from := range []*stream{&c.out, &c.err} {
		for from.fd >= 0 && s.pump(c, from) {
		}
		s.endStream(c, from)
	}
	c.log.flush()
	c.log.close()
	c.record()
	s.answerStarters(c)
	s.tell(c)
	s.dismiss(c)
}

func (s *shim) answerStarters(c *container) {
	for _, st := range c.starters {
		s.answerStart(c, st)
	}
	c.starters = nil
}

func (s *shim) answerStart(c *container, to starter) {
	if c.state == stateExited && c.started == 0 {
		to.conn.send(c.describe(newLine(to.id).word("error").str("why", "start-failed")).end())
		return
	}
	to.conn.send(c.describe(newLine(to.id).word("ok")).end())
}

// tell sends a container's state to every watcher.
func (s *shim) tell(c *container) {
	for _, w := range append([]*conn(nil), s.watchers...) {
		w.send(c.describe(newLine("*").word("container")).end())
	}
}
