package main

import "syscall"

// One attempt of a container, from the request that starts it to the record of
// its exit.
//
//	starting --helper reports a pid, exits 0--> running --pidfd--> exited
//	    \--helper fails---------------------------------------------/
const (
	stateStarting = "starting"
	stateRunning  = "running"
	stateExited   = "exited"
)

const (
	// startErrorCode is runtime.StartErrorExitCode.
	startErrorCode = 128
	// maxReportBytes bounds what the helper may report.
	maxReportBytes = 4 << 10
	// exitRecordBytes are set aside on disk before a container starts, so that
	// a full disk cannot swallow its exit code.
	exitRecordBytes = 4 << 10
	maxOOMFileBytes = 4 << 10
)

type container struct {
	key     string
	name    string
	attempt int64
	dir     string // below the pod's directory, which is the working directory
	oomFile string

	state    string
	pid      int
	pidfd    int
	exitFD   int // the file that becomes the exit record
	helper   int // pid, while starting
	helperFD int // its pidfd
	reportFD int
	report   []byte

	started, finished  int64 // nanoseconds since 1970
	code, signal, ooms int64
	message            string
	durable            bool

	log      *logFile
	out, err stream // with a terminal, out is it and err unused

	// What the program reads from; see attach_linux.go.
	stdin     bool // it has an input
	stdinOnce bool
	tty       int // 1: the streams are a terminal
	stdinFD   int // the pipe; -1 with a terminal, or once it is closed
	consoleFD int // where the terminal comes from, until it has come
	pending   []byte
	ending    bool // the input ends once pending is written
	endTyped  bool // the terminal's reader was told so
	attached  []*conn

	// starters are answered once the start has succeeded or failed.
	starters []starter
}

type starter struct {
	conn *conn
	id   string
}

// describe appends a container's state to a line.
func (c *container) describe(l *line) *line {
	l.str("name", c.name).num("attempt", c.attempt).str("state", c.state)
	l.num("pid", int64(c.pid)).num("started", c.started)
	if c.state != stateExited {
		return l
	}
	l.num("finished", c.finished).num("code", c.code).num("signal", c.signal).num("oom", c.ooms)
	if !c.durable {
		l.num("volatile", 1)
	}
	return l.str("msg", c.message)
}

// newContainer opens everything that a start needs, or nothing.
func newContainer(r *request) (*container, string) {
	attempt, ok1 := r.number("attempt")
	logMax, ok2 := r.number("logmax")
	logFiles, ok3 := r.number("logfiles")
	stdin, _ := r.number("stdin")
	once, _ := r.number("stdinonce")
	tty, _ := r.number("tty")
	c := &container{
		stdin: stdin == 1, stdinOnce: once == 1, tty: int(tty), stdinFD: -1, consoleFD: -1,
		name: r.get("name"), attempt: attempt, dir: r.get("dir"), oomFile: r.get("oomfile"), state: stateStarting,
		pidfd: -1, exitFD: -1, helperFD: -1, reportFD: -1, out: stream{fd: -1, tag: " stdout "}, err: stream{fd: -1, tag: " stderr "},
	}
	if !ok1 || !ok2 || !ok3 || c.name == "" || c.dir == "" || logMax <= 0 || logFiles <= 0 {
		return nil, "start needs name, attempt, dir, log, logmax and logfiles"
	}
	c.key = containerKey(c.name, attempt)
	var err error
	if c.log, err = openLog(r.get("log"), logMax, int(logFiles)); err != nil {
		return nil, "cannot open the log " + r.get("log") + ": " + err.Error()
	}
	if err := c.reserveExitRecord(); err != nil {
		c.log.close()
		return nil, "cannot set aside the exit record: " + err.Error()
	}
	return c, ""
}

func containerKey(name string, attempt int64) string {
	return string(appendInt(append([]byte(name), '/'), attempt))
}

func (c *container) reserveExitRecord() error {
	const flags = syscall.O_CREAT | syscall.O_WRONLY | syscall.O_TRUNC | syscall.O_CLOEXEC
	fd, err := syscall.Open(c.dir+"/exit.tmp", flags, 0o640)
	if err != nil {
		return err
	}
	if err := syscall.Fallocate(fd, 0, 0, exitRecordBytes); err != nil && err != syscall.EOPNOTSUPP {
		syscall.Close(fd)
		return err
	}
	c.exitFD = fd
	return nil
}

