package node

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/node/pod"
	"github.com/balsa-run/balsa/node/pressure"
	"github.com/balsa-run/balsa/object"
)

const (
	// leavingMax is how long a pod that is on its way out keeps others from being
	// evicted, and emptyMax how long the removal of its files does.
	leavingMax = 30 * time.Second
	emptyMax   = 30 * time.Second
	// reclaimEvery is the shortest time between two searches for what can go.
	reclaimEvery = time.Minute
	// tellAgain is when servers that do not show what the node said are told again.
	tellAgain = time.Minute
	// evictionGrace is what an evicted pod has, unless memory or process ids are
	// short (kubelet: immediateEvictionGracePeriodSeconds).
	evictionGrace = time.Second
)

// guard looks after the node's resources: it measures, says in the Node's
// conditions what is short, has unused images and old logs removed, and ends pods
// when that is not enough. Package pressure decides.
//
// An eviction that a pod has taken up is in the pod's memory, on disk; one that
// it has not is decided anew by the next agent. Conditions stay for the calm
// period across restarts, since the Node that servers tell has them.
type guard struct {
	a       *Agent
	meter   Meter // nil: the machine cannot be measured
	survey  survey
	metrics guardMetrics
	wake    signal

	// state, podsAt and blind belong to the loop.
	state  pressure.State
	podsAt time.Time
	blind  bool // the machine could not be measured

	mu         sync.Mutex
	evictions  map[string]pod.Refusal    // guarded by mu; by uid
	leaving    map[string]time.Time      // guarded by mu; since when pods are on their way out
	empty      map[string]time.Time      // guarded by mu; since when they run no more
	gone       map[string]bool           // guarded by mu; over, and nothing on disk
	conditions []*balsav1.Condition      // guarded by mu; nil: not measured yet
	images     []*balsav1.ContainerImage // guarded by mu
	reclaiming bool                      // guarded by mu
	reclaimed  bool                      // guarded by mu; since the last plan without need
	reclaimAt  time.Time                 // guarded by mu; when it was last begun
	asked      []*balsav1.Condition      // guarded by mu; what servers were asked to record
	askedAt    time.Time                 // guarded by mu
}

func newGuard(a *Agent) *guard {
	g := &guard{
		a: a, survey: survey{pods: map[string]surveyed{}}, wake: newSignal(), metrics: newGuardMetrics(),
		evictions: map[string]pod.Refusal{}, leaving: map[string]time.Time{}, empty: map[string]time.Time{}, gone: map[string]bool{},
	}
	g.meter, _ = a.cfg.Machine.(Meter)
	return g
}

// off: nothing can be measured, or no threshold was set.
func (g *guard) off() bool { return g.meter == nil || g.a.cfg.Thresholds == (pressure.Thresholds{}) }

// run measures every usageEvery, and when something was found.
func (g *guard) run(ctx context.Context) error {
	if g.off() {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	for {
		found, err := g.rest(ctx)
		if err != nil {
			return err
		}
		g.look(ctx, found)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		g.tell()
	}
}

// rest waits for the next look, and tells whether something was found.
func (g *guard) rest(ctx context.Context) (found bool, err error) {
	timer := g.a.cfg.Clock.NewTimer(usageEvery)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false, context.Cause(ctx)
	case <-g.wake:
		return true, nil
	case <-timer.C():
		return false, nil
	}
}

// begin measures before the node registers, so that it does not come back
// without its conditions. There are no evictions yet.
func (g *guard) begin(ctx context.Context) {
	if g.off() {
		return
	}
	if u, ok := g.measure(ctx); ok {
		g.recall()
		plan := pressure.Plan(pressure.View{Usage: u, State: g.state}, g.a.cfg.Thresholds, g.a.cfg.Clock.Now())
		g.state = plan.State
		g.say(plan.Conditions)
	}
}

// recall takes the conditions that servers have recorded for seen a moment ago.
func (g *guard) recall() {
	now := g.a.cfg.Clock.Now()
	g.state.Seen = map[pressure.Condition]time.Time{}
	for _, c := range pressure.Conditions() {
		if object.IsConditionTrue(g.a.set.node(g.a.cfg.Name).GetStatus().GetConditions(), string(c)) {
			g.state.Seen[c] = now
		}
	}
}

// measure asks the machine. A failure changes nothing of what was said.
func (g *guard) measure(ctx context.Context) (pressure.Usage, bool) {
	m, err := g.meter.Usage(ctx)
	if err != nil {
		if !g.blind && ctx.Err() == nil {
			g.a.log.Error("the machine cannot be measured; pressure goes unnoticed", "error", err)
		}
		g.blind = true
		return pressure.Usage{}, false
	}
	g.blind = false
	g.metrics.measured(m)
	return pressure.Usage{
		MemoryBytes: m.MemoryBytes, MemoryAvailableBytes: m.MemoryAvailable, DiskBytes: m.DiskBytes, DiskAvailableBytes: m.DiskAvailable,
		Inodes: m.Inodes, InodesAvailable: m.InodesAvailable, Pids: m.Pids, PidsAvailable: m.PidsAvailable,
	}, true
}

