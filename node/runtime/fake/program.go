package fake

import (
	"fmt"
	"strings"
	"time"

	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/node/runtime/simprog"
)

// container is one attempt. Its fields are guarded by the machine's lock.
type container struct {
	m      *Machine
	uid    runtime.PodUID
	pod    *pod
	cfg    runtime.ContainerConfig
	env    []string
	state  runtime.ContainerState
	ready  bool
	gone   bool  // the process does not exist any more
	term   int   // exit code on SIGTERM, or simprog.TermIgnored
	ooms   int64 // children that were killed for want of memory
	log    *logBuffer
	halted chan struct{} // closed when the process ends

	input    *input
	attached []*attached
	files    files
	ports    map[int]bool
}

// startLocked starts an attempt, or records that it could not be started.
func (m *Machine) startLocked(uid runtime.PodUID, p *pod, cfg runtime.ContainerConfig, process runtime.Process) error {
	c := &container{
		m: m, uid: uid, pod: p, cfg: cfg, env: process.Env, term: simprog.DefaultTermCode,
		log: newLogBuffer(cfg.Log.WithDefaults()), halted: make(chan struct{}),
		input: newInput(cfg), files: newFiles(), ports: map[int]bool{},
		state: runtime.ContainerState{Name: cfg.Name, Attempt: cfg.Attempt, ImageDigest: cfg.Image.Digest},
	}
	p.containers[key(cfg.Name, cfg.Attempt)] = c
	program, err := m.opt.Program(cfg, process.Args)
	now := m.opt.Clock.Now()
	if err != nil {
		c.gone = true
		close(c.halted)
		c.exitedLocked(now, runtime.ExitStatus{Code: runtime.StartErrorExitCode}, runtime.ReasonStartError, err.Error())
		return fmt.Errorf("pod %s: container %s attempt %d: %w: %w", uid, cfg.Name, cfg.Attempt, err, runtime.ErrStartFailed)
	}
	m.lastPID++
	c.state.Status, c.state.PID, c.state.StartedAt = runtime.ContainerRunning, m.lastPID, now.UTC()
	go c.interpret(program)
	return nil
}

// interpret runs the program, one step at a time, until it ends or is stopped.
func (c *container) interpret(program simprog.Program) {
	for _, step := range program {
		if !c.step(step) {
			return
		}
	}
	c.end(runtime.ExitStatus{}, 0)
}

// step does one step; false when the program is over.
func (c *container) step(s simprog.Step) bool {
	switch s.Kind {
	case simprog.Sleep:
		return c.sleep(s.Duration)
	case simprog.Forever:
		<-c.halted
		return false
	case simprog.Echo:
		return c.echo()
	case simprog.WinSize:
		return c.winSize()
	case simprog.Exit:
		c.end(runtime.ExitStatus{Code: s.Number}, 0)
		return false
	case simprog.OOM:
		if c.cfg.Resources.MemoryLimitBytes > 0 {
			c.end(killed(runtime.SIGKILL), 1)
			return false
		}
		return true
	}
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	if c.gone {
		return false
	}
	c.effectLocked(s)
	return true
}

// effectLocked does the steps that take no time.
func (c *container) effectLocked(s simprog.Step) {
	switch s.Kind {
	case simprog.Out:
		c.printLocked(runtime.Stdout, s.Text)
	case simprog.Err:
		c.printLocked(runtime.Stderr, s.Text)
	case simprog.Env:
		c.printLocked(runtime.Stdout, s.Text+"="+lookup(c.env, s.Text))
	case simprog.Lines:
		for i := range s.Number {
			c.printLocked(runtime.Stdout, fmt.Sprint("line ", i))
		}
	case simprog.Cat:
		c.printLocked(runtime.Stdout, c.files.content(s.Text))
	case simprog.Listen:
		c.ports[s.Number] = true
	case simprog.Ready, simprog.Unready:
		c.ready = s.Kind == simprog.Ready
		c.m.changedLocked(c.uid)
	case simprog.Term:
		c.term = s.Number
	case simprog.OOMChild:
		if c.cfg.Resources.MemoryLimitBytes > 0 {
			c.ooms++
		}
	}
	c.wakeLocked()
}

func lookup(env []string, name string) string {
	for _, entry := range env {
		if value, ok := strings.CutPrefix(entry, name+"="); ok {
			return value
		}
	}
	return ""
}

func (c *container) sleep(d time.Duration) bool {
	timer := c.m.opt.Clock.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C():
		return true
	case <-c.halted:
		return false
	}
}

func killed(sig runtime.Signal) runtime.ExitStatus {
	return runtime.ExitStatus{Code: 128 + int(sig), Signal: sig}
}

func (c *container) end(exit runtime.ExitStatus, oomKills int64) {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	c.endLocked(exit, oomKills)
}

// endLocked ends the process. Without a shim nobody records how.
func (c *container) endLocked(exit runtime.ExitStatus, oomKills int64) {
	if c.gone {
		return
	}
	c.stop()
	if c.pod.shimDead {
		return
	}
	c.exitedLocked(c.m.opt.Clock.Now(), exit, runtime.ReasonFor(exit, oomKills+c.ooms), "")
	c.m.changedLocked(c.uid)
}

// stop ends the process and nothing else.
func (c *container) stop() {
	if !c.gone {
		c.gone, c.ready = true, false
		close(c.halted)
	}
}

func (c *container) exitedLocked(now time.Time, exit runtime.ExitStatus, reason runtime.Reason, message string) {
	c.state.Status, c.state.PID, c.state.FinishedAt = runtime.ContainerExited, 0, now.UTC()
	c.state.Exit, c.state.Reason, c.state.Message = exit, reason, message
	c.wakeLocked()
}

func (c *container) wakeLocked() { c.log.wakeAll() }

func (c *container) signalLocked(sig runtime.Signal) {
	switch {
	case sig == runtime.SIGKILL:
		c.endLocked(killed(sig), 0)
	case sig == runtime.SIGTERM && c.term != simprog.TermIgnored:
		c.endLocked(runtime.ExitStatus{Code: c.term}, 0)
	}
}