// forkHelper starts "balsa-runc run DIR" with the container's streams and a pipe
// of its own on which it reports; with a terminal also a socket (runcwire:
// RunConsoleFD) on which the terminal comes back.
func (c *container) forkHelper(helper string) error {
	null, err := syscall.Open("/dev/null", syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	theirs, ours := []int{null}, []int{}
	defer func() { closeAll(theirs) }()
	add := func(open func() (int, int, error)) (near, far int) {
		if err != nil {
			return -1, null
		}
		if near, far, err = open(); err != nil {
			return -1, null
		}
		ours, theirs = append(ours, near), append(theirs, far)
		return near, far
	}
	in, out, errOut, console := null, null, null, -1
	switch {
	case c.tty != 0:
		c.consoleFD, console = add(socketPair)
	default:
		if c.stdin {
			c.stdinFD, in = add(inputPipe)
		}
		c.out.fd, out = add(pipe)
		c.err.fd, errOut = add(pipe)
	}
	var report int
	c.reportFD, report = add(pipe)
	if err == nil {
		err = c.fork(helper, in, out, errOut, report, console)
	}
	if err != nil {
		closeAll(ours)
		c.stdinFD, c.out.fd, c.err.fd, c.reportFD, c.consoleFD = -1, -1, -1, -1, -1
	}
	return err
}

func (c *container) fork(helper string, in, out, errOut, report, console int) error {
	files := []uintptr{uintptr(in), uintptr(out), uintptr(errOut), uintptr(report)}
	if console >= 0 {
		files = append(files, uintptr(console))
	}
	pid, err := syscall.ForkExec(helper, []string{"balsa-runc", "run", c.dir}, &syscall.ProcAttr{
		Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, Files: files,
	})
	if err != nil {
		return err
	}
	c.helper = pid
	if c.helperFD, err = pidfdOpen(pid); err != nil {
		syscall.Kill(pid, syscall.SIGKILL)
		waitChild(pid)
	}
	return err
}

// pipe returns a pipe whose reading end does not block.
func pipe() (r, w int, err error) {
	var p [2]int
	if err := syscall.Pipe2(p[:], syscall.O_CLOEXEC); err != nil {
		return -1, -1, err
	}
	return p[0], p[1], syscall.SetNonblock(p[0], true)
}

// inputPipe returns a pipe whose writing end does not block, that end first.
func inputPipe() (w, r int, err error) {
	var p [2]int
	if err := syscall.Pipe2(p[:], syscall.O_CLOEXEC); err != nil {
		return -1, -1, err
	}
	return p[1], p[0], syscall.SetNonblock(p[1], true)
}

// socketPair returns two ends of which the first does not block.
func socketPair() (near, far int, err error) {
	p, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, -1, err
	}
	return p[0], p[1], syscall.SetNonblock(p[0], true)
}

func closeAll(fds []int) {
	for _, fd := range fds {
		syscall.Close(fd)
	}
}

// readReport takes what the helper has written: "pid=N" once the container
// exists, then "ok" once its program was executed, or "error=TEXT".
func (c *container) readReport() (pid int, failure string) {
	buf := make([]byte, maxReportBytes)
	for len(c.report) < maxReportBytes {
		n, err := read(c.reportFD, buf[:maxReportBytes-len(c.report)])
		if err != nil || n <= 0 {
			break
		}
		c.report = append(c.report, buf[:n]...)
	}
	return parseReport(string(c.report))
}

// parseReport: a report without "ok" is a failure, whatever else it says.
func parseReport(report string) (pid int, failure string) {
	failure = "the helper ended without a report"
	for len(report) > 0 {
		text := report
		report = ""
		for i := range len(text) {
			if text[i] == '\n' {
				text, report = text[:i], text[i+1:]
				break
			}
		}
		kv, ok := parseKeyValue(text)
		n, isNumber := parseInt(kv.value)
		switch {
		case text == "ok":
			failure = ""
		case ok && kv.key == "pid" && isNumber && n > 1 && n < 1<<31:
			pid = int(n)
		case ok && kv.key == "error":
			failure = kv.value
		}
	}
	if pid == 0 && failure == "" {
		failure = "the helper reported no process"
	}
	return pid, failure
}

// ended fills in how the container's first process ended.
func (c *container) ended(status syscall.WaitStatus) {
	c.state, c.finished = stateExited, nowNanos()
	switch {
	case status.Signaled():
		c.signal = int64(status.Signal())
		c.code = 128 + c.signal
	default:
		c.code = int64(status.ExitStatus())
	}
	c.ooms = oomKills(c.oomFile)
	c.pid = 0
}

func (c *container) failed(message string) {
	c.state, c.finished, c.code, c.message, c.pid = stateExited, nowNanos(), startErrorCode, message, 0
}

// oomKills reads the count of OOM kills from a cgroup's memory.oom_control
// (version 1) or memory.events (version 2).
func oomKills(path string) int64 {
	if path == "" {
		return 0
	}
	content, err := readSmall(path, maxOOMFileBytes)
	if err != nil {
		return 0
	}
	return parseOOMKills(string(content))
}

func parseOOMKills(content string) int64 {
	const key = "oom_kill "
	for start := 0; start+len(key) <= len(content); start++ {
		atLine := start == 0 || content[start-1] == '\n'
		if !atLine || content[start:start+len(key)] != key {
			continue
		}
		end := start + len(key)
		for end < len(content) && content[end] != '\n' {
			end++
		}
		n, _ := parseInt(content[start+len(key) : end])
		return n
	}
	return 0
}

// record writes the exit durably, before anybody is told: into the space set
// aside, synced, then renamed.
func (c *container) record() {
	text := c.describe(newLine("exit")).num("v", 1).end()
	if len(text) > exitRecordBytes {
		c.message = "(message too long)"
		text = c.describe(newLine("exit")).num("v", 1).end()
	}
	err := writeAll(c.exitFD, text)
	if err == nil {
		err = syscall.Ftruncate(c.exitFD, int64(len(text)))
	}
	if err == nil {
		err = syscall.Fsync(c.exitFD)
	}
	syscall.Close(c.exitFD)
	c.exitFD = -1
	if err == nil {
		err = syscall.Rename(c.dir+"/exit.tmp", c.dir+"/exit")
	}
	if err == nil {
		err = syncDir(c.dir)
	}
	c.durable = err == nil
}

// recordStart lets an agent that finds the shim gone know that and when the
// container ran. It need not survive the machine, so it is not synced.
func (c *container) recordStart() {
	text := c.describe(newLine("started")).num("v", 1).end()
	fd, err := syscall.Open(c.dir+"/started.tmp", syscall.O_CREAT|syscall.O_WRONLY|syscall.O_TRUNC|syscall.O_CLOEXEC, 0o640)
	if err != nil {
		return
	}
	err = writeAll(fd, text)
	syscall.Close(fd)
	if err == nil {
		syscall.Rename(c.dir+"/started.tmp", c.dir+"/started")
	}
}