// look measures, plans and acts. Pods are looked at when something is short or was
// found, and else once in surveyEvery, those with limits.
func (g *guard) look(ctx context.Context, found bool) {
	u, ok := g.measure(ctx)
	if !ok {
		return
	}
	now := g.a.cfg.Clock.Now()
	view := pressure.View{Usage: u, State: g.state, Reclaimed: g.hasReclaimed()}
	short := len(pressure.Plan(view, g.a.cfg.Thresholds, now).Conditions) > 0
	due := found || short || now.Sub(g.podsAt) >= surveyEvery || g.podsAt.After(now)
	if synced, _, _ := g.a.set.known(); synced && due {
		pods, err := g.podUsages(ctx, !short)
		if err != nil && ctx.Err() == nil {
			g.a.log.Warn("pods cannot be measured", "error", err)
		}
		view.Pods, g.podsAt = pods, now
	}
	plan := pressure.Plan(view, g.a.cfg.Thresholds, now)
	g.state = plan.State
	g.say(plan.Conditions)
	g.reclaim(ctx, plan)
	for _, e := range plan.Evict {
		g.evict(e)
	}
}

// evict asks a pod to end; its worker does the rest.
func (g *guard) evict(e pressure.Eviction) {
	grace, why := evictionGrace, string(e.For)
	if e.For == pressure.Memory || e.For == pressure.Pids {
		grace = 0
	}
	if why == "" {
		why = "EphemeralStorageLimit"
	}
	g.mu.Lock()
	g.evictions[e.Pod.UID] = pod.Refusal{Reason: pod.ReasonEvicted, Message: e.Message, Grace: &grace}
	g.leaving[e.Pod.UID] = g.a.cfg.Clock.Now()
	g.mu.Unlock()
	g.a.log.Warn("evicting a pod", "pod", e.Pod.Namespace+"/"+e.Pod.Name, "uid", e.Pod.UID, "why", e.Message)
	g.metrics.evictions.WithLabelValues(why).Inc()
	g.a.wakeAll([]string{e.Pod.UID})
}

// eviction is why a pod has to leave; nil: it has not.
func (g *guard) eviction(uid string) *pod.Refusal {
	g.mu.Lock()
	defer g.mu.Unlock()
	if why, ok := g.evictions[uid]; ok {
		return &why
	}
	return nil
}

// note hears what a step made of a pod.
func (g *guard) note(uid string, plan pod.Plan, hasVolumes bool) {
	now := g.a.cfg.Clock.Now()
	over := object.IsFinalPhase(plan.Status.GetPhase())
	g.mu.Lock()
	defer g.mu.Unlock()
	if plan.Memory.End == nil && !over {
		return
	}
	delete(g.evictions, uid) // it is in the pod's memory
	if _, known := g.leaving[uid]; !known {
		g.leaving[uid] = now
	}
	if over {
		if _, known := g.empty[uid]; !known {
			g.empty[uid] = now
		}
		g.gone[uid] = plan.Memory.Emptied || !hasVolumes
	}
}

// forget drops what is known of a pod.
func (g *guard) forget(uid string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.evictions, uid)
	delete(g.leaving, uid)
	delete(g.empty, uid)
	delete(g.gone, uid)
}

// mayCount marks a pod that is leaving, and tells whether it counts at all: not
// one that has gone, nor one that cannot be made to, for it must not keep the
// node from helping itself for ever.
func (g *guard) mayCount(p *pressure.Pod, terminating bool) bool {
	now := g.a.cfg.Clock.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	since, leaving := g.leaving[p.UID]
	if terminating && !leaving {
		since, leaving = now, true
		g.leaving[p.UID] = now
	}
	p.Leaving = leaving
	if over, known := g.empty[p.UID]; known {
		return !g.gone[p.UID] && now.Sub(over) < emptyMax
	}
	return !leaving || now.Sub(since) < leavingMax
}

// say takes the conditions over. What is said of one that holds stays as it was
// in the beginning: its figures would be new every time.
func (g *guard) say(holds map[pressure.Condition]string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	before := g.conditions
	g.conditions = nil
	for _, c := range pressure.Conditions() {
		next := condition(c, holds[c])
		old := object.FindCondition(before, next.GetType())
		switch {
		case old.GetStatus() == next.GetStatus():
			next = old
		case old != nil || next.GetStatus() == object.ConditionTrue:
			g.changed(next)
		}
		g.conditions = append(g.conditions, next)
	}
}

