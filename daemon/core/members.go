package core

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/gen/balsainternal/v1/internalv1connect"

	"github.com/balsa-run/balsa/apiserver"
	"github.com/balsa-run/balsa/cluster"
	"github.com/balsa-run/balsa/internal/clock"
)

const (
	// stateTimeout bounds how long a status waits for one member.
	stateTimeout = time.Second
	// leaderTimeout bounds the wait for the next leader after a hand-over.
	leaderTimeout = 3 * time.Second
	leaderPause   = 10 * time.Millisecond
)

// members is apiserver.Members and apiserver.PeerClients over the raft group and
// the gossip.
type members struct {
	cluster    *cluster.Cluster
	gossip     cluster.Gossip // may be nil
	peers      *peers
	clusterID  string
	caNotAfter time.Time
	clock      clock.Clock
}

// Status asks every member how far it is.
func (m *members) Status(ctx context.Context) (*balsav1.GetStatusResponse, error) {
	own := m.cluster.Status()
	response := &balsav1.GetStatusResponse{
		ClusterId: m.clusterID, LeaderId: own.LeaderID, Term: own.Term, FeatureLevel: own.FeatureLevel,
		CaNotAfter: timestamppb.New(m.caNotAfter),
	}
	for _, divergence := range own.Diverged {
		response.Diverged = append(response.Diverged, divergence.String())
	}
	names := m.names()
	list := m.cluster.Members()
	response.Members = make([]*balsav1.Member, len(list))
	var asked sync.WaitGroup
	for i, member := range list {
		described := describe(member, names[member.ID])
		response.Members[i] = described
		asked.Go(func() { m.fill(ctx, described, member) })
	}
	asked.Wait()
	slices.SortFunc(response.Members, func(a, b *balsav1.Member) int { return strings.Compare(a.GetName()+a.GetId(), b.GetName()+b.GetId()) })
	return response, nil
}

func describe(member cluster.Member, name string) *balsav1.Member {
	state := "follower"
	switch {
	case member.Leader:
		state = "leader"
	case !member.Voter:
		state = "learner"
	}
	return &balsav1.Member{
		Id: member.ID, Name: name, Address: member.Address, State: state, Voter: member.Voter,
		AppliedIndex: member.AppliedIndex, Version: member.Version, Problem: member.Why,
	}
}

// fill adds what the member itself says, or that it says nothing.
func (m *members) fill(ctx context.Context, described *balsav1.Member, member cluster.Member) {
	state := m.cluster.LocalState()
	if !member.Self {
		ctx, cancel := context.WithTimeout(ctx, stateTimeout)
		defer cancel()
		var err error
		if state, err = m.peers.State(ctx, member.Address, &internalv1.StateRequest{}); err != nil {
			described.State, described.Problem = "unreachable", err.Error()
			return
		}
	}
	described.AppliedIndex, described.Version = state.GetAppliedIndex(), state.GetVersion()
	for _, space := range state.GetSpaces() {
		described.Spaces = append(described.Spaces, &balsav1.MemberSpace{
			Space: space.GetSpace(), Revision: space.GetRevision(), Hash: hashAt(space),
		})
	}
}

// hashAt is the rolling hash at the space's newest revision, if it was sent.
func hashAt(space *internalv1.SpaceState) string {
	for _, entry := range space.GetHashes() {
		if entry.GetRevision() == space.GetRevision() {
			return fmt.Sprintf("%016x", entry.GetHash())
		}
	}
	return ""
}

// names are the servers' names by their ids, as far as gossip knows them.
func (m *members) names() map[string]string {
	own := m.cluster.Status()
	names := map[string]string{own.ID: own.Name}
	if m.gossip == nil {
		return names
	}
	for _, member := range m.gossip.Members() {
		if member.Role == roleServer {
			names[member.ID], _, _ = strings.Cut(member.Name, ".")
		}
	}
	return names
}

func (m *members) TransferLeadership(ctx context.Context, id string) (string, error) {
	if err := m.cluster.TransferLeadership(ctx, id); err != nil {
		return "", cluster.ToConnect(err)
	}
	return m.nextLeader(ctx)
}

// nextLeader waits until this server has heard who leads now.
func (m *members) nextLeader(ctx context.Context) (string, error) {
	for deadline := m.clock.Now().Add(leaderTimeout); ; {
		if leader := m.cluster.Status().LeaderID; leader != "" {
			return leader, nil
		}
		timer := m.clock.NewTimer(leaderPause)
		select {
		case <-timer.C():
		case <-ctx.Done():
			timer.Stop()
			return "", context.Cause(ctx)
		}
		if m.clock.Now().After(deadline) {
			return "", noLeader(cluster.ReasonNoLeader, "leadership was handed over, but no server has taken it up yet")
		}
	}
}

// RemoveMember tells whose certificate is to be refused from now on: nobody's
// when another member has the name, as after a server's disk was lost.
func (m *members) RemoveMember(ctx context.Context, id string) (server string, err error) {
	names := m.names()
	err = cluster.ToConnect(m.cluster.Remove(ctx, id, false))
	server = nameOf(names, id)
	for _, member := range m.cluster.Members() {
		if err != nil && member.ID == id || member.ID != id && nameOf(names, member.ID) == server {
			return "", err
		}
	}
	if err != nil && m.cluster.Status().Leading == 0 {
		return "", err // another server knows better
	}
	return server, err
}

// nameOf is a member's name: as gossip has it, or what its id begins with.
func nameOf(names map[string]string, id string) string {
	if name := names[id]; name != "" {
		return name
	}
	if end := strings.LastIndexByte(id, '-'); end > 0 {
		return id[:end]
	}
	return id
}

func (m *members) AddMember(ctx context.Context, member apiserver.NewMember) error {
	return cluster.ToConnect(m.cluster.AddNonvoter(ctx, member.ID, member.Address))
}

// Addresses lists this server's own address first: who asks has just reached it.
func (m *members) Addresses() (api, gossip []string) {
	for _, member := range m.cluster.Members() {
		if member.Self {
			api = slices.Insert(api, 0, member.Address)
		} else {
			api = append(api, member.Address)
		}
	}
	if m.gossip == nil {
		return api, nil
	}
	for _, member := range m.gossip.Members() {
		if member.Role == roleServer && member.Status == cluster.GossipAlive {
			gossip = append(gossip, member.GossipAddress)
		}
	}
	return api, gossip
}

// Others are clients for the other voters.
func (m *members) Others(context.Context) (map[string]internalv1connect.PeerServiceClient, error) {
	others := map[string]internalv1connect.PeerServiceClient{}
	for _, member := range m.cluster.Members() {
		if member.Voter && !member.Self {
			others[member.ID] = m.peers.at(member.Address)
		}
	}
	return others, nil
}

// Roles in the gossip.
const (
	roleServer = "server"
	roleAgent  = "agent"
)
