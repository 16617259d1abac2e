package node

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
)

// ImagePruner is Images that removes, or in a dry run tells of, every image that
// is not in use, whatever room there is.
type ImagePruner interface {
	PruneUnused(ctx context.Context, dryRun bool, inUse func(manifestDigest string) bool) (names []string, freed int64, err error)
}

// PruneImages removes the images that no pod of the node uses.
func (s agentService) PruneImages(ctx context.Context, req *internalv1.PruneImagesRequest) (*internalv1.PruneImagesResponse, error) {
	pruner, ok := s.a.cfg.Images.(ImagePruner)
	if !ok {
		return nil, connect.NewError(connect.CodeUnimplemented, fmt.Errorf("node %s does not keep images", s.a.cfg.Name))
	}
	if synced, _, _ := s.a.set.known(); !synced {
		return nil, connect.NewError(connect.CodeUnavailable,
			fmt.Errorf("node %s does not know its pods yet, so it cannot tell which images they use: try again", s.a.cfg.Name))
	}
	used, err := s.a.usedImages(ctx)
	if err != nil {
		return nil, connect.NewError(connect.CodeUnavailable, err)
	}
	names, freed, err := pruner.PruneUnused(ctx, req.GetDryRun(), used)
	if err != nil {
		if errors.Is(err, context.Canceled) {
			return nil, connect.NewError(connect.CodeCanceled, err)
		}
		return nil, connect.NewError(connect.CodeInternal, fmt.Errorf("node %s: %w", s.a.cfg.Name, err))
	}
	return &internalv1.PruneImagesResponse{Images: names, Bytes: freed}, nil
}
