package core

import (
	"context"
	"time"
)

const (
	// sweepEvery is how often a server looks for blobs that no image names: pushes
	// that were given up, images that were pruned while it was away.
	sweepEvery = time.Hour
	// sweepMinAge is how old such a blob must be: a push brings blobs before it
	// names them.
	sweepMinAge = 6 * time.Hour
)

// sweep removes unnamed blobs until ctx ends. What fails is tried again.
func (s *Server) sweep(ctx context.Context) {
	for {
		timer := s.cfg.Clock.NewTimer(sweepEvery)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C():
		}
		freed, err := s.api.SweepBlobs(ctx, sweepMinAge)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			s.logger.Warn("image blobs that nothing names cannot be removed; trying again later", "error", err)
		case freed > 0:
			s.logger.Info("removed image blobs that nothing names", "bytes", freed)
		}
	}
}
