package core

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"

	"github.com/balsa-run/balsa/cluster"
	"github.com/balsa-run/balsa/etcdapi"
	"github.com/balsa-run/balsa/pki"
	"github.com/balsa-run/balsa/store"
)

// Etcd is the configuration of etcd's API over this server: everything but the
// archiver and who is calling, which depend on the machine and the network.
func (s *Server) Etcd() etcdapi.Config {
	return etcdapi.Config{
		Space:   s.store.Space(store.SpaceEtcd),
		Backend: etcdBackend{s.cluster},
		Leases:  etcdLeases{&leaseTimes{local: s.lessor, cluster: s.cluster, peers: s.peers}},
		Group:   &etcdGroup{cluster: s.cluster, members: s.members, objects: s.store.Space(store.SpaceObjects), clusterID: number(s.cfg.Bundle.CA.ClusterID())},
		Attend:  s.cfg.Guard.Watch,
		Clock:   s.cfg.Clock,
		Logger:  s.logger.With("part", "etcd"),
		Audit:   s.cfg.Logger.With("log", "audit"),
		Scrape:  s.cfg.Extra["/metrics"],
		Metrics: etcdMetrics{s.cfg.Metrics},
	}
}

// EtcdIdentify tells who calls over a TLS connection.
func (s *Server) EtcdIdentify() func(context.Context) (pki.Identity, error) {
	return etcdapi.IdentifyTLS(s.cfg.Bundle.CA.ClusterID(), s.cfg.Guard.Check)
}

// etcdBackend is the raft group as etcd's API sees it.
type etcdBackend struct{ cluster *cluster.Cluster }

func (b etcdBackend) Propose(ctx context.Context, command *internalv1.Command) (*internalv1.CommandResult, error) {
	result, err := b.cluster.Propose(ctx, command)
	return result, etcdError(ctx, err)
}

func (b etcdBackend) ReadBarrier(ctx context.Context) error {
	_, err := b.cluster.ReadIndex(ctx)
	return etcdError(ctx, err)
}

// etcdLeases asks the leader for the time of leases.
type etcdLeases struct{ times *leaseTimes }

func (l etcdLeases) LeaseTime(ctx context.Context, req *internalv1.LeaseTimeRequest) (*internalv1.LeaseTimeResponse, error) {
	response, err := l.times.LeaseTime(ctx, req)
	return response, etcdError(ctx, err)
}

// etcdError says what the group fails with in the words of etcdapi. The caller's own
// end comes first: what the group makes of it is of no interest to him.
func etcdError(ctx context.Context, err error) error {
	var e *cluster.Error
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case !errors.As(err, &e):
		return err
	}
	sentinel := etcdSentinel(e)
	if sentinel == nil {
		return err
	}
	return fmt.Errorf("%w: %w", sentinel, err)
}

// etcdSentinel is nil for what is a mistake of ours. Whether something may have been done
// comes first: clients of etcd try again where nothing was.
func etcdSentinel(e *cluster.Error) error {
	if e.Class == cluster.Unknown {
		if e.Reason == cluster.ReasonLeadershipLost {
			return etcdapi.ErrLeaderLost
		}
		return etcdapi.ErrTimeout // the answer was lost, whatever the reason
	}
	switch e.Reason {
	case cluster.ReasonQueueFull:
		return etcdapi.ErrTooManyRequests
	case cluster.ReasonTooLarge:
		return etcdapi.ErrTooLarge
	case cluster.ReasonInvalid, cluster.ReasonFeatureLevel:
		return nil
	case cluster.ReasonStaleEpoch, cluster.ReasonLeadershipLost:
		return etcdapi.ErrLeaderChanged
	case cluster.ReasonDeadline:
		return etcdapi.ErrTimeout
	case cluster.ReasonStopped, cluster.ReasonFailed, cluster.ReasonNotInitialised, cluster.ReasonRemoved, cluster.ReasonIdentity:
		return etcdapi.ErrStopped
	}
	return etcdapi.ErrNoLeader
}

