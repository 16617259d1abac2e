package cluster

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
)

// monitor asks the other members for their state, compares it with our own, and
// on the leader carries out the membership and feature plans.
type monitor struct {
	c     *Cluster
	began time.Time // of run's goroutine

	mu       sync.Mutex
	peers    map[string]*peerRecord // guarded by mu
	diverged []Divergence           // guarded by mu
	blocker  string                 // guarded by mu
}

// peerRecord is what we know of another member.
type peerRecord struct {
	state     *internalv1.StateResponse
	contact   time.Time // of the last answer
	wellSince time.Time // zero while it does not answer
	goneSince time.Time // zero while it does
	refuses   bool      // it does not take our certificate, as far as we heard
}

func newMonitor(c *Cluster) *monitor {
	return &monitor{c: c, peers: make(map[string]*peerRecord)}
}

func (m *monitor) run() {
	m.began = m.c.cfg.Clock.Now()
	for m.c.pause(m.c.ctx, m.c.cfg.Timing.Monitor) {
		if _, stopped := m.c.running(); stopped != nil {
			continue
		}
		m.poll()
		m.compare()
		if epoch, _, err := m.c.ready(); err == nil {
			m.lead(epoch)
		}
	}
}

// poll asks every other member at once.
func (m *monitor) poll() {
	ctx, cancel := context.WithTimeout(m.c.ctx, max(m.c.cfg.Timing.Monitor, m.c.cfg.Timing.Confirm))
	defer cancel()
	servers := m.others()
	m.forgetAllBut(servers)
	var all sync.WaitGroup
	said := make([]error, len(servers))
	for i, server := range servers {
		all.Go(func() {
			state, err := m.c.cfg.Peers.State(ctx, string(server.Address), &internalv1.StateRequest{})
			if err == nil && state.GetMemberId() != string(server.ID) {
				state = nil // another server has this address now
			}
			m.note(string(server.ID), state, m.c.cfg.Clock.Now())
			m.noteRefusal(string(server.ID), err)
			said[i] = err
		})
	}
	all.Wait()
	var expelled error
	if i := slices.IndexFunc(said, func(err error) bool { return ReasonOf(err) == ReasonRemoved }); i >= 0 {
		expelled = said[i]
	}
	m.c.heed(m.standing(servers, expelled))
}

// noteRefusal remembers who does not take our certificate. A refusal is often
// seen as a connection that breaks, so only an answer takes it back.
func (m *monitor) noteRefusal(id string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch p := m.peers[id]; {
	case err == nil:
		p.refuses = false
	case ReasonOf(err) == ReasonIdentity:
		p.refuses = true
	}
}

func (m *monitor) others() []raft.Server {
	servers := m.c.raft.Load().GetConfiguration().Configuration().Servers
	return slices.DeleteFunc(slices.Clone(servers), func(s raft.Server) bool { return string(s.ID) == m.c.cfg.ID })
}

func (m *monitor) note(id string, state *internalv1.StateResponse, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.peers[id]
	if p == nil {
		p = &peerRecord{}
		m.peers[id] = p
	}
	if state == nil {
		p.wellSince = time.Time{}
		if p.goneSince.IsZero() {
			p.goneSince = now
		}
		return
	}
	if p.wellSince.IsZero() {
		p.wellSince = now
	}
	p.state, p.contact, p.goneSince = state, now, time.Time{}
}

func (m *monitor) forgetAllBut(servers []raft.Server) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id := range m.peers {
		if !slices.ContainsFunc(servers, func(s raft.Server) bool { return string(s.ID) == id }) {
			delete(m.peers, id)
		}
	}
}

// view is the input of the membership plan.
func (m *monitor) view() MembershipView {
	v := MembershipView{Policy: m.c.cfg.Policy}
	r := m.c.raft.Load()
	if r == nil {
		return v
	}
	v.LastIndex = r.LastIndex()
	gossip := m.gossip()
	applied, _ := m.c.machine.progress.now()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, server := range r.GetConfiguration().Configuration().Servers {
		id := string(server.ID)
		member := MemberView{ID: id, Address: string(server.Address), Voter: server.Suffrage == raft.Voter, Self: id == m.c.cfg.ID}
		if g, ok := gossip[id]; ok {
			member.Gossip, member.GossipAddress = g.Status, g.Address
		}
		if p := m.peers[id]; p != nil {
			member.Contact, member.WellSince, member.GoneSince = p.contact, p.wellSince, p.goneSince
			member.Applied = p.state.GetAppliedIndex()
		}
		if member.Self {
			member.Applied, member.Contact = applied, m.c.cfg.Clock.Now()
		}
		v.Members = append(v.Members, member)
	}
	return v
}

