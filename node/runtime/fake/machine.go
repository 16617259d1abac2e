// Package fake is a node without a kernel: pods, containers, logs and exit
// codes behave as those of package runc do, and pass the same suite, but the
// programs are interpreted (see package simprog) and time is an injected clock.
//
// A Machine is what survives a crash of the agent; a Runtime is one agent's
// handle on it. Nothing here is random, and nothing happens but in answer to a
// call or the clock, so a simulation replays. It builds for wasip1.
package fake

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/node/runtime/simprog"
)

// Op names a call, for Options.Inject.
type Op string

// The calls that can be made to fail.
const (
	OpRunPod       Op = "RunPod"
	OpRunContainer Op = "RunContainer"
	OpSignal       Op = "Signal"
	OpRemovePod    Op = "RemovePod"
	OpExec         Op = "Exec"
)

// Options configure a machine.
type Options struct {
	Clock clock.Clock
	// Program chooses what a command does. Nil takes simprog.Parse: any other
	// program "is not there" and fails to start.
	Program func(c runtime.ContainerConfig, argv []string) (simprog.Program, error)
	// Inject, unless nil, is asked before each call; its error is returned and
	// nothing is done.
	Inject func(op Op, uid runtime.PodUID) error
}

// Machine is a simulated node. Its methods may be called from any goroutine.
type Machine struct {
	opt Options

	mu      sync.Mutex
	pods    map[runtime.PodUID]*pod // guarded by mu
	current *Runtime                // guarded by mu; nil while no agent runs
	lastPID int                     // guarded by mu
}

// firstPID leaves the small numbers to what runs on every machine.
const firstPID = 1000

// NewMachine returns a machine on which nothing runs.
func NewMachine(opt Options) *Machine {
	if opt.Program == nil {
		opt.Program = func(_ runtime.ContainerConfig, argv []string) (simprog.Program, error) { return simprog.Parse(argv) }
	}
	return &Machine{opt: opt, pods: map[runtime.PodUID]*pod{}, lastPID: firstPID}
}

// pod is guarded by the machine's lock.
type pod struct {
	config     runtime.PodConfig
	createdAt  time.Time
	sandbox    runtime.SandboxStatus
	message    string
	shimDead   bool
	containers map[string]*container // by name and attempt
}

// Open is the start of the agent: the handle before it, if any, is dead, and
// pods that lost their shim meanwhile read lost.
func (m *Machine) Open() *Runtime {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.current != nil {
		m.current.closeLocked()
	}
	m.current = &Runtime{m: m, changes: runtime.NewChanges(), done: make(chan struct{})}
	for _, uid := range slices.Sorted(maps.Keys(m.pods)) {
		m.current.changes.Add(uid)
		if p := m.pods[uid]; p.shimDead && p.sandbox == runtime.SandboxReady {
			m.loseLocked(uid, p, runtime.ReasonShimLost, shimDied)
		}
	}
	return m.current
}

const (
	shimDied   = "the pod's shim died; its containers were killed"
	nodeReboot = "the node restarted"
)

// KillShim kills a pod's shim. An agent that runs cleans up at once; without
// one the containers run on, and nobody sees how they end.
func (m *Machine) KillShim(uid runtime.PodUID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	p, ok := m.pods[uid]
	if !ok {
		return fmt.Errorf("kill the shim of pod %s: %w", uid, runtime.ErrPodNotFound)
	}
	p.shimDead = true
	if m.current != nil {
		m.loseLocked(uid, p, runtime.ReasonShimLost, shimDied)
	}
	return nil
}

// Reboot restarts the machine: the agent and everything else is dead, and the
// next Open finds its pods lost.
func (m *Machine) Reboot() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.current != nil {
		m.current.closeLocked()
	}
	for _, uid := range slices.Sorted(maps.Keys(m.pods)) {
		m.loseLocked(uid, m.pods[uid], runtime.ReasonNodeRebooted, nodeReboot)
	}
}

// Ready tells whether the newest attempt of a container runs and has said that
// it is ready: what a probe of a simulated agent asks.
func (m *Machine) Ready(uid runtime.PodUID, name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	p, ok := m.pods[uid]
	if !ok {
		return false
	}
	newest, ok := p.state(uid).Container(name)
	return ok && newest.Status == runtime.ContainerRunning && p.containers[key(name, newest.Attempt)].ready
}

// Processes counts what runs, whatever the agent believes: the truth for a
// checker that looks for leaks and double runs. Keys are "uid/container".
func (m *Machine) Processes() map[string]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	running := map[string]int{}
	for uid, p := range m.pods {
		for _, c := range p.containers {
			if !c.gone {
				running[string(uid)+"/"+c.state.Name]++
			}
		}
	}
	return running
}

// loseLocked kills what runs and records exits that nobody saw.
func (m *Machine) loseLocked(uid runtime.PodUID, p *pod, reason runtime.Reason, message string) {
	p.shimDead, p.sandbox, p.message = true, runtime.SandboxLost, message
	for _, k := range slices.Sorted(maps.Keys(p.containers)) {
		c := p.containers[k]
		c.stop()
		if c.state.Status == runtime.ContainerExited {
			continue
		}
		exit := runtime.ExitStatus{Code: runtime.LostExitCode, Signal: runtime.SIGKILL}
		c.exitedLocked(m.opt.Clock.Now(), exit, reason, message)
	}
	m.changedLocked(uid)
}

func (m *Machine) changedLocked(uid runtime.PodUID) {
	if m.current != nil {
		m.current.changes.Add(uid)
	}
}

func (p *pod) state(uid runtime.PodUID) runtime.PodState {
	s := runtime.PodState{
		UID: uid, Namespace: p.config.Namespace, Name: p.config.Name, Annotations: maps.Clone(p.config.Annotations),
		CgroupPath: "/fake/" + string(uid), CreatedAt: p.createdAt, Sandbox: p.sandbox, Message: p.message,
	}
	if !p.config.HostNetwork {
		s.NetNS = "/fake/netns/" + string(uid)
	}
	for _, c := range p.containers {
		s.Containers = append(s.Containers, c.state)
	}
	runtime.SortContainers(s.Containers)
	return s
}

func key(name string, attempt int) string { return fmt.Sprintf("%s/%d", name, attempt) }