// etcdGroup is the servers as etcd's API shows them.
type etcdGroup struct {
	cluster   *cluster.Cluster
	members   *members
	objects   *store.Space
	clusterID uint64
}

// number is an id as etcd has them: the beginning of its SHA-256, never 0.
func number(id string) uint64 {
	if id == "" {
		return 0
	}
	sum := sha256.Sum256([]byte(id))
	return max(binary.BigEndian.Uint64(sum[:8]), 1)
}

func (g *etcdGroup) Status() etcdapi.Status {
	st := g.cluster.Status()
	out := etcdapi.Status{
		ClusterID: g.clusterID, MemberID: number(st.ID), LeaderID: number(st.LeaderID), Term: st.Term,
		CommittedIndex: st.CommitIndex, Applied: st.AppliedIndex, Learner: !st.Voter, Version: st.Version,
	}
	for _, d := range st.Diverged {
		out.Problems = append(out.Problems, "balsa: "+d.String())
	}
	if st.LowSpace {
		out.Problems = append(out.Problems, fmt.Sprintf("balsa: the disk of the raft log has %d bytes left", st.FreeSpace))
	}
	if st.DiskStuck >= diskSlow {
		out.Problems = append(out.Problems, fmt.Sprintf("balsa: a write to the raft log has been under way for %v", st.DiskStuck))
	}
	if st.Failure != nil {
		out.Problems = append(out.Problems, "balsa: this server has stopped: "+st.Failure.Error())
	}
	return out
}

// diskSlow is how long a write may take before a status tells it.
const diskSlow = time.Second

// Members are the raft group's. Where etcd's clients reach each is in its record,
// also while it is down; one that does not serve etcd's API has no client URL.
func (g *etcdGroup) Members() []etcdapi.Member {
	names, view := g.members.names(), g.objects.View()
	var out []etcdapi.Member
	for _, m := range g.cluster.Members() {
		record := serverRecord(view, m.ID)
		member := etcdapi.Member{
			ID: number(m.ID), Name: cmp.Or(record.GetName(), nameOf(names, m.ID)),
			PeerURLs: []string{"https://" + m.Address}, Learner: !m.Voter,
		}
		if address := record.GetEtcdAddress(); address != "" {
			member.ClientURLs = []string{"https://" + address}
		}
		out = append(out, member)
	}
	slices.SortFunc(out, func(a, b etcdapi.Member) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

func (g *etcdGroup) MoveLeader(ctx context.Context, id uint64) error {
	for _, m := range g.cluster.Members() {
		if number(m.ID) != id {
			continue
		}
		if err := g.cluster.TransferLeadership(ctx, m.ID); err != nil {
			return etcdError(ctx, err)
		}
		_, err := g.members.nextLeader(ctx)
		return etcdError(ctx, cluster.FromConnect(err))
	}
	return fmt.Errorf("there is no member %x", id)
}

// etcdMetrics counts what etcd's API does.
type etcdMetrics struct{ cluster.Metrics }

func (m etcdMetrics) Handled(method string, code codes.Code, took time.Duration) {
	label := cluster.Label{Name: "method", Value: method}
	m.Metrics.Add("etcd_calls", 1, label, cluster.Label{Name: "code", Value: code.String()})
	m.Metrics.Observe("etcd_call_seconds", took.Seconds(), label)
}

func (m etcdMetrics) Watches(change int) {
	if change > 0 {
		m.Metrics.Add("etcd_watches_opened", float64(change))
		return
	}
	m.Metrics.Add("etcd_watches_closed", float64(-change))
}

func (m etcdMetrics) Events(sent int) { m.Metrics.Add("etcd_events", float64(sent)) }

// prefixServers holds one ServerRecord a server.
const prefixServers = "system/servers/"

// serverRecord is what a server has said of itself, empty when it has said nothing.
func serverRecord(view store.View, id string) *internalv1.ServerRecord {
	record := &internalv1.ServerRecord{}
	if kv, ok := view.Get(prefixServers + id); ok && proto.Unmarshal(kv.Value, record) != nil {
		return &internalv1.ServerRecord{}
	}
	return record
}