func (m *monitor) gossip() map[string]GossipMember {
	out := make(map[string]GossipMember)
	if m.c.cfg.Gossip == nil {
		return out
	}
	for _, member := range m.c.cfg.Gossip.Members() {
		if member.ID != "" {
			out[member.ID] = member
		}
	}
	return out
}

func (m *monitor) said(id string) (version string, maxFeatureLevel uint32) {
	if id == m.c.cfg.ID {
		return m.c.cfg.Version, m.c.cfg.MaxFeatureLevel
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.peers[id]; p != nil {
		return p.state.GetVersion(), p.state.GetMaxFeatureLevel()
	}
	return "", 0
}

func (m *monitor) findings() ([]Divergence, string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.diverged), m.blocker
}

// compare looks for members whose data differs. The odd one out reports itself,
// records that its disk must not be used again, and stops.
func (m *monitor) compare() {
	if m.c.cfg.Spaces == nil {
		return
	}
	others, self := voters(m.c.raft.Load().GetConfiguration().Configuration(), m.c.cfg.ID)
	found := CompareStates(m.answers(), len(others)+self)
	m.mu.Lock()
	before := m.diverged
	m.diverged = found
	m.mu.Unlock()
	m.c.cfg.Metrics.Set("cluster_diverged_spaces", float64(len(found)))
	for _, d := range found {
		m.c.log.Error("members differ", "divergence", d.String())
	}
	if d, stop := mustStop(m.c.cfg.ID, before, found); stop {
		m.c.stopDiverged(d)
	}
}

// answers are the states of this poll and our own.
func (m *monitor) answers() []*internalv1.StateResponse {
	states := []*internalv1.StateResponse{m.c.LocalState()}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.peers {
		if p.goneSince.IsZero() && p.state != nil {
			states = append(states, p.state)
		}
	}
	return states
}

// lead carries out what the plans say, one change of the configuration at most.
func (m *monitor) lead(epoch uint64) {
	ctx, cancel := context.WithTimeout(m.c.ctx, m.c.cfg.Timing.Propose)
	defer cancel()
	if change, ok := PlanMembership(m.view(), m.c.cfg.Clock.Now()); ok {
		m.c.log.Info("membership", "change", change.String())
		if err := m.c.carryOut(ctx, change); err != nil {
			m.c.log.Warn("membership", "change", change.String(), "error", err)
		}
	}
	m.raiseFeatureLevel(ctx, epoch)
}

func (c *Cluster) carryOut(ctx context.Context, change MembershipChange) error {
	r, err := c.leaderRaft()
	if err != nil {
		return err
	}
	id, address, wait := raft.ServerID(change.ID), raft.ServerAddress(change.Address), remaining(ctx, c.cfg.Timing.Propose)
	switch change.Kind {
	case ChangePromote, ChangeMove:
		if change.Kind == ChangeMove && !c.isVoter(r, change.ID) {
			return c.changed(ctx, r.AddNonvoter(id, address, 0, wait))
		}
		return c.changed(ctx, r.AddVoter(id, address, 0, wait))
	case ChangeRemove:
		return c.changed(ctx, r.RemoveServer(id, 0, wait))
	}
	return refused(ReasonInvalid, "no such change: %s", change.Kind)
}

func (c *Cluster) isVoter(r *raft.Raft, id string) bool {
	_, self := voters(r.GetConfiguration().Configuration(), id)
	return self == 1
}

// featureSpace is where the store keeps the level.
const featureSpace = "objects"

func (m *monitor) raiseFeatureLevel(ctx context.Context, epoch uint64) {
	current := m.c.cfg.FeatureLevel()
	target, raise, blocker := PlanFeatureLevel(current, m.c.cfg.MaxFeatureLevel, m.features())
	m.mu.Lock()
	m.blocker = blocker
	m.mu.Unlock()
	if !raise {
		return
	}
	m.c.log.Info("raising the feature level", "from", current, "to", target)
	_, err := m.c.Propose(ctx, &internalv1.Command{Space: featureSpace, Epoch: epoch,
		Op: &internalv1.Command_SetFeatureLevel{SetFeatureLevel: &internalv1.SetFeatureLevel{Level: target}}})
	if err != nil {
		m.c.log.Warn("raising the feature level", "error", err)
	}
}

func (m *monitor) features() []MemberFeature {
	servers := m.others()
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []MemberFeature
	for _, server := range servers {
		p := m.peers[string(server.ID)]
		known := p != nil && p.state != nil && p.goneSince.IsZero()
		f := MemberFeature{ID: string(server.ID), Known: known}
		if known {
			f.Max = p.state.GetMaxFeatureLevel()
		}
		out = append(out, f)
	}
	return out
}