// condition uses the kubelet's reasons.
func condition(c pressure.Condition, message string) *balsav1.Condition {
	words := map[pressure.Condition][2]string{
		pressure.Memory: {"KubeletHasInsufficientMemory", "KubeletHasSufficientMemory"},
		pressure.Disk:   {"KubeletHasDiskPressure", "KubeletHasNoDiskPressure"},
		pressure.Pids:   {"KubeletHasInsufficientPID", "KubeletHasSufficientPID"},
	}[c]
	if message == "" {
		return &balsav1.Condition{Type: string(c), Status: object.ConditionFalse, Reason: words[1], Message: "there is enough"}
	}
	return &balsav1.Condition{Type: string(c), Status: object.ConditionTrue, Reason: words[0], Message: message}
}

func (g *guard) changed(c *balsav1.Condition) {
	holds := c.GetStatus() == object.ConditionTrue
	g.metrics.holds(c.GetType(), holds)
	level := g.a.log.Info
	if holds {
		level = g.a.log.Warn
	}
	level("a condition of the node has changed", "condition", c.GetType(), "status", c.GetStatus(), "message", c.GetMessage())
	g.a.nodeEvent(pod.Event{Warning: holds, Reason: c.GetReason(), Message: c.GetMessage()})
}

// said is what the Node's status shall have.
func (g *guard) said() ([]*balsav1.Condition, []*balsav1.ContainerImage) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.conditions), slices.Clone(g.images)
}

// tell registers again when the servers' Node does not show what is so.
func (g *guard) tell() {
	own := g.a.set.node(g.a.cfg.Name)
	if own == nil {
		return // it registers anyway, or the set has not come yet
	}
	now := g.a.cfg.Clock.Now()
	rested := now.Sub(g.askedAt) >= tellAgain || g.askedAt.After(now)
	if rested {
		g.list()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	shown := sameConditions(g.conditions, own.GetStatus().GetConditions())
	asked := shown || sameConditions(g.conditions, g.asked)
	if asked && !rested || shown && sameImages(g.images, own.GetStatus().GetImages()) {
		return
	}
	g.asked, g.askedAt = g.conditions, now
	g.a.askToRegister()
}

// list learns which images the node has, for other nodes to ask it.
func (g *guard) list() {
	lister, ok := g.a.cfg.Images.(ImageLister)
	if !ok {
		return
	}
	images, err := lister.Status()
	if err != nil {
		g.a.log.Warn("the node's images cannot be listed", "error", err)
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.images = images
}

func sameImages(want, have []*balsav1.ContainerImage) bool {
	return slices.EqualFunc(want, have, func(a, b *balsav1.ContainerImage) bool { return proto.Equal(a, b) })
}

func sameConditions(want, have []*balsav1.Condition) bool {
	return !slices.ContainsFunc(want, func(c *balsav1.Condition) bool {
		o := object.FindCondition(have, c.GetType())
		return o.GetStatus() != c.GetStatus() || o.GetReason() != c.GetReason() || o.GetMessage() != c.GetMessage()
	})
}

// guardMetrics are what operators watch.
type guardMetrics struct {
	pressure  *prometheus.GaugeVec
	available *prometheus.GaugeVec
	evictions *prometheus.CounterVec
	reclaimed *prometheus.CounterVec
	surveys   prometheus.Histogram
	orphaned  prometheus.Gauge
}

func newGuardMetrics() guardMetrics {
	vec := func(name, help, label string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, []string{label})
	}
	count := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	}
	return guardMetrics{
		pressure:  vec("balsa_agent_pressure", "Whether a condition of the node holds.", "condition"),
		available: vec("balsa_agent_available", "What the node has left: bytes of memory and disk, inodes, process ids.", "resource"),
		evictions: count("balsa_agent_evictions_total", "Pods that the node ended, by the condition, or EphemeralStorageLimit.", "reason"),
		reclaimed: count("balsa_agent_reclaimed_bytes_total", "Disk space that unused images and old logs gave back.", "what"),
		surveys: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "balsa_agent_survey_seconds", Help: "Time that it took to measure a pod's volumes.",
			Buckets: []float64{.001, .01, .1, 1, 10}}),
		orphaned: gauge("balsa_agent_orphaned_volumes", "Contents of persistent volumes whose object does not exist."),
	}
}

func (m guardMetrics) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	for _, c := range []prometheus.Collector{m.pressure, m.available, m.evictions, m.reclaimed, m.surveys, m.orphaned} {
		if err := r.Register(c); err != nil {
			return err
		}
	}
	return nil
}

func (m guardMetrics) measured(u MachineUsage) {
	for resource, n := range map[string]int64{"memory": u.MemoryAvailable, "disk": u.DiskAvailable, "inodes": u.InodesAvailable, "pids": u.PidsAvailable} {
		m.available.WithLabelValues(resource).Set(float64(n))
	}
}

func (m guardMetrics) holds(condition string, holds bool) {
	value := 0.0
	if holds {
		value = 1
	}
	m.pressure.WithLabelValues(condition).Set(value)
}
