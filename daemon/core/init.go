package core

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"

	"github.com/balsa-run/balsa/apiserver"
	"github.com/balsa-run/balsa/cluster"
	"github.com/balsa-run/balsa/pki"
)

const (
	initRetry          = 100 * time.Millisecond
	defaultPodCIDR     = "10.244.0.0/16"
	defaultServiceCIDR = "10.96.0.0/12"
	defaultDomain      = "cluster.local"
	nodePrefix         = 24
)

// Settings are what a cluster is made with and keeps for ever.
type Settings struct {
	PodCIDR     string // addresses of pods; empty: 10.244.0.0/16
	ServiceCIDR string // addresses of Services; empty: 10.96.0.0/12
	DNSDomain   string // empty: cluster.local
	// Identities were given certificates before there was a cluster to remember
	// them: its first server and its first user.
	Identities []*pki.Credential
}

// Initialise makes this server the first of a new cluster and writes what the
// cluster begins with. It may be called again after a crash at any point: what
// was done is not done twice, and a cluster that has its settings keeps them.
func (s *Server) Initialise(ctx context.Context, settings Settings) error {
	if s.cluster.Phase() == cluster.PhaseUninitialised {
		if err := s.cluster.Bootstrap(); err != nil {
			return err
		}
	}
	command, err := s.genesis(settings)
	if err != nil {
		return err
	}
	for {
		_, err := s.cluster.Propose(ctx, command)
		if err == nil {
			return nil
		}
		s.logger.Info("the cluster's first write has to wait", "error", err)
		timer := s.cfg.Clock.NewTimer(initRetry)
		select {
		case <-timer.C():
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("write the cluster's settings: %w: %w", context.Cause(ctx), err)
		}
	}
}

// genesis is the first command; it changes nothing where it was applied.
func (s *Server) genesis(settings Settings) (*internalv1.Command, error) {
	record := &internalv1.ClusterRecord{
		ClusterId: s.cfg.Bundle.CA.ClusterID(), NodePrefix: nodePrefix,
		PodCidr:     cmp.Or(settings.PodCIDR, defaultPodCIDR),
		ServiceCidr: cmp.Or(settings.ServiceCIDR, defaultServiceCIDR),
		DnsDomain:   cmp.Or(settings.DNSDomain, defaultDomain),
	}
	var identities []*internalv1.IdentityRecord
	for _, credential := range settings.Identities {
		identity, hash := credential.Identity(), credential.KeyHash()
		identities = append(identities, &internalv1.IdentityRecord{
			Name: identity.Name, Role: string(identity.Role), Serial: identity.Serial,
			NotAfter: timestamppb.New(credential.Expires()), KeyHash: hash[:],
		})
	}
	return apiserver.InitCommand(record, identities, s.cfg.Clock.Now())
}
